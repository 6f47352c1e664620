"""Propose the next proxy runs: cover the mixtures first, then look where the optimum is most uncertain.

Distances are taken in the square root of the shares, where a step from 0 to 1 % is as far as one from 16 to 25 %:
losses move fastest near zero. Pool-matched sizes cut the pool of every domain by the length of the proxy over the
length of the full training; without that, proxies never meet repetition. Reads and writes nothing.
Axes: N runs, Q candidates, K domains, B sampled laws.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array
from pipeline.planning.choose import sample_optima
from pipeline.planning.goals import Goal
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Box, Limits
from pipeline.planning.runs.checks import held_domains, least_for_a_check, require_one_setting
from pipeline.planning.runs.groups import Groups, expand_domains, expand_shares
from pipeline.planning.runs.run_table import RunsTable, mixture_groups
from pipeline.planning.search import cloud, project

_CANDIDATES = 4000
_SHARE_DECIMALS = 4
_KEPT_DECIMALS = 6  # so that rounding leaves the ratio inside a kept mixture


@dataclass(frozen=True)
class Proposed:
    """One run to do: its mixture, its seed, and why."""

    shares: Array
    seed: int
    reason: str  # centroid, space-filling, uncertain optimum, replicate


def propose_runs(
    domains: tuple[str, ...],
    budget: int,
    box: Box,
    table: RunsTable | None = None,
    objective: dict[str, float] | None = None,
    replicates: int | None = None,
) -> list[Proposed]:
    """`budget` runs in the order in which to do them; the same for the same input.

    Without `replicates`, two of the runs repeat the first one with other seeds, when the budget leaves K + 3 mixtures,
    the least for a check of the law, and no mixture was repeated before. They measure the noise between seeds.

    Raises: ConfigError for a budget below 1 or more replicates than it holds.
    """
    if budget < 1:
        raise ConfigError(f"--budget is {budget}; it must be at least 1")
    if replicates is None:
        repeated = table is not None and table.num_mixtures < table.num_runs
        replicates = 2 if budget >= least_for_a_check(len(domains)) + 2 and not repeated else 0
    if not 0 <= replicates < budget:
        raise ConfigError(
            f"--replicates is {replicates}; it must be 0 or more and leave a run of the budget of {budget}"
        )
    fresh = budget - replicates
    proposed: list[Proposed] = []
    if table is None:
        centroid = _rounded(project(np.full((1, len(domains)), 1.0 / len(domains)), box))[0]
        proposed.append(Proposed(centroid, 0, "centroid"))
    elif objective:
        optima = _sampled_optima(table, objective, box, fresh - fresh // 2)
        proposed += [Proposed(shares, 0, "uncertain optimum") for shares in optima]
    done = [*(() if table is None else table.shares), *(run.shares for run in proposed)]
    filling = space_filling(box, np.array(done), fresh - len(proposed))
    proposed += [Proposed(shares, 0, "space-filling") for shares in filling]
    return proposed + [Proposed(proposed[0].shares, seed + 1, "replicate") for seed in range(replicates)]


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


def _sampled_optima(table: RunsTable, objective: dict[str, float], box: Box, count: int) -> Array:
    """At most `count` new mixtures, each the optimum of one law that the runs allow (Thompson sampling).

    The surer the optimum, the nearer they lie together. A mixture that was run or proposed already is left out.

    Source: Kandasamy et al. 2018, "Parallelised Bayesian Optimisation via Thompson Sampling".
    """
    require_one_setting(table)
    law = fit_law(table)
    goal = Goal(objective, num_sampled_laws=count)
    goal.check(law)
    rng = np.random.default_rng(goal.seed)
    optima = _rounded(sample_optima(law, goal, cloud(box, _CANDIDATES, rng), box, rng))
    together = np.concatenate([table.shares, optima])
    first = np.unique(mixture_groups(together), return_index=True)[1]
    return together[np.sort(first[first >= table.num_runs])]


def _rounded(points_QK: Array, decimals: int = _SHARE_DECIMALS) -> Array:
    """Shares with a few decimals that sum to exactly 1: `largest_remainders` of the mixer, for all points at once."""
    units = 10**decimals
    exact = points_QK * units
    counts = np.floor(exact + 1e-9)
    order = np.argsort(counts - exact, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    more = rank < (units - counts.sum(axis=1))[:, None]
    result: Array = (counts + more) / units
    return result


def design_table(
    domains: tuple[str, ...],
    proposed: list[Proposed],
    limits: Limits,
    proxy_samples: float | None,
    num_before: int = 0,
    groups: Groups | None = None,
) -> tuple[str, list[str]]:
    """Return the design as csv text, and lines about it. `limits` are those of the full training.

    Columns: run, reason, seed, mix_*, and samples_*, pool_* where sizes are given. The numbers of the runs go on after
    `num_before` runs, so that the runs of a second round can join the first. A group is written as its members.

    Raises: ConfigError when pools are given without the two sample counts.
    """
    if limits.pools and (limits.num_samples is None or proxy_samples is None):
        raise ConfigError("--pool needs --samples (full training) and --proxy-samples to match the pools to the proxy")
    pools = {}
    if limits.num_samples is not None and proxy_samples is not None:
        cut = min(1.0, proxy_samples / limits.num_samples)
        pools = {domain: max(1, round(pool * cut)) for domain, pool in limits.pools.items()}
    planned, groups = domains, groups or {}
    domains, decimals = expand_domains(planned, groups), _KEPT_DECIMALS if groups else _SHARE_DECIMALS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["run", "reason", "seed", *(f"mix_{domain}" for domain in domains)]
    if proxy_samples is not None:
        head += ["samples_seen", *(f"samples_{domain}" for domain in domains)]
    head += [f"pool_{domain}" for domain in domains if domain in pools]
    writer.writerow(head)
    for number, run in enumerate(proposed, start=num_before + 1):
        row: list[object] = [f"proxy-{number:02d}", run.reason, run.seed]
        shares = _rounded(expand_shares(planned, run.shares, groups)[None], decimals)[0]
        row += [f"{share:.{decimals}f}" for share in shares]
        if proxy_samples is not None:
            row += [round(proxy_samples), *(round(share * proxy_samples) for share in shares)]
        row += [pools[domain] for domain in domains if domain in pools]
        writer.writerow(row)
    counts = Counter(run.reason for run in proposed)
    lines = [f"{len(proposed)} runs: " + ", ".join(f"{count} {reason}" for reason, count in counts.items())]
    lines += [
        f"pool of {domain} cut to {pools[domain]} of {limits.pools[domain]:.6g} samples: repetition shows as in "
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
    num_mixtures = int(mixture_groups(shares).max()) + 1
    notes = []
    if len(proposed) < budget:
        notes.append(f"warning: {len(proposed)} runs in place of {budget}: the limits leave no other mixtures")
    if num_mixtures < (least := least_for_a_check(len(domains))):
        notes.append(
            f"warning: {num_mixtures} different mixtures of {len(domains)} domains; `plan fit` needs "
            f"{len(domains) + 1}, {least} to check the law, and {2 * len(domains) + 2} are good"
        )
    for k, share in held_domains(done).items() if len(done) else ():
        if np.ptp(shares[:, k]) > 1e-6:
            notes.append(
                f"{domains[k]} had the share {share:.4g} in all runs so far; these vary it (to hold it there: "
                f"--min-share {domains[k]}={share:.4g} --max-share {domains[k]}={share:.4g})"
            )
    return notes
