"""The commands of README and the guide run as they stand, in a folder like a fresh clone after its set-up.

The demo is built first, as `make demo` builds it. The reader's own data are the table and the folder that README shows,
with pictures of the demo's web. The configs are README's own blocks; only hosts on this machine may be asked, without
politeness, and models are small. Proxy runs are shorter, and the guide's builds run in one process.

A block of commands begins with ```console. A comment `<!-- not tested: REASON -->` on the line before leaves it out.
The blocks of a page run one after the other, each in a shell of its own that stops at the first command that fails.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
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

GUIDE = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs/guide").glob("*.md"))
PAGES = ["README.md", *sorted(GUIDE, key=(ROOT / "configs/GUIDE.md").read_text(encoding="utf-8").find)]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_HOUR = "configs/guide/first-hour.md"
PLAN = "configs/guide/plan-a-ratio.md"
DEBS = ROOT / "data/demo/packages"
PACKAGES_OF_THE_README = {  # sha256 of the packages whose pictures give the release that the README names
    "pysiogame": "1fe053f398aa688e3c6d44ed81424c84cc804ee4d3341a51019aec1381ce3810",
    "tuxpaint-stamps-default": "6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
}


DEMO = Block("the demo", "plantmix build configs/pipeline/demo.yaml\n", None)
NUM_ADDRESSES, NUM_PICTURES = 60, 120


def yaml_blocks(page: str) -> list[dict[str, Any]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def ask_loopback(config: dict[str, Any]) -> None:
    """Let a config ask this machine, as fast as it can."""
    hosts = [{"pattern": "127.0.0.1", "requests_per_second": None, "connections": 16}]
    config["fetch"]["network"] |= {"allow_private_addresses": ["127.0.0.1"], "hosts": hosts}
    config["fetch"]["image"] = {"size_px": 64}


def write_own_data(folder: Path) -> None:
    """Write the table and the folder of classes that README shows: its columns and licences, pictures of the demo."""
    web = folder / "data/demo/web"
    (table,) = re.findall(r"```csv\n(.*?)```", README, re.DOTALL)
    shown = list(csv.DictReader(table.splitlines()))
    names = dict(zip(shown[0], ("url", "caption", "scientificName", "licence", "rights_holder"), strict=True))
    with (web / "plants.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["scientificName"] and "/tuxpaint/" in row["url"]]
    with (folder / "plants.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for number, row in enumerate(rows[:NUM_ADDRESSES]):
            licence = shown[number % len(shown)]["licence"]  # the demo's own is none that README's config allows
            writer.writerow([{**row, "licence": licence}[name] for name in names.values()])
    general = pq.read_table(web / "general.parquet").to_pylist()
    found = [(row["category"], web / unquote(urlsplit(row["url"]).path.lstrip("/"))) for row in general]
    classes = ("animals", "buildings", "vehicles")
    for category, path in [each for each in found if each[0] in classes and each[1].suffix == ".png"][:NUM_PICTURES]:
        target = folder / "pictures" / category / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def write_own_configs(folder: Path) -> None:
    """Write the two configs of README at the root of the clone."""
    build, training = yaml_blocks("README.md")
    ask_loopback(build)
    write_yaml(folder / "my.yaml", build)
    write_yaml(folder / "my-training.yaml", training)
    for path in (folder / "configs/pipeline").glob("demo-*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        write_yaml(path, {**values, "run": {**values["run"], "executor": "inline"}})


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What the demo and the blocks of each page have printed so far."""
    return dict.fromkeys([*PAGES, DEMO.page], "")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, printed: dict[str, str]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clone")
    copy_configs(folder)
    web = folder / "data/demo/web"
    web.mkdir(parents=True)
    with ExitStack() as stack:
        # addresses are part of a release: with those of `make demo` it is the same one
        server = stack.enter_context(serving(web, PREFERRED_PORT))
        prepare_web(web, DEBS, server.port)
        write_own_data(folder)
        write_own_configs(folder)
        stack.enter_context(serving_commands(environment_of(folder, {}))).put_into(folder)
        done = run_block(DEMO, folder, {})
        assert done.returncode == 0, done.stdout[-3000:]
        printed[DEMO.page] += done.stdout
        yield folder


def variables_of(clone: Path) -> dict[str, str]:
    """Return what $URL and $OLD of the pages stand for."""
    latest = clone / "data/my/releases/LATEST"
    if latest.is_file():
        url = Release.open(str(clone / "data/my")).samples("train", ["url"])["url"].drop_null()[0].as_py()
        return {"OLD": latest.read_text(encoding="utf-8").strip(), "URL": url}
    return {"URL": (clone / "plants.csv").read_text(encoding="utf-8").splitlines()[1].partition(",")[0]}


def prepare(page: str, clone: Path) -> None:
    """Do what a page asks the reader to do in an editor, once its files are there."""
    draft = clone / "first.yaml"
    if page == FIRST_HOUR and draft.is_file():
        config, training = yaml.safe_load(draft.read_text(encoding="utf-8")), clone / "first-training.yaml"
        changed, small = yaml_blocks(page)
        config |= changed
        ask_loopback(config)
        write_yaml(draft, config)
        write_yaml(training, small)


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
    assert set(re.findall(r"^release: \S+/([\w-]+)$", printed[DEMO.page], re.MULTILINE)) == {shown}


def recorded_of_pictures() -> dict[str, Any]:
    """What `make pictures` recorded."""
    recorded: dict[str, Any] = json.loads((ROOT / ".github/pictures.json").read_text(encoding="utf-8"))
    return recorded


@pytest.mark.slow
def test_the_pictures_show_what_the_demo_gives(clone: Path, tmp_path: Path) -> None:
    """It stands before the blocks: those of the planning page add releases to the demo's work folder."""
    skip_under_other_conditions(clone)
    pictures = load_ci_script("pictures")
    shown = pictures.shown_by(lend(clone / "data/demo", tmp_path / "demo"), pictures.release_of_readme())
    assert recorded_of_pictures().items() >= shown.items(), "run `make pictures`"


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.reason], ids=lambda block: block.name)
def test_the_commands_of_a_block_succeed(block: Block, clone: Path, printed: dict[str, str]) -> None:
    prepare(block.page, clone)
    fewer = replace(block, commands=block.commands.replace("--proxy-samples 2560", "--proxy-samples 1280"))
    done = run_block(fewer, clone, variables_of(clone))
    printed[block.page] += done.stdout
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_guides_loop_ends_in_the_ratio_that_was_chosen(clone: Path, printed: dict[str, str]) -> None:
    """And a second round of runs goes on where the first one ended."""
    assert printed[PLAN], "the blocks did not run before in this process: run the whole file"
    chosen = json.loads((clone / "data/demo/proxies/mixture.json").read_text(encoding="utf-8"))["ratio"]
    drawn = Release.open(str(clone / "data/demo/releases/plantmix-demo-planned")).num_by_domain()
    for domain, share in chosen.items():
        assert abs(drawn.get(domain, 0) - share * sum(drawn.values())) <= 1
    more = (clone / "more.csv").read_text(encoding="utf-8").splitlines()
    assert [line.partition(",")[0] for line in more[1:]] == [f"proxy-{number:02d}" for number in range(9, 13)]


@pytest.mark.slow
def test_the_readme_shows_what_a_build_prints(clone: Path, printed: dict[str, str]) -> None:
    """The quick start shows the demo's build."""
    shown = re.findall(r"^\w+: done, .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == 8, "a line a stage"
    said = printed[DEMO.page].splitlines()
    assert [line for line in shown if line not in said] == []


def test_the_pictures_are_of_the_release_that_the_readme_names() -> None:
    """The quick part of the test above: no picture was changed by hand, and all show the same release."""
    recorded = recorded_of_pictures()
    assert recorded["release"] == load_ci_script("pictures").release_of_readme(), "run `make pictures`"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (ROOT / ".github").glob("*.png")}
    assert recorded["sha256"] == files, "run `make pictures`"


@pytest.mark.slow
def test_every_page_of_browse_opens_on_the_demo(clone: Path, tmp_path: Path) -> None:
    with open_image_index(clone / "data/demo", tmp_path) as image_index:
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


@pytest.mark.slow
def test_the_lines_of_the_python_page_run(clone: Path, printed: dict[str, str]) -> None:
    """But those of ONNX, which have a test of their own."""
    assert printed["README.md"], "the blocks did not run before in this process: run the whole file"
    text = (ROOT / "configs/guide/python.md").read_text(encoding="utf-8")
    lines = re.findall(r"```python\n(.*?)```", text.partition("## Details")[0], re.DOTALL)
    assert [len(block.strip().splitlines()) <= 6 for block in lines] == [True] * 4
    for name, source in zip(("rose.jpg", "oak.jpg"), sorted((clone / "pictures").rglob("*.png")), strict=False):
        shutil.copy(source, clone / name)
    done = subprocess.run(
        [sys.executable, "-c", "".join(lines)], cwd=clone, env=environment_of(clone, {}), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rose.jpg" in done.stdout
    assert "'domain': 'plant'" in done.stdout


def test_every_block_of_commands_is_tested_or_says_why_not() -> None:
    tested = [block for block in BLOCKS if not block.reason]
    assert {block.page for block in tested} >= {"README.md", FIRST_HOUR, PLAN}
    fences = sum((ROOT / page).read_text(encoding="utf-8").count("```console") for page in PAGES)
    assert fences == len(BLOCKS)
    assert all(len(block.reason.split()) > 3 for block in BLOCKS if block.reason)
