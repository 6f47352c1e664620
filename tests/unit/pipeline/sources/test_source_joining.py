"""Joins of readers keep to their memory, whatever a stranger repeats; where a query cannot, it ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from darwin_core import gbif_files, write_folder

from manifests.contract.tables import CANDIDATES
from manifests.errors import RunError
from pipeline.sources.reading import read_rows
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.captions import JoinedCaptions, join_captions
from pipeline.sources.tables.joining import staging
from pipeline.sources.tables.keyed import MAX_TEXTS, describe_join, fault_of
from pipeline.store.sql import open_scratch


@contextmanager
def scratch(folder: Path, limit: str = "24MB") -> Iterator[Any]:
    with open_scratch(str(folder), 0.25) as sql:
        sql.execute(f"SET memory_limit = '{limit}'; SET threads = 1")
        yield sql


def test_media_of_no_record_take_bounded_memory_however_often_their_key_is_repeated(tmp_path: Path) -> None:
    files = gbif_files([{"gbifID": "1"}], [{"gbifID": "7" * 1000, "identifier": "https://a.b/c.jpg"}])
    header, row = files["multimedia.txt"].splitlines()
    files["multimedia.txt"] = "\n".join([header, *[row] * 30_000]) + "\n"
    path = write_folder(tmp_path / "archive", files)
    source = SourceSettings.model_validate({"name": "g", "domain": "plant", "dwca": {"path": str(path)}})
    reasons: dict[str, int] = {}
    for batch in read_rows(source, partial(scratch, tmp_path)):
        for reason in batch.lost["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    assert reasons == {"no_record": 30_000, "no_media": 1}


def test_a_join_holds_the_side_in_which_a_key_stands_once(tmp_path: Path) -> None:
    """The other one may repeat a key without end, also where it has fewer rows."""
    with staging(partial(scratch, tmp_path)) as (sql, _):
        sql.execute("CREATE VIEW media AS SELECT 'x' AS id, repeat('u', 300) || range AS url FROM range(150_000)")
        sql.execute("CREATE VIEW records AS SELECT 'r' || range AS id, range AS n FROM range(200_000)")
        query = "SELECT url, n FROM media LEFT JOIN records USING (id)"
        assert sum(batch.num_rows for batch in sql.sql(query).to_arrow_reader(10_000)) == 150_000


def test_a_query_that_takes_more_memory_than_it_may_is_one_line(tmp_path: Path) -> None:
    words = r"run\.memory_gb \(0\.25\), nor on the disk of .*scratch \(Out of Memory Error: .*\); give it more"
    with pytest.raises(RunError, match=words), scratch(tmp_path) as sql:
        sql.sql("SELECT list(range) FROM range(20_000_000)").fetchall()


def test_keys_are_met_without_blanks_and_of_a_list_the_first_text_is_joined(tmp_path: Path) -> None:
    """As it was found: ` 7` joined the row of `7` without a word, and lists were joined as json writes them."""
    rows = [{"sample_id": f"{n:032x}", "record_key": key} for n, key in enumerate(["007", "7", "x"])]
    pq.write_table(pa.Table.from_pylist(rows, schema=CANDIDATES), tmp_path / "c.parquet")
    texts = [["a red fruit", "a second"], ["a pear"], None]
    pq.write_table(pa.table({"id": [" 007", "7", "x"], "words": texts}), tmp_path / "t.parquet")
    table = JoinedCaptions(join=str(tmp_path / "t.parquet"), on={"record_key": "id"}, text="words", kind="caption")
    with staging(partial(open_scratch, str(tmp_path / "work"), 0.5)) as (sql, folder):
        query, counts = join_captions(sql, folder, [str(tmp_path / "c.parquet")], "a", 1, table)
        joined = dict(sql.execute(f"SELECT sample_id, text FROM ({query})").fetchall())
    assert joined == {f"{0:032x}": "a red fruit", f"{1:032x}": "a pear"}
    assert "; 1 keys are met without the blanks around them; rows left out: 1 without text" in describe_join(counts)


def test_a_key_with_blanks_does_not_join_the_row_of_another_key(tmp_path: Path) -> None:
    """As it was found: `7` got the texts of ` 7` and of `7`, though the table tells them apart."""
    rows = [{"sample_id": f"{n:032x}", "record_key": key} for n, key in enumerate(["7", "8"])]
    pq.write_table(pa.Table.from_pylist(rows, schema=CANDIDATES), tmp_path / "c.parquet")
    (tmp_path / "t.csv").write_text("id,words\n 7,of another\n7,a pear\n8 ,a plum\n")
    table = JoinedCaptions(join=str(tmp_path / "t.csv"), on={"record_key": "id"}, text="words", kind="caption")
    with staging(partial(open_scratch, str(tmp_path / "work"), 0.5)) as (sql, folder):
        query, counts = join_captions(sql, folder, [str(tmp_path / "c.parquet")], "a", 1, table)
        joined = sorted(sql.execute(f"SELECT sample_id, text FROM ({query})").fetchall())
    assert joined == [(f"{0:032x}", "a pear"), (f"{1:032x}", "a plum")]
    assert "; 1 keys are met without" in describe_join(counts)
    assert "rows left out: 1 differ in blanks from another key" in describe_join(counts)


def test_many_rows_of_a_key_that_no_picture_has_stop_nothing(tmp_path: Path) -> None:
    rows = [{"sample_id": f"{0:032x}", "record_key": "7"}]
    pq.write_table(pa.Table.from_pylist(rows, schema=CANDIDATES), tmp_path / "c.parquet")
    (tmp_path / "t.csv").write_text("id,words\n7,a pear\n" + "unknown,a leaf\n" * (MAX_TEXTS + 1))
    table = JoinedCaptions(join=str(tmp_path / "t.csv"), on={"record_key": "id"}, text="words", kind="caption")
    with staging(partial(open_scratch, str(tmp_path / "work"), 0.5)) as (sql, folder):
        query, counts = join_captions(sql, folder, [str(tmp_path / "c.parquet")], "a", 1, table)
        joined = sql.execute(f"SELECT sample_id, text FROM ({query})").fetchall()
    assert joined == [(f"{0:032x}", "a pear")]
    assert fault_of(table, counts) is None
