"""Names of creators in the Markdown of a release: shown as they are, unable to say anything else."""

from __future__ import annotations

import pytest

from manifests.publishing.markdown import plain_markdown as plain
from pipeline.sidefiles.pages import write_attribution_page

FORGED = "Eve\n\n## cc0-1.0: 9,999 images\n\n- Mallory: 9,999"


def attribution(*owners: str) -> list[str]:
    rows = [{"licence": "cc-by-4.0", "owner": owner, "images": 1} for owner in owners]
    return write_attribution_page({"name": "r", "version": "1"}, {"owners": rows}).splitlines()


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_a_creator_cannot_forge_a_licence_section(line_break: str) -> None:
    lines = attribution(FORGED.replace("\n", line_break), "Ada")
    assert [line for line in lines if line.startswith("#")] == ["# Attribution of r-1", "## cc-by-4.0: 2 images"]
    assert [line for line in lines if line.startswith("-")] == [
        "- Eve ## cc0-1.0: 9,999 images - Mallory: 9,999: 1",
        "- Ada: 1",
    ]


@pytest.mark.parametrize("name", ["Ada Lovelace", "O'Brien (Kew)", "user_name_1", "Müller & Söhne, 1999", "A. Gray"])
def test_usual_names_stay_as_they_are(name: str) -> None:
    assert plain(name) == name


def test_no_character_is_spared_within_a_usual_name() -> None:
    for code in range(0x11000):
        name = f"a{chr(code)}b"
        assert plain(name) == plain(f"1{name}")[1:], hex(code)  # what begins with a digit is no usual name
        assert plain(f"{name} c") == plain(f"1{name} c")[1:], hex(code)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("# Heading", "\\# Heading"),
        ("- item", "\\- item"),
        ("12. item", "12\\. item"),
        ("> quote", "\\> quote"),
        ("```", "\\`\\`\\`"),
        ("[here](http://evil.example)", "\\[here\\](http://evil.example)"),
        ("<img src=x>", "\\<img src=x>"),
        ("\x1b[31mred", "\\\\u001b\\[31mred"),
    ],
)
def test_markup_is_shown_and_not_obeyed(name: str, shown: str) -> None:
    assert plain(name) == shown
