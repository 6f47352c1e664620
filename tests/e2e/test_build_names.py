"""A build with a backbone and caps over the demo's plants: names resolved, provenance told, a genus capped."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from building import Web, done, run_here, write_build_config

from manifests.contract.reader import open_reader

TAXA = """taxonID	acceptedNameUsageID	scientificName	taxonRank	taxonomicStatus	kingdom	order	family	genus
7		Armeniaca vulgaris	species	accepted	Plantae	Rosales	Rosaceae	Armeniaca
8	7	Prunus armeniaca	species	synonym	Plantae	Rosales	Rosaceae	Prunus
9		Prunus avium	species	accepted	Plantae	Rosales	Rosaceae	Prunus
"""


def write_backbone(path: Path, vernacular: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Taxon.tsv", TAXA)
        archive.writestr("VernacularName.tsv", f"taxonID\tvernacularName\tlanguage\n9\t{vernacular}\ten\n")


def rows(work: Path, sql: str) -> list[Any]:
    with open_reader(str(work)) as connection:
        return list(connection.execute(sql).fetchall())


@pytest.fixture(scope="module")
def named(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    write_backbone(folder / "backbone.zip", "gean")
    caps = [{"by": "family", "at_most": 4, "domains": ["plant"]}]
    changes = {"caption": {"backbone": {"path": str(folder / "backbone.zip")}}, "select": {"balance": {"caps": caps}}}
    done("build", write_build_config(web, folder, "build", **changes), "--to", "select")
    return folder


def test_a_synonym_takes_the_accepted_name_and_explain_says_how(named: Path) -> None:
    work = named / "build"
    found = rows(work, "SELECT name, matched_how, matched_status, accepted_name FROM names WHERE accepted_id = '7'")
    assert found == [("Prunus armeniaca", "exact", "synonym", "Armeniaca vulgaris")]
    ((sample_id, ranks, texts),) = rows(
        work, "SELECT sample_id, taxon_ranks, texts FROM captions WHERE taxon_id = '7' ORDER BY 1 LIMIT 1"
    )
    assert (ranks["genus"], ranks["species"], ranks["order"]) == ("Armeniaca", "Armeniaca vulgaris", "Rosales")
    assert texts["scientific"] == "Armeniaca vulgaris"
    told = run_here("explain", work, sample_id).stdout
    assert "taxon     'Prunus armeniaca' as given, matched exact with 8 (synonym)" in told
    assert "accepted as Armeniaca vulgaris, 7" in told
    assert "kingdom Plantae, order Rosales, family Rosaceae, genus Armeniaca" in told
    (other,) = rows(work, "SELECT sample_id FROM captions WHERE taxon_matched = 'none' ORDER BY 1 LIMIT 1")
    assert "kept as given: none in the backbone" in run_here("explain", work, other[0]).stdout


def test_a_family_is_capped_and_status_shows_head_and_tail(named: Path) -> None:
    work = named / "build"
    (kept,) = rows(
        work,
        "SELECT count(*) FROM decisions JOIN captions USING (sample_id) "
        "WHERE keep AND taxon_ranks['family'] = 'Rosaceae'",
    )
    assert kept == (4,)
    cut = rows(work, "SELECT DISTINCT value, threshold FROM decisions WHERE reason = 'balance' AND value LIKE 'Ros%'")
    assert len(cut) == 1
    assert cut[0][1] == "<= 4 of one family"
    said = run_here("status", work).stdout
    assert "balance: at most 4 of one family in plant:" in said
    assert f"{cut[0][0].partition(': ')[2]} ->          4" in said


@pytest.mark.slow
def test_a_changed_backbone_measures_again_and_an_equal_one_elsewhere_does_not(web: Web, named: Path) -> None:
    moved = named / "moved.zip"
    moved.write_bytes((named / "backbone.zip").read_bytes())
    caps = [{"by": "family", "at_most": 4, "domains": ["plant"]}]
    changes = {"caption": {"backbone": {"path": str(moved)}}, "select": {"balance": {"caps": caps}}}
    config = write_build_config(web, named, "build", **changes)
    assert "nothing to do" in run_here("build", config, "--to", "select").stdout
    write_backbone(moved, "wild cherry")
    again = run_here("build", config, "--to", "select")
    assert again.stdout.rstrip().endswith(": caption"), "the names are looked up again"
    assert "select: reused" in again.stderr, "no caption came out otherwise, so nothing else is done again"
    moved.unlink()
    lost = run_here("build", config)
    assert lost.returncode == 2
    assert "moved.zip is missing; download a backbone archive" in lost.stderr
