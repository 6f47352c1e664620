from __future__ import annotations

import csv
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.judging.vocabulary.licences import (
    LICENCE_IDS,
    REDISTRIBUTABLE,
    UNKNOWN,
    LicenceSettings,
    check_meanings,
    judge_licences,
    licence_address,
    normalise_licence,
    normalise_licences,
    unread_statements,
)

TEXTS = list(csv.DictReader(Path(__file__).with_name("licence_texts.csv").read_text(encoding="utf-8").splitlines(True)))
"""Texts as catalogues write them, what they are read as, and what they were read as while words were searched for."""
EARLIER = [row for row in TEXTS if row["earlier_id"]]


def test_texts_of_catalogues() -> None:
    assert len(TEXTS) >= 300
    read = {row["text"]: normalise_licence(row["text"]) for row in TEXTS}
    assert {row["text"]: read[row["text"]] for row in TEXTS if read[row["text"]] != row["id"]} == {}


@pytest.mark.parametrize("licence", sorted({row["id"] for row in TEXTS}))
def test_an_id_stands_for_itself(licence: str) -> None:
    assert normalise_licence(licence) == licence


def test_what_was_read_rightly_before_is_read_and_nothing_that_forbids_is_free() -> None:
    now_unknown = [row["text"] for row in EARLIER if row["id"] == UNKNOWN != row["earlier_id"]]
    assert len(now_unknown) <= 0.05 * len(EARLIER)
    others = {row["text"]: row["id"] for row in EARLIER if row["id"] not in (row["earlier_id"], UNKNOWN)}
    assert others == {}


@pytest.mark.parametrize("text", [
    "This image is not in the public domain", "not CC0", "nicht gemeinfrei", "CC BY 4.0, for personal use only",
    "CC BY 4.0 (no commercial use)", "© 2020 A. All rights reserved. Metadata CC0",
    "Text CC BY-SA 3.0, image copyright by museum", "formerly CC BY 2.0", "not subject to the MIT License",
    "https://creativecommons.org/licenses/by/4.0/ https://creativecommons.org/licenses/by-nd/4.0/",
    "https://creativecommons.org/licenses/by%2Dnd/4.0/", "public domain outside Europe",
])  # fmt: skip
def test_texts_that_negate_or_restrict_are_not_passed_on(text: str) -> None:
    assert not REDISTRIBUTABLE.allows(normalise_licence(text))


@pytest.mark.parametrize(
    ("text", "url", "licence"),
    [
        ("CC BY-NC", "http://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
        ("CC BY-NC 4.0", "", "CC-BY-NC-4.0"),
        ("", "http://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
        ("© Jane Doe", "http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("public domain", "https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("CC BY", "http://creativecommons.org/licenses/by-nc/4.0/", "conflicting"),
        ("CC BY-NC-ND 4.0", "http://creativecommons.org/licenses/by/4.0/", "conflicting"),
        ("All rights reserved", "http://creativecommons.org/licenses/by/4.0/", "conflicting"),
        ("© Jane Doe, all rights reserved", "http://creativecommons.org/licenses/by/4.0/", "conflicting"),
        ("permission required", "http://creativecommons.org/licenses/by/4.0/", "conflicting"),
        ("CC BY 4.0", "https://a.example/terms", "conflicting"),
        ("n/a", "http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("Not specified", "http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("other", "http://creativecommons.org/licenses/by/4.0/", "conflicting"),
        ("permission required", "https://a.example/terms", "unknown"),
        (None, None, "unknown"),
    ],
)
def test_name_and_address_together(text: str | None, url: str | None, licence: str) -> None:
    assert normalise_licence(text, url) == licence


BY, BY_NC = (f"https://creativecommons.org/licenses/{parts}/4.0/" for parts in ("by", "by-nc"))


@pytest.mark.parametrize(
    ("text", "url", "licence"),
    [
        ("CC BY\nCC BY-NC", f"{BY}\n{BY_NC}", "CC-BY-4.0 AND CC-BY-NC-4.0"),
        ("CC BY\nCC BY", f"\n{BY}", "CC-BY-4.0"),
        ("\nCC BY", f"{BY_NC}\n", "CC-BY AND CC-BY-NC-4.0"),
        ("CC BY\npermission required", None, "unknown"),
        ("CC BY\nprivate", None, "unknown"),
        ("CC BY\nIn Copyright", None, "CC-BY AND all-rights-reserved"),
        ("CC BY\n© 2020 J. Smith", None, "CC-BY AND all-rights-reserved"),
        ("CC BY\nn/a", None, "CC-BY"),
        ("CC BY\nCC BY", f"{BY}\n{BY_NC}", "conflicting"),
        ("CC BY 4.0\nGFDL or CC BY 4.0", None, "unknown"),
        ("CC BY\n" * 100_000, None, "CC-BY"),
    ],
)
def test_rows_of_a_table_are_read_apart_and_hold_together(text: str, url: str | None, licence: str) -> None:
    assert normalise_licence(text, url) == licence


def test_a_config_says_what_a_text_means() -> None:
    meant = check_meanings({"Free for all,  with credit.": "CC-BY-4.0", "https://a.example/terms": "CC0-1.0"})
    assert normalise_licence("FREE for all, with credit", None, meant) == "CC-BY-4.0"
    assert normalise_licence("Free for all, with credit", "https://a.example/terms", meant) == "conflicting"
    assert normalise_licence(None, "https://a.example/terms", meant) == "CC0-1.0"
    assert normalise_licence("Free for all, with credit, but not for sale", None, meant) == "unknown"
    assert normalise_licence("CC BY\nFree for all, with credit", None, meant) == "CC-BY-4.0"
    assert unread_statements("Free for all\nCC BY\nn/a", "https://a.example/terms", {}) == [
        "Free for all", "https://a.example/terms",
    ]  # fmt: skip
    assert unread_statements("Free for all, with credit", "https://a.example/terms", meant) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"CC BY-NC 4.0": "CC0-1.0"}, "'CC BY-NC 4.0' is read as CC-BY-NC-4.0"),
        ({"n/a": "CC0-1.0"}, "'n/a' says nothing: write `defaults`"),
        ({"Free for all": "known"}, "'known' is no licence that a text can mean"),
        ({"Free for all": "CC BY 4.0"}, r"'CC BY 4.0' is not a licence id; did you mean 'CC-BY-4\.0'"),
    ],
)
def test_only_texts_that_are_not_read_are_given_a_meaning(texts: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_meanings(texts)


@pytest.mark.parametrize("licence", [licence for licence in LICENCE_IDS if licence_address(licence) != licence])
def test_the_address_of_a_licence_is_read_as_it(licence: str) -> None:
    assert normalise_licence(None, licence_address(licence)) == licence


@pytest.mark.parametrize(
    ("settings", "allowed", "refused"),
    [
        ({}, ["CC-BY-4.0", "GPL-2.0", "public-domain"], ["unknown", "conflicting", "all-rights-reserved", None]),
        ({"allow": ["CC-BY"]}, ["CC-BY", "CC-BY-2.0", "CC-BY-4.0"], ["CC-BY-NC-4.0", "CC-BY-SA-4.0", "CC0-1.0"]),
        ({"allow": ["CC-BY-4.0"]}, ["CC-BY-4.0"], ["CC-BY", "CC-BY-3.0"]),
        ({"allow": ["unknown", "CC0-1.0"]}, ["unknown", None, "CC0-1.0"], ["conflicting"]),
        ({"deny": ["CC-BY-NC"]}, ["CC-BY-4.0"], ["CC-BY-NC-4.0", "CC-BY-NC", "unknown"]),
        ({"allow": ["GFDL"]}, ["CC-BY-SA-3.0 OR GFDL-1.2", "GFDL-1.3"], ["CC-BY-3.0 AND GFDL-1.2"]),
    ],
)
def test_policies(settings: dict[str, list[str]], allowed: list[str | None], refused: list[str | None]) -> None:
    policy = LicenceSettings.model_validate(settings)
    assert [policy.allows(licence) for licence in allowed] == [True] * len(allowed)
    assert [policy.allows(licence) for licence in refused] == [False] * len(refused)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("CC BY 4.0", r"did you mean 'CC-BY-4\.0'"),
        ("CC-BYY", "did you mean 'CC-BY'"),
        ("apache", "did you mean 'Apache-2.0'"),
        ("all rights", "did you mean 'all-rights-reserved'"),
        ("qqqqqqqq", "the ids are known, all-rights-reserved, conflicting"),
    ],
)
def test_a_policy_over_a_spelling_names_the_id(entry: str, hint: str) -> None:
    with pytest.raises(ValidationError, match=f"'{entry}' is not a licence id; {hint}"):
        LicenceSettings(allow=(entry,))


def test_every_id_is_taken() -> None:
    for entry in LICENCE_IDS:
        LicenceSettings(allow=(entry,))


def test_verdicts_carry_the_licence_and_the_policy() -> None:
    ids = normalise_licences(pa.array(["CC BY 4.0", None, "CC BY-NC"]), pa.array(["", None, ""]))
    table = pa.table({"sample_id": ["a", "b", "c"], "licence_id": ids})
    verdicts = judge_licences(table, LicenceSettings(deny=("CC-BY-NC",)))
    assert verdicts["keep"].to_pylist() == [True, False, False]
    assert verdicts["value"].to_pylist() == [None, "unknown", "CC-BY-NC"]
    assert verdicts["threshold"].to_pylist()[1] == "allow every known one; deny CC-BY-NC"


@pytest.mark.parametrize(
    ("licence_id", "may"),
    [
        ("CC0-1.0", True),
        ("CC-BY-2.0", True),
        ("CC-BY-NC-SA-4.0", True),
        ("GFDL-1.3", True),
        ("MIT OR unknown", True),
        ("CC-BY-ND-4.0", False),
        ("CC-BY-NC-ND", False),
        ("CC-BY-4.0 AND unknown", False),
        ("LicenseRef-Unsplash", False),
        ("no-known-copyright", False),
        ("all-rights-reserved", False),
        ("unknown", False),
        ("conflicting", False),
    ],
)
def test_what_everyone_may_pass_on(licence_id: str, may: bool) -> None:
    assert REDISTRIBUTABLE.allows(licence_id) is may


@pytest.mark.parametrize(
    ("licence_id", "address"),
    [
        ("CC-BY-NC-SA-4.0", "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
        ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("MIT", "https://spdx.org/licenses/MIT.html"),
        ("GPL-3.0-or-later", "https://spdx.org/licenses/GPL-3.0-or-later.html"),
        ("CC-BY", "CC-BY"),
        ("CC-BY-4.0 OR GFDL-1.3", "CC-BY-4.0 OR GFDL-1.3"),
        ("unknown", "unknown"),
        ("LicenseRef-Pixabay", "LicenseRef-Pixabay"),
    ],
)
def test_where_a_licence_can_be_read(licence_id: str, address: str) -> None:
    assert licence_address(licence_id) == address


def test_a_text_of_any_length_is_read_in_time() -> None:
    started = time.thread_time()
    assert normalise_licence("CC BY 4.0 " * 1_000_000) == "unknown"
    assert normalise_licence("9" * 9_999) == "unknown"
    assert time.thread_time() - started < 1
