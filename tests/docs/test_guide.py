"""The examples of the user's guide are settings that load, and the keys that pages name are there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from building import ROOT

from manifests.settings import parse_settings
from pipeline.config import BuildConfig
from pipeline.sources.settings import ORIGINS, SourceSettings
from training.config import TrainSettings
from training.run.token_job import TokenSettings

ROOMS = ("configs", "manifests", "pipeline", "training")
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
PLACE = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`")
FILES = ("json", "jsonl", "md", "parquet", "pt", "py", "safetensors", "svg", "tar", "tsv", "txt", "yaml", "sql", "csv")
PAGE = (ROOT / "configs/GUIDE.md").read_text(encoding="utf-8")
READMES = [ROOT / "configs/GUIDE.md", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("README.md")))]
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda values: "-".join(values))
def test_an_example_loads(values: dict[str, Any]) -> None:
    if "image" in values:
        parse_settings(values, TokenSettings, "guide")
    elif "release" in values:
        parse_settings(TRAINING | values, TrainSettings, "guide")
    else:
        sources = [*values.get("sources", []), *BASE["sources"]]
        parse_settings(BASE | values | {"sources": sources}, BuildConfig, "guide")


def test_the_guide_shows_every_kind_of_source() -> None:
    first = next(values["sources"] for values in EXAMPLES if "sources" in values)
    assert tuple(parse_settings(values, SourceSettings, "guide").kind for values in first) == ORIGINS


def test_the_contents_lead_to_the_headings() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert re.findall(r"^\d+\. .*\(#(.+)\)$", PAGE, re.MULTILINE) == anchors


def _keys() -> set[str]:
    """The place of every key and section of REFERENCE.md, `[]` and names of a user's own left out."""
    keys: set[str] = set()
    place = ""
    for line in (ROOT / "configs/REFERENCE.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            place = "" if "`" not in line else line.split("`")[1].replace("[]", "").replace(".NAME", "") + "."
        elif line.startswith("| `"):
            keys.add(place + line.split("`")[1])
    return keys


@pytest.mark.parametrize("page", ["README.md", *(str(path.relative_to(ROOT)) for path in READMES)])
def test_every_key_that_a_page_names_is_there(page: str) -> None:
    keys = _keys()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set(PLACE.findall((ROOT / page).read_text(encoding="utf-8")))
    asked = {key for key in named if key.split(".")[0] in sections and key.rpartition(".")[2] not in FILES}
    assert asked <= keys, f"{page} names keys that no config has: {', '.join(sorted(asked - keys))}"
