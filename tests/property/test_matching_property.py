"""Properties of the Hamming search and of the choice of the rows that stay, on hash sets that hypothesis invents."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import choose_kept_distinct, distinct_pairs, expand_pairs, hamming_pairs

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
@given(hash_sets(), st.integers(0, 10))
def test_pairs_equal_brute_force(hashes, radius):
    i, j = np.triu_indices(len(hashes), 1)
    distance = np.bitwise_count(hashes[i] ^ hashes[j])
    near = distance <= radius
    table = hamming_pairs(hashes, radius)
    assert table["i"].to_pylist() == i[near].tolist()
    assert table["j"].to_pylist() == j[near].tolist()
    assert table["distance"].to_pylist() == distance[near].tolist()


@settings(max_examples=100, deadline=None)
@given(hash_sets(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_of_rows(hashes, radius, random):
    shuffle = list(range(len(hashes)))
    random.shuffle(shuffle)
    found = hamming_pairs(hashes, radius).to_pylist()
    again = hamming_pairs(hashes[shuffle], radius).to_pylist()
    back = {(*sorted((shuffle[p["i"]], shuffle[p["j"]])), p["distance"]) for p in again}
    assert back == {(p["i"], p["j"], p["distance"]) for p in found}
    assert len(again) == len(found)


@settings(max_examples=150, deadline=None)
@given(hash_sets(), st.integers(0, 8), st.randoms(use_true_random=False))
def test_the_choice_keeps_its_promises(hashes, radius, random):
    priority = list(range(len(hashes)))
    random.shuffle(priority)
    priority = np.array(priority)
    pairs = distinct_pairs(hashes, radius)
    representative, away = choose_kept_distinct(pairs, priority)
    rows = np.arange(len(hashes))
    kept = representative == rows
    assert kept[representative].all()
    assert (np.bitwise_count(hashes ^ hashes[representative]) == away).all()
    assert (away <= radius).all()
    assert (priority[representative] <= priority).all()
    assert hamming_pairs(hashes[kept], radius).num_rows == 0
    assert expand_pairs(pairs).num_rows == pairs.num_row_pairs
