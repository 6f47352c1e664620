"""Whole counts out of shares, and mixed bits, against values of the source."""

from __future__ import annotations

import numpy as np

from manifests.services.draws import largest_remainders, splitmix64


def test_the_largest_remainders_get_the_rest_and_the_first_of_equal_ones_wins() -> None:
    assert largest_remainders([4.6, 3.1, 2.3], 10) == [5, 3, 2]
    assert largest_remainders([2 / 3, 2 / 3, 2 / 3], 2) == [1, 1, 0]
    assert largest_remainders([0.1 * 3 * 10, 7.0], 10) == [3, 7]
    assert largest_remainders([], 0) == []


def test_bits_are_those_of_splitmix64_for_numbers_and_arrays() -> None:
    """Its first outputs from the seed 0, as the reference code gives them."""
    states = [0, 0x9E3779B97F4A7C15, 2 * 0x9E3779B97F4A7C15 % 2**64]
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix64(state) for state in states] == outputs
    mixed = splitmix64(np.array(states, np.uint64))
    assert mixed.dtype == np.uint64
    assert mixed.tolist() == outputs
