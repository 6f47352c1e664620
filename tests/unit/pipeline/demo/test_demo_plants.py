from __future__ import annotations

import pytest

from pipeline.demo.plants import PLANT_NAMES, find_plant_name


@pytest.mark.parametrize(
    ("texts", "scientific"),
    [
        (("A Seville orange, also called a bitter orange.",), "Citrus × aurantium"),
        (("An orange.",), "Citrus × sinensis"),
        (("A “Granny Smith” apple.",), "Malus domestica"),
        (("A pair of cherries.",), "Prunus avium"),
        (("tomatoes",), "Solanum lycopersicum"),
        (("Adenium (Desert Rose)",), "Adenium obesum"),
        (("An alien tree!", "tuxpaint/plants/trees/rambutan"), "Nephelium lappaceum"),
        (("A red headed cep.",), "Boletus edulis"),
    ],
)
def test_names_are_found(texts: tuple[str, ...], scientific: str) -> None:
    found = find_plant_name(*texts)
    assert found is not None
    assert found.scientific == scientific


@pytest.mark.parametrize("text", ["", "A flower.", "A palm tree.", "pineapples_of_steel"[:4], "A pearl.", "A rosette."])
def test_what_is_not_certain_stays_a_hole(text: str) -> None:
    assert find_plant_name(text) is None


def test_the_table_is_well_formed() -> None:
    assert len(PLANT_NAMES) >= 80
    for word, name in PLANT_NAMES.items():
        assert word == word.lower()
        assert name.genus[0].isupper()
        assert name.genus.isalpha()
        assert name.family.endswith("aceae")
        assert name.kingdom in ("Plantae", "Fungi")
        assert name.vernacular
