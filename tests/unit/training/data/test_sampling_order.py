"""The order of samples: every row once an epoch, whatever the ranks and workers; shares as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import ConfigError
from training.data.sampling import BatchPlan, BatchSampler, SampleOrder, Stratum, mix_seed, shuffle_within


def _stratum(shard_sizes: list[int], name: str = "all", weight: float = 1.0, first: int = 0) -> Stratum:
    shards = np.repeat(np.arange(len(shard_sizes), dtype=np.int32), shard_sizes)
    return Stratum(name, first + np.arange(len(shards), dtype=np.int64), shards, weight)


SHARD_SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(SHARD_SIZES, st.integers(0, 99), st.integers(1, 200), st.integers(0, 5))
def test_an_epoch_holds_every_row_once(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    order = SampleOrder((_stratum(sizes),), sum(sizes), seed, window)
    assert sorted(order.epoch(epoch).tolist()) == list(range(sum(sizes)))


@settings(max_examples=60)
@given(SHARD_SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9), st.integers(1, 50))
def test_nothing_is_lost_or_repeated_over_ranks_workers_and_resumes(
    sizes: list[int], world_size: int, num_workers: int, batch_size: int, cut: int, window: int
) -> None:
    """Ranks together, each batch read by some worker, with a resume in the middle: the plain order of positions."""
    total = sum(sizes)
    order = SampleOrder((_stratum(sizes),), total, 7, window)
    per_batch = world_size * batch_size
    num_batches = -(-3 * total // per_batch)  # at least three epochs
    cut = min(cut, num_batches)
    seen: dict[int, int] = {}
    for rank in range(world_size):
        plan = BatchPlan(batch_size, world_size, rank)
        for first, last in ((0, cut), (cut, num_batches)):
            batches = list(BatchSampler(order, plan, range(first, last)))
            for worker in range(num_workers):
                for batch in batches[worker::num_workers]:
                    for position, row in batch:
                        assert position not in seen
                        seen[position] = row
    assert sorted(seen) == list(range(num_batches * per_batch))
    for epoch in range(3):
        rows = [seen[position] for position in range(epoch * total, (epoch + 1) * total)]
        assert sorted(rows) == list(range(total))


def test_a_step_has_the_same_samples_for_any_world_size() -> None:
    order = SampleOrder((_stratum([7, 30, 12]),), 49, 3, 10)
    steps = {}
    for world_size in (1, 2, 4):
        plans = [BatchPlan(16 // world_size, world_size, rank) for rank in range(world_size)]
        steps[world_size] = [
            sorted(row for plan in plans for _, row in next(iter(BatchSampler(order, plan, range(step, step + 1)))))
            for step in range(9)
        ]
    assert steps[1] == steps[2] == steps[4]


def test_epochs_and_seeds_give_other_orders() -> None:
    order = SampleOrder((_stratum([40, 40]),), 80, 3, 20)
    other = SampleOrder((_stratum([40, 40]),), 80, 4, 20)
    assert order.epoch(0).tolist() != order.epoch(1).tolist()
    assert order.epoch(0).tolist() != other.epoch(0).tolist()
    assert order.epoch(0).tolist() == SampleOrder((_stratum([40, 40]),), 80, 3, 20).epoch(0).tolist()


def test_shards_are_read_one_after_the_other() -> None:
    """With a window far smaller than a shard, at most a few shards are in reach at once."""
    sizes = [1000] * 10
    rows = SampleOrder((_stratum(sizes),), 10_000, 0, 50).epoch(0)
    for start in range(0, 10_000, 200):
        assert len(np.unique(rows[start : start + 200] // 1000)) <= 2


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 99))
def test_window_shuffle_is_a_permutation_within_reach(num_items: int, window: int, seed: int) -> None:
    order = shuffle_within(num_items, window, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(num_items))
    if window < num_items:
        assert np.abs(order - np.arange(num_items)).max() <= window


@given(st.integers(1, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_an_epoch_sums_and_each_share_stays_within_one(total: int, weights: list[float]) -> None:
    order = SampleOrder(tuple(_stratum([9], str(k), weight) for k, weight in enumerate(weights)), total, 1, 9)
    assert sum(order.counts) == total
    for count, weight in zip(order.counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-6


def test_a_mixture_has_its_shares_in_every_stretch_and_repeats_late() -> None:
    plant, general = _stratum([30], "plant", 3.0), _stratum([400], "general", 1.0, first=1000)
    order = SampleOrder((plant, general), 400, 1, 1000)
    assert order.counts == [300, 100]
    epoch = order.epoch(0)
    is_plant = epoch < 1000
    for start in range(0, 400, 40):
        assert abs(int(is_plant[start : start + 40].sum()) - 30) <= 3
    assert np.bincount(epoch[is_plant], minlength=30).tolist() == [10] * 30
    later = np.concatenate([order.epoch(e) for e in range(4)])
    assert np.bincount(later[later >= 1000] - 1000, minlength=400).tolist() == [1] * 400


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 8), st.integers(0, 3))
def test_batches_of_one_domain_keep_the_shares(block: int, num_batches: int, extra: int, epoch: int) -> None:
    plant, general = _stratum([30], "plant", 3.0), _stratum([400], "general", 2.0, first=1000)
    total = (num_batches + 1) * block + min(extra, block - 1)
    order = SampleOrder((plant, general), total, 1, 1000, block=block)
    assert order.epoch_size == (num_batches + 1) * block, "whole batches only"
    is_plant = order.rows(epoch * order.epoch_size, (epoch + 1) * order.epoch_size).reshape(-1, block) < 1000
    assert (is_plant.all(axis=1) | ~is_plant.any(axis=1)).all()
    assert abs(is_plant[:, 0].sum() - 0.6 * (num_batches + 1)) < 1


def test_a_domain_without_a_batch_of_its_own_is_a_config_error() -> None:
    strata = (_stratum([30], "0:plant", 1.0), _stratum([400], "0:general", 99.0, first=1000))
    with pytest.raises(ConfigError, match="0:plant gets none of the 10 batches of an epoch by its share; raise"):
        SampleOrder(strata, 400, 1, 1000, block=40)


def test_no_samples_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no sample to train on"):
        SampleOrder((_stratum([]),), 5, 0, 1)


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_seeds_fit_64_bits_and_differ_by_order(numbers: list[int]) -> None:
    assert 0 <= mix_seed(*numbers) < 2**64
    assert mix_seed(*numbers) != mix_seed(*numbers, 0)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_mixture_holds_in_every_batch_and_on_every_rank(world_size: int) -> None:
    """A replayed domain is in each batch by its share, and in each rank's part of it: no batch forgets it."""
    rows = np.arange(1000)
    strata = (
        Stratum("0:general", rows[:130], np.zeros(130, np.int32), 0.25),
        Stratum("0:plant", rows[130:], np.zeros(870, np.int32), 0.75),
    )
    order = SampleOrder(strata, 1000, seed=5, window=64)
    for batch in range(70):  # over the ends of four epochs
        plans = [BatchPlan(64 // world_size, world_size, rank) for rank in range(world_size)]
        parts = [order.rows(plan.positions(batch).start, plan.positions(batch).stop) for plan in plans]
        assert abs(int((np.concatenate(parts) < 130).sum()) - 16) <= 2
        assert all(abs(int((part < 130).sum()) - 16 / world_size) <= 2 for part in parts)
