"""Counts of a mixture, by hand."""

from __future__ import annotations

import pytest

from manifests.errors import ConfigError
from pipeline.allocation import Quota, allocate, apportion

ONCE = {"plant": 1.0, "general": 1.0}


def counts(quotas: list[Quota]) -> dict[str, int]:
    return {quota.domain: quota.num_samples for quota in quotas}


def test_largest_remainders_get_the_rest() -> None:
    assert apportion({"a": 0.5, "b": 0.3, "c": 0.2}, 10) == {"a": 5, "b": 3, "c": 2}
    assert apportion({"a": 0.46, "b": 0.31, "c": 0.23}, 10) == {"a": 5, "b": 3, "c": 2}
    assert apportion({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 2) == {"a": 1, "b": 1, "c": 0}
    assert apportion({"a": 1.0, "b": 0.0}, 7) == {"a": 7, "b": 0}
    assert apportion({"a": 0.9, "b": 0.1}, 0) == {"a": 0, "b": 0}


def test_no_float_moves_a_sample_at_thirteen_million() -> None:
    assert apportion({"plant": 10 / 13, "general": 3 / 13}, 13_000_000) == {"plant": 10_000_000, "general": 3_000_000}
    assert apportion({"a": 0.1, "b": 0.2, "c": 0.7}, 10**9) == {"a": 10**8, "b": 2 * 10**8, "c": 7 * 10**8}


def test_as_many_as_the_pools_allow() -> None:
    quotas = allocate({"plant": 10, "general": 3}, {"plant": 1000, "general": 1000}, ONCE, None)
    assert counts(quotas) == {"plant": 1000, "general": 300}
    assert quotas[0].share == pytest.approx(10 / 13)
    assert quotas[1].num_epochs == 0.3


def test_repeats_up_to_the_allowed_epochs() -> None:
    quotas = allocate({"plant": 1, "general": 1}, {"plant": 100, "general": 1000}, {"plant": 2.5, "general": 1}, None)
    assert counts(quotas) == {"plant": 250, "general": 250}
    assert [quota.num_epochs for quota in quotas] == [2.5, 0.25]


def test_a_share_of_zero_leaves_a_domain_out() -> None:
    assert counts(allocate({"plant": 1, "general": 0}, {"plant": 5, "general": 9}, ONCE, None)) == {
        "plant": 5,
        "general": 0,
    }
    assert counts(allocate({"plant": 1, "general": 0}, {"plant": 5}, ONCE, 3)) == {"plant": 3, "general": 0}


def test_an_empty_pool_is_named_with_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"no sample of the domain general is left.*set its share to 0"):
        allocate({"plant": 1, "general": 1}, {"plant": 5, "general": 0}, ONCE, None)


def test_too_small_a_pool_is_named_with_every_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate({"plant": 3, "general": 1}, {"plant": 900, "general": 1000}, ONCE, 2000)
    text = str(caught.value)
    assert "2,000 samples at this ratio need 1,500 of the domain 'plant', its pool has 900" in text
    assert "Lower mix.num_samples to 1,200 or less" in text
    assert "raise mix.max_epochs for plant to 1.67" in text
    assert counts(allocate({"plant": 3, "general": 1}, {"plant": 900, "general": 1000}, ONCE, 1200))["plant"] == 900
    epochs = {"plant": 1.67, "general": 1.0}
    assert counts(allocate({"plant": 3, "general": 1}, {"plant": 900, "general": 1000}, epochs, 2000))["plant"] == 1500


def test_the_tightest_domain_is_blamed() -> None:
    with pytest.raises(ConfigError, match="of the domain 'b'"):
        allocate({"a": 1, "b": 1}, {"a": 90, "b": 10}, {"a": 1, "b": 1}, 200)
