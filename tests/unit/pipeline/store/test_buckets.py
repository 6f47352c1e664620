"""Buckets of sample ids: each id lies in one, and each bucket reads what holds an id of its own."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.buckets import Bucket, spread

IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)


def buckets_of(num: int) -> list[Bucket]:
    return [Bucket(number, num) for number in range(num)]


@given(st.lists(IDS, min_size=1, max_size=20), st.integers(1, 40))
@pytest.mark.slow
def test_a_bucket_reads_the_items_that_hold_its_ids(ids: list[str], num: int) -> None:
    ids = sorted(ids)
    items = [ids[start : start + 3] for start in range(0, len(ids), 3)]
    found = spread(((item, (item[0], item[-1])) for item in items), buckets_of(num))
    with duckdb.connect() as sql:
        for bucket, read in zip(buckets_of(num), found, strict=True):
            sql.execute("CREATE OR REPLACE TABLE held AS SELECT unnest($ids) AS sample_id", {"ids": ids})
            own = [row for (row,) in sql.execute(f"SELECT sample_id FROM held WHERE {bucket.where}").fetchall()]
            assert all(any(sample_id in item for item in read) for sample_id in own)
    # sorted items without gaps: each is read once, and once more for every border within it
    assert sum(map(len, found)) <= len(items) + sum(
        item[0] < bucket.first <= item[-1] for item in items for bucket in buckets_of(num)[1:]
    )


@given(st.integers(1, 40))
def test_what_does_not_say_its_ids_is_read_by_every_bucket(num: int) -> None:
    assert spread([("old", None)], buckets_of(num)) == [["old"]] * num
