"""The report: one page that needs nothing else, the same bytes every time, with the numbers of the record."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from building import done, release_of

from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from pipeline.sidefiles import figures
from pipeline.sidefiles.pages import write_card, write_report
from pipeline.store.sql import open_scratch


@pytest.fixture
def release(built: Path) -> Release:
    return Release.open(str(release_of(built / "build")))


@pytest.mark.parametrize(
    ("text", "num_words"),
    [
        (None, "0"), ("", "0"), (" ", "0"), ("\u00a0", "0"), ("leaf", "1"), ("a leaf", "2"), (" a leaf", "2"),
        ("a leaf ", "2"), ("a  leaf", "2"), ("a\tleaf", "2"), ("a\r\nleaf \u00a0", "2"),
        ("a b c d", "3"), ("a b c d e", "5"),
    ],
)  # fmt: skip
def test_words_are_what_white_space_parts(tmp_path: Path, text: str | None, num_words: str) -> None:
    """A bin is named by the number of words where it begins."""
    with open_scratch(str(tmp_path), 1) as sql:
        sql.execute("CREATE TABLE texts AS SELECT 'plant' AS domain, $1::VARCHAR AS text", [text])
        found = figures.word_counts(sql, "texts")
    assert dict(zip(found["labels"], found["shares"]["plant"], strict=True))[num_words] == 1


class Reader(HTMLParser):
    """Collects what a page loads and the text it shows; counts tags that stay open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.alts += [str(value) for name, value in attrs if name == "alt"]
        if tag not in ("meta", "img", "br", "link", "input", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_the_page_in_the_release_needs_nothing_else(release: Release) -> None:
    page = Path(release.path, "report.html").read_text(encoding="utf-8")
    reader = read(page)
    assert reader.loads
    assert all(each.startswith(("data:image/jpeg;base64,", "#")) for each in reader.loads)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.search(r"url\(", page)


def test_its_numbers_are_those_of_the_record(release: Release) -> None:
    text = re.sub(r"\s+", " ", read(Path(release.path, "report.html").read_text(encoding="utf-8")).text)
    counts = release.record["counts"]
    assert f"{counts['samples']:,} training samples" in text
    assert f"{counts['distinct_samples']:,} distinct images" in text
    for stage, funnel in counts["stages"].items():
        assert f"{stage} {funnel['kept']:,} kept" in text
        for reason, num in funnel["reasons"].items():
            assert f"{num:,} {reason.replace('_', ' ')}" in text
    mixture = json.loads(Path(release.path, "mixture.json").read_text(encoding="utf-8"))
    for row in mixture["domains"]:
        assert f"{row['domain']} {row['target_share']:.3%} {row['realised_share']:.3%} {row['num_drawn']:,}" in text


def test_the_command_adds_what_the_work_folder_knows(release: Release, built: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done("report", built / "build", "--out", tmp_path / f"{name}.html")
    page = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "two.html").read_text(encoding="utf-8")
    reader = read(page)
    assert all(each.startswith(("data:image/", "#")) for each in reader.loads)
    assert "Before and after" in reader.text
    with open_reader(str(built / "build")) as sql:
        ((num_came,),) = sql.execute("SELECT count(*) FROM facts WHERE outcome = 'ok'").fetchall()
        notes = sql.execute("SELECT notes FROM parts WHERE step = 'download'").fetchall()
    given = [item for row in notes for item in json.loads(row[0])["hosts"].items()]
    host, most = max(given, key=lambda item: item[1]["answers"])
    (answers,) = re.findall(rf"What each host gave.*?{re.escape(host)} +([0-9,]+) ", reader.text, re.DOTALL)
    assert int(answers.replace(",", "")) == most["answers"] >= num_came > 0
    inside = read(Path(release.path, "report.html").read_text(encoding="utf-8"))
    pictures = [{each for each in page.loads if each.startswith("data:")} for page in (inside, reader)]
    assert pictures[0] == pictures[1], "no picture but the release's own"
    assert "What each host gave" not in inside.text, "it is measured in time, which no release holds"


LAW = {
    "ratio": {"plant": 0.7, "general": 0.3},
    "interval": {"plant": [0.6, 0.8], "general": [0.2, 0.4]},
    "predicted": {"plant": {"loss": 1.1, "low": 0.9, "high": 1.25}, "general": {"loss": 2.2}},
    "trade_off": {
        "between": ["plant", "general"],
        "points": [
            {"ratio": {}, "losses": {"plant": {"loss": 1.0 + x}, "general": {"loss": 2.5 - x}}} for x in (0.0, 0.1, 0.4)
        ],
    },
    "law": {"losses": {"plant": {"form": "average_of_three", "cv_error": 0.01, "cv_error_mean": 0.2}}},
    "warnings": ["outside the tried region <b>"],
}


RECORD = {
    "name": "<x>", "version": "v", "kind": "stratified", "fingerprint": "f" * 64, "recipe": {}, "tools": {},
    "counts": {"samples": 4, "distinct_samples": 4, "stages": {"mix": {"in": 4, "kept": 4, "reasons": {}}}},
    "splits": {"train": {"num_samples": 4, "shards": [{"num_samples": 4, "num_bytes": 5000}]}},
    "takedowns": [{"num_images": 1, "reason": "a & b", "from": "u"}],
    "evaluation": [{"name": "imagenet-val", "radius": 6, "num_leaks": 1234}],
}  # fmt: skip
ROW = {"target_share": 0.7, "realised_share": 0.5, "num_available": 2, "num_drawn": 2, "num_epochs": 1.0}
MIXTURE = {"law": LAW, "domains": [{"domain": "plant", "num_heldout": 0, **ROW}]}
FIGURES = {
    "tables": [],
    "marks": [],
    **{name: [] for name in ("domains", "sources", "licences", "owners", "hosts", "text_types", "taxa", "languages",
                             "frequent_taxa", "rare_taxa", "taxon_sizes", "heads", "other_owners")},
    **{name: {"labels": [], "shares": {}} for name in ("words", "sides", "kilobytes")},
    "ranks": None,
    "sheet": [{"domain": "plant", "text": "<script> \"'", "jpg": b"x", "source": "s", "licence": "unknown",
               "sample_id": "c" * 32}],
}  # fmt: skip


def test_a_law_is_shown_with_its_evidence_and_words_are_escaped() -> None:
    page = write_report(RECORD, MIXTURE, FIGURES)
    reader = read(page)
    assert "<script" not in page
    assert "<script> \"'" in reader.text
    assert reader.alts == ["<script> \"'"]
    for words in (
        "0.6000 to 0.8000",
        "average of three",
        "1.1000 (0.9000 to 1.2500)",
        "outside the tried region <b>",
        "a & b",
        "Stratified",
        "imagenet-val",
        "1,234",
    ):
        assert words in reader.text
    assert "train 1 4 4 5.0 kB" in re.sub(r"\s+", " ", reader.text), "one shard is no range"


def test_a_law_is_drawn_with_its_runs_and_says_in_words_what_it_shows() -> None:
    grid = {name: [1.5, 1.2] for name in ("loss", "low", "high")}
    runs = {"shares": [[0.2, 0.8], [0.9, 0.1]], "losses": {"plant": [1.4, None]}}
    drawn = {"runs": runs, "grid": [[0.0, 1.0], [1.0, 0.0]], "losses": {"plant": grid}}
    law = {**LAW, "predicted": {"plant": LAW["predicted"]["plant"]}, "trade_off": None, "drawn": drawn}
    page = write_report(RECORD, {**MIXTURE, "law": law}, FIGURES)
    assert page == write_report(RECORD, {**MIXTURE, "law": law}, FIGURES)
    assert page.count("<svg ") == 2
    assert "at the chosen shares 1.100, 90 % interval 0.900 to 1.250" in page
    assert "var(--ink, #1c2420)" in page, "drawn in the colours of the page"
    ids = re.findall(r' id="([^"]+)"', page.partition("<svg ")[2])
    assert not [one for one in ids if one.endswith("_1")]


RANKS = {
    "outer": "family", "inner": "genus", "num_outer": 14, "num_inner": 15,
    "rows": [
        *({"outer_name": f"F{at:02}", "inner_name": f"G{at:02}", "images": 20 - at, "samples": 1} for at in range(14)),
        {"outer_name": "F00", "inner_name": "G99", "images": 5, "samples": 30},
    ],
}  # fmt: skip


def test_taxa_have_both_shares() -> None:
    page = write_report(RECORD, MIXTURE, {**FIGURES, "ranks": RANKS})
    text = re.sub(r"\s+", " ", read(page).text)
    assert "14 names at the first rank, 15 at the second" in text
    assert "12.9% → 70.5%" in text, "25 of 194 images, 31 of 44 samples"


def test_the_card_says_the_same_of_the_law() -> None:
    card = write_card(RECORD, MIXTURE, FIGURES)
    assert "| plant | 1.1000 (0.9000 to 1.2500) | average of three | 0.01 | 0.2 |" in card
    assert "| plant | 0.7000 | 0.6000 to 0.8000 |" in card
    assert "Warning of the planner: outside the tried region" in card
    assert "| 1 | a & b | u |" in card, "Markdown is not escaped as HTML is"
    without = write_card(RECORD, {**MIXTURE, "law": None}, FIGURES)
    assert "no mixing law was fitted" in without


def test_the_sealed_page_counts_duplicates_and_leaks() -> None:
    found = {
        "radius": 4, "num_hashes": 1000, "num_hash_pairs": 20,
        "dropped": [{"reason": "near_duplicate", "images": 2000, "kept_instead": 5}],
        "distances": [{"distance": 0, "images": 1500}, {"distance": 3, "images": 500}],
        "largest": [], "leaks": [{"evaluation_set": "imagenet-val", "matched": "same bytes", "images": 7}],
    }  # fmt: skip
    text = re.sub(r"\s+", " ", read(write_report({**RECORD, "duplicates": found}, MIXTURE, FIGURES)).text)
    assert "1,000 different pHashes, 20 pairs of them within 4 bits" in text
    assert "2,000 images were dropped as near duplicate in favour of 5." in text
    assert "3 bits 500" in text
    assert "imagenet-val same bytes 7" in text
    assert "kept as the copy" not in text  # releases sealed before it was counted
    found["kept_elsewhere"] = {"general": {"plant": 6}, "plant": {"general": 1}}
    text = re.sub(r"\s+", " ", read(write_report({**RECORD, "duplicates": found}, MIXTURE, FIGURES)).text)
    assert "6 images of general are kept as the copy in plant." in text
    assert "1 image of plant is kept as the copy in general." in text
