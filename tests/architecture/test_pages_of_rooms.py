"""The pages of engine and stages say what is there."""

from __future__ import annotations

import re
from pathlib import Path

from manifests.contract.reader import SAMPLE_VIEWS
from pipeline.flow import FLOW

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
MOST_WORDS = 350


def _rows(page: str) -> list[list[str]]:
    """The first table of a page, without its head."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_of_the_engine_names_every_module() -> None:
    page = (PIPELINE / "engine/README.md").read_text()
    named = re.findall(r"`(\w+\.py)`", " ".join(row[0] for row in _rows(page)))
    assert sorted(named) == sorted(path.name for path in (PIPELINE / "engine").glob("[!_]*.py"))
    assert len(page.split()) < MOST_WORDS


def test_the_page_of_the_stages_names_what_each_gives() -> None:
    page = (PIPELINE / "stages/README.md").read_text()
    rows = _rows(page)
    assert [row[0] for row in rows] == [stage.name for stage in FLOW]
    for stage, (_, _, gives) in zip(FLOW, rows, strict=True):
        shown = {
            table for step in stage.steps for table in step.gives if SAMPLE_VIEWS.get(table, "")[:1] == (stage.name,)
        }
        assert shown <= set(re.findall(r"`(\w+)`", gives)), stage.name
    assert len(page.split()) < MOST_WORDS
