"""Matching one table against another, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.errors import ConfigError, RunError
from pipeline.matching import cross_pairs, hamming_pairs


def assert_equals_brute_force(hashes, queries, radius):
    distance = np.bitwise_count(hashes[:, None] ^ queries[None, :])
    row, query = np.nonzero(distance <= radius)
    table = cross_pairs(hashes, queries, radius)
    np.testing.assert_array_equal(table["row"].to_numpy(), row)
    np.testing.assert_array_equal(table["query"].to_numpy(), query)
    np.testing.assert_array_equal(table["distance"].to_numpy(), distance[row, query])
    return table.num_rows


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 6, 8, 13, 64])
def test_equals_brute_force(radius):
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    queries = rng.choice(hashes, 300)
    for _ in range(8):
        turned = rng.random(300) < 0.6
        queries = np.where(turned, queries ^ (np.uint64(1) << rng.integers(0, 64, 300, dtype=np.uint64)), queries)
    queries[:50] = hashes[:50]
    assert assert_equals_brute_force(hashes, queries, radius) >= 50


@pytest.mark.parametrize("radius", [0, 2, 4])
def test_equal_and_crowded_hashes_on_both_sides(radius):
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**8, 700, dtype=np.uint64) << np.uint64(20)
    queries = rng.integers(0, 2**8, 200, dtype=np.uint64) << np.uint64(20)
    assert assert_equals_brute_force(hashes, queries, radius) > 500


def test_more_rows_than_one_chunk():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[::1000] = 7
    queries = np.concatenate([hashes[5::1009] ^ np.uint64(0b1011), np.array([6], np.uint64)])
    table = cross_pairs(hashes, queries, 3)
    found = set(zip(table["row"].to_pylist(), table["query"].to_pylist(), strict=True))
    assert found == {(5 + 1009 * q, q) for q in range(len(queries) - 1)} | {
        (row, q)
        for q, query in enumerate(queries.tolist())
        if (query ^ 7).bit_count() <= 3
        for row in range(0, 200_000, 1000)
    }


def test_new_rows_add_what_the_whole_search_would_find():
    rng = np.random.default_rng(2)
    hashes = rng.integers(0, 2**11, 500, dtype=np.uint64) * np.uint64(0x0004002001000811)
    old, new = hashes[:350], hashes[350:]
    table = cross_pairs(old, new, 3)
    pairs = [
        (row, query + 350) for row, query in zip(table["row"].to_pylist(), table["query"].to_pylist(), strict=True)
    ]
    for base, part in ((0, old), (350, new)):
        inside = hamming_pairs(part, 3)
        pairs += [(base + i, base + j) for i, j in zip(inside["i"].to_pylist(), inside["j"].to_pylist(), strict=True)]
    whole = hamming_pairs(hashes, 3)
    assert sorted(pairs) == list(zip(whole["i"].to_pylist(), whole["j"].to_pylist(), strict=True))


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0)])
def test_empty_tables_have_no_pairs(sizes):
    hashes, queries = (np.zeros(size, np.uint64) for size in sizes)
    assert cross_pairs(hashes, queries, 4).num_rows == 0


def test_an_answer_too_large_names_the_hash():
    blank = np.full(50_000, 0xABCD, np.uint64)
    with pytest.raises(RunError, match=r"2,500,000,000 pairs.*hash 000000000000abcd alone"):
        cross_pairs(blank, blank, 4, memory_limit_bytes=1 << 30)


def test_wrong_input_is_named():
    with pytest.raises(ConfigError, match="found 1-d int64"):
        cross_pairs(np.zeros(2, np.uint64), np.zeros(2, np.int64), 4)
