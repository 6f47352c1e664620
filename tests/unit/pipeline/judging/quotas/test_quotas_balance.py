from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from manifests.contract import tables
from pipeline.commands.status import balance_lines
from pipeline.judging.quotas.balance import BalanceSettings, CapSettings, draw_uniform, judge_cap
from pipeline.judging.quotas.caps import judge_caps, keys_sql
from pipeline.store.sql import open_scratch


def table_of(keys: list[str | None]) -> pa.Table:
    ids = [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(len(keys))]
    return pa.table({"sample_id": ids, "key": pa.array(keys, pa.string()), "unit": ids})


def kept(table: pa.Table, seed: int = 0, **cap: int) -> np.ndarray:
    """Which rows stay under a cap of a taxon."""
    return judge_cap(table, CapSettings(by="taxon", **cap), seed)["keep"].to_numpy()


def test_the_head_is_cut_to_about_t_and_the_tail_stays() -> None:
    table = table_of(["rose"] * 20_000 + ["iris"] * 100 + [None] * 50)
    verdicts = judge_cap(table, CapSettings(by="taxon", about=1000), seed=3)
    keep = verdicts["keep"].to_numpy()
    assert abs(keep[:20_000].sum() - 1000) < 4 * np.sqrt(1000)  # binomial, four standard deviations
    assert keep[20_000:].all()
    dropped = verdicts.filter(pa.array(~keep)).slice(0, 1).to_pylist()[0]
    assert (dropped["reason"], dropped["value"], dropped["threshold"]) == (
        "balance",
        "rose: 20000",
        "about 1000 of one taxon",
    )


def test_growth_of_the_data_brings_no_row_back() -> None:
    table = table_of(["rose"] * 5000)
    small = kept(table.slice(0, 3000), about=500)
    large = kept(table, about=500)[:3000]
    assert (large <= small).all()
    assert large.sum() > 200


def test_order_changes_nothing_and_the_seed_does() -> None:
    table = table_of(["rose"] * 2000)
    order = np.random.default_rng(0).permutation(2000)
    keep = kept(table, about=500)
    assert (kept(table.take(order), about=500) == keep[order]).all()
    other = kept(table, about=500, seed=1)
    assert 150 < (keep != other).sum() < 1400


def test_a_hard_cap_is_exact() -> None:
    table = table_of(["rose"] * 300 + ["iris"] * 7 + [None] * 20)
    order = np.random.default_rng(0).permutation(327)
    keep = kept(table, at_most=10)
    assert (keep[:300].sum(), keep[300:307].sum(), keep[307:].sum()) == (10, 7, 20)
    assert (kept(table.take(order), at_most=10) == keep[order]).all()


def test_draws_are_uniform() -> None:
    draws = draw_uniform(table_of(["x"] * 20_000)["sample_id"], seed=7)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] - 2000).max() < 4 * np.sqrt(2000)


# ---- in the select stage, over real tables


@pytest.fixture
def cap_rows(tmp_path: Path):
    """Judge caps over rows of (key column values); the dropped sample ids with value, and the notes."""

    def run(rows: list[dict[str, Any]], *caps: CapSettings, seed: int = 0):
        full = [{"sample_id": f"{n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}", **r} for n, r in rows_of(rows)]
        with open_scratch(str(tmp_path), 1) as sql:
            for name, schema in (
                ("candidates", tables.CANDIDATES),
                ("facts", tables.FACTS),
                ("captions", tables.CAPTIONS),
            ):
                sql.register(
                    name,
                    pa.Table.from_pylist([{k: v for k, v in r.items() if k in schema.names} for r in full], schema),
                )
            settings = BalanceSettings(caps=caps, seed=seed)
            sql.execute(
                f"CREATE VIEW keyed AS SELECT {keys_sql(settings)} FROM candidates c "
                "JOIN facts f USING (sample_id) JOIN captions t USING (sample_id)"
            )
            notes = judge_caps(sql, settings)
            dropped = sql.sql("SELECT sample_id, value FROM cap_verdicts ORDER BY 1").fetchall()
        return full, dict(dropped), notes

    return run


def rows_of(rows: list[dict[str, Any]]) -> enumerate[dict[str, Any]]:
    return enumerate(rows, 1)


def test_caps_of_every_key(cap_rows) -> None:
    row = {"taxon_name": "Iris tectorum", "taxon_ranks": [("genus", "Iris")], "host": "a.org", "source": "gbif",
           "creator": "Li", "rights_holder": "Kew", "text": "A Rose", "text_source": "caption",
           "extra": '{"my set": "x.y"}'}  # fmt: skip
    for by in ("taxon", "genus", "host", "source", "creator", "rights_holder", "text", "extra.my set"):
        _, dropped, _ = cap_rows([row] * 5, CapSettings(by=by, at_most=2))
        assert len(dropped) == 3, by
    _, dropped, _ = cap_rows([{**row, "taxon_ranks": []}] * 5, CapSettings(by="genus", at_most=2))
    assert not dropped, "no key, no cap"


@pytest.mark.parametrize("by", ["creator", "rights_holder"])
def test_all_spellings_of_an_owner_count_as_one(cap_rows, by: str) -> None:
    rows = [{by: name} for name in ("Müller", "Mu\u0308ller", "MÜLLER\u00a0", "Müller, J.", "Müller", None)]
    full, dropped, (note,) = cap_rows(rows, CapSettings(by=by, at_most=1))
    assert len(dropped) == 3
    assert {row[by] for row in full if row["sample_id"] not in dropped} >= {"Müller, J.", None}
    assert [row[1:] for row in note["head"]] == [[4, 1], [1, 1]]


def test_a_cap_of_one_domain_leaves_the_others(cap_rows) -> None:
    rows = [{"host": "a.org", "domain": domain} for domain in ["plant"] * 6 + ["general"] * 6]
    full, dropped, _ = cap_rows(rows, CapSettings(by="host", at_most=1, domains=("plant",)))
    assert len(dropped) == 5
    assert set(dropped.values()) == {"a.org: 6"}
    assert {row["domain"] for row in full if row["sample_id"] in dropped} == {"plant"}


def test_head_and_tail_before_and_after(cap_rows) -> None:
    rows = [{"taxon_name": f"Rosa {n:02d}"} for n in range(12) for _ in range(40 if n < 2 else 1)]
    _, _, (note,) = cap_rows(rows, CapSettings(by="taxon", at_most=10))
    assert note["head"][:3] == [["Rosa 00", 40, 10], ["Rosa 01", 40, 10], ["Rosa 02", 1, 1]]
    assert note["tail"] == [[f"Rosa {n:02d}", 1, 1] for n in (6, 5, 4, 3, 2)]
    assert (note["num_keys"], note["num_keys_over"]) == (12, 2)
    assert (note["num_head_before"], note["num_before"], note["num_head_after"], note["num_after"]) == (80, 90, 20, 30)
    lines = "\n".join(balance_lines({"balance": [note]}))
    assert "at most 10 of one taxon: 2 of 12 keys cut, 90 -> 30 samples; these keys' share 88.9% -> 66.7%" in lines
    _, _, none_over = cap_rows(rows, CapSettings(by="taxon", at_most=50))
    assert balance_lines({"balance": none_over})[1:] == ["balance: at most 50 of one taxon: none of 12 keys has more"]
    assert re.search(r"Rosa 00 +40 -> +10\n", lines)


def test_more_data_moves_few_rows_and_brings_none_back(cap_rows) -> None:
    rows = [{"taxon_name": "Rosa canina"}] * 3000
    _, before, _ = cap_rows(rows, CapSettings(by="taxon", about=500), seed=4)
    _, after, _ = cap_rows(rows + [{"taxon_name": "Rosa canina"}] * 300, CapSettings(by="taxon", about=500), seed=4)
    assert set(before) <= set(after)
    assert len(set(after) - set(before)) < 300 + 100


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        ({"by": "colour", "about": 3}, "no key 'colour'"),
        ({"by": "taxon"}, "exactly one of about and at_most"),
        ({"by": "taxon", "about": 3, "at_most": 3}, "exactly one"),
        ({"by": "extra.", "about": 3}, "no key"),
        ({"by": "taxon", "about": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_caps_are_refused(cap: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CapSettings.model_validate(cap)


@pytest.mark.parametrize("how", [{"about": 60}, {"at_most": 60}])
def test_a_cap_keeps_groups_together(cap_rows, how: dict[str, int]) -> None:
    rows = [{"host": "a.org", "source": "gbif", "group_id": str(number // 5)} for number in range(500)]
    full, dropped, _ = cap_rows(rows, CapSettings(by="host", **how))
    sizes = Counter(row["group_id"] for row in full if row["sample_id"] not in dropped)
    whole = [group for group, num in sizes.items() if num == 5]
    assert len(sizes) - len(whole) <= (0 if "about" in how else 1), (
        "at most one group is cut, where the number is exact"
    )
    assert 20 <= sum(sizes.values()) <= 120 if "about" in how else sum(sizes.values()) == 60
