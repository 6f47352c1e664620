"""The examples of README and the guide are settings that load; pages are short, and the index lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT

from manifests.contract.settings import parse_settings
from pipeline.config import BuildConfig
from pipeline.sources.settings import KINDS, SourceSettings
from training.config import TrainSettings

BASE: dict[str, Any] = {
    "name": "demo",
    "work_dir": "data/demo",
    "sources": [
        {"name": name, "domain": name, "table": "t.csv", "columns": {"url": "u", "caption": "c"}}
        for name in ("plant", "general")
    ],
    "mix": {"ratio": {"plant": 10, "general": 3}},
}
TRAINING = {"schedule": {"steps": 1}}
INDEX = (ROOT / "configs/GUIDE.md").read_text(encoding="utf-8")
GUIDE = sorted((ROOT / "configs/guide").glob("*.md"))
README = ROOT / "README.md"
DETAILS = "\n## Details and rare cases\n"
MOST_WORDS = 700  # of a page before its details
MOST_WORDS_OF_CHANGELOG = 1_500
MOST_WORDS_OF_ALL = 28_000  # of what a person reads: guide, README, pages of rooms, CONTRIBUTING, recipes
EXAMPLES = [
    (f"{page.stem}-{'-'.join(values)}", values)
    for page in [README, *GUIDE]
    for values in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("values", [values for _, values in EXAMPLES], ids=[name for name, _ in EXAMPLES])
def test_an_example_loads(values: dict[str, Any]) -> None:
    if "release" in values or "shards" in values.get("data", {}):
        parse_settings(TRAINING | values, TrainSettings, "guide")
    else:
        sources = [*values.get("sources", []), *BASE["sources"]]
        parse_settings(BASE | values | {"sources": sources}, BuildConfig, "guide")


def test_the_index_lists_every_page_once() -> None:
    assert sorted(re.findall(r"\]\(guide/([\w-]+\.md)\)", INDEX)) == [page.name for page in GUIDE]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_a_page_is_short_before_its_details(page: Path) -> None:
    num = len(page.read_text(encoding="utf-8").partition(DETAILS)[0].split())
    assert num <= MOST_WORDS, f"{page.name} has {num} words: move rare cases below{DETAILS.rstrip()}"


def test_what_a_person_reads_is_bounded() -> None:
    rooms = [path for room in ("manifests", "pipeline", "training", "configs") for path in (ROOT / room).rglob("*.md")]
    pages = [README, ROOT / "CONTRIBUTING.md", *rooms]
    left_out = ("REFERENCE.md", "SCALE.md", "card.md", "attribution.md")  # made by code, a table of figures, templates
    num = sum(len(page.read_text(encoding="utf-8").split()) for page in pages if page.name not in left_out)
    assert num <= MOST_WORDS_OF_ALL


def test_the_changelog_is_short() -> None:
    assert len((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split()) <= MOST_WORDS_OF_CHANGELOG


def test_the_guide_shows_every_kind_of_source() -> None:
    first = next(values["sources"] for name, values in EXAMPLES if name == "your-data-sources")
    assert sorted(parse_settings(values, SourceSettings, "guide").kind for values in first) == sorted(KINDS)
