"""Matching one table against another, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.judging.matching.cross import cross_pairs


def assert_equals_brute_force(hashes, queries, radius):
    row, query = np.nonzero(np.bitwise_count(hashes[:, None] ^ queries[None, :]) <= radius)
    near, wanted = cross_pairs(hashes, queries, radius)
    found = list(zip(near.tolist(), wanted.tolist(), strict=True))
    assert found == sorted(set(zip(hashes[row].tolist(), queries[query].tolist(), strict=True)))
    return len(found)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 6, 8, 13, 64])
def test_equals_brute_force(radius):
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**64, 400 if radius == 64 else 4000, dtype=np.uint64)
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
    assert assert_equals_brute_force(hashes, queries, radius) > 100


def test_more_rows_than_one_chunk():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[::1000] = 7
    queries = np.concatenate([hashes[5::1009] ^ np.uint64(0b1011), np.array([6], np.uint64)])
    near, wanted = cross_pairs(hashes, queries, 3)
    found = set(zip(near.tolist(), wanted.tolist(), strict=True))
    assert found == {(query ^ 0b1011, query) for query in queries[:-1].tolist()} | {
        (7, query) for query in queries.tolist() if (query ^ 7).bit_count() <= 3
    }


@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0)])
def test_empty_tables_have_no_pairs(sizes):
    hashes, queries = (np.zeros(size, np.uint64) for size in sizes)
    assert [len(column) for column in cross_pairs(hashes, queries, 4)] == [0, 0]
