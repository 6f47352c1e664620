"""What a README names is there: the files it links to, and the modules it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "manifests", "pipeline", "tests", "training")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
MODULES = {path.name for name in FOLDERS for path in (ROOT / name).rglob("*.py")}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()]
    assert not lost, f"{page} links to files that are not there: {', '.join(lost)}"


def test_the_page_of_configs_lists_every_config_of_a_build() -> None:
    page = (ROOT / "configs/README.md").read_text(encoding="utf-8")
    unlisted = [
        path.name for path in (ROOT / "configs/pipeline").glob("*.yaml") if f"](pipeline/{path.name})" not in page
    ]
    assert not unlisted


@pytest.mark.parametrize("page", PAGES)
def test_every_anchor_leads_to_a_heading(page: str) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in path:
            text = (ROOT / page if not path else (ROOT / page).parent / path).read_text(encoding="utf-8")
            headings = {
                re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-")
                for each in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            }
            assert anchor in headings, f"{page} links to {path}#{anchor}"


OF_THEIR_TIME = ("CHANGELOG.md", "tests/benchmarks/protocols/")
"""Pages that keep the names of what they were written about."""


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(OF_THEIR_TIME)])
def test_every_module_that_a_page_names_is_there(page: str) -> None:
    named = re.findall(r"`(?:[\w./]*/)?([a-z0-9_]+\.py)`", (ROOT / page).read_text(encoding="utf-8"))
    lost = sorted(set(named) - MODULES)
    assert not lost, f"{page} names modules that are not there: {', '.join(lost)}"


def test_no_benchmark_writes_over_a_page_of_results() -> None:
    """`make bench` runs them all; a page of an area holds the tables of many scripts, and what was learnt from them."""
    scripts = sorted((ROOT / "tests/benchmarks").glob("*.py"))
    assert len(scripts) > 15
    writing = [path.name for path in scripts if re.search(r"results/\w+\.md\"\)\)|--out \S*results/", path.read_text())]
    assert not writing, f"these write their table in place of a whole page: {', '.join(writing)}"
