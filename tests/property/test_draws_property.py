"""What must hold of draws, whatever the data: exact numbers, groups together, an order as random as drawing it."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import do_part

from manifests.contract import tables
from pipeline.stages import mix
from pipeline.stages.mix import Stratum
from pipeline.store.files import Files


def run_draw(
    pools: dict[str, int],
    quotas: dict[str, tuple[int, int]],
    seed: int = 0,
    dropped: int = 0,
    strata: list[Stratum] | None = None,
    groups: dict[str, int] | None = None,
    taken: frozenset[tuple[str, int]] = frozenset(),
) -> list[dict[str, Any]]:
    """Draw (num_samples, num_heldout) of each domain; some more rows a domain were not kept. Rows come by their ranks.

    `groups` gives the number of groups of a domain; a row's number decides its group. Groups of equal name in two
    sources are two groups. Rows that are `taken` down, by domain and number, are among those of a pool.
    """
    rows = [
        {
            "sample_id": tables.sample_id(domain, str(number)),
            "domain": domain,
            "keep": number < num and (domain, number) not in taken,
            "reason": "takedown" if (domain, number) in taken else None if number < num else "near_duplicate",
            "source": f"{domain}{number % 2}",
            "group_id": f"g{number % groups[domain]}" if groups and domain in groups and number % 5 else None,
        }
        for domain, num in pools.items()
        for number in range(num + dropped)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, schema in (("candidates", tables.CANDIDATES), ("decisions", tables.DECISIONS)):
            picked = [{key: value for key, value in row.items() if key in schema.names} for row in rows]
            pq.write_table(pa.Table.from_pylist(picked, schema=schema), Path(folder, f"{name}.parquet"))
        result = do_part(
            mix.STAGE,
            "draw",
            folder,
            candidates=Files((f"{folder}/candidates.parquet",)),
            decisions=Files((f"{folder}/decisions.parquet",)),
            strata=tuple(strata or [Stratum(domain, None, *numbers) for domain, numbers in quotas.items()]),
            seed=seed,
        )
        assert result.funnel is not None
        result.funnel.check("mix")
        drawn: list[dict[str, Any]] = pq.read_table(result.files[0].temp).to_pylist()
        # whoever asks for some samples reads few row groups
        assert drawn == sorted(drawn, key=lambda row: (row["sample_id"], row["copy"]))
        drawn.sort(key=lambda row: (row["split"] == "heldout", row["rank"]))
        assert result.funnel.num_in == sum(pools.values()) - len(taken)
        assert result.funnel.num_kept == len({row["sample_id"] for row in drawn})
        assert result.notes["splits"] == dict(Counter(row["split"] for row in drawn))
    group_of = {row["sample_id"]: (row["source"], row["group_id"]) for row in rows if row["group_id"]}
    in_group = {
        (row["domain"], row["split"], group_of[row["sample_id"]]) for row in drawn if row["sample_id"] in group_of
    }
    counted: dict[str, dict[str, int]] = {}
    for domain, split, _ in in_group:
        counted.setdefault(domain, Counter())[split] += 1
    assert result.notes["groups"] == counted
    return drawn


def check_ranks(drawn: list[dict[str, Any]], seed: int) -> None:
    """Each split is numbered in the order of a hash, by Python's own md5."""
    for split in ("train", "heldout"):
        rows = [row for row in drawn if row["split"] == split]
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        hashes = [hashlib.md5(f"shuffle {seed} {row['copy']} {row['sample_id']}".encode()).digest() for row in rows]
        numbers = [int.from_bytes(digest[:8], "little") for digest in hashes]
        assert numbers == sorted(numbers)


@st.composite
def mixtures(pick: Any) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    pools = {domain: pick(st.integers(1, 40)) for domain in pick(st.sampled_from(["a", "ab", "abc"]))}
    quotas = {}
    for domain, num in pools.items():
        heldout = pick(st.integers(0, num - 1))
        quotas[domain] = (pick(st.integers(0, 3 * (num - heldout))), heldout)
    return pools, quotas


@settings(deadline=None, max_examples=8)
@given(mixtures(), st.integers(1, 12), st.integers(0, 5))
def test_no_group_is_on_both_sides(
    mixture: tuple[dict[str, int], dict[str, tuple[int, int]]], num_groups: int, seed: int
) -> None:
    """As it was found: photos of one observation fell on both sides of the held-out split."""
    pools, quotas = mixture
    drawn = run_draw(pools, quotas, seed, groups=dict.fromkeys(pools, num_groups))
    sides: dict[tuple[str, str], set[str]] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    number_of = {tables.sample_id(domain, str(n)): (domain, n) for domain, num in pools.items() for n in range(num)}
    for domain, number in number_of.values():
        if number % 5:
            sizes[f"{domain}{number % 2}", f"g{number % num_groups}"] += 1
    for row in drawn:
        domain, number = number_of[row["sample_id"]]
        if number % 5:
            sides.setdefault((f"{domain}{number % 2}", f"g{number % num_groups}"), set()).add(row["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    for domain, (num_samples, num_heldout) in quotas.items():
        num = sum(row["domain"] == domain and row["split"] == "heldout" for row in drawn)
        largest = max((size for (source, _), size in sizes.items() if source.startswith(domain)), default=1)
        assert num_heldout - largest < num <= num_heldout
        assert sum(row["domain"] == domain and row["split"] == "train" for row in drawn) == num_samples


@settings(deadline=None, max_examples=12)
@given(mixtures(), st.integers(0, 12), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2**31))
def test_after_a_takedown_no_picture_of_the_training_is_held_out(
    mixture: tuple[dict[str, int], dict[str, tuple[int, int]]], num_groups: int, seed: int, fewer: int, which: int
) -> None:
    """A release that was built before has trained on it. A share of fewer pictures may ask for fewer held-out ones."""
    pools, quotas = mixture
    groups = dict.fromkeys(pools, num_groups) if num_groups else None
    rng = np.random.default_rng(which)
    taken = frozenset((domain, n) for domain, num in pools.items() for n in range(num) if rng.random() < 0.1)
    asked = {domain: (0, max(0, held - fewer)) for domain, (_, held) in quotas.items()}
    before = run_draw(pools, {domain: (0, held) for domain, (_, held) in quotas.items()}, seed, groups=groups)
    after = run_draw(pools, asked, seed, groups=groups, taken=taken)
    gone = {tables.sample_id(domain, str(number)) for domain, number in taken}
    held, now = ({row["sample_id"] for row in rows if row["split"] == "heldout"} for rows in (before, after))
    assert not now & gone
    if taken and {domain for domain, _ in taken} == set(pools):
        assert now <= held
    if not groups and not fewer:
        assert now == held - gone


@settings(deadline=None, max_examples=8)
@given(mixtures(), st.integers(1, 12), st.integers(0, 5), st.floats(0.02, 0.9))
def test_who_is_set_aside_does_not_hang_on_how_many_are_looked_at_first(
    mixture: tuple[dict[str, int], dict[str, tuple[int, int]]], num_groups: int, seed: int, share: float
) -> None:
    pools, quotas = mixture
    drawn = []
    for first in ("true", f"hash < {2**64} * {share}"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mix, "_FIRST_UNITS", first)
            drawn.append(run_draw(pools, quotas, seed, groups=dict.fromkeys(pools, num_groups)))
    assert drawn[0] == drawn[1]


def test_the_first_of_many_are_set_aside() -> None:
    drawn = run_draw({"a": 9_000}, {"a": (100, 30)})
    ids = pa.table({"id": [tables.sample_id("a", str(number)) for number in range(9_000)]})
    first = duckdb.sql("SELECT id FROM ids ORDER BY md5_number_upper('heldout 0 ' || id), id LIMIT 30").fetchall()
    assert {row["sample_id"] for row in drawn if row["split"] == "heldout"} == {row[0] for row in first}
    assert ids.num_rows == 9_000


def test_samples_without_a_group_are_drawn_as_ever_beside_those_with_one() -> None:
    drawn = run_draw({"a": 40, "b": 40}, {"a": (20, 10), "b": (20, 10)}, groups={"b": 3})
    aside = {row["sample_id"] for row in drawn if row["split"] == "heldout" and row["domain"] == "a"}
    ids = pa.table({"id": [tables.sample_id("a", str(number)) for number in range(40)]})
    first = duckdb.sql("SELECT id FROM ids ORDER BY md5_number_upper('heldout 0 ' || id), id LIMIT 10").fetchall()
    assert aside == {row[0] for row in first}
    assert ids.num_rows == 40


@settings(deadline=None, max_examples=8)
@given(mixtures(), st.integers(0, 5))
def test_draws_are_exact_and_repeats_spread_evenly(
    mixture: tuple[dict[str, int], dict[str, tuple[int, int]]], seed: int
) -> None:
    pools, quotas = mixture
    drawn = run_draw(pools, quotas, seed, dropped=2)
    for domain, (num_samples, num_heldout) in quotas.items():
        train = [row for row in drawn if row["domain"] == domain and row["split"] == "train"]
        heldout = [row for row in drawn if row["domain"] == domain and row["split"] == "heldout"]
        assert (len(train), len(heldout)) == (num_samples, num_heldout)
        assert not {row["sample_id"] for row in train} & {row["sample_id"] for row in heldout}
        copies = Counter(row["sample_id"] for row in train)
        num_pool = pools[domain] - num_heldout
        counts = [*copies.values(), *[0] * (num_pool - len(copies))]
        assert max(counts) - min(counts) <= 1
        for sample_id, num in copies.items():
            assert sorted(row["copy"] for row in train if row["sample_id"] == sample_id) == list(range(num))
        kept = {tables.sample_id(domain, str(number)) for number in range(pools[domain])}
        assert {row["sample_id"] for row in train + heldout} <= kept
    check_ranks(drawn, seed)
    assert run_draw(pools, quotas, seed, dropped=2) == drawn


@pytest.mark.slow
def test_samples_of_many_row_groups_are_numbered_in_the_order_of_the_shuffle() -> None:
    """DuckDB sorts and stores 122,880 rows at a time, on two threads."""
    check_ranks(run_draw({"a": 130_000, "b": 10}, {"a": (140_000, 5_000), "b": (15, 2)}), 0)


@settings(deadline=None, max_examples=5)
@given(st.integers(50, 150), st.integers(1, 20), st.integers(0, 5))
def test_more_data_moves_few_samples(num_pool: int, num_new: int, seed: int) -> None:
    """Each new sample can push out one drawn one, and one held-out one, never reshuffle the rest."""
    quotas = {"a": (num_pool // 2, 10)}
    before = run_draw({"a": num_pool}, quotas, seed)
    after = run_draw({"a": num_pool + num_new}, quotas, seed)
    for split in ("train", "heldout"):
        old, new = ({row["sample_id"] for row in rows if row["split"] == split} for rows in (before, after))
        assert len(old - new) <= 2 * num_new
    stayed = {row["sample_id"] for row in before} & {row["sample_id"] for row in after}
    orders = [
        [row["sample_id"] for row in rows if row["split"] == "train" and row["sample_id"] in stayed]
        for rows in (before, after)
    ]
    both = set(orders[0]) & set(orders[1])
    assert [one for one in orders[0] if one in both] == [one for one in orders[1] if one in both]


@settings(deadline=None, max_examples=5)
@given(st.integers(20, 60), st.integers(0, 20), st.integers(0, 5))
def test_a_larger_share_keeps_what_was_drawn(num_pool: int, more: int, seed: int) -> None:
    few = run_draw({"a": num_pool, "b": 10}, {"a": (10, 5), "b": (10, 0)}, seed)
    many = run_draw({"a": num_pool, "b": 10}, {"a": (10 + more, 5), "b": (3, 0)}, seed)
    kept = [
        {(row["sample_id"], row["split"]) for row in rows if row["domain"] == "a" and row["copy"] == 0}
        for rows in (few, many)
    ]
    if 10 + more <= num_pool - 5:
        assert kept[0] <= kept[1]


@settings(deadline=None, max_examples=5)
@given(st.integers(10, 60), st.integers(0, 40), st.integers(0, 40), st.integers(0, 4))
def test_sources_with_weights_give_their_parts(num_pool: int, first: int, second: int, heldout: int) -> None:
    strata = [Stratum("a", "a0", first, heldout), Stratum("a", "a1", second, 0), Stratum("b", None, 5, 1)]
    drawn = run_draw({"a": num_pool, "b": 7}, {}, strata=strata)
    even = {tables.sample_id("a", str(number)) for number in range(0, num_pool, 2)}
    for split, numbers in (("train", (first, second)), ("heldout", (heldout, 0))):
        own = Counter(row["sample_id"] in even for row in drawn if row["domain"] == "a" and row["split"] == split)
        assert (own[True], own[False]) == numbers
    assert sum(row["domain"] == "b" for row in drawn) == 6
    copies = Counter(row["sample_id"] for row in drawn if row["split"] == "train" and row["sample_id"] in even)
    assert not copies or max(copies.values()) - min(copies.values()) <= 1


def test_another_seed_is_another_draw() -> None:
    first, second = (run_draw({"a": 200}, {"a": (100, 0)}, seed) for seed in (0, 1))
    assert {row["sample_id"] for row in first} != {row["sample_id"] for row in second}
    shuffled = run_draw({"a": 100}, {"a": (100, 0)})
    assert [row["sample_id"] for row in shuffled] != sorted(row["sample_id"] for row in shuffled)


def test_every_window_of_a_thousand_samples_is_as_random_as_drawing_it() -> None:
    """The statistics that are promised: 10 : 3 over 39,000 samples, every window of 1,000 at every place.

    A count in a window of a random order is hypergeometric, so no wider than binomial: five standard deviations hold
    for all of 38,001 windows (P of one window outside 6e-7, so of any at most 0.02). Disjoint windows must also not
    be more even than chance: their variance is that of the hypergeometric within a factor of two (P < 1 % a side).
    """
    drawn = run_draw({"plant": 30_000, "general": 9_000}, {"plant": (30_000, 0), "general": (9_000, 0)})
    plants = np.array([row["domain"] == "plant" for row in drawn], np.int64)
    share, size = 30 / 39, 1000
    sums = np.concatenate([[0], np.cumsum(plants)])
    windows = sums[size:] - sums[:-size]
    assert len(windows) == 38_001
    assert abs(windows - size * share).max() <= 5 * (size * share * (1 - share)) ** 0.5
    expected = size * share * (1 - share) * (39_000 - size) / (39_000 - 1)
    assert 0.5 < windows[::size].var(ddof=1) / expected < 2.0


def test_domains_are_mixed_over_the_whole_order() -> None:
    drawn = run_draw({"a": 500, "b": 500}, {"a": (500, 0), "b": (500, 0)})
    for start in range(0, 1000, 250):
        num = sum(row["domain"] == "a" for row in drawn[start : start + 250])
        assert 90 <= num <= 160  # 125 expected, standard deviation 6.9
