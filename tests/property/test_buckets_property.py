"""Buckets part every table: each row is in exactly one, in order, and their digests make the digest of all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.stores.folder import note
from pipeline.engine.work import StageRun
from pipeline.store.buckets import ROW_BYTES, Bucket, cut_buckets, join_facets, rows_of_bucket
from pipeline.store.sql import facet

IDS = st.lists(st.one_of(st.uuids().map(lambda each: each.hex), st.text("0123456789abcdefz", max_size=9)), unique=True)


@given(IDS, st.integers(1, 64))
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_each_row_is_in_one_bucket_and_the_buckets_are_in_order(ids: list[str], num: int) -> None:
    with duckdb.connect() as sql:
        sql.register("rows", pa.table({"sample_id": pa.array(ids, pa.string())}))
        found, facets = [], []
        for bucket in (Bucket(number, num) for number in range(num)):
            sql.execute(f"CREATE OR REPLACE TABLE own AS FROM rows WHERE {bucket.where}")
            found += [row[0] for row in sql.execute("SELECT sample_id FROM own ORDER BY 1").fetchall()]
            facets.append(facet(sql, ["sample_id"], "own"))
        assert found == sorted(ids)
        assert join_facets(facets) == facet(sql, ["sample_id"], "rows")


@given(st.integers(1, 16**8), st.data())
def test_the_quarters_of_a_bucket_are_all_of_it(num: int, data: st.DataObject) -> None:
    bucket = Bucket(data.draw(st.integers(0, num - 1)), num)
    if 4 * num > 16**8:
        assert bucket.quarters == []
        return
    assert [quarter.of for quarter in bucket.quarters] == [4 * num] * 4
    firsts = [quarter.first for quarter in bucket.quarters]
    assert firsts == sorted(set(firsts))
    assert firsts[0] == bucket.first
    assert Bucket(bucket.quarters[-1].number + 1, 4 * num).first == Bucket(bucket.number + 1, num).first


@given(st.integers(0, 10**10), st.floats(0.01, 64), st.booleans())
def test_a_bucket_fits_the_memory(num_rows: int, memory_gb: float, is_fine: bool) -> None:
    buckets, most = cut_buckets(num_rows, memory_gb, is_fine), rows_of_bucket(num_rows, memory_gb, is_fine)
    assert (len(buckets) - 1) * most < max(1, num_rows) <= len(buckets) * most
    assert most * ROW_BYTES <= memory_gb * 1e9
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))


@pytest.mark.parametrize(
    ("num_rows", "num"), [(50_000, 1), (50_001, 2), (10**6, 20), (13 * 10**6, 20), (100 * 10**6, 50)]
)
def test_many_rows_make_fine_buckets(num_rows: int, num: int) -> None:
    assert len(cut_buckets(num_rows, 4)) == num


def test_with_a_store_only_memory_makes_buckets(tmp_path: Path) -> None:
    """A part on another machine brings its tables whole."""
    run: Any = SimpleNamespace(workdir=str(tmp_path), settings=SimpleNamespace(memory_gb=4))
    assert len(StageRun.buckets_of(run, 10**6)) == 20
    note(str(tmp_path), "s3://bucket/folder")
    assert len(StageRun.buckets_of(run, 10**6)) == 1
