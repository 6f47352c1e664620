"""Points of the share box, and the best of them: a deterministic cloud, then pairwise exchange.

Works for 2 to 20 domains and for any objective, smooth or not. Reads and writes nothing.
Axes: Q points, K domains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.planning.descent import Array
from pipeline.planning.limits import Box

_MOST_PAIRS = 60  # tried by one step of `descend_each`
_EACH_STEPS = 80

Score = Callable[[Array], Array]
"""shares_QK -> score_Q, smaller is better."""


def project(points_QK: Array, box: Box) -> Array:
    """The nearest points with shares within the box and sum 1 (bisection on a common shift)."""
    low = (box.low - points_QK).min(axis=1)
    high = (box.high - points_QK).max(axis=1)
    for _ in range(60):
        middle = 0.5 * (low + high)
        total = np.clip(points_QK + middle[:, None], box.low, box.high).sum(axis=1)
        low = np.where(total < 1.0, middle, low)
        high = np.where(total < 1.0, high, middle)
    held = np.clip(points_QK + (0.5 * (low + high))[:, None], box.low, box.high)
    held[held < 1e-12] = 0.0
    result: Array = held / held.sum(axis=1, keepdims=True)
    return result


def cloud(box: Box, num_points: int, rng: np.random.Generator) -> Array:
    """Points all over the box: centre, corners, edges, and Dirichlet draws flat, sparse and dense."""
    num_domains = len(box.low)
    parts = [np.full((1, num_domains), 1.0 / num_domains), np.eye(num_domains)]
    if num_domains == 2:
        line = np.linspace(0.0, 1.0, num_points)
        parts.append(np.stack([line, 1.0 - line], axis=1))
    else:
        parts += [rng.dirichlet(np.full(num_domains, c), num_points // 3) for c in (0.4, 1.0, 3.0)]
    points = project(np.concatenate(parts), box)
    first = np.unique(np.round(points, 9), axis=0, return_index=True)[1]
    kept: Array = points[np.sort(first)]
    return kept


def around(centre_K: Array, box: Box, num_points: int, rng: np.random.Generator) -> Array:
    """Points near one mixture at five scales, within the box."""
    scales = np.repeat([0.2, 0.1, 0.05, 0.02, 0.01], -(-num_points // 5))[:, None]
    steps = rng.normal(size=(len(scales), len(centre_K))) * scales
    return project(centre_K + steps - steps.mean(axis=1, keepdims=True), box)


def exchanges(centre_K: Array, box: Box) -> Array:
    """Mixtures that differ from one by a single exchange between two domains, of 0.002 to 0.5, within the box."""
    giver, taker = np.nonzero(~np.eye(len(centre_K), dtype=bool))
    amounts = np.geomspace(0.002, 0.5, 14)
    room = np.minimum((centre_K - box.low)[giver], (box.high - centre_K)[taker])
    pair, amount = np.nonzero(amounts[None, :] <= room[:, None] + 1e-12)
    moved = np.repeat(centre_K[None], len(pair), axis=0)
    index = np.arange(len(pair))
    moved[index, giver[pair]] -= amounts[amount]
    moved[index, taker[pair]] += amounts[amount]
    result: Array = np.maximum(moved, 0.0)
    return result


def descend(start_K: Array, score: Score, box: Box, *, first_step: float = 0.1, last_step: float = 2e-4) -> Array:
    """Move share between pairs of domains while that helps, with ever smaller steps."""
    here = start_K.copy()
    best = float(score(here[None])[0])
    giver, taker = np.nonzero(~np.eye(len(here), dtype=bool))
    step = first_step
    while step >= last_step:
        room = np.minimum(step, np.minimum(here - box.low, 1.0)[giver])
        room = np.minimum(room, (box.high - here)[taker])
        trials = np.repeat(here[None], len(giver), axis=0)
        index = np.arange(len(giver))
        trials[index, giver] -= room
        trials[index, taker] += room
        trials = np.maximum(trials[room > 1e-9], 0.0)
        scores = score(trials) if len(trials) else np.array([np.inf])
        if scores.min() < best - 1e-12:
            best, here = float(scores.min()), trials[int(scores.argmin())]
        else:
            step *= 0.5
    return here


def minimise_score(score: Score, points_QK: Array, box: Box, num_starts: int = 4) -> Array:
    """The best mixture found: the best points of the cloud, each improved by exchange."""
    order = np.argsort(score(points_QK), kind="stable")[:num_starts]
    ends = np.stack([descend(points_QK[i], score, box) for i in order])
    best = ends[int(np.argmin(score(ends)))]
    return descend(best, score, box, first_step=1e-4, last_step=1e-6)


def descend_each(start_BK: Array, score: Score, box: Box, rng: np.random.Generator) -> Array:
    """The same exchange for B mixtures at once, each under a score of its own: shares_BTK -> score_BT.

    Beyond `_MOST_PAIRS` pairs of domains every step tries that many, drawn anew.
    """
    here = start_BK.copy()
    count, num_domains = here.shape
    giver, taker = np.nonzero(~np.eye(num_domains, dtype=bool))
    best = score(here[:, None, :])[:, 0]
    step = np.full(count, 0.05)
    for _ in range(_EACH_STEPS):
        pairs = rng.permutation(len(giver))[:_MOST_PAIRS]
        index, give, take = np.arange(len(pairs)), giver[pairs], taker[pairs]
        room = np.minimum(np.minimum(step[:, None], (here - box.low)[:, give]), (box.high - here)[:, take])
        room = np.maximum(room, 0.0)
        trials = np.repeat(here[:, None, :], len(pairs), axis=1)
        trials[:, index, give] -= room
        trials[:, index, take] += room
        trials = np.maximum(trials, 0.0)
        scores = score(trials)
        first = scores.argmin(axis=1)
        reached = scores[np.arange(count), first]
        better = reached < best - 1e-12
        here[better] = trials[better, first[better]]
        best[better] = reached[better]
        step[~better] *= 0.5
        if step.max() < 2e-4:
            break
    return here
