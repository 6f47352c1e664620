"""The help of every command: what it does in a sentence, what it reads and writes, an example."""

from __future__ import annotations

import argparse

import pytest

from pipeline.answers.tables import aligned
from pipeline.cli import COMMANDS, build_parser


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "plan"])  # plan has commands of its own
def test_it_says_what_it_reads_and_writes(name: str) -> None:
    parser = build_parser([name])
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    text = commands.choices[name].format_help()
    assert "\nreads:  " in text
    assert "\nwrites: " in text
    assert f"\nexample: plantmix {name} " in text


def test_columns_are_aligned_and_numbers_grouped() -> None:
    rows = [("a", 1234567, "0.5"), ("long name", 2, "")]
    assert aligned(("name", ">rows", ">share"), rows) == [
        "name            rows  share",
        "a          1,234,567    0.5",
        "long name          2",
    ]
    assert aligned(("name", ">rows"), []) == ["name  rows"]
