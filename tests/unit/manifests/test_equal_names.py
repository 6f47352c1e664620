"""Spellings of one name are equal, names that share words are alike, and the rest is neither."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.names.equal import name_key, names_like, spellings_of


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Müller", unicodedata.normalize("NFD", "Müller")),  # as a Mac names files
        ("Νίκος", "ΝΊΚΟΣ"),
        ("Νίκος", "\u039d\u1f77κοσ"),  # with an oxia, as old Greek fonts have it
        ("Ana  Lima", " ana\u00a0LIMA\u2003"),
        ("Ana Lima", "Ana\u2028Lima"),
        ("İpek Işık", "ipek IŞIK"),
        ("Groß", "GROSS"),
        ("Ｊ. Ｄｏｅ", "J. Doe"),  # wide letters
        ("Jane Doe", "\ufeffJane\u200e Doe"),  # marks that nobody sees
    ],
)
def test_spellings_of_one_name_are_equal(name: str, other: str) -> None:
    assert name_key(name) == name_key(other)


@pytest.mark.parametrize(("name", "other"), [("Müller", "Muller"), ("J. Doe", "J Doe"), ("Ana Lima", "Analima")])
def test_other_names_are_not(name: str, other: str) -> None:
    assert name_key(name) != name_key(other)


def test_every_letter_is_equal_to_its_capitals_and_to_each_of_its_forms() -> None:
    for letter in map(chr, [*range(0x3000), *range(0xFB00, 0x10000), *range(0x1D400, 0x1D800)]):
        key = name_key(f"a{letter}b")
        forms = {f"a{letter.lower()}b", f"A{letter.upper()}B", key}
        forms |= {unicodedata.normalize(form, f"a{letter}b") for form in ("NFC", "NFD", "NFKC", "NFKD")}
        assert {name_key(form) for form in forms} == {key}, hex(ord(letter))


def test_like_names_share_a_word_and_contradict_none() -> None:
    counts = {"Müller, J.": 3, "Jörg Müller": 5, "MÜLLER": 2, "Muller": 1, "Müllerin": 9, "Hans Meier": 4, "J. M.": 1}
    assert names_like("Müller", counts) == {"Jörg Müller": 5, "Müller, J.": 3, "Muller": 1}
    assert names_like("Jörg Müller", counts) == {"Müller, J.": 3, "MÜLLER": 2, "Muller": 1}
    assert names_like("Karl Müller", counts) == {"MÜLLER": 2, "Muller": 1}


def test_the_spellings_of_a_column() -> None:
    assert spellings_of([name_key("müller")], ["MÜLLER", None, "", "Meier", "Mu\u0308ller"]) == {
        "MÜLLER": {"müller"},
        "Mu\u0308ller": {"müller"},
    }


def test_each_of_several_authors_counts() -> None:
    listed = "Jörg Müller; Ana Lima"
    assert spellings_of([name_key("ANA LIMA")], [listed, "Ana Limal"]) == {listed: {"ana lima"}}
    assert spellings_of([name_key(listed)], [listed]) == {listed: {name_key(listed)}}
    assert spellings_of(["ana lima", "jörg müller"], [listed]) == {listed: {"ana lima", "jörg müller"}}
    assert names_like("Ana Lima", {listed: 2, "Lima": 1}) == {"Lima": 1}


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_letters_are_folded_as_all_others(name: str) -> None:
    """A mark that nobody sees sends the name through Unicode's tables."""
    assert name_key(name) == name_key(f"{name}\u200b")
