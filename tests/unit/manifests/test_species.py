"""One function tells the species of a row, whoever asks."""

from __future__ import annotations

import pyarrow as pa
import pytest

from manifests.names.species import species_of

ROWS = [
    ("Quercus", "alba", "Quercus alba"),
    ("Populus", "alba", "Populus alba"),
    (None, "Quercus alba", "Quercus alba"),
    ("Quercus", "Quercus alba", "Quercus alba"),
    ("Quercus", "quercus alba", "Quercus alba"),
    ("Quercus", "Quercus_alba", "Quercus alba"),
    ("Bison", "bison", "Bison bison"),
    ("Rosa", "× alba", "Rosa × alba"),
    ("× Cupressocyparis", "× Cupressocyparis leylandii", "× Cupressocyparis leylandii"),
    ("Quercus", "robur var. pendula", "Quercus robur var. pendula"),
    ("Tobamovirus", "Tobacco mosaic virus", "Tobacco mosaic virus"),
    ("", "rose", "rose"),
    ("unknown", "Quercus alba", "Quercus alba"),
    ("Quercus", "sp.", None),
    ("Quercus", "Quercus sp. 1", None),
    ("Quercus", "cf. robur", None),
    ("Quercus", "unidentified", None),
    ("Quercus", "Quercus", None),
    ("Quercus", " ", None),
    (None, None, None),
]


@pytest.mark.parametrize(("genus", "species", "expected"), ROWS)
def test_the_species_of_one_row(genus: str | None, species: str | None, expected: str | None) -> None:
    assert species_of(pa.scalar(genus, pa.string()), pa.scalar(species, pa.string())).as_py() == expected


def test_the_species_of_many_rows() -> None:
    genera, species, expected = (pa.array(column, pa.string()) for column in zip(*ROWS, strict=True))
    assert species_of(genera, species).to_pylist() == expected.to_pylist()
    again = species_of(species_of(genera, pa.nulls(len(ROWS), pa.string())), expected)  # the answer stands
    assert again.to_pylist() == expected.to_pylist()
    assert species_of(genera, expected).to_pylist() == expected.to_pylist()
