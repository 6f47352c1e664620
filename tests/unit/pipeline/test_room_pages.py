"""The README files of rooms: their examples load, and they explain every setting of their section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.settings import Settings, parse_settings
from pipeline.captions.settings import RULE_NAMES, STEPS, CaptionSettings, RuleSet
from pipeline.config import BuildConfig, DedupSettings, EvaluationSet
from pipeline.quotas.balance import CapSettings
from pipeline.scoring.settings import ScoreSettings
from pipeline.vocabulary.backbone import BackboneSettings
from pipeline.vocabulary.licences import LicenceSettings

ROOT = Path(__file__).parents[3]
BASE = {
    "name": "demo",
    "work_dir": "data/demo",
    "sources": [
        {"name": name, "domain": name, "table": "t.csv", "columns": {"url": "u", "caption": "c"}}
        for name in ("plant", "general")
    ],
    "mix": {"ratio": {"plant": 10, "general": 3}},
}


def page(room: str) -> str:
    return (ROOT / "pipeline" / room / "README.md").read_text(encoding="utf-8")


EXAMPLES = [
    pytest.param(yaml.safe_load(block), id=f"{room}-{number}")
    for room in ("captions", "vocabulary", "quotas", "scoring", "matching")
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page(room), re.DOTALL))
]


@pytest.mark.parametrize("values", EXAMPLES)
def test_an_example_of_a_page_loads(values: dict[str, Any]) -> None:
    parse_settings(BASE | values, BuildConfig, "README")


def keys_of(model: type[Settings]) -> list[str]:
    return list(model.model_fields)


@pytest.mark.parametrize(
    ("room", "names"),
    [
        ("captions", [*keys_of(CaptionSettings), *RULE_NAMES, *STEPS, "domains", "sources", "preset"]),
        ("vocabulary", [*keys_of(BackboneSettings), *keys_of(LicenceSettings)]),
        ("quotas", keys_of(CapSettings)),
        ("scoring", keys_of(ScoreSettings)),
        ("matching", [*keys_of(DedupSettings), *(set(keys_of(EvaluationSet)) - set(keys_of(EvaluationSet.__base__)))]),
    ],
)
def test_a_page_names_every_setting(room: str, names: list[str]) -> None:
    missing = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", page(room))]
    assert not missing, f"pipeline/{room}/README.md does not say what these are: {', '.join(missing)}"
    assert set(RULE_NAMES) < set(keys_of(RuleSet))


def test_the_table_of_rules_is_in_their_order() -> None:
    table = page("captions").partition("## Rules")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == RULE_NAMES
