"""EOL's media manifest and iNaturalist's open data, in their own columns; ranks out of their trees."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from pipeline.sources.reading import check_source, digest_inputs
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.joining import make_lineages

Read = Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]

# ---- trees


def lineages(*taxa: tuple[str, str | None, str, str]) -> dict[str, dict[str, Any]]:
    connection = duckdb.connect()
    columns = [pa.array(column, pa.string()) for column in zip(*taxa, strict=True)]
    connection.register("tree", pa.table(columns, ["id", "parent", "rank", "name"]))
    make_lineages(connection)
    rows = connection.sql("SELECT * FROM lineages").to_arrow_table().to_pylist()
    return {row["id"]: {name: value for name, value in row.items() if value is not None} for row in rows}


def test_ranks_come_from_ancestors_with_holes() -> None:
    found = lineages(
        ("1", None, "stateofmatter", "Life"),
        ("2", "1", "kingdom", "Plantae"),
        ("3", "2", "subphylum", "Angiospermae"),
        ("4", "3", "Family", "Fagaceae"),
        ("5", "4", "genus", "Quercus"),
        ("6", "5", "species", "Quercus robur"),
        ("7", "6", "subspecies", "Quercus robur robur"),
        ("8", "99", "genus", "Orphan"),
    )
    ranks = {"kingdom": "Plantae", "family": "Fagaceae", "genus": "Quercus", "species": "Quercus robur"}
    assert found["7"] == {"id": "7", "name": "Quercus robur robur", "level": 6, **ranks}
    assert found["8"]["genus"] == "Orphan"
    assert "kingdom" not in found["1"]


def test_a_circle_has_no_end_and_is_left() -> None:
    found = lineages(("1", "2", "genus", "A"), ("2", "1", "family", "B"), ("3", "3", "kingdom", "C"))
    assert list(found) == ["3"]


# ---- EOL

MANIFEST = (
    "EOL content ID,EOL page ID,Medium Source URL,EOL Full-Size Copy URL,License Name,Copyright Owner\n"
    '1,1151323,https://a.org/1.jpg,https://content.eol.org/1.jpg,cc-by-nc-sa-3.0,"Myers, Phil"\n'
    "2,7,,https://content.eol.org/2.jpg,public domain,\n"
    "3,1151323,https://a.org/3.jpg,https://content.eol.org/3.jpg,cc-by-nd-4.0,Ann\n"
    "broken\n"
    "4,8,https://a.org/4.jpg,https://content.eol.org/4.jpg,cc-0,Bob\n"
)
TAXA = (
    "taxonID\tsource\tparentNameUsageID\tscientificName\ttaxonRank\tcanonicalName\teolID\n"
    "EOL-1\tx\t\tPlantae\tkingdom\tPlantae\t281\n"
    "EOL-2\tx\tEOL-1\tQuercus L.\tgenus\tQuercus\t49148\n"
    'EOL-3\tx\tEOL-2\tQuercus robur L. "sensu"\tspecies\tQuercus robur\t1151323\n'
    "EOL-4\tx\t\tAnimalia\tkingdom\tAnimalia\t8\n"
    "EOL-5\tx\tEOL-4\tagain\tspecies\t\t1151323\n"
)


def eol(folder: Path, **changes: Any) -> SourceSettings:
    (folder / "manifest").mkdir(exist_ok=True)
    (folder / "manifest" / "media_manifest_1.csv").write_text(MANIFEST)
    (folder / "taxon.tab").write_text(TAXA.replace('"', ""))
    values = {"name": "eol", "domain": "plant", "eol": {"path": str(folder / "manifest"), **changes}}
    return parse_settings(values, SourceSettings, "test")


def test_the_manifest_alone(tmp_path: Path, read: Read) -> None:
    rows, lost = read(eol(tmp_path))
    assert rows[0] == {
        "sample_id": rows[0]["sample_id"],
        "source": "eol",
        "domain": "plant",
        "record_key": "https://content.eol.org/1.jpg",
        "row_number": 1,
        "url": "https://content.eol.org/1.jpg",
        "licence": "cc-by-nc-sa-3.0",
        "rights_holder": "Myers, Phil",
        "reference_url": "https://eol.org/media/1",
        "extra": '{"eol_page_id":"1151323","source_url":"https://a.org/1.jpg"}',
    }
    assert [row["row_number"] for row in rows] == [1, 2, 3, 5]
    assert lost == [(4, "malformed_row", None, "manifest: broken")]
    rows, _ = read(eol(tmp_path, address="source"))
    assert [row["url"] for row in rows][:2] == ["https://a.org/1.jpg", "https://content.eol.org/2.jpg"]
    assert rows[0]["record_key"] == "https://content.eol.org/1.jpg"


def test_pages_get_their_names(tmp_path: Path, read: Read) -> None:
    where = {"kingdom": ["plantae"], "licence": ["CC-BY-NC-SA", "CC0-1.0"]}
    rows, lost = read(eol(tmp_path, taxa=str(tmp_path / "taxon.tab"), where=where))
    assert [row["record_key"] for row in rows] == ["https://content.eol.org/1.jpg"]
    assert {name: value for name, value in rows[0].items() if name.startswith("taxon_")} == {
        "taxon_kingdom": "Plantae",
        "taxon_genus": "Quercus",
        "taxon_species": "Quercus robur",
        "taxon_scientific_name": "Quercus robur L. sensu",
    }
    assert lost == [
        (2, "where_kingdom", "https://content.eol.org/2.jpg", None),
        (3, "where_licence", "https://content.eol.org/3.jpg", "cc-by-nd-4.0"),
        (4, "malformed_row", None, "manifest: broken"),
        (5, "where_kingdom", "https://content.eol.org/4.jpg", "Animalia"),
    ]


def test_eol_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`where` on kingdom needs `taxa`"):
        check_source(eol(tmp_path, where={"kingdom": ["Plantae"]}))
    with pytest.raises(ConfigError, match=r"`where` knows licence and kingdom, .*, not 'country'"):
        check_source(eol(tmp_path, where={"country": ["DE"]}))
    given = eol(tmp_path)
    (tmp_path / "manifest" / "media_manifest_2.csv").write_text("EOL content ID,EOL page ID\n")
    with pytest.raises(ConfigError, match=r"sources\.eol: .*media_manifest_2\.csv has no column"):
        check_source(given)


# ---- iNaturalist

PHOTOS = [
    [
        "photo_uuid",
        "photo_id",
        "observation_uuid",
        "observer_id",
        "extension",
        "license",
        "width",
        "height",
        "position",
    ],
    ["u1", "11", "o1", "9", "jpg", "CC-BY-NC", "2048", "1536", "0"],
    ["u2", "12", "o1", "9", "jpeg", "CC0", "800", "600", "1"],
    ["u3", "13", "o2", "8", "png", "CC-BY", "640", "640", "0"],
    ["u4", "14", "o3", "9", "jpg", "CC-BY", "640", "640", "0"],
    ["u5", "15", "gone", "9", "jpg", "CC-BY", "640", "640", "0"],
    ["u1", "11", "o4", "9", "jpg", "CC-BY-NC", "2048", "1536", "0"],
]
OBSERVATIONS = [
    [
        "observation_uuid", "observer_id", "latitude", "longitude", "positional_accuracy", "taxon_id", "quality_grade",
        "observed_on", "anomaly_score",
    ],
    ["o1", "9", "47.1", "8.5", "5", "6", "research", "2024-05-01", ""],
    ["o2", "8", "", "", "", "3", "research", "", ""],
    ["o3", "9", "", "", "", "6", "needs_id", "2024-05-02", ""],
    ["o4", "9", "", "", "", "", "research", "", ""],
]  # fmt: skip
INAT_TAXA = [
    ["taxon_id", "ancestry", "rank_level", "rank", "name", "active"],
    ["1", "", "70", "kingdom", "Plantae", "true"],
    ["3", "", "70", "kingdom", "Animalia", "true"],
    ["5", "1/4", "20", "genus", "Quercus", "true"],
    ["4", "1", "30", "family", "Fagaceae", "true"],
    ["6", "1/4/5", "10", "species", "Quercus robur", "true"],
]
OBSERVERS = [["observer_id", "login", "name"], ["9", "ann", "Ann Quist"], ["8", "bob", ""]]


def write_tables(folder: Path, ending: str = ".csv.gz") -> Path:
    folder.mkdir(exist_ok=True)
    tables: dict[str, Sequence[Sequence[str]]] = {
        "photos": PHOTOS,
        "observations": OBSERVATIONS,
        "taxa": INAT_TAXA,
        "observers": OBSERVERS,
    }
    for name, rows in tables.items():
        content = "".join("\t".join(row) + "\n" for row in rows).encode()
        (folder / f"{name}{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    return folder


def inaturalist(path: Path, **changes: Any) -> SourceSettings:
    values = {"name": "inat", "domain": "plant", "inaturalist": {"path": str(path), **changes}}
    return parse_settings(values, SourceSettings, "test")


@pytest.mark.parametrize("ending", [".csv.gz", ".csv"])
def test_photos_with_taxon_owner_and_address(tmp_path: Path, read: Read, ending: str) -> None:
    given = inaturalist(write_tables(tmp_path / "open", ending), extra=["observed_on", "position"])
    rows, lost = read(given)
    assert rows[0] == {
        "sample_id": rows[0]["sample_id"],
        "source": "inat",
        "domain": "plant",
        "record_key": "11",
        "group_id": "o1",
        "row_number": 1,
        "url": "https://inaturalist-open-data.s3.amazonaws.com/photos/11/medium.jpg",
        "taxon_kingdom": "Plantae",
        "taxon_family": "Fagaceae",
        "taxon_genus": "Quercus",
        "taxon_species": "Quercus robur",
        "taxon_scientific_name": "Quercus robur",
        "licence": "CC-BY-NC",
        "rights_holder": "Ann Quist",
        "creator": "Ann Quist",
        "reference_url": "https://www.inaturalist.org/observations/o1",
        "extra": rows[0]["extra"],
    }
    assert json.loads(rows[0]["extra"]) == {"observed_on": "2024-05-01", "position": "0"}
    assert [(row["record_key"], row["row_number"], row["creator"]) for row in rows] == [
        ("11", 1, "Ann Quist"),
        ("12", 2, "Ann Quist"),
        ("13", 3, "bob"),
        ("11", 6, "Ann Quist"),  # the same photo again: ingest keeps the first
    ]
    assert rows[1]["url"].endswith("/photos/12/medium.jpeg")
    assert lost == [(4, "where_quality_grade", "14", "needs_id"), (5, "no_record", "15", "gone")]


def test_filters_by_rank_licence_and_column(tmp_path: Path, read: Read) -> None:
    folder = write_tables(tmp_path / "open")
    grades = {"quality_grade": ["research", "needs_id"]}
    where = {"kingdom": ["Plantae"], "licence": ["CC0-1.0", "CC-BY"], **grades}
    rows, lost = read(inaturalist(folder, where=where, size="original"))
    assert [(row["record_key"], row["url"].rpartition("/")[2]) for row in rows] == [
        ("12", "original.jpeg"),
        ("14", "original.jpg"),
    ]
    assert (3, "where_kingdom", "13", "Animalia") in lost
    assert (1, "where_licence", "11", "CC-BY-NC") in lost
    rows, _ = read(inaturalist(folder, where={"observed_on": ["2024-05-02"], **grades}))
    assert [row["record_key"] for row in rows] == ["14"]


def test_inaturalist_mistakes(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "open")
    with pytest.raises(ConfigError, match=r"no 'country'; they have licence, kingdom, .*observed_on.*width"):
        check_source(inaturalist(folder, where={"country": ["DE"]}))
    (folder / "taxa.csv.gz").unlink()
    with pytest.raises(ConfigError, match=r"has no taxa\.csv\.gz; give the folder of the four tables"):
        check_source(inaturalist(folder))


def test_digests_cover_every_table(tmp_path: Path) -> None:
    hashed: list[str] = []

    def hash_file(path: str) -> str:
        hashed.append(Path(path).name)
        return "x"

    digest_inputs(inaturalist(write_tables(tmp_path / "open")), hash_file)
    digest_inputs(eol(tmp_path, taxa=str(tmp_path / "taxon.tab")), hash_file)
    assert hashed == [
        *(f"{name}.csv.gz" for name in ("photos", "observations", "taxa", "observers")),
        "media_manifest_1.csv",
        "taxon.tab",
    ]
