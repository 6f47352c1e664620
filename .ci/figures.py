"""Which figures are older than the code that they measure?

    python .ci/figures.py

Each section of tests/benchmarks/results/*.md says where its figures come from, in a line of its own:

    Measured: COMMIT, DATE, MACHINE. Code: PATH, PATH.

It names the commit of the section's main table; other rows say theirs. A section without a line of its own belongs to
the one above it, and what stands before the first section needs none. Where nothing of ours ran the line is
`Measured: not by us, DATE.` Prints the sections whose code has changed since their commit, with the number of commits;
that fails nothing. Ends with 2 where the history is missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests/benchmarks/results"
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINE = re.compile(
    r"^Measured: (?:(?P<commit>[0-9a-f]{7,40}), (?P<date>\d{4}-\d\d-\d\d), (?P<machine>\w[^.\n]*)\. "
    r"Code: (?P<paths>[\w./-]+(?:, [\w./-]+)*)|not by us, (?P<read>\d{4}-\d\d-\d\d))\.$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Origin:
    """Where figures come from."""

    commit: str
    date: str
    machine: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it up to the next one."""

    page: str
    title: str
    level: int
    text: str

    @property
    def name(self) -> str:
        """As a reader finds it."""
        return f"{self.page}: {self.title}"

    @property
    def has_figures(self) -> bool:
        """Digits in its own text, outside of commands, links, names of commits and headings."""
        text = re.sub(r"^    .*$|`[^`]*`|\]\([^)]*\)", "", LINE.sub("", self.text), flags=re.MULTILINE)
        return re.search(r"(?<![\w-])[+-]?\d[\d,.]*(?![\w-])", text) is not None

    @property
    def says_origin(self) -> bool:
        """True where it has a line of its own."""
        return LINE.search(self.text) is not None

    def origin(self) -> Origin | None:
        """None where nothing of ours ran."""
        found = LINE.search(self.text)
        if not found or not found["commit"]:
            return None
        return Origin(found["commit"], found["date"], found["machine"], tuple(found["paths"].split(", ")))


def sections_of(page: Path) -> list[Section]:
    """Every section of a page; one of a lower level holds the text below its own heading alone."""
    text = page.read_text(encoding="utf-8")
    heads = list(HEADING.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        Section(page.name, head[2], len(head[1]), text[head.end() : end]) for head, end in zip(heads, ends, strict=True)
    ]


def section_of(page: Path, title: str) -> Section:
    """Return the section of that title."""
    (found,) = [section for section in sections_of(page) if section.title == title]
    return found


def without_origin(folder: Path = RESULTS) -> list[str]:
    """Sections of figures that do not say where they come from, nor stand below one that does."""
    lost = []
    for page in sorted(folder.glob("*.md")):
        above: list[Section] = []
        for section in sections_of(page):
            above = [*(one for one in above if one.level < section.level), section]
            if section.level > 1 and section.has_figures and not any(one.says_origin for one in above):
                lost.append(section.name)
    return lost


def git(*words: str, root: Path) -> str:
    """Return what git prints there.

    Raises: LookupError, with its words.
    """
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError(done.stderr.strip())
    return done.stdout


def lacks_history(root: Path = ROOT) -> str | None:
    """Why the commits of the pages cannot be looked up here, if so."""
    try:
        if Path(git("rev-parse", "--show-toplevel", root=root).strip()) != root.resolve():
            return "here is no git history of ours: the folder lies within another repository"
        if git("rev-parse", "--is-shallow-repository", root=root).strip() == "true":
            return "this clone is shallow: the commits of the pages are not in it; `git fetch --unshallow` brings them"
    except (LookupError, FileNotFoundError) as error:
        return f"here is no git history: {error}"
    return None


def outdated(folder: Path = RESULTS, root: Path = ROOT) -> Iterator[tuple[Section, Origin, int | None]]:
    """Sections whose code has changed since they were measured, and in how many commits; None for a lost commit."""
    for page in sorted(folder.glob("*.md")):
        for section in sections_of(page):
            if origin := section.origin():
                asked = ("rev-list", "--count", f"{origin.commit}..HEAD", "--", *origin.paths)
                try:
                    num = int(git(*asked, root=root))
                except LookupError:
                    yield section, origin, None
                else:
                    if num:
                        yield section, origin, num


def main() -> int:
    """Print what is old; exit 2 where that cannot be known."""
    if lost := without_origin():
        print("no origin:", *lost, sep="\n  ")
    if reason := lacks_history():
        print(reason, file=sys.stderr)
        return 2
    for section, origin, num in outdated():
        since = f"{num} commits since" if num else "this commit is not in the history; looked for code"
        print(f"{section.name}\n  {origin.commit}, {origin.date}: {since} in {', '.join(origin.paths)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
