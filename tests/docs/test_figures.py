"""Each section of figures says where they come from, and README quotes the figures that the pages have."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from building import ROOT
from ci_scripts import load_ci_script

FIGURES: Any = load_ci_script("figures")
RESULTS = ROOT / "tests/benchmarks/results"
PAGES = sorted(RESULTS.glob("*.md"))
WHOLE_README = (ROOT / "README.md").read_text(encoding="utf-8")
README = " ".join(re.sub(r"^```.*?^```$", "", WHOLE_README, flags=re.MULTILINE | re.DOTALL).split())
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"


def test_every_section_of_figures_names_commit_date_and_machine() -> None:
    lost = FIGURES.without_origin()
    assert not lost, f"give these a line as .ci/figures.py says: {'; '.join(lost)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_is_there(page: Path) -> None:
    lines = re.findall("^Measured:.*", page.read_text(encoding="utf-8"), re.MULTILINE)
    origins = [section.origin() for section in FIGURES.sections_of(page)]
    assert len(lines) == sum(section.says_origin for section in FIGURES.sections_of(page)), "a line has another form"
    for origin in filter(None, origins):
        lost = [path for path in origin.paths if not (ROOT / path).exists()]
        assert not lost, f"{page.name}, {origin.commit}: code that is not there any more: {', '.join(lost)}"


def test_every_commit_of_a_page_is_in_the_history_and_no_younger_than_its_figures() -> None:
    if reason := FIGURES.lacks_history():
        pytest.skip(reason)
    for page in PAGES:
        for origin in filter(None, (section.origin() for section in FIGURES.sections_of(page))):
            FIGURES.git("merge-base", "--is-ancestor", origin.commit, "HEAD", root=ROOT)
            written = FIGURES.git("show", "-s", "--format=%as", origin.commit, root=ROOT).strip()
            assert written <= origin.date, f"{page.name}: {origin.commit} is of {written}, measured {origin.date}"


def commit(root: Path) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (("add", "."), (*who, "commit", "-qm", "A change")):
        FIGURES.git(*words, root=root)
    return str(FIGURES.git("rev-parse", "--short=8", "HEAD", root=root).strip())


def test_a_section_without_a_line_and_one_whose_code_has_changed_are_found(tmp_path: Path) -> None:
    root, pages = tmp_path / "work", tmp_path / "pages"
    pages.mkdir()
    for name in ("fast", "slow"):
        (root / name).mkdir(parents=True)
        (root / name / "code.py").write_text("1\n")
    FIGURES.git("init", "-q", root=root)
    measured = commit(root)
    line = f"Measured: {measured}, 2026-11-30, AMD EPYC, 2 cores. Code: "
    table = "\n\n| s |\n|---|\n| 1.5 |\n\n"
    text = f"# Page\n\n## Fast\n\n{line}fast/code.py.{table}### Below{table}## Slow\n\n{line}fast, slow.{table}"
    (pages / "page.md").write_text(text)
    assert FIGURES.without_origin(pages) == []
    assert list(FIGURES.outdated(pages, root)) == []

    (root / "slow/code.py").write_text("2\n")
    commit(root)
    ((section, origin, num),) = FIGURES.outdated(pages, root)
    assert (section.name, origin.commit, num) == ("page.md: Slow", measured, 1)
    for wrong in ("", line.replace(", AMD EPYC, 2 cores", ""), line.replace(measured, "soon")):
        (pages / "page.md").write_text(text.replace(f"{line}fast, slow", f"{wrong}fast, slow"))
        assert FIGURES.without_origin(pages) == ["page.md: Slow"]
    (pages / "page.md").write_text(text.replace(f"{line}fast/code.py.", ""))
    assert FIGURES.without_origin(pages) == ["page.md: Fast", "page.md: Below"]

    assert FIGURES.lacks_history(root) is None
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", root.as_uri(), shallow], check=True)
    assert "git fetch --unshallow" in FIGURES.lacks_history(shallow)
    assert "no git history" in FIGURES.lacks_history(pages)
    assert "another repository" in FIGURES.lacks_history(root / "slow")


@dataclass(frozen=True)
class Quote:
    """Words of the README and of a page that give the same figures; `@` stands for a figure."""

    readme: str
    page: str
    """PAGE: TITLE, or PAGE alone for the whole of it."""
    words: str
    """Several of the page's figures may be more exact than the README's."""


MILLION = "million: Beside img2dataset 1.47.0"
CHOOSING = "choosing: Five ways to choose a mixture, at equal cost"
QUOTES = (
    Quote("Tested with [@ images]", "million: Build by stage: CPU seconds", "| stage |*| @ |"),
    Quote("a build of a million images, 2 cores, from a local web server | [@ seconds]", MILLION,
          "| 1,000,000: PlantMix, whole build | @ |"),
    Quote("in that million | [@]", "million: What was found", "| 1,000,000 | copy*2500 of 2500 | @ | 0 |"),
    Quote("| @ MiB | [920 MiB]", MILLION, "| 1,000,000: img2dataset, download alone |* | @ | 20,496 |"),
    Quote("| 650 MiB | [@ MiB]", MILLION, "| 1,000,000: PlantMix, whole build |* | @ | 21,292 |"),
    Quote("[@ to @ minutes]", "pipeline: All metadata stages, without pictures", "in **@ to @ minutes**"),
    Quote("choosing and mixing among @ M rows", "pipeline: All metadata stages, without pictures",
          "Twenty-two runs of @ M"),
    Quote("reports @ points more than CLIP on plants; test sets of that size leave room for [@ to @]",
          "training: DALIP's own table: what its test sets can tell",
          "The plant gain is @ points, @ to @ (95 %)"),
    Quote("at most @ nats better than taking the best", CHOOSING,
          "of it the law's are at most @ nats, by the interval"),
    Quote("the whole build: [@ times]", MILLION, "whole build of a million takes @ times as long"),
)  # fmt: skip


def as_pattern(words: str) -> str:
    """A star alone is anything within the line; two are bold print."""
    pattern = re.escape(words).replace("@", f"({NUMBER})")
    return re.sub(r"(?<!\*)\\\*(?!\\\*)", ".*", pattern)


def value(figure: str) -> float:
    return float(figure.replace(",", ""))


def differences(quote: Quote, readme: str, page: str) -> list[str]:
    """Figures of the README that are not the page's, rounded as the README rounds them."""
    told: list[list[str]] = []
    for words, text in ((quote.readme, readme), (quote.words, page)):
        found = list(re.finditer(as_pattern(words), text))
        if len(found) != 1:
            return [f"{len(found)} times, not once: {words}"]
        told.append(list(found[0].groups()))
    apart = []
    for ours, theirs in zip(*told, strict=True):
        half = 0.5 * 10 ** -len(ours.partition(".")[2])
        if abs(value(ours) - value(theirs)) > half + 1e-9:
            apart.append(f"README {ours}, page {theirs}")
    return apart


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.readme)
def test_a_figure_of_the_readme_is_that_of_its_page(quote: Quote) -> None:
    name, _, title = quote.page.partition(": ")
    page = RESULTS / f"{name}.md"
    text = FIGURES.section_of(page, title).text if title else page.read_text(encoding="utf-8")
    assert differences(quote, README, text if quote.words.startswith("|") else " ".join(text.split())) == []


def test_a_figure_that_has_moved_is_seen() -> None:
    quote = Quote("takes [@ to @ minutes]", "", "in **@ to @ minutes**")
    page = "in **5.15 to 8.78 minutes** and at most 6 GiB"
    assert differences(quote, "takes [5.2 to 8.8 minutes](x)", page) == []
    assert differences(quote, "takes [5.2 to 8.7 minutes](x)", page) == ["README 8.7, page 8.78"]
    assert differences(quote, "takes [5.2 to 8.8 minutes](x)", page.replace("in", "of")) == [
        "0 times, not once: in **@ to @ minutes**"
    ]


NOT_MEASURED = (
    "img2dataset", "x86-64", ", 2 cores", "Python 3.11 to 3.13", "3 GB of disk", "**Status: 0.5.**", "S3", "ViT-B-16",
    "| 1 (the download alone) |", "100 million", "more than 2 % to cropping",
)  # fmt: skip


def test_every_figure_of_the_readme_is_compared_with_a_page() -> None:
    left = re.sub(r"\]\([^)]*\)|`[^`]*`", "]", README)  # addresses, code
    for quote in QUOTES:
        left = re.sub(as_pattern(quote.readme), " ", left)
    left = re.sub("|".join(map(re.escape, NOT_MEASURED)), " ", left)
    assert not re.findall(rf"\S*\s?{NUMBER}\S*", left), "give QUOTES a row for these figures of README"
