from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

demo = importlib.import_module("pipeline.demo.__main__")


def _install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_outside_the_repository_it_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "configs/pipeline/demo.yaml: not here; run the demo from the root" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(["everything"])
    assert caught.value.code == 2
    assert "pictures" in capsys.readouterr().err


def test_a_command_is_printed_as_a_person_types_it_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    _install(tmp_path, "plantmix", 'echo "did $*"')
    demo.run_command("plantmix", "build", "a b.yaml")
    assert capfd.readouterr().out == "\n$ plantmix build a b.yaml\ndid build a b.yaml\n(0 s)\n"


def test_the_exit_code_of_a_failed_command_becomes_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    _install(tmp_path, "plantmix", 'echo "disk is full" >&2; exit 3')
    with pytest.raises(
        demo.CommandError, match=r"`plantmix build x` failed with exit code 3; see its own message"
    ) as caught:
        demo.run_command("plantmix", "build", "x")
    assert caught.value.exit_code == 3
    assert "disk is full" in capfd.readouterr().err
    _install(tmp_path, "dalip", "kill -9 $$")
    with pytest.raises(demo.CommandError) as caught:
        demo.run_command("dalip", "train")
    assert caught.value.exit_code == 137


def test_a_missing_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(demo.ConfigError, match=r"dalip: not installed; `make demo` installs it"):
        demo.run_command("dalip", "train")
