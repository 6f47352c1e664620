"""Properties of the Hamming search and of the choice of the rows that stay, on hash sets that hypothesis invents."""

from __future__ import annotations

import numpy as np
from hashed_pairs import pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judging.matching.companies import choose_representatives

SEEDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)
FLIPS = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=10)), max_size=60)


@st.composite
def hash_sets(draw):
    """Hashes that are flips of a few seeds: near, equal and far ones in one set."""
    seeds = draw(SEEDS)
    values = list(seeds)
    for seed, bits in draw(FLIPS):
        value = seeds[seed % len(seeds)]
        for bit in bits:
            value ^= 1 << bit
        values.append(value)
    return np.array(values, np.uint64)


@settings(max_examples=150, deadline=None)
@given(hash_sets(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_the_choice_keeps_its_promises(hashes, radius, random):
    priority = list(range(len(hashes)))
    random.shuffle(priority)
    priority = np.array(priority)
    representative, away = choose_representatives(hashes, priority, pairs_of(hashes, radius))
    rows = np.arange(len(hashes))
    kept = representative == rows
    assert kept[representative].all()
    assert (np.bitwise_count(hashes ^ hashes[representative]) == away).all()
    assert (away <= radius).all()
    assert (priority[representative] <= priority).all()
    assert len(set(hashes[kept].tolist())) == kept.sum()
    assert pairs_of(hashes[kept], radius).num_rows == 0
    order = np.array(random.sample(range(len(hashes)), len(hashes)))
    shuffled, apart = choose_representatives(hashes[order], priority[order], pairs_of(hashes, radius))
    assert (order[shuffled] == representative[order]).all(), "the order of rows does not matter"
    assert (apart == away[order]).all()
