"""What is said of the gain that DALIP's authors publish follows from their table and the sizes of their test sets."""

from __future__ import annotations

import re
from math import sqrt
from statistics import mean

from building import ROOT

Z = 1.959964
TITLE = "## DALIP's own table: what its test sets can tell"


def test_the_interval_of_the_plant_gain_is_that_of_the_table() -> None:
    page = (ROOT / "tests/benchmarks/results/training.md").read_text(encoding="utf-8")
    section = page.partition(TITLE)[2].partition("\n## ")[0]
    cells = [line.replace(",", "").split("|")[2:-1] for line in re.findall(r"^\| [A-Z].*\|$", section, re.MULTILINE)]
    sets = [tuple(map(float, row)) for row in cells]
    assert len(sets) == 5
    assert all(round(dalip - clip, 1) == gain for _, clip, dalip, gain in sets)
    of_clip, of_dalip = mean(row[1] for row in sets), mean(row[2] for row in sets)
    gain = of_dalip - of_clip
    assert f"| mean | | {of_clip:.1f} | {of_dalip:.1f} | {gain:.1f} |" in section

    alone = sum((p * (100 - p) + q * (100 - q)) / num for num, p, q, _ in sets)
    # Hits that agree as far as they can: pictures that one model alone gets right are as few as the shares allow.
    agreeing = sum((100 * abs(q - p) - (q - p) ** 2) / num for num, p, q, _ in sets)
    ends = [[gain + side * Z * sqrt(total) / len(sets) for side in (-1, 1)] for total in (alone, agreeing)]
    wide, narrow = [f"{low:.1f} to {high:.1f}" for low, high in ends]
    assert f"{gain:.1f} points, {wide} (95 %)" in section
    assert f"the interval would be {narrow}" in section
    words = " ".join((ROOT / "training/README.md").read_text(encoding="utf-8").split())
    assert f"plant gain, {gain:.1f} points, is [{wide}]" in words
