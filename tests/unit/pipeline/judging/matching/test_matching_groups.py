"""The choice of the rows that stay, against the rule written as a plain double loop."""

from __future__ import annotations

import numpy as np
import pytest
from hashed_pairs import pairs_of

from manifests.contract import tables
from pipeline.judging.matching.companies import choose_representatives
from pipeline.judging.matching.groups import choose_kept


def by_the_rule(hashes, radius, priority):
    """The docstring of groups.py, literally."""
    representative = np.arange(len(hashes))
    away = np.zeros(len(hashes), np.uint8)
    kept = []
    for row in np.argsort(priority):
        near = []
        for other in kept:
            distance = int(hashes[row] ^ hashes[other]).bit_count()
            if distance <= radius:
                near.append((distance, priority[other], other))
        if near:
            away[row], _, representative[row] = min(near)
        else:
            kept.append(row)
    return representative, away


def row_pairs(hashes, radius):
    i, j = np.triu_indices(len(hashes), 1)
    distance = np.bitwise_count(hashes[i] ^ hashes[j])
    near = distance <= radius
    return i[near], j[near], distance[near]


def both_forms(hashes, radius, priority):
    plain = choose_kept(len(hashes), *row_pairs(hashes, radius), priority)
    collapsed = choose_representatives(hashes, priority, pairs_of(hashes, radius))
    np.testing.assert_array_equal(plain[0], collapsed[0])
    np.testing.assert_array_equal(plain[1], collapsed[1])
    return plain


def crowd(rng, num):
    """Few varying bits, many equal hashes: long chains and large groups."""
    return rng.integers(0, 2**9, num, dtype=np.uint64) * np.uint64(0x0040100401004010)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("radius", [0, 1, 2, 4])
def test_both_forms_follow_the_rule(seed, radius):
    rng = np.random.default_rng(seed)
    hashes = crowd(rng, 150)
    priority = rng.permutation(1000)[:150]
    representative, away = both_forms(hashes, radius, priority)
    expected, expected_away = by_the_rule(hashes, radius, priority)
    np.testing.assert_array_equal(representative, expected)
    np.testing.assert_array_equal(away, expected_away)
    fallen = hashes[:20] ^ (
        np.uint64(1) << rng.integers(0, 64, 20).astype(np.uint64)
    )  # to a rule: their pairs are there
    among_fallen = choose_representatives(hashes, priority, pairs_of(np.concatenate([hashes, fallen]), radius))
    np.testing.assert_array_equal(among_fallen, [expected, expected_away])


def test_a_chain_is_not_one_group():
    hashes = np.bitwise_xor.accumulate(np.uint64(1) << np.arange(30, dtype=np.uint64))
    representative, away = both_forms(hashes, 4, np.arange(30))
    assert np.flatnonzero(representative == np.arange(30)).tolist() == [0, 5, 10, 15, 20, 25]
    assert away.max() == 4


def test_a_placeholder_of_a_million_rows_is_one_group():
    hashes = np.full(1_000_000, 77, np.uint64)
    hashes[:2] = [3, 78]
    priority = np.random.default_rng(8).permutation(1_000_000)
    representative, away = choose_representatives(hashes, priority, pairs_of(np.array([3, 77, 78]), 4))
    best = np.argmin(priority)
    assert (representative == best).all()
    assert away[2:].max() <= 4


def test_rows_without_pairs_represent_themselves():
    nothing = np.empty(0, np.int64)
    representative, away = choose_kept(3, nothing, nothing, np.empty(0, np.uint8), np.array([2, 0, 1]))
    assert representative.tolist() == [0, 1, 2]
    assert away.tolist() == [0, 0, 0]
    for num in (0, 2):
        representative, away = choose_representatives(
            np.full(num, 5, np.uint64), np.arange(num), tables.PAIRS.empty_table()
        )
        assert (representative.tolist(), away.tolist()) == ([0] * num, [0] * num)
