"""The commands of the READMEs run as they stand, in a folder like a fresh clone after its set-up.

But proxy runs are shorter. And the guide's builds of the demo's other releases begin with what the README's build has
stored, and run in one process: the README's is the one on Ray, which is the default.

A block of commands begins with ```console. A comment `<!-- not tested: REASON -->` on the line before leaves it out.
The blocks of a page run one after the other, each in a shell of its own that stops at the first command that fails.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT
from ci_scripts import load_ci_script
from command_server import serving_commands
from crawling import make_client, open_image_index
from environments import lacks, needs_pinned, pins
from sealed import lend
from shell_blocks import Block, blocks_of, copy_configs, environment_of, run_block, write_yaml

from manifests.contract.release import Release
from pipeline.browse.app import PAGES as PAGES_OF_BROWSE
from pipeline.demo.debian import find_package
from pipeline.demo.packages import PACKAGES
from pipeline.demo.pictures import PREFERRED_PORT, prepare_web
from pipeline.demo.server import serving
from pipeline.flow import FLOW

PAGES = ("README.md", "configs/GUIDE.md")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
DEBS = ROOT / "data/demo/packages"
PACKAGES_OF_THE_README = {  # sha256 of the packages whose pictures give the release that the README names
    "pysiogame": "1fe053f398aa688e3c6d44ed81424c84cc804ee4d3341a51019aec1381ce3810",
    "tuxpaint-stamps-default": "6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
}


def write_own_configs(folder: Path) -> None:
    """The two configs that the README calls a user's own, at the root of the clone."""
    own = yaml.safe_load((folder / "configs/pipeline/demo.yaml").read_text(encoding="utf-8").replace("../../", ""))
    write_yaml(folder / "my.yaml", {**own, "work_dir": "data/my"})
    text = (folder / "configs/training/demo.yaml").read_text(encoding="utf-8")
    training = yaml.safe_load(text.replace("../../", "").replace("../models/", "configs/models/"))
    changes = {"release": "data/my", "output_dir": "data/my/runs/my", "schedule": {"steps": 4, "warmup_steps": 1}}
    write_yaml(folder / "my-training.yaml", {**training, **changes})
    for path in (folder / "configs/pipeline").glob("demo-*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        write_yaml(path, {**values, "run": {**values["run"], "executor": "inline"}})


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clone")
    copy_configs(folder)
    write_own_configs(folder)
    web = folder / "data/demo/web"
    web.mkdir(parents=True)
    with ExitStack() as stack:
        # addresses are part of a release: with those of `make demo` it is the same one
        server = stack.enter_context(serving(web, PREFERRED_PORT))
        prepare_web(web, DEBS, server.port)
        stack.enter_context(serving_commands(environment_of(folder, {}))).put_into(folder)
        yield folder


def variables_of(clone: Path) -> dict[str, str]:
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
    demo = clone / "data/demo"
    if (clone / "data/my/releases/LATEST").is_file() and not (demo / "releases").exists():
        lend(clone / "data/my", demo)  # which is what `make demo` builds
    fewer = replace(block, commands=block.commands.replace("--proxy-samples 2560", "--proxy-samples 1280"))
    done = run_block(fewer, clone, variables_of(clone))
    printed[block.page] += done.stdout
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_guides_loop_ends_in_the_ratio_that_was_chosen(clone: Path, printed: dict[str, str]) -> None:
    """And a second round of runs goes on where the first one ended."""
    assert printed["configs/GUIDE.md"], "the blocks did not run before in this process: run the whole file"
    chosen = json.loads((clone / "data/demo/proxies/mixture.json").read_text(encoding="utf-8"))["ratio"]
    drawn = Release.open(str(clone / "data/demo/releases/plantmix-demo-planned")).num_by_domain()
    for domain, share in chosen.items():
        assert abs(drawn.get(domain, 0) - share * sum(drawn.values())) <= 1
    more = (clone / "more.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in more[1:]] == [f"proxy-{number:02d}" for number in range(9, 13)]


@pytest.mark.slow
def test_the_readme_shows_what_a_build_prints(printed: dict[str, str]) -> None:
    """The README's build is the demo's; `my.yaml` of the test above is the same but for its work folder."""
    shown = re.findall(r"^\w+: done, .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 8, "a line a stage"
    said = printed["README.md"].splitlines()
    assert said, "the blocks did not run before in this process: run the whole file (xdist: --dist loadfile)"
    assert [line for line in shown if line not in said] == []


def skip_under_other_conditions(clone: Path) -> None:
    """Skip a test of the very release that the README names, where it cannot be made."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the release that the README names was made on x86_64, this is {platform.machine()}")
    for package in PACKAGES:  # another system may carry other pictures under these names
        deb = find_package(package.name, DEBS)
        if deb is None or hashlib.sha256(deb.read_bytes()).hexdigest() != PACKAGES_OF_THE_README[package.name]:
            pytest.skip(f"{package.name} has other pictures here: {deb} is not the file with the recorded sha256")
    installed = {found.name.lower().replace("_", "-") for found in importlib.metadata.distributions()}
    needs_pinned(*(name for name in pins() if name in installed))
    if f"127.0.0.1:{PREFERRED_PORT}/" not in (clone / "data/demo/web/plants.csv").read_text(encoding="utf-8"):
        lacks(f"port {PREFERRED_PORT}, which is part of the addresses in the release: another program has it")


@pytest.mark.slow
def test_the_release_that_the_readme_names_is_what_the_demo_gives(clone: Path, printed: dict[str, str]) -> None:
    skip_under_other_conditions(clone)
    shown = load_ci_script("pictures").release_of_readme()
    assert set(re.findall(r"^release: \S+/([\w-]+)$", printed["README.md"], re.MULTILINE)) == {shown}


def recorded_of_pictures() -> dict[str, Any]:
    """What `make pictures` recorded."""
    recorded: dict[str, Any] = json.loads((ROOT / ".github/pictures.json").read_text(encoding="utf-8"))
    return recorded


@pytest.mark.slow
def test_the_pictures_show_what_the_demo_gives(clone: Path, tmp_path: Path) -> None:
    skip_under_other_conditions(clone)
    pictures = load_ci_script("pictures")
    shown = pictures.shown_by(lend(clone / "data/my", tmp_path / "demo"), pictures.release_of_readme())
    assert recorded_of_pictures().items() >= shown.items(), "run `make pictures`"


def test_the_pictures_are_of_the_release_that_the_readme_names() -> None:
    """The quick part of the test above: no picture was changed by hand, and all show the same release."""
    recorded = recorded_of_pictures()
    assert recorded["release"] == load_ci_script("pictures").release_of_readme(), "run `make pictures`"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (ROOT / ".github").glob("*.png")}
    assert recorded["sha256"] == files, "run `make pictures`"


@pytest.mark.slow
def test_every_page_of_browse_opens_on_the_demo(clone: Path, tmp_path: Path) -> None:
    with open_image_index(clone / "data/my", tmp_path) as image_index:
        client = make_client(image_index)
        assert [path for path, _ in PAGES_OF_BROWSE if client.get(path).status_code != 200] == []


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
