"""Words of `diff` over changed settings."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.commands.diff import describe_change
from pipeline.releases.diff import _changes


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"seed": 0}, {"seed": 1}, ["seed: 0 -> 1"]),
        ({"allow": ["CC0-1.0", "CC-BY"]}, {"allow": ["CC0-1.0", "unknown"]}, ["allow: -CC-BY +unknown"]),
        (
            {"sources": [{"name": "web", "priority": 0, "columns": {"url": "a"}}]},
            {"sources": [{"name": "web", "priority": 1, "columns": {"url": "a"}}]},
            ["sources.web.priority: 0 -> 1"],
        ),
        (
            {"sources": [{"name": "web", "table": "x"}]},
            {"sources": [{"name": "web", "table": "x"}, {"name": "ours", "folder": {"path": "p"}}]},
            ["sources.ours: added, with name, folder"],
        ),
        ({"semantic": {"model": "m", "seed": 0}}, {"semantic": None}, ["semantic: removed, with model, seed"]),
        ({"text": "a" * 500}, {"text": "b"}, [f"text: {'a' * 77}... -> b"]),
    ],
)
def test_a_change_names_what_changed(before: Any, after: Any, says: list[str]) -> None:
    assert [describe_change(change) for change in _changes("", before, after)] == says
