"""The shell completion that configs/guide/install.md tells how to make completes commands and options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from building import ROOT
from environments import environment

pytestmark = pytest.mark.slow

CASES = [("plantmix", "pipeline", "plantmix e", "estimate explain export"),
         ("plantmix", "pipeline", "plantmix status --j", "--json"),
         ("dalip", "training", "dalip tr", "train")]  # fmt: skip


@pytest.fixture(scope="module")
def python() -> Path:
    """Python of an environment with shtab, which users install themselves."""
    return environment("tools", on_ours=True)


def completion_of(python: Path, shell: str, program: str, package: str) -> str:
    command = [python, "-m", "shtab", f"--shell={shell}", "--prog", program, f"{package}.cli.build_parser"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("program", "package", "typed", "answer"), CASES, ids=[case[2] for case in CASES])
def test_bash_completes(python: Path, program: str, package: str, typed: str, answer: str) -> None:
    words = typed.split()
    lines = [
        completion_of(python, "bash", program, package),
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}",
        f'_shtab_{package} {words[0]} {words[-1]} {words[-2]}; echo "${{COMPREPLY[*]}}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == answer.split()


def test_zsh_gets_a_script_too(python: Path) -> None:
    assert "#compdef plantmix" in completion_of(python, "zsh", "plantmix", "pipeline")
