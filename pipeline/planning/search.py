"""Points of the share box, and the best of them: a deterministic cloud, then ever smaller exchanges of share.

Works for 2 to 200 domains and for any objective, smooth or not. Reads and writes nothing.
Axes: B scores, Q points, K domains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.limits import Box

_POINTS_A_ROUND = 600  # of up to 20 domains; of more, more
_FIRST_STEP = 0.2
_STEP_FACTOR = 0.5
_LITTLE_GAIN = 1e-4

Score = Callable[[Array], Array]
"""shares_QK -> score_Q, or score_BQ for B scores at once; smaller is better."""


def project(points_QK: Array, box: Box) -> Array:
    """Return the nearest points with shares within the box and sum 1 (bisection on a common shift)."""
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


def shares_grid(num_domains: int, steps: int = 0) -> Array:
    """All shares of two or three domains in equal steps, Q x K; none for more domains, which no plane can show."""
    if num_domains == 2:
        first = np.linspace(0.0, 1.0, (steps or 50) + 1)
        return np.column_stack([first, 1.0 - first])
    steps = steps or 20
    pairs = [(a, b) for a in range(steps + 1) for b in range(steps + 1 - a)] if num_domains == 3 else []
    return np.array([(a, b, steps - a - b) for a, b in pairs], float).reshape(-1, num_domains) / steps


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
    return points[np.sort(first)]


def neighbours(points_QK: Array, box: Box, step: float, count: int, rng: np.random.Generator) -> Array:
    """`count` neighbours of each point: random exchanges of at most `step` between two domains, Q * count x K."""
    moved = np.repeat(points_QK, count, axis=0)
    index, num_domains = np.arange(len(moved)), moved.shape[1]
    giver = rng.integers(num_domains, size=len(moved))
    taker = (giver + rng.integers(1, num_domains, size=len(moved))) % num_domains
    amount = step * 10.0 ** rng.uniform(-2.0, 0.0, len(moved))
    amount = np.minimum(amount, np.minimum((moved - box.low)[index, giver], (box.high - moved)[index, taker]))
    moved[index, giver] -= np.maximum(amount, 0.0)
    moved[index, taker] += np.maximum(amount, 0.0)
    return np.asarray(np.maximum(moved, 0.0))


def minimise_each(score: Score, points_QK: Array, box: Box, last_step: float = 2e-3) -> Array:
    """Return the best mixture found for each of B scores, shape B x K, from points all over the box.

    Every round looks at the neighbours of the best points so far. All scores share these points. The steps become
    smaller when a round gains little.
    """
    rng = np.random.default_rng(0)
    scores = score(points_QK)
    num_points = _POINTS_A_ROUND * max(1, points_QK.shape[1] // 20)
    step = _FIRST_STEP
    while step > last_step:
        least = scores.min(axis=1)
        centres = np.unique(points_QK[np.argmin(scores, axis=1)], axis=0)
        moved = neighbours(centres, box, step, -(-num_points // len(centres)), rng)
        points_QK = np.concatenate([moved, centres])
        scores = score(points_QK)
        if np.median(least - scores.min(axis=1)) < _LITTLE_GAIN:
            step *= _STEP_FACTOR
    best: Array = points_QK[np.argmin(scores, axis=1)]
    return best


def minimise_score(score: Score, points_QK: Array, box: Box) -> Array:
    """Return the best mixture found for one score, shape K, from points all over the box."""
    best: Array = minimise_each(lambda points: score(points)[None], points_QK, box, last_step=1e-6)[0]
    return best
