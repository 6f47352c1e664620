"""`--json` of every command that only reads: one JSON value on standard output, with the keys that the docs name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from building import ROOT, build_own_pictures

from pipeline.cli import COMMANDS, build_parser, main

READING = {
    "estimate": ["own.yaml"],
    "preview": ["own.yaml"],
    "status": ["work"],
    "explain": ["work", "apple/lime.jpg"],
    "query": ["work", "SELECT 1 AS one"],
    "mix": ["own.yaml", "--dry-run"],
    "verify": ["work/releases/own"],
    "diff": ["work", "work"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished build of a few pictures that lie on the disk."""
    folder = tmp_path_factory.mktemp("json")
    (folder / "pics/apple").mkdir(parents=True)
    for photo in sorted((ROOT / "tests/photos").glob("*.jpg")):
        shutil.copy(photo, folder / "pics/apple")
    build_own_pictures(folder)
    return folder


def documented(command: str) -> list[str]:
    """Names in backticks in the line of a command; those in brackets belong to an inner value."""
    page = (ROOT / "configs/guide/look.md").read_text(encoding="utf-8")
    line = re.search(rf"^- `{command}(?: --dry-run)?`: (.*)$", page, re.MULTILINE)
    assert line is not None, command
    return re.findall(r"`([a-z_]+)`", re.sub(r"\([^)]*\)", "", line[1]))


@pytest.mark.parametrize("command", READING)
def test_the_answer_is_one_json_value(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main([command, *READING[command], "--json"]) == 0
    found: Any = json.loads(capsys.readouterr().out)
    if command in ("explain", "query"):
        assert isinstance(found, list)
        assert len(found) == 1
    else:
        assert set(documented(command)) <= set(found)


def test_verify_of_a_work_folder_names_its_findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["verify", str(folder / "work"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == []
    assert {"num_files", "num_bytes_read", "releases", "deep"} < set(found)


def test_every_command_with_json_is_tested() -> None:
    commands = build_parser()._subparsers
    assert commands is not None
    choices: Any = commands._group_actions[0].choices
    assert {name for name in COMMANDS if "--json" in choices[name].format_help()} == set(READING)
