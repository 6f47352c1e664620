"""What the third study says: intervals over blocks of code points and seeds, sentences, power, and the table.

All from the records of the runs; `report` also takes those of the sealed pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import t as student
from study_records import Records
from study_training import Run, holm
from third_study_material import SEALED, VALIDATION

PRIMARY = (("brownian", "token_mlp"), ("brownian", "uncentred"))
SHOWN = (
    *(("brownian", rival) for rival in ("mean", "max", "covariance")), ("uncentred", "covariance"),
    ("uncentred", "token_mlp"), ("covariance", "token_mlp"), ("token_mlp", "mean"), ("max", "mean"), ("mean", "f"),
)  # fmt: skip
ODDS = {"mean": 0.95, "max": 0.8, "token_mlp": 0.5, "uncentred": 0.2}  # that Brownian distance is ahead, said before
STYLES = {"loss_of": VALIDATION, "losses": SEALED}  # of a final run's record, of a judged run's
PRIOR_SPREAD = 0.1  # nats, of the true difference
MARGIN, BLOCK, ROUNDS = 0.1, 16, 10_000
TRUE_DIFFERENCES = np.round(np.arange(-0.3, 0.301, 0.02), 2)  # of `power`
PRINTED = (-0.2, -0.14, -0.1, -0.06, 0.0, 0.1)

Diffs = Mapping[str, np.ndarray]  # of each vendor, by seed and name, (S, N)
Blocks = Mapping[str, np.ndarray]  # of each vendor, the block of each name, (N,)


def blocks_of(codes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Names in the order of their code points, BLOCK by BLOCK; vendors share the blocks."""
    every = sorted({code for each in codes.values() for code in each}, key=_points)
    block = {code: number // BLOCK for number, code in enumerate(every)}
    return {vendor: np.array([block[code] for code in each]) for vendor, each in codes.items()}


def _points(code: str) -> list[int]:
    return [int(part, 16) for part in code.split("-")]


@lru_cache(maxsize=4)
def _weights(num: int, rounds: int, seed: int) -> np.ndarray:
    """How often each round draws each of `num`, as shares, (rounds, num)."""
    return np.random.default_rng([seed, num]).multinomial(num, np.full(num, 1 / num), rounds) / num


def drawn_means(diffs: Diffs, blocks: Blocks, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """The mean difference of each round: seeds and blocks drawn anew, crossed; of each vendor, and their mean."""
    num_blocks = 1 + max(int(each.max()) for each in blocks.values())
    of_blocks, draws = _weights(num_blocks, rounds, 1), {}
    for vendor, values in diffs.items():
        member = np.eye(num_blocks)[blocks[vendor]]  # (N, blocks)
        of_seeds = _weights(len(values), rounds, 0)
        draws[vendor] = ((of_seeds @ (values @ member)) * of_blocks).sum(axis=1) / (of_blocks @ member.sum(axis=0))
    return draws | {"mean": np.mean(list(draws.values()), axis=0)}


def summary(diffs: Diffs, draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of each vendor and of their mean: value, 95 % interval, two-sided p."""
    values = {vendor: float(each.mean()) for vendor, each in diffs.items()}
    values["mean"] = float(np.mean(list(values.values())))
    return {name: _ends(draws[name]) | {"value": value} for name, value in values.items()}


def _ends(draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    p = 2 * max(min((draws <= 0).mean(), (draws >= 0).mean()), 1 / len(draws))
    return {"low": float(low), "high": float(high), "p": min(1.0, float(p))}


def sentence(one: Mapping[str, Mapping[str, float]], p: float, rival: str, ours: str = "Brownian distance") -> str:
    """What the protocol allows to say of `ours` less a rival; `p` is that of the mean, corrected."""
    of_vendors = [each["value"] for name, each in one.items() if name != "mean"]
    if p < 0.05 and max(of_vendors) < 0:
        return f"{ours} is better than {rival}"
    if p < 0.05 and min(of_vendors) > 0:
        return f"{rival} is better than {ours}"
    if one["mean"]["low"] > -MARGIN and min(of_vendors) > -MARGIN:
        return f"{rival} is as good as {ours}, to {MARGIN} nats"
    return f"{rival}: cannot be told"


# ---- power, before judging


def power(records: Records, chosen: Mapping[str, Run], sizes: Sequence[int], rounds: int = 400) -> str:
    """How often each sentence is reached, from the differences on validation: of final runs, or else of tuning."""
    lines, codes = [], records.one("names")
    for pair in PRIMARY:
        losses = {}
        for arm in pair:
            one = chosen[arm]
            runs = records.of(f"final-{arm}-*") or records.of(f"tuning-{arm}-*-{one.rate:g}-{one.steps}")
            losses[arm] = {vendor: np.array([each["of_each"][vendor] for each in runs]) / 100 for vendor in codes}
        diffs = {vendor: losses[pair[0]][vendor] - losses[pair[1]][vendor] for vendor in codes}
        lines += [f"## {pair[0]} less {pair[1]}, from {len(diffs[next(iter(codes))])} seeds", ""]
        lines += [*simulated(diffs, blocks_of(codes), sizes, pair[1], rounds), ""]
    return "\n".join(lines)


def power_before(records: Records, sizes: Sequence[int], rounds: int = 400) -> str:
    """The same before any run, from the spread of the second study: Brownian distance less covariance, 20 seeds.

    Its names stand for both vendors at once: as if what is hard in one drawing style were as hard in the other.
    """
    one, two = (
        np.array([each["losses"] for each in _by_seed(records, f"sealed-{arm}-[0-9]*")])
        for arm in ("brownian", "covariance")
    )
    diffs, blocks = one - two, np.arange(one.shape[1]) // BLOCK
    return "\n".join(
        line
        for _, rival in PRIMARY
        for line in (
            f"## {rival}",
            "",
            *simulated({"a": diffs, "b": diffs}, {"a": blocks, "b": blocks}, sizes, rival, rounds),
            "",
        )
    )


def simulated(diffs: Diffs, blocks: Blocks, sizes: Sequence[int], rival: str, rounds: int) -> list[str]:
    """A table: whole blocks of names are drawn, a vendor keeps as many names as it has sealed ones; 20 seeds.

    A simulated p counts twice, as the smaller of two does by Holm.
    """
    rng, vendors = np.random.default_rng(0), list(diffs)
    parts = {vendor: _parts(each) for vendor, each in diffs.items()}
    num_blocks = 1 + max(int(each.max()) for each in blocks.values())
    places = {v: [np.flatnonzero(blocks[v] == number) for number in range(num_blocks)] for v in vendors}
    needed = max(size * num_blocks / len(blocks[v]) for v, size in zip(vendors, sizes, strict=True))
    said: dict[float, Counter[str]] = {true: Counter() for true in TRUE_DIFFERENCES}
    errors, covered = [], 0
    of_seed = max(seeds for _, seeds, _ in parts.values())
    for _ in range(rounds):
        chosen, shift = rng.integers(num_blocks, size=int(np.ceil(needed))), of_seed * rng.standard_normal((20, 1))
        made, of_names = {}, {}
        for vendor, size in zip(vendors, sizes, strict=True):
            names = np.concatenate([places[vendor][number] for number in chosen])
            block = np.concatenate([np.full(len(places[vendor][number]), i) for i, number in enumerate(chosen)])
            kept = np.sort(rng.permutation(len(names))[:size])
            name_part, _, noise = parts[vendor]
            made[vendor] = name_part[names[kept]] + shift + noise * rng.standard_normal((20, len(kept)))
            of_names[vendor] = block[kept]
        draws = drawn_means(made, of_names, 1_000)
        errors.append({name: float(each.std()) for name, each in draws.items()})
        ends = _ends(draws["mean"])
        covered += ends["low"] <= 0 <= ends["high"]
        for true in TRUE_DIFFERENCES:
            moved = summary(
                {v: each + true for v, each in made.items()}, {name: each + true for name, each in draws.items()}
            )
            said[true][sentence(moved, min(1.0, 2 * moved["mean"]["p"]), rival)] += 1
    sentences = sorted({words for each in said.values() for words in each})
    prior = NormalDist(-PRIOR_SPREAD * NormalDist().inv_cdf(ODDS[rival]), PRIOR_SPREAD)
    weight = np.array([prior.pdf(true) for true in TRUE_DIFFERENCES])
    of_names_spread = ", ".join(f"{v} seeds {s:.3f} names {n.std():.3f} both {e:.3f}" for v, (n, s, e) in parts.items())
    standard = ", ".join(f"{name} {np.mean([each[name] for each in errors]):.3f}" for name in errors[0])
    lines = [
        f"Spread in nats: {of_names_spread}. Standard errors: {standard}. "
        f"The interval of the mean covers {covered / rounds:.3f}.",
        "",
        f"| sentence | {' | '.join(f'{true:+.2f}' for true in PRINTED)} | at the odds |",
        f"|---|{'---|' * (len(PRINTED) + 1)}",
    ]
    for words in sentences:
        shares = np.array([said[true][words] / rounds for true in TRUE_DIFFERENCES])
        cells = " | ".join(f"{said[true][words] / rounds:.0%}" for true in PRINTED)
        lines.append(f"| {words} | {cells} | {shares @ weight / weight.sum():.0%} |")
    return lines


def _parts(diffs: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The part of each name, about zero; the spread between seeds; that of a seed and a name together."""
    num_seeds, of_seeds, of_names = len(diffs), diffs.mean(axis=1, keepdims=True), diffs.mean(axis=0)
    noise = ((diffs - of_seeds - of_names + diffs.mean()) ** 2).sum() / ((num_seeds - 1) * (diffs.shape[1] - 1))
    shrunk = max(0.0, 1 - noise / num_seeds / of_names.var()) ** 0.5
    return shrunk * (of_names - of_names.mean()), float(of_seeds.std(ddof=1)), float(noise**0.5)


# ---- the table


Pairs = Sequence[tuple[str, str]]


def report(
    records: Records, judged: Records, primary: Pairs = PRIMARY, shown: Pairs = SHOWN, ours: str = "Brownian distance"
) -> str:
    """All figures as Markdown. Two arms are compared by the seeds that both have."""
    names = judged.one("names")
    vendors = [key for key in names if key != "rows"]
    blocks = blocks_of({vendor: names[vendor] for vendor in vendors})
    arms = dict.fromkeys(each["arm"] for each in judged.of("final-*"))
    found = {
        arm: {vendor: [each[vendor] for each in _by_seed(judged, f"final-{arm}-*")] for vendor in vendors}
        for arm in arms
    }
    losses = {arm: {v: np.array([each["losses"] for each in of[v]]) for v in vendors} for arm, of in found.items()}
    hits = {
        arm: {v: np.array([[int(h) for h in each["hits"]] for each in of[v]]) for v in vendors}
        for arm, of in found.items()
    }

    def compared(
        kind: dict[str, dict[str, np.ndarray]], one: str, two: str, scale: float = 1.0
    ) -> dict[str, dict[str, float]]:
        diffs = {vendor: scale * _less(kind[one][vendor], kind[two][vendor]) for vendor in vendors}
        return summary(diffs, drawn_means(diffs, blocks))

    tested = {pair: compared(losses, *pair) for pair in primary}
    corrected = dict(zip(primary, holm([each["mean"]["p"] for each in tested.values()]), strict=True))
    lines = [
        f"| difference in log-loss, nats | {' | '.join(vendors)} | mean of both | p | seeds below 0 | top 1, points |",
        f"|---|{'---|' * (len(vendors) + 4)}",
    ]
    for one, two in (*primary, *shown):
        loss, top = tested.get((one, two)) or compared(losses, one, two), compared(hits, one, two, 100.0)
        p = f"{corrected[one, two]:.4f} (Holm)" if (one, two) in corrected else ""
        cells = " | ".join(_with_ends(loss[name], 3) for name in (*vendors, "mean"))
        below = sum(np.mean([_less(losses[one][v], losses[two][v]).mean(axis=1) for v in vendors], axis=0) < 0)
        lines.append(f"| {one} less {two} | {cells} | {p} | {below} | {_with_ends(top['mean'], 1)} |")
    lines += ["", *(f"- {sentence(tested[pair], corrected[pair], pair[1], ours)}." for pair in primary), ""]
    lines += [f"| arm | {' | '.join(f'{v}: log-loss, top 1' for v in vendors)} | validation, each quarter |",
              f"|---|{'---|' * (len(vendors) + 1)}"]  # fmt: skip
    for arm in arms:
        curve = np.mean([[q["loss"] for q in each["quarters"]] for each in records.of(f"final-{arm}-*")], axis=0)
        cells = " | ".join(f"{losses[arm][v].mean():.3f}, {hits[arm][v].mean():.1%}" for v in vendors)
        lines.append(f"| {arm} | {cells} | {', '.join(f'{value:.3f}' for value in curve)} |")
    near = judged.one("nearest")
    cells = " | ".join(
        f"{np.mean(near[v]['losses']):.3f}, {np.mean([int(h) for h in near[v]['hits']]):.1%}" for v in vendors
    )
    return "\n".join([*lines, f"| nearest frozen feature, untrained | {cells} | |"])


def over_styles(records: Records, judged: Records, pairs: Pairs) -> str:
    """Return as Markdown the differences at each drawing style, those of validation too, and a t interval over them."""
    lines: list[str] = []
    for one, two in pairs:
        of_style: dict[str, float] = {}
        for source, value_of in ((records, "loss_of"), (judged, "losses")):
            first, second = (_by_seed(source, f"final-{arm}-*") for arm in (one, two))
            for style in STYLES[value_of]:
                pair = zip(first, second, strict=False)
                of_style[style] = float(np.mean([_at(a, style, value_of) - _at(b, style, value_of) for a, b in pair]))
        values = np.array(list(of_style.values()))
        half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        lines = lines or [f"| difference | {' | '.join(of_style)} | mean over styles |", f"|---|{'---|' * 5}"]
        cells = " | ".join(f"{value:+.3f}" for value in values)
        ends = f"{values.mean():+.3f} ({values.mean() - half:+.3f} to {values.mean() + half:+.3f})"
        lines.append(f"| {one} less {two} | {cells} | {ends} |")
    return "\n".join(lines)


def _at(record: Mapping[str, Any], style: str, value_of: str) -> float:
    """Return the mean loss at a style: of validation as the last look has it, of a judged one over its names."""
    if value_of == "loss_of":
        return float(record["quarters"][-1]["loss_of"][style])
    return float(np.mean(record[style]["losses"]))


def _less(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the differences of the seeds that both have; seeds are counted from 0."""
    both = min(len(first), len(second))
    less: np.ndarray = first[:both] - second[:both]
    return less


def _by_seed(records: Records, pattern: str) -> list[dict[str, Any]]:
    return sorted(records.of(pattern), key=lambda each: int(each["seed"]))


def _with_ends(one: Mapping[str, float], digits: int) -> str:
    return "{:+.{d}f} ({:+.{d}f} to {:+.{d}f})".format(*(one[end] for end in ("value", "low", "high")), d=digits)
