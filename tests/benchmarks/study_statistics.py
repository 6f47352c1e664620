"""The statistics of the study `dalip-vs-clip`, from its results alone; tests/benchmarks/protocols/ says why so."""

from __future__ import annotations

from typing import Any

import numpy as np
from study_arms import ARMS, ARMS_OF, FEWER_SEEDS, RATES, TUNING_SEEDS
from study_records import Records

from training.evaluation.metrics import crossed_bootstrap, middle_95

ROUNDS = 10_000
MOST_ERROR = 0.012  # standard error of the primary end point at 10 seeds, above which there are 20
MARGIN = 0.02  # within which two arms count as no different
LOSS_MARGIN = 0.01 * np.log(64)  # of the log-loss: one percent of what guessing gives in a batch of 64
PRIMARY = ("6-dalip", "3-mean")


def _by_seed(results: Records, pattern: str) -> list[dict[str, Any]]:
    return sorted(results.of(pattern), key=lambda run: run["seed"])


def _share(hits: str) -> float:
    return hits.count("1") / len(hits)


def _tuned(results: Records, regime: str, arm: str) -> dict[float, float]:
    """Mean share of right varieties of the validation photos, by learning rate."""
    found = {}
    for rate in RATES:
        runs = results.of(f"tuning-{regime}-{arm}-*-{rate:g}")
        if len(runs) != len(TUNING_SEEDS):
            raise SystemExit(f"tuning of {regime} {arm} at {rate:g} is not done: {len(runs)} of {len(TUNING_SEEDS)}")
        found[rate] = float(np.mean([_share(run["val_varieties"]) for run in runs]))
    return found


def best_rate(results: Records, regime: str, arm: str) -> float:
    """The rate with the largest share; of equal ones the lowest."""
    shares = _tuned(results, regime, arm)
    return min(shares, key=lambda rate: (-shares[rate], rate))


def fourth_arm(results: Records) -> str:
    """Max or attention: whose best rate has the larger share; of equal ones max."""
    best = {arm: max(_tuned(results, "lit", arm).values()) for arm in ("4-max", "4-attention")}
    return "4-attention" if best["4-attention"] > best["4-max"] else "4-max"


def sealed_hits(results: Records, regime: str, arm: str, what: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Share of right photos of each group (seeds, groups), the class of each group, and the seeds.

    Groups that are near a training photo are left out, near duplicates are one group.
    """
    photos = results.one("sealed-photos")
    special = np.array(photos["special"])
    own = np.flatnonzero(special if what == "varieties" else ~special)
    groups, near = np.array(photos["group"])[own], np.array(photos["near_training"])[own]
    left_out = np.unique(groups[near])
    runs = _by_seed(results, f"sealed-{regime}-{arm}-*")
    hits = np.array([[int(hit) for hit in run[what]] for run in runs], dtype=float)
    names = np.array(photos["labels"])[own]
    kept = [group for group in np.unique(groups) if group not in left_out]
    shares = np.stack([hits[:, groups == group].mean(axis=1) for group in kept], axis=1)
    classes = np.array([names[groups == group][0] for group in kept])
    return shares, np.unique(classes, return_inverse=True)[1], [run["seed"] for run in runs]


def difference(results: Records, regime: str, one: str, two: str, what: str = "varieties") -> dict[str, float]:
    """Paired difference of two arms over the seeds of both, and classes: value, interval, error, two-sided p."""
    first, classes, seeds = sealed_hits(results, regime, one, what)
    second, _, other_seeds = sealed_hits(results, regime, two, what)
    both = sorted({*seeds} & {*other_seeds})
    if len(both) < max(len(seeds), len(other_seeds)) and not {one, two} & {*FEWER_SEEDS}:
        raise SystemExit(f"{regime}: {one} and {two} have other seeds, {seeds} and {other_seeds}")
    rows, other_rows = ([given.index(seed) for seed in both] for given in (seeds, other_seeds))
    return _judged(first[rows] - second[other_rows], classes)


def loss_difference(results: Records, regime: str, one: str, two: str) -> dict[str, float]:
    """The same of the log-loss on held-out general pictures; each fixed batch is a class of its own."""
    first, second = (
        np.array([run["general_loss"] for run in _by_seed(results, f"final-{regime}-{arm}-*")]) for arm in (one, two)
    )
    found = _judged(first - second, np.arange(first.shape[1]))
    draws, _ = crossed_bootstrap(first - second, np.arange(first.shape[1]), ROUNDS)
    return found | {"p_not_worse": max(float((draws >= LOSS_MARGIN).mean()), 1 / ROUNDS)}


def _judged(values: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    draws, _ = crossed_bootstrap(values, classes, ROUNDS)
    low, high = middle_95(draws)
    p = min(1.0, 2 * max(min(float((draws <= 0).mean()), float((draws >= 0).mean())), 1 / ROUNDS))
    return {"value": float(values.mean()), "low": low, "high": high, "error": float(draws.std()), "p": p}


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p values corrected for their number. Source: Holm 1979."""
    found, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        found[name] = largest
    return found


def words(lit: dict[str, dict[str, float]], scratch: dict[str, dict[str, float]]) -> list[str]:
    """The sentences that the protocol allows for these differences."""
    found = []
    if lit["6-1"]["low"] > 0 and scratch["6-1"]["low"] > 0:
        found.append("DALIP beats CLIP here")
    if lit["6-3"]["low"] > 0:
        found.append("because of second order")
    if lit["6-5"]["low"] > 0:
        found.append("because of Brownian distance")
    if lit["6-3"]["low"] >= -MARGIN and lit["6-3"]["high"] <= MARGIN:
        found.append("no gain beyond a second head")
    return found or ["none of the four sentences"]


def check_stopping_rule(results: Records) -> None:
    """Ends the program while the rule asks for ten more seeds, and then shows the standard error alone."""
    primary = difference(results, "lit", *PRIMARY)
    seeds = sealed_hits(results, "lit", PRIMARY[0], "varieties")[2]
    if primary["error"] > MOST_ERROR and len(seeds) == 10:
        raise SystemExit(
            f"standard error {primary['error']:.2%} at 10 seeds: run ten more (run --more, then judge), look at nothing"
        )


def report(results: Records) -> str:
    """All figures as Markdown."""
    lines, by_regime = [], {}
    for regime in ("lit", "scratch"):
        there = [arm for arm in ARMS_OF[regime] if results.of(f"sealed-{regime}-{arm}-*")]
        pairs = {"6-3": "3-mean", "6-1": "1-f", "6-5": "5-covariance"}
        by_regime[regime] = {name: difference(results, regime, "6-dalip", arm) for name, arm in pairs.items()}
        lines += [f"\n## {regime}\n", "| arm | seeds | varieties, top 1 | 6 less this | cartons, top 1 |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for arm in there:
            cells = []
            for what in ("varieties", "cartons"):
                shares, classes, seeds = sealed_hits(results, regime, arm, what)
                draws, _ = crossed_bootstrap(shares, classes, ROUNDS)
                low, high = middle_95(draws)
                cells.append(f"{shares.mean():.1%} ({low:.1%} to {high:.1%})")
            less = "" if arm == "6-dalip" else _shown(difference(results, regime, "6-dalip", arm))
            lines.append(f"| {arm}: {ARMS[arm].title} | {len(seeds)} | {cells[0]} | {less} | {cells[1]} |")
        loss = loss_difference(results, regime, "6-dalip", "1-f")
        by_regime[regime]["loss"] = loss
        lines.append(
            f"\nLog-loss of held-out general pictures, 6 less 1: {loss['value']:+.4f} ({loss['low']:+.4f} to "
            f"{loss['high']:+.4f}); margin {LOSS_MARGIN:.4f}."
        )
    lit = by_regime["lit"]
    corrected = holm({"6-1": lit["6-1"]["p"], "6-5": lit["6-5"]["p"], "loss": lit["loss"]["p_not_worse"]})
    head = [
        f"Primary end point, 6 less 3 in `lit`: {_shown(lit['6-3'])}, p {lit['6-3']['p']:.4f}.",
        "Secondary, corrected by Holm: " + ", ".join(f"{name} p {p:.4f}" for name, p in corrected.items()) + ".",
        f"Words allowed: {'; '.join(words(lit, by_regime['scratch']))}.",
    ]
    return "\n".join(head + lines)


def _shown(found: dict[str, float]) -> str:
    return f"{100 * found['value']:+.1f} points ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
