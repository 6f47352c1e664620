"""Propose the next proxy runs: cover the mixtures first, then look where the optimum is most uncertain.

Distances are taken in the square root of the shares, where a step from 0 to 1 % is as far as one from 16 to 26 %:
losses move fastest near zero. Pool-matched sizes cut every domain's pool by the length of the proxy over the
length of the full training, else proxies never meet repetition. Reads and writes nothing.
Axes: N runs, Q candidates, K domains, B laws drawn from one.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.checks import held_domains
from pipeline.planning.descent import Array
from pipeline.planning.limits import Box
from pipeline.planning.runs import RunsTable
from pipeline.planning.search import cloud, descend_each, project

_CANDIDATES = 4000
_SHARE_DECIMALS = 4
_LAWS = 60


@dataclass(frozen=True)
class Proposed:
    """One run to do: its mixture, its seed, and why."""

    shares: Array
    seed: int
    reason: str  # centroid, space-filling, uncertain optimum, replicate


@dataclass(frozen=True)
class Proxies:
    """Sizes for pool matching; all three are needed for it."""

    pools: dict[str, float]
    num_samples: float | None  # of the full training
    proxy_samples: float | None  # of one proxy run


def propose_runs(
    domains: tuple[str, ...],
    budget: int,
    box: Box,
    table: RunsTable | None = None,
    objective: dict[str, float] | None = None,
    replicates: int | None = None,
) -> list[Proposed]:
    """`budget` runs in the order in which to do them; deterministic.

    Without `replicates`, two of the runs repeat the centroid with other seeds when the budget leaves K + 2
    mixtures besides and no mixture was repeated before: they measure the noise floor.

    Raises: ConfigError for a budget below 1 or more replicates than it holds.
    """
    if budget < 1:
        raise ConfigError(f"--budget is {budget}; it must be at least 1")
    if replicates is None:
        repeated = table is not None and int(table.mixture_groups().max()) + 1 < table.num_runs
        replicates = 2 if budget >= len(domains) + 4 and not repeated else 0
    if not 0 <= replicates < budget:
        raise ConfigError(
            f"--replicates is {replicates}; it must be 0 or more and leave a run of the budget of {budget}"
        )
    done = np.zeros((0, len(domains))) if table is None else table.shares
    fresh = budget - replicates
    proposed: list[Proposed] = []
    if table is not None and objective:
        num_uncertain = fresh - fresh // 2
        picked = _uncertain_optima(table, objective, box, num_uncertain)
        proposed += [Proposed(shares, 0, "uncertain optimum") for shares in picked]
        done = np.concatenate([done, picked])
    centroid = _round_shares(project(np.full((1, len(domains)), 1.0 / len(domains)), box)[0])
    if table is None:
        proposed.append(Proposed(centroid, 0, "centroid"))
        done = centroid[None]
    filling = space_filling(box, done, fresh - len(proposed))
    proposed += [Proposed(shares, 0, "space-filling") for shares in filling]
    repeat = proposed[0].shares
    return proposed + [Proposed(repeat, seed + 1, "replicate") for seed in range(replicates)]


def space_filling(box: Box, done_NK: Array, count: int) -> Array:
    """`count` mixtures, each as far as can be (in the root of the shares) from all before it; fewer if none is left."""
    rounded = _rounded(cloud(box, _CANDIDATES, np.random.default_rng(0)))
    roots = np.sqrt(rounded)
    distance = np.full(len(rounded), np.inf)
    for shares in done_NK:
        distance = np.minimum(distance, np.linalg.norm(roots - np.sqrt(shares), axis=1))
    picked = []
    for _ in range(count):
        best = int(np.argmax(distance))
        if distance[best] < 1e-9:
            break  # the limits leave no other mixture
        picked.append(rounded[best])
        distance = np.minimum(distance, np.linalg.norm(roots - roots[best], axis=1))
    return np.array(picked).reshape(len(picked), rounded.shape[1])


def _uncertain_optima(table: RunsTable, objective: dict[str, float], box: Box, count: int) -> Array:
    """At most `count` mixtures that lie where laws that the runs allow have their optima and no run is near.

    Greedy: each next one brings the optima of those laws nearest, in sum, to a run done or proposed. Where
    every optimum has a run already, fewer are proposed.
    """
    from pipeline.planning.laws import fit_law
    from pipeline.planning.nesting import require_one_setting
    from pipeline.planning.resample import resample

    require_one_setting(table)
    law = fit_law(table)
    rng = np.random.default_rng(0)
    candidates = cloud(box, _CANDIDATES, rng)
    laws = resample(law, tuple(objective), _LAWS, rng)

    def score(shares: Array) -> Array:
        total: Array = np.sum([weight * laws.losses(name, shares) for name, weight in objective.items()], axis=0)
        return total

    optima = descend_each(candidates[np.argmin(score(candidates), axis=1)], score, box, rng)
    rounded = _rounded(np.concatenate([optima, candidates]))
    reach_QB = _root_distances(rounded, optima)
    distance_B = _root_distances(table.shares, optima).min(axis=0)
    picked: list[Array] = []
    for _ in range(count):
        gain = np.maximum(distance_B[None, :] - reach_QB, 0.0).sum(axis=1)
        best = int(np.argmax(gain))
        if gain[best] < 1e-9:
            break
        picked.append(rounded[best])
        distance_B = np.minimum(distance_B, reach_QB[best])
    return np.array(picked).reshape(len(picked), len(table.domains))


def _root_distances(left_QK: Array, right_BK: Array) -> Array:
    result: Array = np.linalg.norm(np.sqrt(left_QK)[:, None, :] - np.sqrt(right_BK)[None], axis=2)
    return result


def _rounded(points_QK: Array) -> Array:
    return np.stack([_round_shares(shares) for shares in points_QK])


def _round_shares(shares_K: Array) -> Array:
    """Shares with four decimals that sum to exactly 1 (largest remainder)."""
    units = 10**_SHARE_DECIMALS
    scaled = shares_K * units
    whole = np.floor(scaled + 1e-9)
    missing = round(units - float(whole.sum()))
    for k in np.argsort(-(scaled - whole), kind="stable")[:missing]:
        whole[k] += 1
    result: Array = whole / units
    return result


def design_table(
    domains: tuple[str, ...], proposed: list[Proposed], proxies: Proxies, num_before: int = 0
) -> tuple[str, list[str]]:
    """The design as csv text (run, reason, seed, mix_*, and samples_*, pool_* where sizes are given), and lines.

    Names go on after `num_before` runs, so that a second round can go where the first one lies.

    Raises: ConfigError when pools are given without the two sample counts.
    """
    if proxies.pools and (proxies.num_samples is None or proxies.proxy_samples is None):
        raise ConfigError("--pool needs --samples (full training) and --proxy-samples to match the pools to the proxy")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["run", "reason", "seed", *(f"mix_{domain}" for domain in domains)]
    samples = proxies.proxy_samples
    pools = _matched_pools(proxies)
    if samples is not None:
        head += ["samples_seen", *(f"samples_{domain}" for domain in domains)]
    head += [f"pool_{domain}" for domain in domains if domain in pools]
    writer.writerow(head)
    for number, run in enumerate(proposed, start=num_before + 1):
        row: list[object] = [f"proxy-{number:02d}", run.reason, run.seed]
        row += [f"{share:.{_SHARE_DECIMALS}f}" for share in run.shares]
        if samples is not None:
            row += [round(samples), *(round(share * samples) for share in run.shares)]
        row += [pools[domain] for domain in domains if domain in pools]
        writer.writerow(row)
    lines = [f"{len(proposed)} runs: " + ", ".join(_counts(proposed))]
    lines += [
        f"pool of {domain} cut to {pools[domain]} of {proxies.pools[domain]:.6g} samples: repetition shows as in "
        "the full training"
        for domain in domains
        if domain in pools
    ]
    return text.getvalue(), lines


def design_notes(
    domains: tuple[str, ...], proposed: list[Proposed], budget: int, table: RunsTable | None = None
) -> list[str]:
    """Warnings about a design: what `plan fit` will lack, what the limits did not leave, what is tried anew."""
    done = np.zeros((0, len(domains))) if table is None else table.shares
    shares = np.concatenate([done, [run.shares for run in proposed]])
    num_mixtures = len(np.unique(np.round(shares, 6), axis=0))
    notes = []
    if len(proposed) < budget:
        notes.append(f"warning: {len(proposed)} runs in place of {budget}: the limits leave no other mixtures")
    if num_mixtures < len(domains) + 1:
        notes.append(
            f"warning: {num_mixtures} different mixtures of {len(domains)} domains; `plan fit` needs "
            f"{len(domains) + 1}, and {2 * len(domains) + 2} are good"
        )
    for k, share in held_domains(done).items() if len(done) else ():
        if np.ptp(shares[:, k]) > 1e-6:
            notes.append(
                f"{domains[k]} had the share {share:.4g} in all runs so far; these vary it (to hold it there: "
                f"--min-share {domains[k]}={share:.4g} --max-share {domains[k]}={share:.4g})"
            )
    return notes


def _counts(proposed: list[Proposed]) -> list[str]:
    reasons: dict[str, int] = {}
    for run in proposed:
        reasons[run.reason] = reasons.get(run.reason, 0) + 1
    return [f"{count} {reason}" for reason, count in reasons.items()]


def _matched_pools(proxies: Proxies) -> dict[str, int]:
    if proxies.num_samples is None or proxies.proxy_samples is None:
        return {}
    cut = min(1.0, proxies.proxy_samples / proxies.num_samples)
    return {domain: max(1, round(pool * cut)) for domain, pool in proxies.pools.items()}
