"""The shell blocks of a page, and a folder like a fresh clone after its set-up to run them in.

A block of commands begins with ```console. A comment `<!-- not tested: REASON -->` on the line before leaves it out.
Each block runs in a shell of its own that stops at the first command that fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from building import ROOT

BLOCK = re.compile(r"(?:<!-- not tested: (?P<reason>[^>]+) -->\n)?^```console\n(?P<commands>.*?)^```$", re.M | re.S)
TINY_MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Block:
    page: str
    commands: str
    reason: str | None  # why it is not tested

    @property
    def name(self) -> str:
        words = self.commands.split()
        return f"{self.page}: {' '.join(words[:2])}"


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, found["commands"], found["reason"]) for found in BLOCK.finditer(text)]


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def copy_configs(folder: Path) -> None:
    """A clone: an empty home, and the configs with the models made small."""
    (folder / "home").mkdir()
    shutil.copytree(ROOT / "configs", folder / "configs")
    for path in (folder / "configs/models").glob("*.json"):
        path.write_text(json.dumps(TINY_MODEL), encoding="utf-8")


def environment_of(clone: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The clone's .venv is active; of this process only its code; one thread a process; what variables stand for."""
    path = f"{clone}/.venv/bin:{os.defpath}"
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(clone / "home"), "LANG": "C.UTF-8"}
    return {**ours, "OMP_NUM_THREADS": "1", **more}


def run_block(block: Block, clone: Path, more: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", block.commands],
        cwd=clone,
        env=environment_of(clone, more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
        check=False,
    )
