"""The README files of rooms: their examples load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.settings import parse_settings
from pipeline.config import BuildConfig

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
