"""The examples of the user's guide are settings that load."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from building import ROOT

from manifests.contract.settings import parse_settings
from pipeline.config import BuildConfig
from pipeline.sources.settings import KINDS, SourceSettings
from training.config import TrainSettings
from training.run.token_job import TokenSettings

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
PAGE = (ROOT / "configs/GUIDE.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda values: "-".join(values))
def test_an_example_loads(values: dict[str, Any]) -> None:
    if "image" in values:
        parse_settings(values, TokenSettings, "guide")
    elif "release" in values or "shards" in values.get("data", {}):
        parse_settings(TRAINING | values, TrainSettings, "guide")
    else:
        sources = [*values.get("sources", []), *BASE["sources"]]
        parse_settings(BASE | values | {"sources": sources}, BuildConfig, "guide")


def test_the_guide_shows_every_kind_of_source() -> None:
    first = next(values["sources"] for values in EXAMPLES if "sources" in values)
    assert sorted(parse_settings(values, SourceSettings, "guide").kind for values in first) == sorted(KINDS)
