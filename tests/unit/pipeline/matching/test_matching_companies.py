"""Which row of a company stays: against a brute force. What stages make of it is in stages/test_select_decisions.py."""

from __future__ import annotations

import numpy as np
import pytest
from hashed_pairs import RADIUS, pairs_of

from manifests import tables
from pipeline.matching.companies import choose_representatives


def brute_force(phash: np.ndarray, priority: np.ndarray) -> tuple[list[int], list[int]]:
    """By priority from the best: kept when no kept row is near, else dropped for the nearest kept one."""
    kept: list[int] = []
    for row in sorted(range(len(phash)), key=lambda row: priority[row]):
        if all((int(phash[row]) ^ int(phash[other])).bit_count() > RADIUS for other in kept):
            kept.append(row)
    representative, distance = [], []
    for row in range(len(phash)):
        better = [other for other in kept if priority[other] <= priority[row]]
        apart = {other: (int(phash[row]) ^ int(phash[other])).bit_count() for other in better}
        best = row if row in kept else min(better, key=lambda other: (apart[other], priority[other]))
        representative.append(best)
        distance.append(0 if best == row else apart[best])
    return representative, distance


@pytest.mark.parametrize("seed", range(30))
def test_representatives_equal_a_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 60))
    centres = rng.integers(0, 2**63, 4, dtype=np.uint64)
    flips = np.array(
        [sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 5))) for _ in range(num_rows)], np.uint64
    )
    phash = rng.choice(centres, num_rows) ^ flips
    priority = rng.permutation(num_rows).astype(np.int64)
    # pairs of images that fell to a rule are there as well
    others = rng.choice(centres, 20) ^ (np.uint64(1) << rng.integers(0, 64, 20).astype(np.uint64))
    representative, distance = choose_representatives(phash, priority, pairs_of(np.concatenate([phash, others])))
    assert (representative.tolist(), distance.tolist()) == brute_force(phash, priority)


def test_no_rows_and_no_pairs() -> None:
    none = np.array([], np.uint64)
    representative, _ = choose_representatives(none, none.astype(np.int64), tables.PAIRS.empty_table())
    assert len(representative) == 0
    two = np.array([5, 5], np.uint64)
    representative, distance = choose_representatives(two, np.array([1, 0]), tables.PAIRS.empty_table())
    assert (representative.tolist(), distance.tolist()) == ([1, 1], [0, 0])
