"""Which labels lie within a taxon or a checklist: however it is spelled, at whatever rank, in whatever file."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from manifests.errors import ConfigError
from training.evaluation.class_names import Taxon
from training.evaluation.within import Within, choose_within, names_within

RANKS = {
    "Quercus robur": ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "Quercus robur"),
    "Quercus alba": ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Fagaceae", "Quercus", "alba"),
    "Betula nana": ("Plantae", "Tracheophyta", "Magnoliopsida", "Fagales", "Betulaceae", "Betula", "Betula nana"),
    "Isoëtes lacustris": ("Plantae", "", "", "Isoetales", "Isoëtaceae", "Isoëtes", "Isoëtes lacustris"),
    "Isoëtes histrix": ("", "", "", "Isoetales", "Isoëtaceae", "Isoëtes", "Isoëtes histrix"),
    "Oenanthe crocata": ("Plantae", "", "", "Apiales", "Apiaceae", "Oenanthe", "Oenanthe crocata"),
    "Oenanthe aquatica": ("Plantae", "", "", "Apiales", "Apiaceae", "Oenanthe", "Oenanthe aquatica"),
    "Oenanthe oenanthe": ("Animalia", "Chordata", "Aves", "", "", "Oenanthe", "Oenanthe oenanthe"),
    "Oenanthe isabellina": ("Animalia", "Chordata", "Aves", "", "", "Oenanthe", "Oenanthe isabellina"),
    "Quercus × rosacea": ("Plantae", "", "", "Fagales", "Fagaceae", "Quercus", "Quercus × rosacea"),
}
NAMES = list(RANKS)
OAKS = ["Quercus robur", "Quercus alba", "Quercus × rosacea"]


def chosen(found: Within) -> list[str]:
    return [NAMES[number] for number in found.numbers]


def within(group: Any, **changes: Any) -> Within:
    given = {"taxa": [Taxon(RANKS[name]) for name in NAMES], "rank": "species", "setting": "--within"}
    return choose_within(group, NAMES, **(given | changes))


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("Fagales", ["Quercus robur", "Quercus alba", "Betula nana", "Quercus × rosacea"]),
        ("FAGACEAE", OAKS),
        ("Quercus L.", OAKS),
        ("Animalia", ["Oenanthe oenanthe", "Oenanthe isabellina"]),
        (unicodedata.normalize("NFD", "Isoëtes"), ["Isoëtes lacustris", "Isoëtes histrix"]),
        ("Plantae:Oenanthe", ["Oenanthe crocata", "Oenanthe aquatica"]),
        ("animalia:genus:oenanthe", ["Oenanthe oenanthe", "Oenanthe isabellina"]),
    ],
)
def test_a_taxon_at_any_rank_however_it_is_spelled(group: str, expected: list[str]) -> None:
    found = within(group)
    assert chosen(found) == expected
    outside = len(NAMES) - len(expected)
    assert found.notes == [f"within {group}: {len(expected)} of 10 labels, the other {outside} are left out"]


def test_a_name_of_several_taxa_is_refused_with_words_that_tell_them_apart() -> None:
    with pytest.raises(ConfigError, match="'Oenanthe' means 2 taxa; write one of ") as refused:
        within("Oenanthe")
    choices = str(refused.value).rpartition("write one of ")[2].split(", ")
    assert choices == ["Plantae:genus:Oenanthe", "Animalia:genus:Oenanthe"]
    assert [len(within(choice).numbers) for choice in choices] == [2, 2]
    taxa = [Taxon(("", "", "", "", "Rosa" if number < 2 else "", "", name)) for number, name in enumerate(NAMES)]
    taxa[4:6] = [Taxon(("", "", "", "", "", "Rosa", name)) for name in NAMES[4:6]]
    with pytest.raises(ConfigError, match="means 2 taxa; write one of family:Rosa, genus:Rosa"):
        within("rosa", taxa=taxa)
    assert chosen(within("genus:Rosa", taxa=taxa)) == NAMES[4:6]


def test_a_checklist_finds_names_with_authors_subspecies_hybrids_and_given_names() -> None:
    given = [["Quercus pedunculata Ehrh."] if name == "Quercus robur" else [] for name in NAMES]
    listed = ["Quercus pedunculata", "Quercus alba L.", "Betula nana subsp. exilis (Sukaczev) Hultén",
              "Quercus x rosacea Bechst.", unicodedata.normalize("NFD", "ISOËTES HISTRIX"),
              "Quercus pedunculata", "Fagus sylvatica L.", "Quercus rober", "Ulmus glabra",
              "Acer campestre"]  # fmt: skip
    found = within(listed, given=given)
    assert chosen(found) == ["Quercus robur", "Quercus alba", "Betula nana", "Isoëtes histrix", "Quercus × rosacea"]
    assert found.notes == [
        "within the checklist: 5 of 10 labels, the other 5 are left out",
        "4 of the 9 names of the checklist are not among the labels: 'Fagus sylvatica L.', 'Quercus rober' (nearest: "
        "'Quercus robur'), 'Ulmus glabra' and 1 more",
    ]


def test_a_higher_taxon_of_a_checklist_is_a_heading_where_the_list_goes_on_below_it() -> None:
    assert chosen(within(["Fagales", "Fagaceae", "Quercus robur", "Quercus alba", "Plantae:Oenanthe"])) == [
        "Quercus robur", "Quercus alba", "Oenanthe crocata", "Oenanthe aquatica"
    ]  # fmt: skip
    assert chosen(within(["Quercus", "Betula nana"])) == ["Quercus robur", "Quercus alba", "Betula nana", OAKS[2]]


def test_labels_without_ranks_are_found_by_their_names_alone() -> None:
    changes: dict[str, Any] = {"taxa": [None] * len(NAMES), "rank": None}
    assert chosen(within(["quercus robur L.", "Betula  nana"], **changes)) == ["Quercus robur", "Betula nana"]
    message = "no label is 'Fagales', or .*; the labels have no higher ranks: name a checklist, or take taxa with"
    with pytest.raises(ConfigError, match=message):
        within("Fagales", **changes)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("Fagale", "--within: no label is 'Fagale' (nearest: 'Fagales'), or lies in a taxon of that name"),
        ("Betula", "1 of the 10 labels lie within Betula, two or more are needed to tell pictures apart"),
        (["Ulmus", "Betula nana"], "1 of the 10 labels lie within the checklist, two or more are needed to tell "
         "pictures apart; 1 of the 2 names of the checklist are not among the labels: 'Ulmus'"),
        ([], "0 of the 10 labels lie within the checklist"),
        ("lists/oaks", "lists/oaks: no such checklist; a name a line"),
        ("oaks.csv", "oaks.csv: no such checklist; a name a line"),
    ],
)  # fmt: skip
def test_a_group_that_tells_nothing_apart_is_one_line(group: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        within(group)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Quercus robur\r\n\r\n Betula nana \r\n"),
        ("a", "\ufeffscientific_name\nQuercus robur\nBetula nana\n"),
        ("a.csv", 'id,scientificName,note\n1,Quercus robur,"a, b"\n2,Betula nana,\n'),
        ("a.csv", "id;Wissenschaftlicher Name;Rote Liste\n1;Quercus robur;*\n2;Betula nana;2,5\n"),
        ("a.tsv", "Taxon\tfamily\nQuercus robur\tFagaceae\nBetula nana\tBetulaceae\n"),
        ("a.csv", "family,genus,species\nFagaceae,Quercus,robur\nBetulaceae,Betula,nana\n,Salix,sp.\n"),
    ],
)
def test_a_checklist_may_have_many_forms(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, newline="")
    assert names_within(str(tmp_path / name)) == (name, ["Quercus robur", "Betula nana"])


def test_a_checklist_may_be_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["Red list"], ["no.", "Scientific name"], [1, "Quercus robur"], [2, None], [3, "Betula nana"]):
        book.active.append(row)
    book.save(tmp_path / "list.xlsx")
    with pytest.raises(ConfigError, match=r"list\.xlsx: has no column of scientific names, .* it has Red list"):
        names_within(str(tmp_path / "list.xlsx"))
    book.active.delete_rows(1)
    book.save(tmp_path / "list.xlsx")
    assert names_within(str(tmp_path / "list.xlsx")) == ("list.xlsx", ["Quercus robur", "Betula nana"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n", "lists no names; a name a line"),
        ("a.csv", b"id,note\n1,x\n", "has no column of scientific names, such as scientificName; it has id, note"),
        ("a.txt", b"Isoetes\nIso\xebtes\n", "line 2 is not UTF-8"),
        ("a.xlsx", b"Quercus robur\n", "it is no workbook: it begins with b'Quercus robur"),
    ],
)
def test_a_file_that_is_no_checklist_is_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        names_within(str(tmp_path / name))
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / name))
