"""The Hamming search against brute force, on the hash sets that break such searches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import RunError
from pipeline.judging.matching import search
from pipeline.judging.matching.search import find_pairs


def brute_force(hashes, radius):
    """Every pair by comparing all, as (low, high), sorted."""
    found = []
    for row in range(len(hashes) - 1):
        near = hashes[row + 1 :][np.bitwise_count(hashes[row] ^ hashes[row + 1 :]) <= radius]
        found.append(np.stack([np.minimum(near, hashes[row]), np.maximum(near, hashes[row])], axis=1))
    return in_order(np.concatenate([np.empty((0, 2), np.uint64), *found]))


def in_order(pairs):
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def search_all(hashes, radius, scratch_bytes=1 << 30, max_pairs=1 << 26):
    return in_order(np.stack(find_pairs(hashes, radius, scratch_bytes=scratch_bytes, max_pairs=max_pairs), axis=1))


def shuffled(rng, hashes):
    """The distinct ones, in any order."""
    return rng.permutation(np.unique(hashes))


def random_hashes(rng, num):
    return rng.integers(0, 2**64, num, dtype=np.uint64)


def flip(rng, hashes, num_flips):
    """Each hash with exactly `num_flips` different bits turned."""
    places = rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (len(hashes), 1)), axis=1)[:, :num_flips]
    return hashes ^ np.bitwise_or.reduce(np.uint64(1) << places, axis=1)


def bit_flip_chain(rng, num):
    """Each hash one bit away from the one before: every distance up to the radius, and just past it."""
    steps = np.uint64(1) << rng.integers(0, 64, num, dtype=np.uint64)
    return np.bitwise_xor.accumulate(steps)


def clusters(rng, num, radius):
    """Centres with members at exactly `radius` and exactly one bit further."""
    centres = random_hashes(rng, num // 3)
    return np.concatenate([centres, flip(rng, centres, radius), flip(rng, centres, radius + 1)])


def low_entropy(rng, num):
    """Only 18 bits vary, spread over the word: buckets far from even."""
    bits = rng.integers(0, 2, (num, 18), dtype=np.uint64)
    places = np.sort(rng.permutation(64)[:18]).astype(np.uint64)
    return np.bitwise_or.reduce(bits << places, axis=1)


def crowded(rng, num):
    """Half the hashes share their upper 40 bits."""
    hashes = random_hashes(rng, num)
    hashes[: num // 2] &= np.uint64(2**24 - 1)
    return hashes


@pytest.mark.parametrize("radius", range(9))
@pytest.mark.parametrize(
    "make",
    [random_hashes, bit_flip_chain, lambda rng, num: clusters(rng, num, 4), low_entropy, crowded],
    ids=["random", "bit_flip_chain", "clusters", "low_entropy", "crowded"],
)
def test_equals_brute_force(make, radius):
    rng = np.random.default_rng(radius)
    hashes = shuffled(rng, make(rng, 1200))
    np.testing.assert_array_equal(search_all(hashes, radius), brute_force(hashes, radius))


@pytest.mark.slow
def test_fifty_thousand_of_every_kind_equal_brute_force_at_every_radius():
    rng = np.random.default_rng(50)
    kinds = [clusters(rng, 18_000, 4), clusters(rng, 6_000, 8), bit_flip_chain(rng, 3_000), crowded(rng, 2_900)]
    hashes = shuffled(rng, np.concatenate([random_hashes(rng, 20_000), *kinds]))
    assert len(hashes) > 49_000
    pairs = brute_force(hashes, 8)
    distance = np.bitwise_count(pairs[:, 0] ^ pairs[:, 1])
    for radius in range(9):
        np.testing.assert_array_equal(search_all(hashes, radius), pairs[distance <= radius])


@pytest.mark.parametrize("radius", [12, 20, 31, 63, 64])
def test_large_radii_are_exact_too(radius):
    rng = np.random.default_rng(radius)
    hashes = shuffled(rng, np.concatenate([random_hashes(rng, 300), bit_flip_chain(rng, 300)]))
    np.testing.assert_array_equal(search_all(hashes, radius), brute_force(hashes, radius))


@pytest.mark.parametrize("num", [0, 1])
def test_one_hash_has_no_pairs(num):
    assert len(search_all(np.arange(num, dtype=np.uint64), 4)) == 0


def test_a_full_cube_of_sixteen_bits_is_found_whole():
    hashes = np.arange(2**12, dtype=np.uint64) << np.uint64(26)
    assert len(search_all(hashes, 3)) == 2**12 * (12 + 66 + 220) // 2


@pytest.mark.parametrize("window", [1 << 8, 1 << 13, 1 << 16])
@pytest.mark.slow
def test_windows_of_any_size_give_the_same_pairs(monkeypatch, window):
    """The small ones end amid buckets, and a full cube fills the smallest and more."""
    cube = np.arange(2**12, dtype=np.uint64) << np.uint64(26)
    hashes = np.unique(np.concatenate([clusters(np.random.default_rng(9), 100_000, 4), cube]))
    whole = find_pairs(hashes, 4, scratch_bytes=1 << 30, max_pairs=1 << 30)
    monkeypatch.setattr(search, "_WINDOW", window)
    found = find_pairs(hashes, 4, scratch_bytes=1 << 30, max_pairs=1 << 30)
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(np.sort(one), np.sort(other))
    assert len(whole[0]) > 10_000


def test_input_is_left_as_it_was():
    hashes = np.array([5, 1, 9], np.uint64)
    hashes.flags.writeable = False
    search_all(hashes, 8)
    assert hashes.tolist() == [5, 1, 9]


def test_too_many_near_hashes_are_refused_with_the_busiest_hash():
    hashes = np.arange(2**14, dtype=np.uint64)
    with pytest.raises(RunError, match=r"within radius 6.*most neighbours in the last .* is 0000000000"):
        search_all(hashes, 6, max_pairs=1 << 16)


_GROWTH = """
import sys
from pathlib import Path

import numpy as np
from manifests.errors import RunError
from pipeline.judging.matching.search import PAIRS_BYTES, find_pairs

def search(hashes, radius, limit):
    find_pairs(hashes, radius, scratch_bytes=limit, max_pairs=limit // PAIRS_BYTES)

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

kind, radius, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if kind == "cube":  # every hash has thousands of neighbours
    hashes = np.arange(1 << 16, dtype=np.uint64)
else:
    hashes = np.random.default_rng(0).integers(0, 2**64, 4_000_000, dtype=np.uint64)
search(hashes[:1000].copy(), radius, limit)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
try:
    search(hashes, radius, limit)
except RunError:
    print("refused")
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="only Linux lets a process reset its peak of memory (/proc/self/clear_refs)",
)
@pytest.mark.parametrize(
    ("kind", "radius", "limit", "refused"), [("random", 3, 80 << 20, False), ("cube", 4, 600 << 20, True)]
)
def test_the_memory_limit_holds_for_the_process(kind, radius, limit, refused):
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, kind, str(radius), str(limit)], capture_output=True, text=True, check=True
    )
    *printed, grown = done.stdout.split()
    assert printed == (["refused"] if refused else [])
    assert int(grown) < limit + (64 << 20)  # what the allocator keeps of arrays let go
