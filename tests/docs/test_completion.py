"""The shell completion that configs/GUIDE.md tells how to make completes commands and options."""

from __future__ import annotations

import argparse
import subprocess

import pytest
import shtab

import pipeline.cli
import training.cli

CASES = [
    (pipeline.cli.build_parser(), "plantmix e", "estimate explain export"),
    (pipeline.cli.build_parser(), "plantmix status --j", "--json"),
    (training.cli.build_parser(), "dalip tr", "train"),
]


@pytest.mark.parametrize(("parser", "typed", "wanted"), CASES, ids=[typed for _, typed, _ in CASES])
def test_bash_completes(parser: argparse.ArgumentParser, typed: str, wanted: str) -> None:
    words = typed.split()
    lines = [
        shtab.complete(parser, shell="bash"),
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}",
        f'_shtab_{parser.prog} {words[0]} {words[-1]} {words[-2]}; echo "${{COMPREPLY[*]}}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == wanted.split()


def test_zsh_gets_a_script_too() -> None:
    assert "#compdef plantmix" in shtab.complete(pipeline.cli.build_parser(), shell="zsh")
