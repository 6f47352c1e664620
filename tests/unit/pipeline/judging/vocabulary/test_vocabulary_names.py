from __future__ import annotations

import csv
import time
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.contract.tables import MEMBER_NAMES, TAXON_RANKS, TEXT_TYPES
from manifests.names.scientific import EMPTY_NAME, parse_name
from manifests.names.species import species_of
from pipeline.judging.vocabulary.taxa import derived_ranks, taxon_columns, taxon_texts

GOLDEN = Path(__file__).parent / "names_golden.tsv"
ROWS = list(csv.DictReader(GOLDEN.read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
IRIS = ("Plantae", "Tracheophyta", "Liliopsida", "Asparagales", "Iridaceae", "Iris", "tectorum")


def test_the_golden_list_is_long_enough_to_mean_something() -> None:
    assert len(ROWS) >= 150


@pytest.mark.parametrize("row", ROWS, ids=[row["given"] for row in ROWS])
def test_names_are_read_into_their_parts(row: dict[str, str]) -> None:
    name = parse_name(row["given"])
    assert (name.canonical, name.binomial, name.rank) == (row["canonical"], row["binomial"], row["rank"])


@pytest.mark.parametrize("row", ROWS, ids=[row["given"] for row in ROWS])
def test_a_canonical_name_is_its_own_canonical_name(row: dict[str, str]) -> None:
    assert parse_name(row["canonical"]).canonical == (row["canonical"] or "")


def test_the_text_types_of_a_full_taxon() -> None:
    ranks = "Plantae Tracheophyta Liliopsida Asparagales Iridaceae Iris tectorum"
    tags = (
        "kingdom Plantae phylum Tracheophyta class Liliopsida order Asparagales family Iridaceae genus Iris "
        "species tectorum"
    )
    assert taxon_texts(IRIS, "Iris tectorum Maxim.", "Wall iris") == {
        "scientific": "Iris tectorum",
        "common": "Wall iris",
        "taxonomic": ranks,
        "sci": "a photo of Iris tectorum.",
        "com": "a photo of Wall iris.",
        "taxon": f"a photo of {ranks}.",
        "taxonTag": f"a photo of {tags}.",
        "sci_com": "a photo of Iris tectorum with common name Wall iris.",
        "taxon_com": f"a photo of {ranks} with common name Wall iris.",
        "taxonTag_com": f"a photo of {tags} with common name Wall iris.",
        "canonical": "Iris tectorum",
        "sentence": "Iris tectorum, commonly known as Wall iris.",
    }


def test_every_text_type_has_a_member_name_of_the_field() -> None:
    assert set(MEMBER_NAMES) == set(TEXT_TYPES)
    assert MEMBER_NAMES["scientific"] == "scientific_name.txt"
    assert MEMBER_NAMES["taxonTag_com"] == "taxonTag_com.txt"


@pytest.mark.parametrize("hole", range(7))
def test_a_hole_in_the_ranks_costs_no_species(hole: int) -> None:
    ranks = tuple(None if i == hole else value for i, value in enumerate(IRIS))
    texts = taxon_texts(ranks, "Iris tectorum Maxim.", None)
    assert texts["scientific"] == "Iris tectorum"
    wanted = [value for i, value in enumerate(IRIS) if i != hole or i >= 5]  # the name states genus and species
    assert texts["taxonomic"] == " ".join(wanted)


@pytest.mark.parametrize(
    ("ranks", "name", "vernacular", "key", "text"),
    [
        ((*IRIS[:6], "Iris tectorum"), None, None, "taxonomic", " ".join(IRIS)),  # GBIF writes the binomial
        ((None,) * 7, "Iris tectorum", None, "scientific", "Iris tectorum"),
        ((None,) * 7, "Iris tectorum", None, "common", "Iris tectorum"),
        ((None,) * 7, "Iris tectorum", None, "sentence", "Iris tectorum."),
        ((None,) * 7, "Iris tectorum", "iris tectorum", "sentence", "Iris tectorum."),
        ((None,) * 7, None, "Wall iris", "scientific", "Wall iris"),
        ((*IRIS[:5], None, None), None, None, "scientific", "Iridaceae"),
        ((*IRIS[:5], None, None), None, None, "taxonomic", " ".join(IRIS[:5])),
        ((*IRIS[:6], None), "Iris cf. tectorum", None, "scientific", "Iris"),  # not certain is not stated
        ((*IRIS[:6], "Iris sp."), "Iris sp.", None, "scientific", "Iris"),
        ((*IRIS[:6], None), "Iris tectorum", "Wall iris; Roof iris", "com", "a photo of Wall iris."),
        ((None,) * 7, "Mentha × piperita L.", "Peppermint", "sci", "a photo of Mentha × piperita."),
        ((None,) * 7, "Brassica oleracea var. capitata L.", "Cabbage", "scientific", "Brassica oleracea"),
        ((None,) * 7, "Brassica oleracea var. capitata L.", "Cabbage", "sentence",
         "Brassica oleracea var. capitata, commonly known as Cabbage."),
        ((None,) * 7, "Salix alba × S. fragilis", None, "scientific", "Salix alba × Salix fragilis"),
        ((None,) * 7, "Malus domestica 'Granny Smith'", None, "canonical", "Malus domestica 'Granny Smith'"),
        (("Plantae", None, None, None, None, None, "unknown"), None, None, "scientific", "Plantae"),
        ((None,) * 7, "Poaceae sp.", None, "taxonTag", "a photo of Poaceae."),  # a family is no genus
        ((None,) * 7, "Tobacco mosaic virus", None, "sci", "a photo of Tobacco mosaic virus."),
        ((None,) * 7, "Cytisus purpureus + Laburnum anagyroides", None, "sci",
         "a photo of Cytisus purpureus + Laburnum anagyroides."),
    ],
)  # fmt: skip
def test_text_types_of_partial_taxa(
    ranks: tuple[str | None, ...], name: str | None, vernacular: str | None, key: str, text: str
) -> None:
    assert taxon_texts(ranks, name, vernacular)[key] == text


@pytest.mark.parametrize("genus", ["Quercus", "QUERCUS", "×Cupressocyparis"])
@pytest.mark.parametrize("epithet", ["alba", "ALBA", "in", "kelloggii", "sp.", "unknown"])
def test_a_binomial_gives_the_texts_of_its_genus_and_epithet(genus: str, epithet: str) -> None:
    texts = [taxon_texts((*IRIS[:5], genus, species), None, "Oak") for species in (epithet, f"{genus} {epithet}")]
    assert texts[0] == texts[1]


def test_a_hybrid_epithet_is_not_lost() -> None:
    ranks = (*IRIS[:5], "Rosa", species_of(pa.scalar("Rosa"), pa.scalar("× alba")).as_py())
    assert taxon_texts(ranks, None, None)["scientific"] == "Rosa × alba"


def test_nothing_known_gives_no_text() -> None:
    assert taxon_texts((None,) * 7, "Unidentified", None) == {}


def test_taxon_columns_follow_the_rows(make_candidates) -> None:
    rows = [{"taxon_scientific_name": "Iris tectorum"}, {}, {"taxon_scientific_name": "Iris tectorum"}]
    candidates = make_candidates(rows)
    columns = taxon_columns(candidates, candidates)
    texts = columns["texts"]
    assert [dict(row) for row in columns["taxon_ranks"].to_pylist()] == [
        {"genus": "Iris", "species": "Iris tectorum"}, {}, {"genus": "Iris", "species": "Iris tectorum"}
    ]  # fmt: skip
    assert columns["taxon_name"].to_pylist() == ["Iris tectorum", None, "Iris tectorum"]
    assert columns["taxon_derived"].to_pylist() == ["genus species", None, "genus species"]
    assert texts.type == pa.map_(pa.string(), pa.string())
    assert [len(row) for row in texts.to_pylist()] == [len(TEXT_TYPES), 0, len(TEXT_TYPES)]


@pytest.mark.parametrize(
    ("stated", "known", "derived"),
    [
        ({}, {"genus": "Iris", "species": "Iris tectorum"}, "genus species"),
        ({"genus": "Iris"}, {"genus": "Iris", "species": "Iris tectorum"}, "species"),
        ({"genus": "Iris", "species": "tectorum"}, {"genus": "Iris", "species": "Iris tectorum"}, None),
        ({"species": "Iris tectorum"}, {"genus": "Iris", "species": "Iris tectorum"}, "genus"),
        ({"species": "unknown"}, {"genus": "Iris"}, "genus"),
        ({"genus": "Aster"}, {"family": "Asteraceae", "genus": "Symphyotrichum"}, None),  # another classification
        ({"family": "Iridaceae"}, {"family": "Iridaceae", "genus": "Iris"}, "genus"),
        ({"genus": "Iris"}, {}, None),
    ],
)
def test_derived_ranks_fill_holes_and_mix_no_classifications(
    stated: dict[str, str], known: dict[str, str], derived: str | None
) -> None:
    assert derived_ranks(tuple(stated.get(rank) for rank in TAXON_RANKS), known) == derived


@pytest.mark.parametrize("piece", ["Rosa × ", "R. × ", "Rosa 'a b' × ", "<", "Rosa alba (cf.) "])
@pytest.mark.parametrize("num_chars", [500, 1_000_000])
def test_a_name_of_any_length_is_read_in_time(piece: str, num_chars: int) -> None:
    """As it was found: 9,308 characters of a mutated formula took 1.9 s, and the time grew with their cube."""
    started = time.thread_time()
    name = parse_name((piece * num_chars)[:num_chars])
    assert time.thread_time() - started < 1
    assert num_chars <= 500 or name == EMPTY_NAME
