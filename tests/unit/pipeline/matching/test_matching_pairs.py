"""The Hamming search against brute force, on the hash sets that break such searches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ConfigError, RunError
from pipeline.matching import distinct_pairs, expand_pairs, hamming_pairs, search
from pipeline.matching.search import find_pairs


def brute_force(hashes, radius):
    """Every pair by comparing all, as (i, j, distance), sorted."""
    rows, others, distances = [], [], []
    for row in range(len(hashes) - 1):
        distance = np.bitwise_count(hashes[row] ^ hashes[row + 1 :])
        near = np.flatnonzero(distance <= radius)
        rows.append(np.full(len(near), row))
        others.append(near + row + 1)
        distances.append(distance[near])
    empty = [np.empty(0, np.int64)]
    return (
        np.concatenate(rows or empty),
        np.concatenate(others or empty),
        np.concatenate(distances or empty),
    )


def assert_same(table, expected):
    for name, values in zip(("i", "j", "distance"), expected, strict=True):
        np.testing.assert_array_equal(table[name].to_numpy(), values)


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
    hashes = rng.permutation(make(rng, 1200))
    assert_same(hamming_pairs(hashes, radius), brute_force(hashes, radius))


@pytest.mark.parametrize("radius", range(1, 9))
def test_members_at_the_radius_are_found_and_one_bit_further_are_not(radius):
    rng = np.random.default_rng(radius)
    hashes = clusters(rng, 30_000, radius)
    table = hamming_pairs(hashes, radius)
    i, j = table["i"].to_numpy(), table["j"].to_numpy()
    at_radius = (j - i == 10_000) & (i < 10_000)
    assert at_radius.sum() == 10_000
    assert (table["distance"].to_numpy()[at_radius] == radius).all()
    assert not ((j - i == 20_000) & (i < 10_000)).any()


def test_fifty_thousand_of_every_kind_equal_brute_force_at_every_radius():
    rng = np.random.default_rng(50)
    hashes = np.concatenate(
        [
            random_hashes(rng, 20_000),
            clusters(rng, 18_000, 4),
            clusters(rng, 6_000, 8),
            bit_flip_chain(rng, 3_000),
            np.full(100, 0x8000000000000000, np.uint64),
            crowded(rng, 2_900),
        ]
    )
    hashes = rng.permutation(hashes)
    assert len(hashes) == 50_000
    i, j, distance = brute_force(hashes, 8)
    for radius in range(9):
        near = distance <= radius
        assert_same(hamming_pairs(hashes, radius), (i[near], j[near], distance[near]))


@pytest.mark.parametrize("radius", [12, 20, 31, 63, 64])
def test_large_radii_are_exact_too(radius):
    rng = np.random.default_rng(radius)
    hashes = np.concatenate([random_hashes(rng, 300), bit_flip_chain(rng, 300)])
    assert_same(hamming_pairs(hashes, radius), brute_force(hashes, radius))


@pytest.mark.parametrize("num", [0, 1, 2, 400])
@pytest.mark.parametrize("radius", [0, 4])
def test_all_equal(num, radius):
    hashes = np.full(num, 0xFFFFFFFFFFFFFFFF, np.uint64)
    table = hamming_pairs(hashes, radius)
    assert table.num_rows == num * (num - 1) // 2
    assert_same(table, brute_force(hashes, radius))


def test_a_full_cube_of_sixteen_bits_is_found_whole():
    hashes = np.arange(2**12, dtype=np.uint64) << np.uint64(26)
    table = hamming_pairs(hashes, 3)
    assert table.num_rows == 2**12 * (12 + 66 + 220) // 2


def test_several_passes_within_little_memory_give_the_same_pairs():
    rng = np.random.default_rng(9)
    hashes = np.unique(clusters(rng, 300_000, 4))
    whole = find_pairs(hashes, 4, scratch_bytes=1 << 30, max_pairs=1 << 30)
    passes = find_pairs(hashes, 4, scratch_bytes=600_000, max_pairs=1 << 30)  # 65,536 hashes at a time
    for one, other in zip(whole, passes, strict=True):
        np.testing.assert_array_equal(np.sort(one), np.sort(other))
    assert len(whole[0]) > 100_000


@pytest.mark.parametrize("window", [1 << 8, 1 << 13, 1 << 16])
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


def test_types_are_as_promised():
    table = hamming_pairs(np.array([1, 3, 1], np.uint64), 1)
    assert [str(field.type) for field in table.schema] == ["int64", "int64", "uint8"]
    assert table.to_pydict() == {"i": [0, 0, 1], "j": [1, 2, 2], "distance": [1, 0, 1]}


def test_strided_arrays_and_small_integers_are_taken_as_they_are():
    hashes = flip(np.random.default_rng(1), np.zeros(400, np.uint64), 2)
    assert hamming_pairs(np.repeat(hashes, 2)[::2], np.uint8(4)).equals(hamming_pairs(hashes, 4))


def test_input_is_left_as_it_was():
    hashes = np.array([5, 1, 9], np.uint64)
    hashes.flags.writeable = False
    hamming_pairs(hashes, 8)
    assert hashes.tolist() == [5, 1, 9]


def test_placeholder_stays_small_as_distinct_pairs():
    rng = np.random.default_rng(3)
    placeholder = np.uint64(0xA5A5A5A5A5A5A5A5)
    hashes = random_hashes(rng, 200_000)
    hashes[::2] = placeholder
    hashes[1] = placeholder ^ np.uint64(1)
    pairs = distinct_pairs(hashes, 4)
    assert pairs.counts.max() == 100_000
    assert (pairs.left.tolist(), pairs.right.tolist(), pairs.distance.tolist()) == ([0], [1], [1])
    assert pairs.rows[pairs.starts[1] : pairs.starts[2]].tolist() == list(range(0, 200_000, 2))
    assert pairs.num_row_pairs == 100_000 * 99_999 // 2 + 100_000


def test_too_many_row_pairs_are_refused_with_the_hash_and_the_count():
    hashes = np.full(100_000, 0x00FF00FF00FF00FF, np.uint64)
    with pytest.raises(RunError, match=r"4,999,950,000 pairs.*00ff00ff00ff00ff, stands in 100,000 rows"):
        hamming_pairs(hashes, 4, memory_limit_bytes=1 << 30)


def test_too_many_near_hashes_are_refused_with_the_busiest_hash():
    hashes = np.arange(2**14, dtype=np.uint64)
    with pytest.raises(RunError, match=r"within radius 6.*most neighbours in the last .* is 0000000000"):
        hamming_pairs(hashes, 6, memory_limit_bytes=4 << 20)


def test_too_small_a_limit_is_refused_before_work():
    with pytest.raises(ConfigError, match=r"too small to match 1,000 hashes; give at least 18,000"):
        hamming_pairs(np.arange(1000, dtype=np.uint64), 4, memory_limit_bytes=1000)


@pytest.mark.parametrize(
    ("hashes", "radius", "message"),
    [
        (np.arange(3), 1, "1-d numpy array of uint64, found 1-d int64"),
        (np.zeros((2, 2), np.uint64), 1, "found 2-d uint64"),
        ([1, 2], 1, "found list"),
        (np.ma.array(np.zeros(2, np.uint64), mask=[True, False]), 1, "found MaskedArray"),
        (np.zeros(2, np.uint64), 4.0, "radius is 4.0; it must be a whole number"),
        (np.zeros(2, np.uint64), -1, "radius is -1"),
        (np.zeros(2, np.uint64), 65, "radius is 65"),
    ],
)
def test_wrong_input_is_named(hashes, radius, message):
    with pytest.raises(ConfigError, match=message):
        hamming_pairs(hashes, radius)


def test_expanding_distinct_pairs_is_hamming_pairs():
    rng = np.random.default_rng(4)
    hashes = rng.choice(clusters(rng, 600, 2), 2000)
    assert expand_pairs(distinct_pairs(hashes, 3)).equals(hamming_pairs(hashes, 3))


_GROWTH = """
import sys
from pathlib import Path
import subprocess
import sys
from pathlib import Path

import numpy as np
from manifests.errors import RunError
from pipeline.matching import hamming_pairs

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

kind, radius, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if kind == "cube":  # every hash has thousands of neighbours
    hashes = np.arange(1 << 16, dtype=np.uint64)
else:
    hashes = np.random.default_rng(0).integers(0, 2**64, 4_000_000, dtype=np.uint64)
hamming_pairs(hashes[:1000].copy(), radius)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
try:
    hamming_pairs(hashes, radius, memory_limit_bytes=limit)
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
