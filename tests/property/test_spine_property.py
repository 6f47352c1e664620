"""What must hold of counts, tars and fingerprints, whatever the data."""

from __future__ import annotations

import functools
import io
import tarfile
from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manifests.errors import ConfigError
from pipeline.judging.quotas.allocation import Pool, allocate, allocate_by_size, apportion
from pipeline.store.sql import facet
from pipeline.store.tar import ArchiveWriter, member_header

# ---- allocation

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(1, 1000).map(float)),
    min_size=1,
).filter(lambda weights: sum(weights.values()) > 0)


@given(WEIGHTS, st.integers(0, 10**10))
def test_apportion_sums_exactly_and_stays_within_one(weights: dict[str, float], total: int) -> None:
    whole = sum(weights.values())
    shares = {domain: weight / whole for domain, weight in weights.items()}
    counts = apportion(shares, total)
    assert list(counts) == list(shares)
    assert sum(counts.values()) == total
    for domain, share in shares.items():
        assert abs(counts[domain] - share * total) < 1 + 1e-5
        assert counts[domain] >= 0
        assert share > 0 or counts[domain] == 0


POOLS = st.fixed_dictionaries({domain: st.integers(0, 200) for domain in "abcdef"})
EPOCHS = st.fixed_dictionaries({domain: st.sampled_from([1.0, 1.5, 2.0, 3.7]) for domain in "abcdef"})
SMALL_WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 20).map(float), min_size=1).filter(
    lambda weights: sum(weights.values()) > 0
)


def caps_of(weights: dict[str, float], pools: dict[str, int], epochs: dict[str, float]) -> dict[str, int]:
    return {domain: int(pools[domain] * epochs[domain] + 1e-9) for domain in weights}


def pools_of(pools: dict[str, int], epochs: dict[str, float]) -> dict[str, Pool]:
    return {domain: Pool(num, epochs[domain]) for domain, num in pools.items()}


@given(SMALL_WEIGHTS, POOLS, EPOCHS)
def test_the_automatic_total_is_the_largest_that_fits(
    weights: dict[str, float], pools: dict[str, int], epochs: dict[str, float]
) -> None:
    caps = caps_of(weights, pools, epochs)
    if any(weight and not caps[domain] for domain, weight in weights.items()):
        with pytest.raises(ConfigError, match="no sample of the domain"):
            allocate(weights, pools_of(pools, epochs), None)
        return
    quotas = allocate(weights, pools_of(pools, epochs), None)
    total = sum(quota.num_samples for quota in quotas)
    assert total > 0
    assert all(quota.num_samples <= caps[quota.domain] for quota in quotas)
    shares = {domain: weight / sum(weights.values()) for domain, weight in weights.items()}
    for larger in range(total + 1, sum(caps.values()) + 2):
        assert any(num > caps[domain] for domain, num in apportion(shares, larger).items())


@given(SMALL_WEIGHTS, POOLS, EPOCHS, st.integers(1, 1500))
def test_a_given_total_is_met_exactly_or_refused(
    weights: dict[str, float], pools: dict[str, int], epochs: dict[str, float], total: int
) -> None:
    caps = caps_of(weights, pools, epochs)
    shares = {domain: weight / sum(weights.values()) for domain, weight in weights.items()}
    empty = [domain for domain, weight in weights.items() if weight and not caps[domain]]
    short = [domain for domain, num in apportion(shares, total).items() if num > caps[domain]]
    if empty or short:
        says = f"no sample of the domain {', '.join(empty)} is left" if empty else f"of the domain '[{''.join(short)}]'"
        with pytest.raises(ConfigError, match=says):
            allocate(weights, pools_of(pools, epochs), total)
        return
    quotas = allocate(weights, pools_of(pools, epochs), total)
    assert sum(quota.num_samples for quota in quotas) == total
    assert all(quota.num_samples <= caps[quota.domain] for quota in quotas)


SOURCE_WEIGHTS = st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9).map(float), min_size=1)


@given(SMALL_WEIGHTS, SOURCE_WEIGHTS, st.data())
def test_weights_within_domains_keep_every_promise(
    weights: dict[str, float], within: dict[str, float], data: Any
) -> None:
    """Counts sum, a domain and a source are within one sample of their share, and no pool gives more than it may."""
    epochs = data.draw(st.sampled_from([1.0, 2.5]))
    pools = {
        domain: Pool(sum(held.values()), epochs, within, held)
        for domain in weights
        for held in [{source: data.draw(st.integers(1, 60)) for source in within}]
    }
    quotas = allocate(weights, pools, None)
    total, whole = sum(quota.num_samples for quota in quotas), sum(weights.values())
    for quota in quotas:
        assert abs(quota.num_samples - total * weights[quota.domain] / whole) < 1 + 1e-6
        assert sum(source.num_samples for source in quota.sources) == quota.num_samples <= pools[quota.domain].capacity
        for source in quota.sources:
            share = within[source.source] / sum(within.values())
            assert abs(source.num_samples - quota.num_samples * share) < 1 + 1e-6
            assert source.num_samples <= int(source.num_available * epochs + 1e-9)
    assert [q.num_samples for q in allocate(weights, pools, total)] == [q.num_samples for q in quotas]


@given(
    st.dictionaries(st.sampled_from("abc"), st.just("all") | st.integers(1, 500), min_size=1),
    st.dictionaries(st.sampled_from("xyz"), st.floats(0.01, 0.3), max_size=3),
)
def test_sizes_are_met_and_shares_match_them(fixed: dict[str, Any], shares: dict[str, float]) -> None:
    pools = {domain: Pool(500, 100.0) for domain in "abcxyz"}
    quotas = {quota.domain: quota for quota in allocate_by_size({**fixed, **shares}, pools)}
    total = sum(quota.num_samples for quota in quotas.values())
    for domain, size in fixed.items():
        assert quotas[domain].num_samples == (500 if size == "all" else size)
    for domain, share in shares.items():
        assert abs(quotas[domain].num_samples - share * total) < 1 + 1e-6


# ---- tar

KEYS = st.text("0123456789abcdef_-", min_size=1, max_size=40)
EXTENSIONS = st.sampled_from(["jpg", "txt", "json", "com.txt", "sci.txt"])
SAMPLES = st.lists(
    st.tuples(KEYS, st.lists(st.tuples(EXTENSIONS, st.binary(max_size=1500)), max_size=5, unique_by=lambda m: m[0])),
    max_size=8,
    unique_by=lambda sample: sample[0],
)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=100), st.integers(0, 8**11 - 1))
def test_a_header_is_the_one_tarfile_gives(name: str, num_bytes: int) -> None:
    assume(len(name.encode()) <= 100)
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.size = 0o644, 0, num_bytes
    assert member_header(name, num_bytes) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


@given(SAMPLES)
def test_what_is_written_to_a_tar_is_read_back(samples: list[tuple[str, list[tuple[str, bytes]]]]) -> None:
    stream = io.BytesIO()
    archive = ArchiveWriter(stream)
    offsets = {
        f"{key}.{name}": archive.add(f"{key}.{name}", data) for key, members in samples for name, data in members
    }
    archive.finish()
    content = stream.getvalue()
    written = {f"{key}.{extension}": data for key, members in samples for extension, data in members}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as opened:
        read = {info.name: opened.extractfile(info).read() for info in opened}
    assert read == written
    assert list(read) == list(written)
    for name, offset in offsets.items():
        assert content[offset : offset + len(written[name])] == written[name]
    assert len(content) % 10_240 == 0


# ---- fingerprints of sets of rows

VALUES = st.one_of(st.none(), st.text(st.sampled_from("ab\x1e\x1f:0123-é"), max_size=4))
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=8)


@functools.cache
def connected() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def facet_of(rows: list[tuple[str | None, str | None]]) -> str:
    table = pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate("xy")})
    connected().register("rows", table)
    return facet(connected(), ("x", "y"), "rows")


@settings(deadline=None, max_examples=60)
@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_a_facet_is_the_set_of_rows_and_nothing_else(rows: Any, others: Any, random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert facet_of(shuffled) == facet_of(rows)
    assert (facet_of(others) == facet_of(rows)) == (Counter(others) == Counter(rows))


@settings(deadline=None, max_examples=60)
@given(ROWS.filter(bool), VALUES, st.integers(0, 7), st.integers(0, 1))
def test_one_changed_value_changes_the_facet(rows: Any, value: str | None, row: int, column: int) -> None:
    changed = [list(given) for given in rows]
    changed[row % len(rows)][column] = value
    assert (facet_of([tuple(r) for r in changed]) == facet_of(rows)) == ([tuple(r) for r in changed] == rows)
