"""Each benchmark runs to its end at a small size: its output has the rows and columns that its page of results has.

No figure is judged here, only that there is one. A script that has a test of its own is named in ELSEWHERE.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from building import ROOT
from ci_scripts import load_ci_script
from release_writer import Sample, write_release

from pipeline.flow import FLOW

FOLDER = ROOT / "tests/benchmarks"
PHOTOS = ROOT / "tests/photos"
SCRIPTS = {path.stem for path in FOLDER.glob("bench_*.py")} | {"gpu_check"}
FIGURE = r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?"


@dataclass(frozen=True)
class Small:
    """One small run, and what it must print."""

    words: str
    """The command line behind the script; `{photos}`, `{shop}`, `{release}`, `{scratch}` are folders of the test."""
    lines: tuple[str, ...]
    """Lines of the output, in this order. `@` is a figure, so a missing or undefined one is seen; `*` is anything."""
    page: str
    """The section that shows such rows: PAGE: TITLE."""
    shared: tuple[str, ...]
    """Names of rows and columns, which the output and the section both have."""
    then: str = ""
    """The command that prints the table, where the first one only measures."""


PACKED = (
    "pack: tables joined, shards written, durable",
    r"tar cf - \| tar xf -: copy the shards, durable",
    "the same, left in the page cache",
    "tar cf: one archive of the shards, durable",
    "tar cf: one archive of the samples as files, durable",
)
FETCHED = [
    f"| {photos} | {work} | {end}"
    for photos in ("15 as they are", "2 at 600 px")
    for work in ("raw", "all")
    for end in ("img2dataset | @ | @ | @ | @ | @ |  |", "PlantMix | @ | @ | @ | @ | @ | @x |")
]
MBDC = (("image, ViT-B/16 | 64", 196), ("image, ViT-B/32 | 64", 49), ("text | 64", 77), ("image, ViT-B/16 | 8", 196))
SMALL = {
    "bench_audit": Small(
        "--folder {scratch}/audit --rows 20000 --tested 1000",
        (
            "| rows of the catalogue | of the test set | planted | found | others | s | CPU s | peak MiB |",
            "| 20,000 | 1,000 | 10 | 10 | 0 | @ | @ | @ |",
        ),
        "pipeline: Was a test set in a catalogue: `plantmix audit`",
        ("| rows of the catalogue | of the test set | planted | found | others | s | CPU s | peak MiB |",),
    ),
    "bench_browse": Small(
        "--rows 3000",
        (
            "| | 3,000 |", "| opening, s | @ (@) |", "| waiting page, s | @ (@) |", "| making the index, s | @ (@) |",
            "| index on disk, MB | @ |", "| peak memory of making it (target 2,048), MiB | @ |",
            "| peak memory of answering (target 2,048), MiB | @ |", "| opening a kept index, s | @ (@) |",
            "| first page (target 1), s | @ (@) |", "| slowest of 34 filters (target 2), s | @ (@) *|",
            "| slowest of 34 counts beside filters (target 3), s | @ (@) *|", "| a page near the end, s | @ (@) |",
            "| one image, s | @ (@) |", "| /reasons, s | @ (@) |",
            "| /duplicates, s | @ (@) |", "| /leaks, s | @ (@) |",
        ),
        "pipeline: Browsing: measured",
        ("opening", "waiting page", "making the index, s", "peak memory of making it", "first page (target 1), s",
         "slowest of 34 filters (target 2), s", "slowest of 34 counts beside filters (target 3), s",
         "a page near the end", "one image", "/reasons", "/duplicates", "/leaks"),
    ),
    "bench_build": Small(
        "{photos} --num 30 --rounds 1 --executor inline --processes 1",
        (
            "| program | wall s, median (all) | CPU s, median | CPU ms a photo | wall of theirs / ours |",
            "| img2dataset | @ (@) | @ | @ | @x |",
            "| PlantMix, inline | @ (@) | @ | @ | @x |",
        ),
        "pipeline: Fetching beside img2dataset 1.47",
        ("img2dataset", "CPU ms a photo"),
    ),
    "bench_fetch": Small(
        "{photos} --num 15 --num-large 2 --large 600 --rounds 1",
        (
            "| photos | work | engine | wall s | images/s | CPU s | images / CPU s | peak MiB | ours / theirs |",
            *FETCHED,
            "resident MiB of one worker after each part of 250 small photos: @",
        ),
        "pipeline: Fetching beside img2dataset 1.47",
        ("img2dataset", "small photos"),
    ),
    "bench_loader": Small(
        "{photos} --cases 348:32 --photos 48 --rounds 1 --step-ms 1",
        ("| 348 (10.9x the input) | 32 | @ (@ to @) | @ (@ to @) | @ (@ to @) | @ | @ | @% | @% |",),
        "training: The loader beside open_clip's own",
        ("x the input)",),
    ),
    "bench_matching": Small(
        "ours --millions 0.02 0.04 --radii 4",
        (
            *('{"tool": "ours", "set": "even", "num": NUM, "radius": 4, "seconds": @, "found": @, "recall": 1.0, '
              '"cpu_seconds": @, "others_cpu_seconds": @, "peak_bytes": @}'.replace("NUM", num)
              for num in ("20000", "40000")),
            *('{"tool": "ours", "set": "heavy", "num": NUM, "radius": 4, "seconds": @, "found": @, '
              '"choose_seconds": @, "dropped": @, "cpu_seconds": @, "others_cpu_seconds": @, "peak_bytes": @}'
              .replace("NUM", num) for num in ("20000", "40000")),
            *('{"set": "KIND", "radius": 4, "seconds_exponent": @, "cpu_seconds_exponent": @}'.replace("KIND", kind)
              for kind in ("even", "heavy")),
        ),
        "pipeline: Exact Hamming search",
        ("even", "heavy", "radius"),
    ),
    "bench_mbdc": Small(
        "--repeats 1",
        (
            "| case | batch | tokens | loop fwd+bwd ms | ours ms | ratio | loop fwd ms | ours ms | ratio "
            "| largest difference of value, of gradient (relative) |",
            *(f"| {case} | {tokens} | @ | @ | @ | @ | @ | @ | @, @ |" for case, tokens in MBDC),
        ),
        "training: MBDC alone: batched over heads beside a loop over heads",
        (*(f"| {case} | {tokens} |" for case, tokens in MBDC), "| case | batch | tokens | loop fwd+bwd ms | ours ms |",
         "largest difference of value, of gradient (relative)"),
    ),
    "bench_pack": Small(
        "--images 150 --rounds 1",
        (
            "| page cache | what | s (all rounds) | MB/s | CPU s | packing over it |",
            *(f"| {cache} | {way} | @ (@ to @) | @ | @ | @ |" for cache in ("warm", "cold") for way in PACKED),
        ),
        "pipeline: Packing: measured",
        ("packing over it", *PACKED[1:]),
    ),
    "bench_planning": Small(
        "repetition time",
        (
            "## A finite pool (synthetic: 5 M plant samples, 100 M seen, R* = 15.4)",
            "| right share of plant | 0.449 |",
            "| proxies never met repetition, nothing done about it | @ |",
            "| same proxies, value of repetition by R* | @ |",
            "| pool-matched proxies | @ |",
            "| choose with 120 drawn laws: 3 domains | @ |",
        ),
        "planning: Does the interval of the optimum hold?",
        ("inite pool", "right share of plant", "0.449", "never met repetition", "value of repetition by R*",
         "pool-matched proxies"),
    ),
    "bench_planning_coverage": Small(
        "{scratch}/rows.jsonl --sims 1 --domains 2",
        (
            "| domains | runs | noise | simulations | losses covered | optimum covered | its standard error "
            "| width of its interval | loss at the choice, median | worst |",
            *(f"| 2 | 9, {runs} | {noise}% | {num} | @ | @ | @ | @ | @ | @ |"
              for runs, num in (("plan design", 3), ("Dirichlet", 3), ("both", 6)) for noise in ("0.0", "0.5", "2.0")),
        ),
        "planning: Does the interval of the optimum hold?",
        ("losses covered | optimum covered", "width", "loss at the choice, median"),
        then="{scratch}/rows.jsonl --table",
    ),
    "bench_planning_few": Small(
        "{scratch}/rows.jsonl --seeds 0-0 --domains 2",
        (
            "| domains | runs | noise | tables | average | law | law / average | its standard error |",
            *(f"| 2 | {runs} | all | 24 | @ | @ | @ | @ |" for runs in (4, 6, 9)),
            *(f"| 2 | {runs} | {noise}% | 8 | @ | @ | @ | @ |"
              for runs in (4, 6, 9) for noise in ("0.0", "0.5", "2.0")),
        ),
        "planning: Simulated truths, few runs",
        ("average", "law", "runs"),
        then="{scratch}/rows.jsonl --average",
    ),
    "bench_planning_gain": Small(
        "{scratch}/rows.jsonl --tables 1 --only kinked",
        (
            '| truth | domains | runs | tables | gain covered | wrongly sure | half a width / range '
            '| "take the choice" | then much worse |',
            *(f"| kinked | {num} | {runs} | 1 | @ | @ | @ | @ | @ |" for num in (2, 3) for runs in (8, 12, 36)),
            "| all | 2, 3 | 8 to 36 | 6 | @ | @ | @ | @ | @ |",
        ),
        "planning: Does the printed gain hold?",
        ("kinked", "gain covered | wrongly sure", '"take the choice" | then much worse'),
        then="{scratch}/rows.jsonl --table",
    ),
    "bench_planning_tables": Small(
        "{scratch}/rows.jsonl --draws 1 --only 410M",
        (
            "| table, runs (draws) | the law | exponential (Ye et al.) | log-linear (Olmix) | Gaussian process "
            "| ridge on log shares |*",
            "| 3 domains, 410M (Ye et al.), 16 (1) |" + " *@*, @, @, @ |" * 5 + "*",
        ),
        "planning: Every public table, beside its rivals",
        ("3 domains, 410M (Ye et al.), 16", "the law | exponential", "log-linear", "Gaussian process", "ridge"),
    ),
    "bench_scaling": Small(
        "{photos} --pictures 24 --rounds 1 --per-shard 8 --executor processes",
        (
            "| step | parts | one worker, s | two workers, s | times as fast |",
            "| fetch local | 3 | @ | @ | @ |",
            "| caption measure | 1 | @ | @ | @ |",
            "| score measure | 1 | @ | @ | @ |",
            "| pack write | 3 | @ | @ | @ |",
        ),
        "pipeline: Two workers beside one",
        ("| step | parts | one worker, s | two workers, s | times as fast |", "caption", "score", "pack"),
    ),
    "bench_trainer": Small(
        "{release} --batch 4 --turn 1 --rounds 2 --threads 1",
        ("| vit-tiny-demo | 4 | 2 | @ (@ to @) | @ (@ to @) | @ (@ to @) | @ (@ to @) | @ (@ to @) |",),
        "training: The whole trainer beside open_clip's: measured",
        ("vit-tiny-demo",),
    ),
    "bench_walk": Small(
        "--seed 1 --steps 3 --length 4 --shorten 0 --out {scratch}/walk.jsonl",
        (
            "| first | build | mix | retry | takedown | repair |*",
            "| build |" + " @ |" * 16,
            "@ walks, @ counted steps, @ compared with a clean build, @ killed, @ clean builds, each pair at least @ "
            "times, 0 differences",
        ),
        "robustness: Random walks over the commands",
        ("walks", "counted steps", "compared with a clean build", "killed", "clean builds", "differences"),
    ),
}  # fmt: skip
ELSEWHERE = {
    "bench_metadata": "integration/test_benchmarks_run.py",
    "bench_million": "e2e/test_million.py",
    "bench_planning_transfer": "unit/pipeline/planning/test_transfer_benchmark.py",
    "gpu_check": "integration/test_gpu_check.py",
}
"""A script, and the test that runs it."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script: they find each other as they do when they are run."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield lambda name: __import__(name)
    for name in {path.stem for path in FOLDER.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Photos turned and cut, 120 in all; the first of them as a release."""
    folder = tmp_path_factory.mktemp("material")
    make = "import sys, pathlib, bench_build as b; b.write_photos(*map(eval, sys.argv[1:]))"
    (folder / "photos").mkdir()
    words = [f"pathlib.Path({str(PHOTOS)!r})", "120", f"pathlib.Path({str(folder / 'photos')!r})"]
    subprocess.run([sys.executable, "-c", make, *words], cwd=FOLDER, check=True)
    photos = sorted((folder / "photos").glob("*.jpg"))
    samples = [Sample(path.stem, path.read_bytes(), f"a photo, number {path.stem}") for path in photos[:24]]
    return {"photos": folder / "photos", "release": write_release(folder / "release", samples)}


def test_each_script_has_a_small_run() -> None:
    """A new one needs a row of SMALL, or of ELSEWHERE with the test that runs it."""
    without = SCRIPTS - SMALL.keys() - ELSEWHERE.keys()
    assert not without, f"these can rot unseen: {', '.join(sorted(without))}"
    assert not (SMALL.keys() | ELSEWHERE.keys()) - SCRIPTS
    for script, test in ELSEWHERE.items():
        assert re.search(rf"\b{script}\b", (ROOT / "tests" / test).read_text()), f"{test} does not run {script}"


@pytest.mark.parametrize("script", SMALL)
def test_rows_and_columns_of_a_small_run_are_those_of_the_page(script: str) -> None:
    small = SMALL[script]
    page, _, title = small.page.partition(": ")
    section = load_ci_script("figures").section_of(FOLDER / f"results/{page}.md", title)
    printed = "\n".join(small.lines)
    for name in small.shared:
        assert name in section.text, f"{small.page} has no {name}, which {script}.py prints"
        assert name in printed, f"{script}.py prints no {name}, which {small.page} has"


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_a_small_run_prints_its_rows_and_columns(script: str, material: dict[str, Path], tmp_path: Path) -> None:
    small = SMALL[script]
    for words in filter(None, (small.words, small.then)):
        given = words.format(scratch=tmp_path, **material).split()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, FOLDER / f"{script}.py", *given],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert missing_from(done.stdout, small.lines) is None, done.stdout


def missing_from(output: str, lines: tuple[str, ...]) -> str | None:
    """The first of the lines that the output does not have behind the one before."""
    printed = iter(output.splitlines())
    for line in lines:
        pattern = re.escape(line).replace("@", FIGURE).replace(r"\*", ".*")
        if not any(re.fullmatch(pattern, each) for each in printed):
            return line
    return None


def test_a_lost_row_a_lost_column_and_no_number_are_seen() -> None:
    lines = ("| name | s |", "| ours | @ |", "| theirs | @ (@) |")
    output = "said before\n| name | s |\n|---|---|\n| ours | 1,234.5 |\n| theirs | -1e-06 (3) |\n"
    assert missing_from(output, lines) is None
    assert missing_from(output.replace("1,234.5", "nan"), lines) == "| ours | @ |"
    assert missing_from(output.replace(" | 1,234.5", ""), lines) == "| ours | @ |"
    assert missing_from(output.replace("theirs", "others"), lines) == "| theirs | @ (@) |"
    assert missing_from(output.replace("| s |", "| s | CPU s |"), lines) == "| name | s |"


@pytest.mark.slow
def test_the_benchmark_of_metadata_goes_through_the_whole_flow(tmp_path: Path) -> None:
    command = [sys.executable, "tests/benchmarks/bench_metadata.py", "--quick", "--millions", "0.004"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "found-4000.jsonl").read_text().splitlines()]
    steps = [f"{stage.name} {step.name}" for stage in FLOW for step in stage.steps]
    assert [row["step"] for row in rows] == [*steps, "all", "all but replaced"]
