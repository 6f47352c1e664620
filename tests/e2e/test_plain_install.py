"""What works without an extra: help, a first config, planning, and all that reads a work folder or release."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import plain_install
import pytest
from building import ROOT, done, release_of, write_folder_config, write_pictures

from pipeline.cli import COMMANDS

LAWS = ROOT / "tests/unit/pipeline/planning/data"
WHERE = "step=30000 AND model_size='70M'"


Ended = dict[str, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished work folder."""
    folder = tmp_path_factory.mktemp("plain")
    done("build", write_folder_config(folder, str(folder / "work"), write_pictures(folder, 4)))
    return folder / "work"


@pytest.fixture(scope="module")
def folder(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: two lists of pictures, and a config of a build."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "list.csv").write_text("id,url,caption,licence\n1,https://a.example/1.jpg,a rose in bloom,CC0-1.0\n")
    (folder / "list.json").write_text('[{"url": "https://a.example/2.jpg", "caption": "a tree", "licence": "CC0-1.0"}]')
    config = next(work.parent.glob("config-*.yaml"))
    (folder / "new.yaml").write_text(config.read_text().replace(str(work), str(folder / "new")))
    return folder


def lines_of(work: Path) -> dict[str, list[list[str]]]:
    """The command lines of each test."""
    release, pictures = str(release_of(work)), work.parent / "pics"
    choice = ["--objective", "Github", "--bootstrap", "20", "--accept-untrusted", "--out", "mixture.json"]
    return {
        "help": [
            *(["plantmix", name, "--help"] for name in COMMANDS),
            *([program, option] for program in ("plantmix", "dalip") for option in ("--help", "--version")),
        ],
        "first": [
            ["plantmix", "init", "--domain", f"plant=list.csv,{pictures / 'plant'}", "--domain", "general=list.json"],
            ["plantmix", "plan", "design", "--domains", "plant,general", "--budget", "8", "--out", "design.csv"],
            ["plantmix", "plan", "fit", str(LAWS / "2mix.csv"), "--where", WHERE, "--out", "law.json"],
            ["plantmix", "plan", "choose", "law.json", *choice],
        ],
        "read": [
            ["plantmix", "explain", str(work), str(pictures / "plant/0.jpg")],
            ["plantmix", "status", str(work)],
            ["plantmix", "query", str(work), "SELECT count(*) FROM candidates"],
            ["plantmix", "verify", release],
            ["plantmix", "diff", release, release],
            ["plantmix", "export", release, "--for", "webdataset"],
        ],
        "takedown": [["plantmix", "takedown", release, "--owner", "nobody of these"]],
        "missing": [["plantmix", "build", "new.yaml"], ["dalip", "train", "nowhere.yaml"]],
    }


@pytest.fixture(scope="module")
def ended(work: Path, folder: Path) -> Ended:
    """Exit code and words of each command, all in one process that has the packages of a plain install alone."""
    lines = lines_of(work)
    process = subprocess.run(
        [sys.executable, plain_install.__file__, json.dumps([line for of_test in lines.values() for line in of_test])],
        capture_output=True, text=True, check=False, cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    results = iter(json.loads(process.stdout.splitlines()[-1]))
    return {name: [tuple(next(results)) for _ in of_test] for name, of_test in lines.items()}


@pytest.mark.parametrize("name", ["help", "first", "read"])
def test_it_works(ended: Ended, name: str) -> None:
    assert [said for code, said in ended[name] if code] == []


def test_a_first_config_and_a_plan_are_written(ended: Ended, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"my.yaml", "design.csv", "law.json", "mixture.json"}


def test_a_work_folder_is_read(ended: Ended) -> None:
    assert "kept" in ended["read"][0][1]


def test_a_takedown_that_finds_nothing_says_so(ended: Ended) -> None:
    ((code, said),) = ended["takedown"]
    assert code == 2, said
    assert "nobody of these" in said


def test_what_an_extra_brings_is_named(ended: Ended) -> None:
    """What is missing is one line with the extra to install."""
    for (code, said), extra in zip(ended["missing"], ("pipeline", "training"), strict=True):
        assert code == 2
        assert "which is not installed" in said
        assert f"[{extra}]" in said
