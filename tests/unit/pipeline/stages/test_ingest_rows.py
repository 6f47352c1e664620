"""Rows of a source become candidates with an identity; every other row ends with one reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import execution_of

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.errors import RunError
from pipeline.config import BuildConfig
from pipeline.engine.executing import InlineExecutor
from pipeline.engine.runner import Runner
from pipeline.sources.rows import Batch
from pipeline.sources.settings import SourceSettings
from pipeline.sources.table import RawBatch, map_batch
from pipeline.stages.ingest import stage as ingest
from pipeline.stages.ingest.stage import STAGE, SourceInputs, map_rows, read_source


def source(table: str = "t.csv", **changes: Any) -> SourceSettings:
    columns = {"url": "link", "caption": "title", "record_key": "id", **changes}
    return SourceSettings.model_validate({"name": "gbif", "domain": "plant", "table": table, "columns": columns})


def batch(
    given: SourceSettings, malformed: list[tuple[int, str]] | None = None, start: int = 0, **columns: list[str | None]
) -> Batch:
    rows = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    assert given.columns is not None
    return map_batch(RawBatch(rows, np.arange(start, start + rows.num_rows), malformed or []), given.columns)


def mapped(given: SourceSettings, *malformed: Any, **columns: Any) -> pa.Table:
    return map_rows(batch(given, *malformed, **columns), given)


def read(
    path: Path, given: SourceSettings, memory_gb: float = 1
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    result = read_source(SourceInputs(given, ()), execution_of(STAGE, "read", path, memory_gb, "gbif"))
    kept, rejected = (pq.read_table(file.temp).to_pylist() for file in result.files[:2])
    result.funnel.check("ingest")
    assert result.funnel.num_kept == len(kept) == result.files[0].num_rows
    assert sum(result.funnel.reasons.values()) == len(rejected) == result.files[1].num_rows
    return kept, rejected, result


def test_the_species_of_a_candidate_is_a_binomial() -> None:
    """Herbaria write the epithet beside the genus; where no column holds the genus, the whole name may state it."""
    given = source(taxon_genus="gen", taxon_species="epithet", taxon_scientific_name="latin")
    rows = [
        ("Quercus", "alba", None, "Quercus alba"),
        ("Populus", " alba ", "Populus alba L.", "Populus alba"),
        ("Quercus", "Quercus alba", None, "Quercus alba"),
        ("", "alba", "Morus alba L.", "Morus alba"),
        (None, "rose", "Rosa canina", "rose"),
        ("Quercus", "sp.", None, None),
        ("Quercus", None, None, None),
    ]
    names = [f"http://a/{number}.jpg" for number in range(len(rows))]
    genera, epithets, latin, expected = map(list, zip(*rows, strict=True))
    found = mapped(given, link=names, id=names, title=names, gen=genera, epithet=epithets, latin=latin)
    assert found["taxon_species"].to_pylist() == expected
    assert found["taxon_genus"].to_pylist() == genera


def test_columns_go_where_the_config_says() -> None:
    given = source(taxon_genus="gen", licence="rights", extra=["width", "gen"])
    found = mapped(
        given,
        link=[" http://a/1.jpg "],
        id=[" 17 "],
        title=["  as given  "],
        gen=["Quercus"],
        rights=["CC BY"],
        width=[None],
    ).to_pylist()[0]
    expected = {
        "sample_id": tables.sample_id("gbif", "17"),
        "source": "gbif",
        "domain": "plant",
        "record_key": "17",
        "row_number": 0,
        "url": "http://a/1.jpg",
        "caption": "  as given  ",
        "taxon_genus": "Quercus",
        "licence": "CC BY",
        "extra": '{"gen": "Quercus", "width": null}',
    }
    assert {name: value for name, value in found.items() if value is not None} == expected


def test_several_caption_columns_are_joined_and_nulls_left_out() -> None:
    found = mapped(source(caption=["a", "b"]), link=["u"] * 3, id=["1"] * 3, a=["x", None, None], b=["y", "z", None])
    assert found["caption"].to_pylist() == ["x y", "z", ""]


def test_the_url_is_the_key_when_none_is_named() -> None:
    found = mapped(source(record_key=None), link=["http://a/1.jpg"], title=["c"]).to_pylist()[0]
    assert found["record_key"] == "http://a/1.jpg"
    assert found["sample_id"] == tables.sample_id("gbif", "http://a/1.jpg")


@pytest.mark.parametrize(
    ("url", "key", "reason", "value"),
    [
        ("http://a/1.jpg", "1", None, None),
        ("https://例え.jp/画像.png", "1", None, None),
        (None, "1", "missing_url", None),
        ("   ", "1", "missing_url", None),
        ("ftp://a/1.jpg", "1", "invalid_url", "ftp://a/1.jpg"),
        ("/local/path.jpg", "1", "invalid_url", "/local/path.jpg"),
        ("http:///nohost", "1", "invalid_url", "http:///nohost"),
        ("HTTP://a/1.jpg", "1", None, None),
        ("http://a/1.jpg", None, "missing_key", None),
        ("http://a/1.jpg", " ", "missing_key", None),
        ("x" * 500, "1", "invalid_url", "x" * 200),
    ],
)
def test_one_reason_a_row(url: str | None, key: str | None, reason: str | None, value: str | None) -> None:
    found = mapped(source(), link=[url], id=[key], title=["c"]).to_pylist()[0]
    assert (found["reason"], found["value"]) == (reason, value)


def test_malformed_rows_end_here_and_nobody_elses_row_with_them() -> None:
    found = mapped(
        source(), [(0, "broken"), (3, "x,y")], start=1, link=["http://a/1", "http://a/2"], id=["1", "2"], title=["", ""]
    ).to_pylist()
    assert [(row["row_number"], row["reason"], row["value"]) for row in found] == [
        (1, None, None),
        (2, None, None),
        (0, "malformed_row", "broken"),
        (3, "malformed_row", "x,y"),
    ]


def test_of_repeated_records_the_first_good_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.rows.BATCH_ROWS", 2)  # repeats lie in other batches
    path = tmp_path / "t.jsonl"
    rows = [
        ("ftp://no", "k1"),  # no candidate, so no first of its key
        ("http://a/1", "k1"),
        ("http://a/2", "k2"),
        ("http://a/3", "k1"),
        ("http://a/1", "k3"),  # another record of the same address
        ("http://a/2", "k2"),
        (None, "k2"),
        ("http://a/4", "k1"),
    ]
    path.write_text(
        "".join(json.dumps({"link": url, "id": key, "title": "c"}) + "\n" for url, key in rows) + "broken\n"
    )
    kept, rejected, result = read(tmp_path / "it's work", source(str(path)))
    assert {(row["record_key"], row["url"], row["row_number"]) for row in kept} == {
        ("k1", "http://a/1", 1),
        ("k2", "http://a/2", 2),
        ("k3", "http://a/1", 4),
    }
    assert [row["sample_id"] for row in kept] == sorted(row["sample_id"] for row in kept)
    assert [(row["row_number"], row["reason"], row["value"]) for row in rejected] == [
        (0, "invalid_url", "ftp://no"),
        (3, "duplicate_record", "row 2"),
        (5, "duplicate_record", "row 3"),
        (6, "missing_url", None),
        (7, "duplicate_record", "row 2"),
        (8, "malformed_row", "broken"),
    ]
    assert result.funnel.reasons == {"invalid_url": 1, "duplicate_record": 3, "missing_url": 1, "malformed_row": 1}


def test_addresses_are_known_by_content_not_by_order_or_caption(tmp_path: Path) -> None:
    def addresses(name: str, rows: list[tuple[str, str]]) -> str:
        path = tmp_path / name
        path.write_text("link,id,title\n" + "".join(f"http://a/{key},{key},{title}\n" for key, title in rows))
        return str(read(tmp_path / "w", source(str(path)))[2].notes["addresses"])

    first = addresses("1.csv", [("1", "a"), ("2", "b")])
    assert addresses("2.csv", [("2", "other"), ("1", "words")]) == first
    assert addresses("3.csv", [("1", "a"), ("3", "b")]) != first


def build(workdir: Path, *tables_: Path) -> Any:
    sources = [
        {"name": f"s{number}", "domain": "plant", "table": str(path), "columns": {"url": "link", "caption": "title"}}
        for number, path in enumerate(tables_)
    ]
    config = BuildConfig.model_validate(
        {"name": "demo", "work_dir": str(workdir), "sources": sources, "mix": {"ratio": {"plant": 1}}}
    )
    with Catalog.open(str(workdir)) as catalog:
        runner = Runner(config, [ingest.STAGE], catalog)
        runner._executor = InlineExecutor()
        return runner.run()


def test_a_source_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    for path in (one, two):
        path.write_text(f"link,title\nhttp://a/{path.name},c\n")
    first = build(tmp_path / "w", one, two)
    assert first.stages["ingest"].funnel.num_kept == 2
    assert build(tmp_path / "w", one, two).redone == ()
    two.write_text("link,title\nhttp://a/x,c\nhttp://a/y,c\n")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "w" / "tables" / "ingest").iterdir()}
    second = build(tmp_path / "w", one, two)
    assert second.stages["ingest"].funnel.num_kept == 3
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "w" / "tables" / "ingest").iterdir()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 3  # candidates, rejects and secrets of the changed source


def test_sources_without_one_usable_row_stop_the_build(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("link,title\nimages/1.jpg,c\n,c\n")
    with pytest.raises(RunError, match=r"none of 2 rows can be used \(1 invalid_url, 1 missing_url\)"):
        build(tmp_path / "w", path)
    path.write_text("link,title\n")
    with pytest.raises(RunError, match="the tables are empty"):
        build(tmp_path / "w", path)


def test_a_group_is_a_column_and_an_empty_one_is_none() -> None:
    found = mapped(
        source(group="obs"), link=["http://a/1", "http://a/2"], id=["1", "2"], title=["c", "c"], obs=[" o1 ", " "]
    )
    assert found["group_id"].to_pylist() == ["o1", None]
