"""The name that a caption begins with: a pair, a genus alone, and words that only look like one."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipeline.judging.vocabulary.backbone import BackboneSettings
from pipeline.judging.vocabulary.openings import BETTER_KNOWN, view_opening_names

HEAD = "taxonID\tacceptedNameUsageID\tscientificName\tcanonicalName\ttaxonRank\ttaxonomicStatus\tkingdom"
PLANTS = (
    "Malus", "Malus domestica", "Bellis", "Bellis perennis", "Rosa", "Rosa canina", "Iris", "Ficus", "Ficus variegata",
    "Paris", "Paris polyphylla", "Lens", "Lens culinaris", "Victoria", "Mentha", "Mentha × piperita", "Oenanthe",
)  # fmt: skip
ANIMALS = ("Iris", "Ficus", "Ficus variegata", "Ficus ficus", "Oenanthe", "Oenanthe oenanthe", "Canis lupus")

MET = {
    "Malus on a table": "Malus",
    "Malus sp. in a garden": "Malus",
    "Malus in bloom": "Malus",
    "Malus, an apple": "Malus",
    "MALUS": "Malus",
    "MALUS DOMESTICA 'Gala' on a tree": "Malus domestica",
    "Malus Domestica Fruit On A Tree": "Malus domestica",
    "  Malus  domestica": "Malus domestica",
    "Malus communis, an old name": "Malus domestica",
    "Bellis growing in grass": "Bellis",
    "Rosa blooming in spring": "Rosa",
    "Rosa 'Peace'": "Rosa",
    "Mentha x piperita leaves": "Mentha × piperita",
    "Mentha × piperita leaves": "Mentha × piperita",
    "Iris in a vase": "Iris",  # a genus of mantises too
    "Ficus variegata in a pot": "Ficus variegata",  # a snail too
    "Paris polyphylla in a wood": "Paris polyphylla",
    "Lens sp.": "Lens",
}
NOT_MET = (
    "Paris in spring", "Paris near the river", "Lens cap on a table", "Lens", "Victoria and her sister",
    "Canis lupus in snow", "Oenanthe oenanthe on a stone", "Ficus ficus, a shell", "Red rose on a table",
    "a photo of Rosa canina", "malus domestica", "", "M", "花园",
)  # fmt: skip


@pytest.fixture
def names(tmp_path: Path):
    of_kingdoms = [*((name, "Plantae") for name in PLANTS), *((name, "Animalia") for name in ANIMALS)]
    taxa = [
        f"{number}\t\t{name}\t{name}\t{'species' if ' ' in name else 'genus'}\taccepted\t{kingdom}"
        for number, (name, kingdom) in enumerate(of_kingdoms)
    ]
    taxa.append("s\t1\tMalus communis\tMalus communis\tspecies\tsynonym\tPlantae")
    (tmp_path / "Taxon.tsv").write_text("\n".join([HEAD, *taxa]) + "\n")

    def look(texts, kingdoms=("Plantae",)):
        with duckdb.connect() as sql:
            sql.register("texts", pa.table({"n": list(range(len(texts))), "caption": list(texts)}))
            backbone = BackboneSettings(path=str(tmp_path))
            name = view_opening_names(sql, "texts", "caption", kingdoms, backbone, str(tmp_path), 1.0)
            joined = f"FROM texts LEFT JOIN opening_names o ON o.name = {name} ORDER BY n"
            return sql.execute(f"SELECT accepted_name, kingdom {joined}").fetchall()

    return look


def test_a_pair_or_else_the_genus_is_met_and_the_accepted_name_is_given(names) -> None:
    assert dict(zip(MET, names([*MET]), strict=True)) == {text: (name, "Plantae") for text, name in MET.items()}


def test_other_words_and_names_of_other_kingdoms_are_none(names) -> None:
    assert {text: name for text, (name, _) in zip(NOT_MET, names(NOT_MET), strict=True) if name} == {}


def test_of_several_kingdoms_each_is_met(names) -> None:
    assert names(["Canis lupus in snow", "Malus on a table"], ("Plantae", "Animalia")) == [
        ("Canis lupus", "Animalia"),
        ("Malus", "Plantae"),
    ]


def test_genera_that_are_better_known_as_something_else_are_written_as_genera_are() -> None:
    assert all(genus == genus.capitalize() for genus in BETTER_KNOWN)
