"""Counts of a mixture, by hand."""

from __future__ import annotations

import pytest

from manifests.errors import ConfigError
from pipeline.judging.quotas.allocation import Pool, Quota, allocate, allocate_by_size, apportion


def pools(available: dict[str, int], **max_epochs: float) -> dict[str, Pool]:
    return {domain: Pool(num, max_epochs.get(domain, 1.0)) for domain, num in available.items()}


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
    quotas = allocate({"plant": 10, "general": 3}, pools({"plant": 1000, "general": 1000}), None)
    assert counts(quotas) == {"plant": 1000, "general": 300}
    assert quotas[0].share == pytest.approx(10 / 13)
    assert quotas[1].num_epochs == 0.3


def test_repeats_up_to_the_allowed_epochs() -> None:
    quotas = allocate({"plant": 1, "general": 1}, pools({"plant": 100, "general": 1000}, plant=2.5), None)
    assert counts(quotas) == {"plant": 250, "general": 250}
    assert [quota.num_epochs for quota in quotas] == [2.5, 0.25]


def test_a_share_of_zero_leaves_a_domain_out() -> None:
    assert counts(allocate({"plant": 1, "general": 0}, pools({"plant": 5, "general": 9}), None)) == {
        "plant": 5,
        "general": 0,
    }
    assert counts(allocate({"plant": 1, "general": 0}, pools({"plant": 5}), 3)) == {"plant": 3, "general": 0}


def test_an_empty_pool_is_named_with_ways_out() -> None:
    with pytest.raises(
        ConfigError, match=r"no sample of the domain general is left.*plantmix status` shows what dropped them"
    ):
        allocate({"plant": 1, "general": 1}, pools({"plant": 5, "general": 0}), None)


def test_too_small_a_pool_is_named_with_every_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate({"plant": 3, "general": 1}, pools({"plant": 900, "general": 1000}), 2000)
    text = str(caught.value)
    assert "2,000 samples at this ratio need 1,500 of the domain 'plant', its pool has 900" in text
    assert "Lower mix.num_samples to 1,200 or less" in text
    assert "raise mix.max_epochs for plant to 1.67" in text
    assert counts(allocate({"plant": 3, "general": 1}, pools({"plant": 900, "general": 1000}), 1200))["plant"] == 900
    assert (
        counts(allocate({"plant": 3, "general": 1}, pools({"plant": 900, "general": 1000}, plant=1.67), 2000))["plant"]
        == 1500
    )


def test_the_tightest_domain_is_blamed() -> None:
    with pytest.raises(ConfigError, match="of the domain 'b'"):
        allocate({"a": 1, "b": 1}, pools({"a": 90, "b": 10}), 200)


def test_a_whole_pool_and_another_domain_to_match() -> None:
    quotas = allocate_by_size({"plant": "all", "general": 0.25}, pools({"plant": 900, "general": 1000}))
    assert counts(quotas) == {"plant": 900, "general": 300}
    assert [quota.share for quota in quotas] == [0.75, 0.25]


def test_numbers_and_shares_by_size() -> None:
    quotas = allocate_by_size({"a": 10, "b": 0.3, "c": 0.2, "d": 0}, pools({"a": 50, "b": 50, "c": 50, "d": 5}))
    assert counts(quotas) == {"a": 10, "b": 6, "c": 4, "d": 0}


def test_too_small_a_pool_to_match() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate_by_size({"plant": "all", "general": 0.5}, pools({"plant": 900, "general": 600}))
    assert "mix.by_size (general: 0.5) asks for 900 of the domain 'general', its pool has 600" in str(caught.value)
    assert "raise mix.max_epochs for general to 1.5, or give 'general' a smaller share or size" in str(caught.value)
    with pytest.raises(ConfigError, match="no sample of the domain plant is left"):
        allocate_by_size({"plant": "all", "general": 5}, pools({"plant": 0, "general": 600}))


def nested(num_gbif: int, num_herbaria: int, max_epochs: float = 1.0) -> dict[str, Pool]:
    by_source = {"gbif": num_gbif, "herbaria": num_herbaria}
    plant = Pool(num_gbif + num_herbaria, max_epochs, {"gbif": 3, "herbaria": 1}, by_source)
    return {"plant": plant, "general": Pool(1000)}


def test_weights_of_sources_within_a_domain() -> None:
    quotas = allocate({"plant": 1, "general": 1}, nested(500, 500), 402)
    assert counts(quotas) == {"plant": 201, "general": 201}
    assert [(s.source, s.share, s.num_available, s.num_samples) for s in quotas[0].sources] == [
        ("gbif", 0.75, 500, 151),
        ("herbaria", 0.25, 500, 50),
    ]
    assert counts(allocate({"plant": 1, "general": 1}, nested(300, 500), None))["plant"] == 400


def test_too_small_a_source_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        allocate({"plant": 1, "general": 1}, nested(100, 900), 1000)
    assert "need 375 of the source 'gbif' in the domain 'plant', its pool has 100" in str(caught.value)
    assert "Lower mix.num_samples to 266 or less" in str(caught.value)
    assert "mix.max_epochs for plant to 3.75, or change mix.sources" in str(caught.value)


def test_a_tiny_share_is_allocated_at_once() -> None:
    quotas = allocate({"a": 1, "b": 1e-9}, pools({"a": 10**9, "b": 1}), None)
    assert counts(quotas)["a"] == 10**9
