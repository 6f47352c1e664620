"""The study of tests/benchmarks/protocols/repetition.md: what does a repeated sample still teach a contrastive model?

    python tests/benchmarks/bench_repetition.py run RELEASE WORK [--seconds 3600]   # after any stop: again
    python tests/benchmarks/bench_repetition.py run RELEASE WORK --only NAME --check   # one run against its record
    python tests/benchmarks/bench_repetition.py report            # cross-validation on the designed mixtures
    python tests/benchmarks/bench_repetition.py report --judge    # the sealed mixtures

RELEASE is what mixing_law_material.py builds. A finished run is a line of results/mixing-law.jsonl, in a block pool-N.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mixing_law import BATCH, DOMAINS, RESULTS, STEPS, Run, do_run, last_losses, pool_of, read_mixtures, runs_table
from scipy.optimize import nnls
from study_records import Records

RECORDS = Records(RESULTS)
POOLS = (2200, 1100, 550, 275)
WIDTH, NUM_SEEDS, NUM_FOLDS = 128, 2, 8
SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.4, 100.0)  # R*, passes
FLOORS = np.linspace(0.0, 0.98, 15)  # c, as a part of the lowest loss

Array = np.ndarray[Any, Any]


def all_runs() -> list[Run]:
    """Every run: a seed and a pool at a time, so that a part of the study is a smaller whole."""
    names = [f"d{n:02d}" for n in range(1, 25)] + [f"s{n:02d}" for n in range(1, 13)]
    return [
        Run(f"pool-{pool}", name, seed, WIDTH, {"pool": pool})
        for seed in range(NUM_SEEDS)
        for pool in POOLS
        for name in names
    ]


# ---- the four forms


@dataclass(frozen=True)
class Form:
    """Losses of a mixture whose pools are passed over: L at effective shares, times a factor of the passes."""

    name: str
    fits_scale: bool
    has_factor: bool


FORMS = (
    Form("today", fits_scale=False, has_factor=False),
    Form("effective data", fits_scale=True, has_factor=False),
    Form("factor", fits_scale=False, has_factor=True),
    Form("both", fits_scale=True, has_factor=True),
)


@dataclass(frozen=True)
class Fit:
    """A form fitted to runs of all pools, upon the law L of the largest one."""

    law: Any
    scale: float | None  # R*; None: a repeated sample is worth as much as a new one
    floors: Array  # c, a number for each loss
    costs: Array  # k, loss x domain

    def predict(self, records: Sequence[dict[str, Any]]) -> Array:
        """Losses, run x loss."""
        base = _base(self.law, records, self.scale)
        return self.floors + (base - self.floors) * (1 + _passes(records) @ self.costs.T)


def fit_form(form: Form, records: Sequence[dict[str, Any]]) -> Fit:
    """The law of the largest pool, then R*, c and k by least squares on the runs of every pool."""
    from pipeline.planning.laws import fit_law
    from pipeline.planning.limits import TEXT_HALF_LIFE_EPOCHS

    law = fit_law(runs_table([record for record in records if _pool(record) == max(POOLS)]))
    losses, passes = last_losses(list(records)), _passes(records)
    scales: tuple[float | None, ...] = SCALES if form.fits_scale else (TEXT_HALF_LIFE_EPOCHS,)
    if form.has_factor and not form.fits_scale:
        scales = (None,)
    best: tuple[float, Fit] | None = None
    for scale in scales:
        base = _base(law, records, scale)
        floors, costs = np.zeros(len(DOMAINS)), np.zeros((len(DOMAINS), len(DOMAINS)))
        for c in range(len(DOMAINS)) if form.has_factor else ():
            floors[c], costs[c] = _fit_factor(base[:, c], passes, losses[:, c])
        fitted = Fit(law, scale, floors, costs)
        error = float(((fitted.predict(records) - losses) ** 2).sum())
        if best is None or error < best[0]:
            best = error, fitted
    assert best is not None
    return best[1]


def _fit_factor(base: Array, passes: Array, losses: Array) -> tuple[float, Array]:
    """c by a grid below the lowest loss; k at each c by least squares, none below 0."""
    tried = []
    for floor in FLOORS * min(losses.min(), base.min()):
        height = base - floor
        costs, residual = nnls(height[:, None] * passes, losses - base)
        tried.append((residual, floor, costs))
    _, floor, costs = min(tried, key=lambda one: one[0])
    return float(floor), costs


def _base(law: Any, records: Sequence[dict[str, Any]], scale: float | None) -> Array:
    """L at the shares by what they are worth, run x loss."""
    from pipeline.planning.limits import Limits, effective_shares

    rows = []
    for record in records:
        shares, limits = (
            _shares(record),
            Limits(dict.fromkeys(DOMAINS, float(_pool(record))), STEPS * BATCH, repetition_scale_epochs=scale),
        )
        whole = Limits(dict.fromkeys(DOMAINS, float(max(POOLS))), STEPS * BATCH, repetition_scale_epochs=scale)
        # L was fitted to runs that repeat too, so only what is lost against the largest pool counts
        worth, of_whole = (effective_shares(DOMAINS, shares[None], one)[0] for one in (limits, whole))
        rows.append(shares * np.divide(worth, of_whole, out=np.ones(len(DOMAINS)), where=of_whole > 0))
    return np.stack([column.value(np.stack(rows)) for column in law.columns], axis=1)


def _passes(records: Sequence[dict[str, Any]]) -> Array:
    """r_j log e_j beyond that of the largest pool, run x domain; nothing counts below one pass."""
    rows = []
    for record in records:
        shares = _shares(record)
        epochs, whole = (np.log(np.maximum(shares * STEPS * BATCH / pool, 1.0)) for pool in (_pool(record), max(POOLS)))
        rows.append(shares * (epochs - whole))
    return np.stack(rows)


def _pool(record: dict[str, Any]) -> int:
    return pool_of(record["block"])


def _shares(record: dict[str, Any]) -> Array:
    return np.array([record["shares"][name] for name in DOMAINS])


# ---- what is reported


def held_out(form: Form, records: list[dict[str, Any]]) -> Array:
    """Residuals of designed runs, each from a fit without its mixture, run x loss."""
    names = sorted({record["mixture"] for record in records})
    folds = np.array([names.index(record["mixture"]) % NUM_FOLDS for record in records])
    residuals = np.zeros((len(records), len(DOMAINS)))
    for fold in range(NUM_FOLDS):
        fitted = fit_form(form, [record for record, own in zip(records, folds, strict=True) if own != fold])
        left_out = [record for record, own in zip(records, folds, strict=True) if own == fold]
        residuals[folds == fold] = last_losses(left_out) - fitted.predict(left_out)
    return residuals


def seed_noise(records: list[dict[str, Any]]) -> float:
    """Standard deviation between seeds of one mixture and pool, over all losses."""
    groups: dict[tuple[str, int], list[Array]] = {}
    for record, losses in zip(records, last_losses(records), strict=True):
        groups.setdefault((record["mixture"], _pool(record)), []).append(losses)
    variances = [np.var(np.stack(own), axis=0, ddof=1) for own in groups.values() if len(own) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else float("nan")


def report(*, judge: bool) -> Iterator[str]:
    """Held-out error of each form on designed mixtures by pool; to judge, error, noise and coverage on the sealed ones.

    Raises: SystemExit to judge while a run is missing: the sealed mixtures are opened once.
    """
    missing = [run.name for run in all_runs() if run.name not in RECORDS.names()]
    if judge and missing:
        raise SystemExit(f"{len(missing)} runs are not done ({missing[0]} ...): the sealed mixtures stay sealed")
    records = RECORDS.of("pool-*")
    designed = [record for record in records if record["mixture"].startswith("d")]
    sealed = [record for record in records if record["mixture"].startswith("s")] if judge else []
    for kind, own in (("designed", designed), ("sealed", sealed)):
        if own:
            noise = _by_pool(own, lambda rows: f"{seed_noise(rows):.3f}")
            yield f"{len(own)} {kind} runs, noise between seeds by pool, and of all: {noise}\n"
    heads = [*(f"pool {pool}" for pool in POOLS), "all"]
    yield f"| mean absolute error | {' | '.join(heads)} | over noise |\n|---|{'---|' * (len(heads) + 1)}"
    residuals = {form.name: held_out(form, designed) for form in FORMS}
    for name, own in residuals.items():
        yield _line(f"{name}, held out", np.abs(own), designed)
    for form in FORMS if sealed else ():
        yield from _judge(form, designed, residuals[form.name], sealed)
    if sealed:
        shown = _by_pool(sealed, lambda rows: _matched(designed, rows))
        yield f"| exploratory: a law of each pool's own runs, over noise (coverage) | {shown} | |"


def _judge(form: Form, designed: list[dict[str, Any]], residuals: Array, sealed: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of one form on the sealed mixtures: errors, and errors over noise with the coverage, by pool."""
    fitted = fit_form(form, designed)
    errors = np.abs(last_losses(sealed) - fitted.predict(sealed))
    pools, own = (np.array([_pool(record) for record in records]) for records in (designed, sealed))
    covered = errors <= np.stack([np.quantile(np.abs(residuals[pools == pool]), 0.9, axis=0) for pool in own])
    yield _line(f"{form.name}, sealed", errors, sealed)

    def both(rows: list[dict[str, Any]]) -> str:
        chosen = np.array([record in rows for record in sealed])
        return f"{errors[chosen].mean() / seed_noise(rows):.2f} ({covered[chosen].mean():.3f})"

    yield f"| {form.name}, sealed, over noise (coverage) | {_by_pool(sealed, both)} | |"
    if form.fits_scale or form.has_factor:
        yield f"\nR* {fitted.scale}, c {fitted.floors.round(2).tolist()}, k {fitted.costs.round(3).tolist()}\n"


def _matched(designed: list[dict[str, Any]], sealed: list[dict[str, Any]]) -> str:
    """Error over noise, and coverage by the intervals of `plan fit`, of laws fitted to the runs of the same pool."""
    from pipeline.planning.laws import fit_law

    errors, covered = [], []
    for pool in sorted({_pool(record) for record in sealed}):
        own, asked = ([one for one in records if _pool(one) == pool] for records in (designed, sealed))
        law, truth = fit_law(runs_table(own)), last_losses(asked)
        shares = np.array([_shares(record) for record in asked])
        value, low, high = np.moveaxis(np.array(list(law.predict(shares).values())), 1, 0).swapaxes(1, 2)
        errors.append(np.abs(value - truth))
        covered.append((low <= truth) & (truth <= high))
    return f"{np.mean(errors) / seed_noise(sealed):.2f} ({np.mean(covered):.3f})"


def _by_pool(records: list[dict[str, Any]], shown: Callable[[list[dict[str, Any]]], str]) -> str:
    """A value for each pool, then that of all."""
    parts = [[record for record in records if _pool(record) == pool] for pool in POOLS]
    return " | ".join(shown(part) for part in (*parts, records))


def _line(name: str, errors: Array, records: list[dict[str, Any]]) -> str:
    def mean(rows: list[dict[str, Any]]) -> str:
        return f"{errors[np.array([record in rows for record in records])].mean():.3f}"

    return f"| {name} | {_by_pool(records, mean)} | {errors.mean() / seed_noise(records):.2f} |"


# ---- commands


def do_runs(release: str, work: Path, seconds: float) -> None:
    mixtures, end = read_mixtures(), time.monotonic() + seconds
    work.mkdir(parents=True, exist_ok=True)
    for run in all_runs():
        if run.name not in RECORDS.names() and time.monotonic() < end:
            RECORDS.add(run.name, do_run(run, mixtures[run.mixture], release, work))


def check_run(name: str, release: str, work: Path) -> int:
    """Train one run again, away from the records, and say whether it gives the figures of its line."""
    run = next((run for run in all_runs() if run.name == name), None)
    if run is None:
        raise SystemExit(f"there is no run '{name}'; runs are named like {all_runs()[0].name}")
    (work / "check").mkdir(parents=True, exist_ok=True)
    losses = do_run(run, read_mixtures()[run.mixture], release, work / "check")["losses"]
    committed = RECORDS.one(name)["losses"]
    apart = max(abs(losses[d][step] - value) for d in DOMAINS for step, value in committed[d].items())
    print(f"{name}: largest difference to the committed losses {apart:.5f}")
    return int(apart > 1e-3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("release", nargs="?")
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this time")
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--judge", action="store_true")
    args = parser.parse_args()
    if args.command == "report":
        print("\n".join(report(judge=args.judge)))
        return 0
    if args.work is None or args.check != bool(args.only):
        parser.error("run needs RELEASE and WORK; --only and --check go together")
    if args.only:
        return check_run(args.only, args.release, args.work)
    do_runs(args.release, args.work, args.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
