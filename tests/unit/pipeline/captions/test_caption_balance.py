from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from manifests.errors import ConfigError
from pipeline.captions.balance import cap_by_key, cap_exactly, describe_balance, draw_uniform


def table_of(keys: list[str | None]) -> pa.Table:
    ids = [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(len(keys))]
    return pa.table({"sample_id": ids, "taxon": pa.array(keys, pa.string())})


def test_the_head_is_cut_to_about_t_and_the_tail_stays() -> None:
    table = table_of(["rose"] * 20_000 + ["iris"] * 100 + [None] * 50)
    verdicts = cap_by_key(table, "taxon", t=1000, seed=3)
    keep = np.array(verdicts["keep"].to_pylist())
    assert abs(keep[:20_000].sum() - 1000) < 4 * np.sqrt(1000)  # binomial, four standard deviations
    assert keep[20_000:].all()
    dropped = verdicts.filter(pa.array(~keep)).slice(0, 1).to_pylist()[0]
    assert (dropped["reason"], dropped["value"], dropped["threshold"]) == (
        "balance",
        "20000",
        "about 1000 of one taxon",
    )


def test_growth_of_the_data_brings_no_row_back() -> None:
    table = table_of(["rose"] * 5000)
    small = np.array(cap_by_key(table.slice(0, 3000), "taxon", t=500)["keep"].to_pylist())
    large = np.array(cap_by_key(table, "taxon", t=500)["keep"].to_pylist())[:3000]
    assert (large <= small).all()
    assert large.sum() > 200


def test_order_changes_nothing_and_the_seed_does() -> None:
    table = table_of(["rose"] * 2000)
    order = np.random.default_rng(0).permutation(2000)
    keep = np.array(cap_by_key(table, "taxon", t=500)["keep"].to_pylist())
    assert (np.array(cap_by_key(table.take(order), "taxon", t=500)["keep"].to_pylist()) == keep[order]).all()
    other = np.array(cap_by_key(table, "taxon", t=500, seed=1)["keep"].to_pylist())
    assert 150 < (keep != other).sum() < 1400


def test_a_hard_cap_is_exact() -> None:
    table = table_of(["rose"] * 300 + ["iris"] * 7 + [None] * 20)
    order = np.random.default_rng(0).permutation(327)
    keep = np.array(cap_exactly(table, "taxon", most=10)["keep"].to_pylist())
    assert (keep[:300].sum(), keep[300:307].sum(), keep[307:].sum()) == (10, 7, 20)
    assert (np.array(cap_exactly(table.take(order), "taxon", most=10)["keep"].to_pylist()) == keep[order]).all()


def test_draws_are_uniform() -> None:
    draws = draw_uniform(table_of(["x"] * 20_000)["sample_id"], seed=7)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 2000).max() < 4 * np.sqrt(2000)


def test_head_and_tail_before_and_after() -> None:
    table = table_of(["rose"] * 30 + ["iris"] * 3 + ["lily"])
    shown = describe_balance(table, "taxon", cap_exactly(table, "taxon", most=5)["keep"], num_shown=1)
    assert shown.to_pylist() == [
        {"key": "rose", "num_before": 30, "num_after": 5},
        {"key": "lily", "num_before": 1, "num_after": 1},
    ]


def test_bad_caps_are_refused() -> None:
    with pytest.raises(ConfigError, match="a cap of 0 for taxon keeps nothing"):
        cap_by_key(table_of(["a"]), "taxon", t=0)
    with pytest.raises(ConfigError, match="no column host to balance by"):
        cap_exactly(table_of(["a"]), "host", most=1)
