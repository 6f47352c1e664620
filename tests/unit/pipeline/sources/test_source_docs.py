"""The examples in the documents are settings that load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.settings import parse_settings
from pipeline.sources.settings import ORIGINS, SourceSettings

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "pipeline/sources/README.md").read_text(encoding="utf-8")


def examples(text: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_readme_shows_every_origin() -> None:
    text = (ROOT / "configs/README.md").read_text(encoding="utf-8").partition("## Sources")[2].partition("\n## ")[0]
    (block,) = examples(text)
    kinds = [parse_settings(values, SourceSettings, "README").kind for values in block["sources"]]
    assert tuple(kinds) == ORIGINS


@pytest.mark.parametrize("values", examples(PAGE), ids=lambda values: "-".join(values))
def test_the_page_of_sources_holds(values: dict[str, Any]) -> None:
    for source in values.get("sources", [{"name": "s", "domain": "d", **values}]):
        parse_settings(source, SourceSettings, "page")
