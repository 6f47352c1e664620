"""The commands of the READMEs run as they stand, in a folder like a fresh clone after its set-up.

A block of commands begins with ```console. A comment `<!-- not tested: REASON -->` on the line before leaves it out.
The blocks of a page run one after the other, each in a shell of its own that stops at the first command that fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT

from manifests.release import Release
from pipeline.demo.pictures import prepare_web
from pipeline.demo.server import serving

PAGES = ("README.md", "configs/README.md")
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


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def copy_configs(folder: Path) -> None:
    """The configs of the repository, the models and runs of training made small; and a user's own two."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for path in (folder / "configs/models").glob("*.json"):
        path.write_text(json.dumps(TINY_MODEL), encoding="utf-8")
    own = yaml.safe_load((folder / "configs/pipeline/demo.yaml").read_text(encoding="utf-8"))
    write_yaml(folder / "my.yaml", {**own, "work_dir": "data/my"})
    training = yaml.safe_load((folder / "configs/training/demo.yaml").read_text(encoding="utf-8"))
    changes = {"release": "data/my", "output_dir": "data/my/runs/my", "schedule": {"steps": 4, "warmup_steps": 1}}
    write_yaml(folder / "my-training.yaml", {**training, **changes})


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "home").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    copy_configs(folder)
    web = folder / "data/demo/web"
    web.mkdir(parents=True)
    with serving(web) as server:
        prepare_web(web, ROOT / "data/demo/packages", server.port)
        yield folder


def environment_of(clone: Path) -> dict[str, str]:
    """Nothing of this process's environment but PATH; and what the READMEs' $URL and $OLD stand for."""
    values = {"PATH": os.defpath, "HOME": str(clone / "home"), "LANG": "C.UTF-8"}
    latest = clone / "data/my/releases/LATEST"
    if latest.is_file():
        values["OLD"] = latest.read_text(encoding="utf-8").strip()
        values["URL"] = Release.open(str(clone / "data/my")).samples("train", ["url"])["url"][0].as_py()
    else:
        lines = (clone / "data/demo/web/plants.csv").read_text(encoding="utf-8")
        values["URL"] = next(word for word in re.split(r"[,\s]", lines) if word.startswith("http://127.0.0.1"))
    return values


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the blocks of each page have printed so far."""
    return dict.fromkeys(PAGES, "")


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.reason], ids=lambda block: block.name)
def test_the_commands_of_a_block_succeed(block: Block, clone: Path, printed: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", block.commands],
        cwd=clone,
        env=environment_of(clone),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=550,
        check=False,
    )
    printed[block.page] += done.stdout
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_readme_shows_what_a_build_prints(printed: dict[str, str]) -> None:
    """The README's build is the demo's; `my.yaml` of the test above is the same but for its work folder."""
    shown = re.findall(r"^\w+: done, .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 8, "a line a stage"
    assert [line for line in shown if line not in printed["README.md"].splitlines()] == []


def test_every_block_of_commands_is_tested_or_says_why_not() -> None:
    tested = [block for block in BLOCKS if not block.reason]
    assert {block.page for block in tested} == set(PAGES)
    fences = sum((ROOT / page).read_text(encoding="utf-8").count("```console") for page in PAGES)
    assert fences == len(BLOCKS)
    assert all(len(block.reason.split()) > 3 for block in BLOCKS if block.reason)
