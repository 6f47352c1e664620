"""The figure of the study `dalip-vs-clip`: what each arm gets on the sealed photos, and arm 6 less it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from study_arms import ARMS, ARMS_OF
from study_records import Records
from study_statistics import PRIMARY, ROUNDS, difference, sealed_hits

from training.evaluation.metrics import crossed_bootstrap, middle_95

_TITLES = {"lit": "frozen towers (lit)", "scratch": "towers trained from their start (scratch)"}


def draw(results: Records, path: Path) -> None:
    """A row for each regime: the share of right varieties by arm, and the paired differences; 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    there = {
        regime: [arm for arm in reversed(ARMS_OF[regime]) if results.of(f"sealed-{regime}-{arm}-*")]
        for regime in _TITLES
    }
    figure, axes = plt.subplots(
        2, 2, figsize=(12, 7), layout="constrained", height_ratios=[len(arms) for arms in there.values()]
    )
    for (regime, arms), (shares, less) in zip(there.items(), axes, strict=True):
        for place, arm in enumerate(arms):
            hits, classes, seeds = sealed_hits(results, regime, arm, "varieties")
            low, high = middle_95(crossed_bootstrap(hits, classes, ROUNDS)[0])
            colour = "C3" if arm == PRIMARY[0] else "C0"
            _interval(shares, place, 100 * float(hits.mean()), 100 * low, 100 * high, colour)
            shares.plot(100 * hits.mean(axis=1), np.full(len(seeds), place - 0.22), "|", color=colour, alpha=0.6)
            if arm != PRIMARY[0]:
                found = difference(results, regime, PRIMARY[0], arm)
                colour = "C3" if (regime, arm) == ("lit", PRIMARY[1]) else "C0"
                _interval(less, place, *(100 * found[name] for name in ("value", "low", "high")), colour)
        names = [f"{ARMS[arm].title}  {arm.partition('-')[0]}" for arm in arms]
        shares.set_yticks(range(len(arms)), names)
        less.set_yticks(range(len(arms)), [arm.partition("-")[0] for arm in arms])
        less.axvline(0, color="black", linewidth=0.8)
        shares.set_title(f"{_TITLES[regime]}: varieties, top 1, %", fontsize=10)
        less.set_title("DALIP (6) less this arm, points", fontsize=10)
        for axis in (shares, less):
            axis.set_ylim(-0.6, len(arms) - 0.4)
            axis.grid(axis="x", alpha=0.3)
    figure.suptitle(
        "Sealed photos of fruit and vegetables. Intervals of 95 %; ticks are seeds. Red: DALIP, primary end point"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _interval(axis: Any, place: float, value: float, low: float, high: float, colour: str) -> None:
    axis.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
