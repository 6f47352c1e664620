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


def ended(folder: Path, *lines: list[str]) -> list[tuple[int, str]]:
    """Exit code and words of each command, all in one process that has the packages of a plain install alone."""
    process = subprocess.run(
        [sys.executable, plain_install.__file__, json.dumps(lines)],
        capture_output=True, text=True, check=False, cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    return [(code, said) for code, said in json.loads(process.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished work folder."""
    folder = tmp_path_factory.mktemp("plain")
    done("build", write_folder_config(folder, str(folder / "work"), write_pictures(folder, 4)))
    return folder / "work"


def test_help_of_everything_works(tmp_path: Path) -> None:
    lines = [["plantmix", name, "--help"] for name in COMMANDS]
    lines += [["plantmix", "--help"], ["plantmix", "--version"], ["dalip", "--help"], ["dalip", "--version"]]
    assert [(line, said) for line, (code, said) in zip(lines, ended(tmp_path, *lines), strict=True) if code] == []


def test_a_first_config_and_a_plan(work: Path, tmp_path: Path) -> None:
    pictures = work.parent / "pics"
    (tmp_path / "list.csv").write_text("id,url,caption,licence\n1,https://a.example/1.jpg,a rose in bloom,CC0-1.0\n")
    (tmp_path / "list.json").write_text(
        '[{"url": "https://a.example/2.jpg", "caption": "a tree", "licence": "CC0-1.0"}]'
    )
    law = ["plantmix", "plan", "fit", str(LAWS / "2mix.csv"), "--where", WHERE, "--out", "law.json"]
    choice = ["--objective", "Github", "--bootstrap", "20", "--accept-untrusted", "--out", "mixture.json"]
    results = ended(
        tmp_path,
        ["plantmix", "init", "--domain", f"plant=list.csv,{pictures / 'plant'}", "--domain", "general=list.json"],
        ["plantmix", "plan", "design", "--domains", "plant,general", "--budget", "8", "--out", "design.csv"],
        law,
        ["plantmix", "plan", "choose", "law.json", *choice],
    )
    assert [said for code, said in results if code] == []
    assert {path.name for path in tmp_path.iterdir()} >= {"my.yaml", "design.csv", "law.json", "mixture.json"}


def test_a_work_folder_and_a_release_are_read(work: Path, tmp_path: Path) -> None:
    release = str(release_of(work))
    results = ended(
        tmp_path,
        ["plantmix", "explain", str(work), str(work.parent / "pics/plant/0.jpg")],
        ["plantmix", "status", str(work)],
        ["plantmix", "query", str(work), "SELECT count(*) FROM candidates"],
        ["plantmix", "verify", release],
        ["plantmix", "diff", release, release],
        ["plantmix", "export", release, "--for", "webdataset"],
        ["plantmix", "takedown", release, "--owner", "nobody of these"],
    )
    *read, (code, said) = results
    assert [said for code, said in read if code] == []
    assert "kept" in read[0][1]
    assert code == 2, said
    assert "nobody of these" in said


def test_what_an_extra_brings_is_named(work: Path, tmp_path: Path) -> None:
    """What is missing is one line with the extra to install."""
    config = next(work.parent.glob("config-*.yaml"))
    (tmp_path / "new.yaml").write_text(config.read_text().replace(str(work), str(tmp_path / "new")))
    results = ended(tmp_path, ["plantmix", "build", "new.yaml"], ["dalip", "train", "nowhere.yaml"])
    for (code, said), extra in zip(results, ("pipeline", "training"), strict=True):
        assert code == 2
        assert "which is not installed" in said
        assert f"[{extra}]" in said
