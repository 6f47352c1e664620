"""What a class is called in a prompt: names as given, and the texts that BioCLIP makes of a taxon."""

from __future__ import annotations

from typing import Any

import pytest

from training.evaluation.class_names import Taxon, class_text, taxon_of, taxon_of_folder

OAK = Taxon(("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "robur"), "English oak")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("asis", "Q robur"),
        ("common", "English oak"),
        ("scientific", "Quercus robur"),
        ("taxonomic", "Plantae Tracheophyta Magnoliopsida Fagales Fagaceae Quercus robur"),
        ("scientific_common", "Quercus robur with common name English oak"),
        ("taxonomic_common",
         "Plantae Tracheophyta Magnoliopsida Fagales Fagaceae Quercus robur with common name English oak"),
    ],
)  # fmt: skip
def test_class_texts_are_bioclips(kind: Any, text: str) -> None:
    assert class_text("Q_robur", OAK, kind) == text


def test_a_taxon_with_holes_still_has_every_text() -> None:
    assert Taxon(("Plantae", "", "", "", "", "", "Quercus robur")).taxonomic == "Plantae Quercus robur"
    assert Taxon(("Plantae", "", "", "", "", "Quercus", "Quercus robur")).scientific == "Quercus robur"
    fern = taxon_of({"taxon_kingdom": "Plantae", "taxon_genus": "Dryopteris", "taxon_species": None}, "taxon_")
    assert fern is not None
    assert (fern.scientific, fern.taxonomic) == ("Dryopteris", "Plantae Dryopteris")
    assert class_text("x", fern, "scientific_common") == "Dryopteris with common name Dryopteris"
    assert taxon_of({"kingdom": "", "size": "3"}) is None
    named = taxon_of({"common_name": "oak"})
    assert named is not None
    assert named.scientific == named.taxonomic == "oak"
    assert taxon_of_folder("05729_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_robur") == Taxon(
        OAK.ranks
    )
    assert taxon_of_folder("red_circle") is None
