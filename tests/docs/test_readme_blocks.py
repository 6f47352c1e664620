"""The commands of the READMEs run as they stand, in a folder like a fresh clone after its set-up.

A block of commands begins with ```console. A comment `<!-- not tested: REASON -->` on the line before leaves it out.
The blocks of a page run one after the other, each in a shell of its own that stops at the first command that fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from building import ROOT
from shell_blocks import Block, blocks_of, copy_configs, run_block, write_yaml

from manifests.release import Release
from pipeline.demo.pictures import prepare_web
from pipeline.demo.server import serving
from pipeline.flow import FLOW

PAGES = ("README.md", "configs/GUIDE.md")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def write_own_configs(folder: Path) -> None:
    """The two configs that the README calls a user's own, at the root of the clone."""
    own = yaml.safe_load((folder / "configs/pipeline/demo.yaml").read_text(encoding="utf-8").replace("../../", ""))
    write_yaml(folder / "my.yaml", {**own, "work_dir": "data/my"})
    text = (folder / "configs/training/demo.yaml").read_text(encoding="utf-8")
    training = yaml.safe_load(text.replace("../../", "").replace("../models/", "configs/models/"))
    changes = {"release": "data/my", "output_dir": "data/my/runs/my", "schedule": {"steps": 4, "warmup_steps": 1}}
    write_yaml(folder / "my-training.yaml", {**training, **changes})


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clone")
    copy_configs(folder)
    write_own_configs(folder)
    web = folder / "data/demo/web"
    web.mkdir(parents=True)
    with serving(web) as server:
        prepare_web(web, ROOT / "data/demo/packages", server.port)
        yield folder


def environment_of(clone: Path) -> dict[str, str]:
    """What the READMEs' $URL and $OLD stand for."""
    values = {}
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
    done = run_block(block, clone, environment_of(clone))
    printed[block.page] += done.stdout
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_readme_shows_what_a_build_prints(printed: dict[str, str]) -> None:
    """The README's build is the demo's; `my.yaml` of the test above is the same but for its work folder."""
    shown = re.findall(r"^\w+: done, .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 8, "a line a stage"
    said = printed["README.md"].splitlines()
    assert said, "the blocks did not run before in this process: run the whole file (xdist: --dist loadfile)"
    assert [line for line in shown if line not in said] == []


def test_the_build_that_the_readme_shows_adds_up() -> None:
    """The quick part of the test above: the stages are those of the flow, and no row is lost between them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace(",", "")
    shown = re.findall(r"^(\w+): done (\d+) of (\d+) kept(?: dropped:(.*))?$", text, re.MULTILINE)
    assert [name for name, *_ in shown] == [stage.name for stage in FLOW]
    before = int(shown[0][2])
    for name, kept, num_in, dropped in shown:
        assert int(num_in) == before, name
        before = int(kept)
        assert int(num_in) - before == sum(int(number) for number in re.findall(r"\d+(?= [a-z])", dropped)), name


def test_every_block_of_commands_is_tested_or_says_why_not() -> None:
    tested = [block for block in BLOCKS if not block.reason]
    assert {block.page for block in tested} == set(PAGES)
    fences = sum((ROOT / page).read_text(encoding="utf-8").count("```console") for page in PAGES)
    assert fences == len(BLOCKS)
    assert all(len(block.reason.split()) > 3 for block in BLOCKS if block.reason)
