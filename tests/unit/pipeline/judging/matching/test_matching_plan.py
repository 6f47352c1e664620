"""No pair within the radius escapes a plan's keys; the cost model picks families that pay."""

from __future__ import annotations

import itertools
import math

import pytest

from pipeline.judging.matching.plan import _borders, _keys, _thresholds, choose_plan


@pytest.mark.parametrize("radius", range(2, 6))
@pytest.mark.parametrize("num_groups", range(1, 4))
@pytest.mark.parametrize("num_kept", [1, 2, 3])
def test_every_pattern_of_errors_leaves_one_key_untouched(radius, num_groups, num_kept):
    thresholds = _thresholds(radius, num_groups)
    num_bits = sum(thresholds) + num_groups * num_kept  # one bit a block
    keys = _keys(thresholds, num_kept, [1.0] * num_bits)
    for errors in itertools.combinations(range(num_bits), min(radius, num_bits)):
        pattern = sum(1 << bit for bit in errors)
        assert any(key & pattern == 0 for key in keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("radius", [4, 6, 8])
def test_groups_need_fewer_keys_than_plain_block_combinations(radius):
    plan = choose_plan(13_000_000, radius)
    num_bits = min(key.bit_count() for key in plan.keys)
    kept = range(1, 64 - radius)
    plain = min(math.comb(radius + k, k) for k in kept if 64 * k // (radius + k) >= num_bits)
    assert len(plan.keys) < plain


def test_key_bits_grow_with_the_number_of_hashes():
    narrow, wide = choose_plan(10_000, 4), choose_plan(100_000_000, 4)
    assert narrow.keys[0].bit_count() < wide.keys[0].bit_count()
    assert narrow.seconds < wide.seconds


@pytest.mark.parametrize(("num_hashes", "radius", "num_bits"), [(10, 4, 64), (100_000, 64, 64), (3000, 8, 9)])
def test_hopeless_cases_compare_everything(num_hashes, radius, num_bits):
    assert choose_plan(num_hashes, radius, [1.0] * num_bits).compares_everything


def test_blocks_share_the_entropy_evenly_and_none_is_empty():
    entropies = [0.0] * 20 + [1.0] * 12 + [0.5] * 32
    borders = _borders(7, entropies)
    assert (borders[0], borders[-1]) == (0, 64)
    shares = [sum(entropies[low:high]) for low, high in itertools.pairwise(borders)]
    assert max(shares) - min(shares) <= 1
    assert all(low < high for low, high in itertools.pairwise(_borders(7, [0.0] * 60 + [1.0] * 4)))


def test_hashes_that_vary_in_few_bits_get_a_plan_for_those():
    narrow = choose_plan(100_000, 3, [0.0] * 34 + [1.0] * 30)
    assert narrow.keys != choose_plan(100_000, 3).keys
    assert min((key >> 34).bit_count() for key in narrow.keys) >= 5
