"""Words of `diff` over changed settings, and which release `takedown` cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError
from pipeline.commands.diff import describe_change
from pipeline.commands.takedown import require_one_name
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


def test_a_work_folder_of_two_names_must_say_which(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    releases.mkdir()
    (releases / "LATEST").write_text("b-2\n")
    (releases / "a.LATEST").write_text("a-1\n")
    require_one_name(str(tmp_path))
    (releases / "b.LATEST").write_text("b-2\n")
    with pytest.raises(ConfigError, match=r"holds releases of 2 names \(a, b; the newest is b-2\); say which: .*/a"):
        require_one_name(str(tmp_path))
    require_one_name(str(releases / "a"))
