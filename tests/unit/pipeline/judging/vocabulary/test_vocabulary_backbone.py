# ruff: noqa: E501 (tables as the archives hold them, tab by tab)
from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.contract.tables import NAMES
from manifests.errors import ConfigError
from pipeline.judging.vocabulary.backbone import (
    BackboneSettings,
    apply_names,
    check_backbone,
    name_key,
    names_to_resolve,
    resolve_names,
)

GBIF = """taxonID	parentNameUsageID	acceptedNameUsageID	scientificName	scientificNameAuthorship	canonicalName	taxonRank	taxonomicStatus	kingdom	phylum	class	order	family	genus
1	9		Iris tectorum Maxim.	Maxim.	Iris tectorum	species	accepted	Plantae	Tracheophyta	Liliopsida	Asparagales	Iridaceae	Iris
2	9	1	Iris chinensis Bunge	Bunge	Iris chinensis	species	synonym	Plantae	Tracheophyta	Liliopsida	Asparagales	Iridaceae	Iris
3	9		Mentha × piperita L.	L.	Mentha piperita	species	accepted	Plantae	Tracheophyta	Magnoliopsida	Lamiales	Lamiaceae	Mentha
4	9		Brassica oleracea L.	L.	Brassica oleracea	species	accepted	Plantae	Tracheophyta		Brassicales	Brassicaceae	Brassica
5	4		Brassica oleracea var. capitata L.	L.	Brassica oleracea capitata	variety	accepted	Plantae	Tracheophyta		Brassicales	Brassicaceae	Brassica
6	9		Oenanthe aquatica (L.) Poir.	(L.) Poir.	Oenanthe aquatica	species	accepted	Plantae	Tracheophyta	Magnoliopsida	Apiales	Apiaceae	Oenanthe
7	9		Oenanthe	Vieillot	Oenanthe	genus	accepted	Animalia	Chordata	Aves	Passeriformes	Muscicapidae	Oenanthe
10			Tobacco mosaic virus		Tobacco mosaic virus	species	accepted	Viruses					Tobamovirus
8	9		Oenanthe L.	L.	Oenanthe	genus	accepted	Plantae	Tracheophyta	Magnoliopsida	Apiales	Apiaceae	Oenanthe
"""
VERNACULAR = """taxonID	vernacularName	language	source
1	Wall iris	en	a
1	Wall iris	en	b
1	Roof iris	en	c
1	Dachiris	de	a
5	white "head" cabbage	en	a
"""
COL = """dwc:taxonID	dwc:parentNameUsageID	dwc:acceptedNameUsageID	dwc:scientificName	dwc:scientificNameAuthorship	dwc:taxonRank	dwc:taxonomicStatus
P			Plantae		kingdom	accepted
F	P		Iridaceae Juss.	Juss.	family	accepted
G	F		Iris L.	L.	genus	accepted
S	G		Iris tectorum Maxim.	Maxim.	species	provisionally accepted
Y		S	Iris chinensis Bunge	Bunge	species	ambiguous synonym
"""


@pytest.fixture
def gbif(tmp_path: Path) -> Path:
    path = tmp_path / "backbone.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("backbone/Taxon.tsv", GBIF)
        archive.writestr("backbone/VernacularName.tsv", VERNACULAR)
    return path


def names(*pairs: tuple[str, str | None]) -> pa.Table:
    return pa.table({"name": [n for n, _ in pairs], "kingdom": pa.array([k for _, k in pairs], pa.string())})


def look_up(wanted: pa.Table, path: Path) -> pa.Table:
    return resolve_names(wanted, BackboneSettings(path=str(path)), str(path.parent))


def resolve(path: Path, *pairs: tuple[str, str | None]) -> dict[str, dict]:
    table = look_up(names(*pairs), path)
    assert table.schema == NAMES
    return {row["name"]: row for row in table.to_pylist()}


def test_accepted_names_and_synonyms(gbif: Path) -> None:
    rows = resolve(gbif, ("Iris tectorum Maxim.", None), ("Iris chinensis Bunge", "Plantae"))
    assert rows["Iris tectorum Maxim."]["matched_status"] == "accepted"
    synonym = rows["Iris chinensis Bunge"]
    assert (synonym["matched_how"], synonym["matched_id"], synonym["matched_status"]) == ("exact", "2", "synonym")
    assert (synonym["accepted_id"], synonym["accepted_name"], synonym["genus"]) == ("1", "Iris tectorum", "Iris")
    assert (synonym["vernacular"], synonym["species"]) == ("Wall iris", "Iris tectorum")


def test_marks_hybrids_and_infraspecific_names(gbif: Path) -> None:
    rows = resolve(gbif, ("Mentha × piperita L.", None), ("Brassica oleracea L. var. capitata L.", None),
                   ("Brassica oleracea subsp. nova", None))  # fmt: skip
    assert rows["Mentha × piperita L."]["accepted_id"] == "3"
    assert rows["Brassica oleracea L. var. capitata L."]["accepted_id"] == "5"
    assert rows["Brassica oleracea L. var. capitata L."]["vernacular"] == 'white "head" cabbage'
    assert rows["Brassica oleracea L. var. capitata L."]["class"] is None  # a hole stays a hole
    fallen = rows["Brassica oleracea subsp. nova"]
    assert (fallen["matched_how"], fallen["accepted_name"]) == ("species", "Brassica oleracea")


def test_a_virus_is_found_by_its_whole_name(gbif: Path) -> None:
    row = resolve(gbif, ("Tobacco mosaic virus", None))["Tobacco mosaic virus"]
    assert (row["accepted_id"], row["genus"], row["species"]) == ("10", "Tobamovirus", "Tobacco mosaic virus")


def test_homonyms_need_a_kingdom(gbif: Path) -> None:
    table = look_up(names(("Oenanthe", None), ("Oenanthe", "Animalia"), ("Oenanthe", "Plantae")), gbif)
    how = {row["kingdom_given"]: (row["matched_how"], row["accepted_id"]) for row in table.to_pylist()}
    assert how == {None: ("ambiguous", None), "Animalia": ("exact", "7"), "Plantae": ("exact", "8")}


def test_uncertain_and_unknown_names_are_left_alone(gbif: Path) -> None:
    rows = resolve(gbif, ("Iris cf. tectorum", None), ("Iris sp.", None), ("Nothing known", None),
                   ("Salix alba × S. fragilis", None))  # fmt: skip
    assert {row["matched_how"] for row in rows.values()} == {"none"}


def test_catalogue_of_life_ranks_come_from_the_parents(tmp_path: Path) -> None:
    (tmp_path / "Taxon.tsv").write_text(COL)
    row = resolve(tmp_path, ("Iris chinensis", None))["Iris chinensis"]
    assert (row["accepted_name"], row["genus"], row["family"], row["kingdom"], row["order"]) == (
        "Iris tectorum", "Iris", "Iridaceae", "Plantae", None
    )  # fmt: skip
    assert row["vernacular"] is None


def test_candidates_follow_the_accepted_name(gbif: Path, make_candidates) -> None:
    rows = [
        {"taxon_scientific_name": "Iris chinensis Bunge", "taxon_family": "given"},
        {"taxon_scientific_name": "Nothing known", "taxon_genus": "Nothing"},
        {"taxon_scientific_name": "Iris tectorum", "taxon_vernacular_name": "my iris"},
        {"taxon_genus": "Iris", "taxon_species": "chinensis"},
        {"taxon_scientific_name": " ", "taxon_species": "Iris chinensis"},
        {"taxon_genus": "Oenanthe"},
        {},
    ]
    candidates = make_candidates(rows)
    table, provenance = apply_names(candidates, look_up(names_to_resolve(candidates), gbif))
    out = table.to_pylist()
    assert (out[0]["taxon_scientific_name"], out[0]["taxon_vernacular_name"]) == ("Iris tectorum", "Wall iris")
    assert (out[0]["taxon_species"], out[0]["taxon_family"]) == ("Iris tectorum", "Iridaceae")
    assert out[1] == candidates.to_pylist()[1]
    assert out[2]["taxon_vernacular_name"] == "my iris"
    assert [row["taxon_scientific_name"] for row in out[3:]] == ["Iris tectorum", "Iris tectorum", None, None]
    found = [tuple(row.values()) for row in provenance.to_pylist()]
    assert found == [
        ("Iris chinensis Bunge", "exact", "1"),
        ("Nothing known", "none", None),
        ("Iris tectorum", "exact", "1"),
        ("Iris chinensis", "exact", "1"),
        ("Iris chinensis", "exact", "1"),
        ("Oenanthe", "ambiguous", None),
        (None, None, None),
    ]


def test_keys_know_no_marks() -> None:
    assert name_key("Mentha × piperita") == name_key("mentha piperita")
    assert name_key("Brassica oleracea var. capitata") == "brassica oleracea capitata"
    assert name_key("Fusarium oxysporum f. sp. cubense") == "fusarium oxysporum cubense"


def test_what_is_no_backbone_is_refused_before_any_work(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_backbone(BackboneSettings(path=str(path)))

    refused(tmp_path / "gone.zip", r"gone\.zip is missing; download a backbone archive")
    refused(tmp_path, r"holds no Taxon\.tsv")
    (tmp_path / "Taxon.tsv").write_text("a\tb\n1\t2\n")
    refused(tmp_path, "lacks the columns taxonID, scientificName, taxonomicStatus")
    refused(tmp_path / "Taxon.tsv", "neither a folder nor a zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("x/Taxon.tsv", "taxonID\tscientificName\n1\tIris\n")
    refused(tmp_path / "bad.zip", "lacks the columns taxonomicStatus")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x/Taxon.tsv", GBIF + "\n" * 70_000_000)
    refused(tmp_path / "bomb.zip", r"bomb\.zip: its [\d,]+ bytes unpack to 70,")
    (tmp_path / "Taxon.tsv").write_text(COL)
    check_backbone(BackboneSettings(path=str(tmp_path)))
    check_backbone(None)
