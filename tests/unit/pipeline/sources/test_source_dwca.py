"""A GBIF archive comes out right, row by row; meta.xml is obeyed; a row that a filter drops keeps its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from darwin_core import DC, DWC, GBIF, describe, gbif_files, meta_xml, tab_table, write_folder, write_zip

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from pipeline.sources.biology.archive import parse_meta
from pipeline.sources.reading import check_source, digest_inputs
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables import delimited

BY = "http://creativecommons.org/licenses/by/4.0/legalcode"
BY_NC = "http://creativecommons.org/licenses/by-nc/4.0/"
PLANT = {
    "kingdom": "Plantae",
    "phylum": "Tracheophyta",
    "class": "Magnoliopsida",
    "order": "Fagales",
    "family": "Fagaceae",
    "genus": "Quercus",
    "species": "Quercus robur",
    "scientificName": "Quercus robur L.",
    "basisOfRecord": "HUMAN_OBSERVATION",
    "countryCode": "DE",
    "license": "CC_BY_NC_4_0",
    "rightsHolder": "holder of the record",
}
OCCURRENCES: list[dict[str, str]] = [
    {
        "gbifID": "1",
        **PLANT,
        "vernacularName": "English oak",
        "locality": 'The "old" wood',
        "references": "http://page/1",
    },
    {"gbifID": "2", **PLANT, "order": "", "genus": "", "species": "", "scientificName": 'Fagaceae "sp. 1'},
    {"gbifID": "3", **PLANT, "kingdom": "Fungi"},
    {"gbifID": "4", **PLANT, "basisOfRecord": "FOSSIL_SPECIMEN"},
    {"gbifID": "5", **PLANT},  # without media
    {"gbifID": "6", **PLANT, "countryCode": "FR", "species": "", "specificEpithet": "robur"},
    {"gbifID": "6", **PLANT},  # again
    {"gbifID": "", **PLANT},
]
MEDIA: list[dict[str, str]] = [
    {
        "gbifID": "1",
        "type": "StillImage",
        "format": "image/jpeg",
        "identifier": "https://a.org/1a.jpg",
        "references": "https://a.org/photos/1a",
        "title": 'Leaf, "upper" side',
        "description": "it's green; 5\" long",
        "creator": "Ann",
        "license": BY,
        "rightsHolder": "Ann's museum",
    },
    {"gbifID": "1", "type": "StillImage", "identifier": "https://a.org/1b.jpg", "license": BY_NC, "creator": "Bob"},
    {"gbifID": "1", "type": "", "format": "image/png", "identifier": "https://a.org/1c.png", "license": ""},
    {"gbifID": "1", "type": "Sound", "format": "audio/mpeg", "identifier": "https://a.org/1.mp3", "license": BY},
    {"gbifID": "2", "type": "StillImage", "identifier": "https://a.org/2.jpg", "license": "© all rights reserved"},
    {"gbifID": "3", "type": "StillImage", "identifier": "https://a.org/3.jpg", "license": BY},
    {"gbifID": "4", "type": "StillImage", "identifier": "https://a.org/4.jpg", "license": BY},
    {"gbifID": "9", "type": "StillImage", "identifier": "https://a.org/9.jpg", "license": BY},
    {"gbifID": "6", "type": "StillImage", "identifier": "https://a.org/6.jpg", "license": "CC BY 4.0"},
    {"gbifID": "6", "type": "StillImage", "identifier": "", "license": BY},
]


Read = Callable[..., tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]


def source(path: Path | str, **changes: Any) -> SourceSettings:
    values = {"name": "gbif", "domain": "plant", "dwca": {"path": str(path), **changes}}
    return parse_settings(values, SourceSettings, "test")


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_a_gbif_archive_row_by_row(tmp_path: Path, read: Read, write: Any) -> None:
    path = write(tmp_path / "0012345-240101.zip", gbif_files(OCCURRENCES, MEDIA))
    rows, lost = read(
        source(
            path,
            caption=["media.title", "media.description"],
            where={"basisOfRecord": ["HumanObservation"], "kingdom": ["Plantae"]},
            extra=["locality", "license"],
        )
    )
    taxon = {
        f"taxon_{rank}": PLANT[rank] for rank in ("kingdom", "phylum", "class", "order", "family", "genus", "species")
    }
    oak = {
        "source": "gbif",
        "domain": "plant",
        **taxon,
        "taxon_scientific_name": "Quercus robur L.",
        "taxon_vernacular_name": "English oak",
        "extra": '{"license":"CC_BY_NC_4_0","locality":"The \\"old\\" wood"}',
    }
    for row in rows:
        del row["sample_id"]
    assert rows[0] == {
        **oak,
        "record_key": "1/https://a.org/1a.jpg",
        "group_id": "1",
        "row_number": 1,
        "url": "https://a.org/1a.jpg",
        "caption": 'Leaf, "upper" side it\'s green; 5" long',
        "licence": BY,
        "licence_url": BY,
        "rights_holder": "Ann's museum",
        "creator": "Ann",
        "reference_url": "https://a.org/photos/1a",
    }
    assert rows[1] == {
        **oak,
        "record_key": "1/https://a.org/1b.jpg",
        "group_id": "1",
        "row_number": 2,
        "url": "https://a.org/1b.jpg",
        "caption": "",
        "licence": BY_NC,
        "licence_url": BY_NC,
        "creator": "Bob",
        "reference_url": "http://page/1",
    }
    assert rows[2] == {  # the licence of the record is none of the picture
        **oak,
        "record_key": "1/https://a.org/1c.png",
        "group_id": "1",
        "row_number": 3,
        "url": "https://a.org/1c.png",
        "caption": "",
        "reference_url": "http://page/1",
    }
    holes = {name: value for name, value in rows[3].items() if name.startswith("taxon_")}
    assert holes == {
        "taxon_kingdom": "Plantae",
        "taxon_phylum": "Tracheophyta",
        "taxon_class": "Magnoliopsida",
        "taxon_family": "Fagaceae",
        "taxon_scientific_name": 'Fagaceae "sp. 1',
    }
    assert rows[3]["licence"] == "© all rights reserved"
    assert "licence_url" not in rows[3]
    assert rows[3]["reference_url"] == "https://www.gbif.org/occurrence/2"
    assert rows[4]["record_key"] == "6/https://a.org/6.jpg"
    assert rows[4]["taxon_species"] == "Quercus robur"  # from genus and epithet
    assert len(rows) == 5
    assert lost == [
        (10, "missing_url", None, None),
        (4, "where_media_type", "1/https://a.org/1.mp3", "Sound"),
        (5, "no_media", "5", None),
        (6, "where_kingdom", "3/https://a.org/3.jpg", "Fungi"),
        (7, "duplicate_record", "6", "row 7"),
        (7, "where_basisOfRecord", "4/https://a.org/4.jpg", "FOSSIL_SPECIMEN"),
        (8, "missing_key", None, None),
        (8, "no_record", "9/https://a.org/9.jpg", "9"),
    ]
    assert (
        len(rows) + len(lost) == len(MEDIA) + 3
    )  # and one record without media, one without id, one that is there twice


def test_filters_of_licence_country_and_media_terms(tmp_path: Path, read: Read) -> None:
    path = write_zip(tmp_path / "a.zip", gbif_files(OCCURRENCES, MEDIA))
    rows, lost = read(source(path, where={"licence": ["CC-BY"]}))
    assert {row["row_number"] for row in rows} == {1, 6, 7, 9}
    assert ("where_licence", "© all rights reserved") in {(reason, value) for _, reason, _, value in lost}
    rows, lost = read(source(path, where={"countryCode": "FR"}))
    assert [row["row_number"] for row in rows] == [9]
    rows, lost = read(source(path, where={"media.creator": ["ann", "bob"]}))
    assert [row["row_number"] for row in rows] == [1, 2]
    assert (3, "where_media.creator", "1/https://a.org/1c.png", None) in lost


def test_a_described_dialect_with_quotes_order_and_defaults(tmp_path: Path, read: Read) -> None:
    meta = """<archive>
      <core encoding="latin-1" fieldsTerminatedBy="," linesTerminatedBy="\\r\\n" fieldsEnclosedBy="&quot;"
            rowType="http://rs.tdwg.org/dwc/terms/Taxon">
        <files><location>one.csv</location><location>two.csv</location></files>
        <id index="2"/>
        <field index="1" term="http://rs.tdwg.org/dwc/terms/scientificName"/>
        <field index="0" default="Plantae" term="http://rs.tdwg.org/dwc/terms/kingdom"/>
        <field default="Pinaceae" term="http://rs.tdwg.org/dwc/terms/family"/>
      </core>
      <extension encoding="UTF-8" fieldsTerminatedBy=";" linesTerminatedBy="\\n" fieldsEnclosedBy=""
                 ignoreHeaderLines="2" rowType="http://eol.org/schema/media/Document">
        <files><location>media.txt</location></files>
        <coreid index="1"/>
        <field index="0" term="http://purl.org/dc/terms/identifier"/>
        <field index="2" term="http://rs.tdwg.org/ac/terms/accessURI"/>
        <field index="3" term="http://ns.adobe.com/xap/1.0/rights/UsageTerms"/>
        <field index="4" term="http://ns.adobe.com/xap/1.0/rights/Owner"/>
        <field default="http://purl.org/dc/dcmitype/StillImage" term="http://purl.org/dc/terms/type"/>
      </extension>
      <extension fieldsTerminatedBy="\\t" fieldsEnclosedBy="" rowType="http://rs.gbif.org/terms/1.0/VernacularName">
        <files><location>names.txt</location></files>
        <coreid index="0"/>
        <field index="1" term="http://rs.tdwg.org/dwc/terms/vernacularName"/>
        <field index="2" term="http://purl.org/dc/terms/language"/>
        <field index="3" term="http://rs.gbif.org/terms/1.0/isPreferredName"/>
      </extension>
    </archive>"""
    files: dict[str, str | bytes] = {
        "top/meta.xml": meta,
        "top/one.csv": ',"Pinus ""mugo"", T\xfcrra",p\r\nPlantae,Abies,a\r\n'.encode("latin-1"),
        "top/two.csv": b"Fungi,Picea,q\r\nbroken\r\n",
        "top/media.txt": "a header\nand another\n"
        "m1;p;http://a/1.jpg;http://creativecommons.org/licenses/by/3.0/;Ann\n"
        'm2;a;http://a/2.jpg;"open quote;\n'
        "m3;q;http://a/3.jpg;;\n",
        "top/names.txt": "p\tLatsche\tde\ttrue\np\tmountain pine\ten\tfalse\np\tMugo pine\tEN\ttrue\n"
        "a\tfir\tenglish\t\n"
        "q\tép\tfr\t\n",
    }
    rows, lost = read(source(write_zip(tmp_path / "a.zip", files)))
    assert [row["record_key"] for row in rows] == ["p/http://a/1.jpg", "a/http://a/2.jpg", "q/http://a/3.jpg"]
    assert rows[0]["taxon_scientific_name"] == 'Pinus "mugo", Türra'
    assert [row["taxon_kingdom"] for row in rows] == ["Plantae", "Plantae", "Fungi"]
    assert {row["taxon_family"] for row in rows} == {"Pinaceae"}
    assert [row.get("taxon_vernacular_name") for row in rows] == ["Mugo pine", "fir", None]
    assert (rows[0]["rights_holder"], rows[0]["licence"]) == ("Ann", "http://creativecommons.org/licenses/by/3.0/")
    assert rows[1]["licence"] == '"open quote'
    assert lost == [(3, "malformed_row", None, "two.csv: broken")]


def test_addresses_listed_in_the_records(tmp_path: Path, read: Read) -> None:
    terms = [f"{GBIF}gbifID", f"{DWC}genus", f"{DWC}associatedMedia"]
    rows_ = [
        {"gbifID": "1", "genus": "Rosa", "associatedMedia": "http://a/1.jpg | http://a/2.jpg|http://a/1.jpg"},
        {"gbifID": "2", "genus": "Acer", "associatedMedia": ""},
        {"gbifID": "3", "genus": "Acer", "associatedMedia": "http://a/3.jpg http://a/4.jpg;http://a/5.jpg?x=1;2"},
    ]
    meta = meta_xml(describe("core", f"{DWC}Occurrence", "occurrence.txt", terms, "id"))
    files = {"meta.xml": meta, "occurrence.txt": tab_table(terms, rows_)}
    rows, lost = read(source(write_zip(tmp_path / "a.zip", files), where={"genus": ["Rosa", "Acer"]}))
    assert sorted(row["record_key"] for row in rows) == [
        "1/http://a/1.jpg",
        "1/http://a/2.jpg",
        "3/http://a/3.jpg",
        "3/http://a/4.jpg",
        "3/http://a/5.jpg?x=1;2",
    ]
    assert lost == [(2, "no_media", "2", None)]


def test_more_rows_than_a_batch_or_a_block(tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 5000)
    monkeypatch.setattr("pipeline.sources.tables.joining.BATCH_ROWS", 100)
    occurrences = [{"gbifID": str(number), **PLANT} for number in range(700)]
    media = [
        {"gbifID": str(699 - number % 700), "type": "StillImage", "identifier": f"http://a/{number}.jpg"}
        for number in range(1500)
    ]
    rows, lost = read(source(write_zip(tmp_path / "a.zip", gbif_files(occurrences, media))))
    assert lost == []
    assert [row["record_key"] for row in rows] == [f"{699 - n % 700}/http://a/{n}.jpg" for n in range(1500)]


def test_the_digest_is_of_the_described_files(tmp_path: Path) -> None:
    files = gbif_files(OCCURRENCES, MEDIA)
    hashed: list[str] = []

    def hash_file(path: str) -> str:
        hashed.append(Path(path).name)
        return "x"

    digest_inputs(source(write_zip(tmp_path / "a.zip", files)), hash_file)
    digest_inputs(source(write_folder(tmp_path / "a", files)), hash_file)
    assert hashed == ["a.zip", "meta.xml", "occurrence.txt", "verbatim.txt", "multimedia.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": {"basisOfRecords": ["X"]}}, r"no term 'basisOfRecords' \(did you mean 'basisOfRecord'\?\)"),
        ({"caption": ["title"]}, r"no term 'title' \(did you mean 'media.title'\?\)"),
        ({"extra": ["media.titel"]}, r"did you mean 'media.title'"),
    ],
)
def test_unknown_terms_name_the_nearest(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_zip(tmp_path / "a.zip", gbif_files(OCCURRENCES, MEDIA))
    with pytest.raises(ConfigError, match=message):
        check_source(source(path, **changes))


@pytest.mark.parametrize(
    ("dwca", "message"),
    [
        (
            {"where": {"countryCode": [False]}},
            "countryCode: YAML reads NO, yes, true as truth values; put the value in",
        ),
        ({"where": {"licence": ["cc-by"]}}, "'cc-by' is not a licence id; did you mean 'CC-BY'"),
        ({"where": {"kingdom": []}}, "sources.*kingdom"),
        ({"filter": {}}, "unknown key 'dwca.filter'"),
    ],
)
def test_settings_that_cannot_be_meant(dwca: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("sources.*", "")):
        source("a.zip", **dwca)


def test_years_and_other_numbers_are_texts() -> None:
    given = source("a.zip", where={"year": [2020, 2021], "month": 5})
    assert given.dwca is not None
    assert given.dwca.where == {"year": ["2020", "2021"], "month": ["5"]}


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    files = gbif_files(OCCURRENCES, MEDIA)
    no_media = meta_xml(describe("core", f"{DWC}Occurrence", "occurrence.txt", [f"{GBIF}gbifID"], "id"))
    cases: list[tuple[dict[str, str | bytes], str]] = [
        ({"0012345.csv": "gbifID\n"}, r"has no meta\.xml, so it is no Darwin Core Archive"),
        ({**files, "meta.xml": "<archive"}, r"meta\.xml is not valid XML"),
        ({**files, "meta.xml": "<archive/>"}, "describes no core"),
        ({**files, "meta.xml": no_media}, r"holds no media file \(its extensions: none\)"),
        ({k: v for k, v in files.items() if k != "occurrence.txt"}, r"does not hold occurrence\.txt, which its meta"),
        ({k: v for k, v in files.items() if k != "multimedia.txt"}, "holds no media file"),
        ({**files, "meta.xml": files["meta.xml"].replace(f"{DC}identifier", f"{DC}other")}, "so it holds no addresses"),
        ({**files, "meta.xml": files["meta.xml"].replace('"UTF-8"', '"UTF-9"', 1)}, "not valid XML: unknown encoding"),
        ({**files, "meta.xml": files["meta.xml"].replace('"UTF-8" f', '"UTF-9" f', 1)}, "no such encoding: UTF-9"),
        (
            {**files, "meta.xml": files["meta.xml"].replace(r"\t", "||", 1)},
            "must be separated by one byte and enclosed by at most one, not '\\|\\|' and",
        ),
        ({**files, "meta.xml": files["meta.xml"].replace('index="3"', 'index="x"', 1)}, "'x' is not a whole number"),
    ]
    for number, (content, message) in enumerate(cases):
        with pytest.raises(ConfigError, match=message):
            check_source(source(write_zip(tmp_path / f"{number}.zip", content)))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ConfigError, match=r"text\.zip is no zip; an archive is a zip or a folder"):
        check_source(source(tmp_path / "text.zip"))
    with pytest.raises(ConfigError, match="no such archive"):
        check_source(source(tmp_path / "absent.zip"))


def test_a_description_of_more_columns_than_there_are(tmp_path: Path) -> None:
    files = gbif_files(OCCURRENCES, MEDIA)
    files["meta.xml"] = files["meta.xml"].replace('index="14"', 'index="44"')
    with pytest.raises(ConfigError, match=r"multimedia\.txt cannot be read: rightsHolder should be column 44"):
        check_source(source(write_zip(tmp_path / "a.zip", files)))


def test_extras_are_json(tmp_path: Path, read: Read) -> None:
    path = write_zip(tmp_path / "a.zip", gbif_files(OCCURRENCES, MEDIA))
    rows, _ = read(source(path, extra=["media.title", "recordedBy"]))
    assert json.loads(rows[0]["extra"]) == {"media.title": 'Leaf, "upper" side', "recordedBy": None}


def test_terms_go_by_their_short_names() -> None:
    core, extensions = parse_meta(gbif_files([], [])["meta.xml"].encode(), "here")
    assert core.fields["species"].index == 25
    assert [each.row_type.rpartition("/")[2] for each in extensions] == ["Occurrence", "Multimedia"]
    assert core.dialect.delimiter == "\t"
    assert core.dialect.quote is None


@pytest.mark.parametrize("name", ["multimedia.txt", "occurrence.txt", "meta.xml"])
def test_a_link_in_an_unpacked_archive_is_not_followed(tmp_path: Path, name: str) -> None:
    """As it was found: a described file that was a link to /etc/passwd was read as rows."""
    folder = write_folder(
        tmp_path / "archive", gbif_files([{"gbifID": "1"}], [{"gbifID": "1", "identifier": "http://a/1"}])
    )
    check_source(source(folder))
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{name} is a link; put the file itself there"):
        check_source(source(folder))


def test_a_description_leads_to_no_file_outside(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "archive", gbif_files([{"gbifID": "1"}], [{"gbifID": "1", "identifier": "http://a/1"}])
    )
    (tmp_path / "outside.txt").write_text("secret\n")
    meta = (folder / "meta.xml").read_text()
    (folder / "meta.xml").write_text(meta.replace("occurrence.txt", "../outside.txt"))
    with pytest.raises(ConfigError, match="does not hold"):
        check_source(source(folder))
