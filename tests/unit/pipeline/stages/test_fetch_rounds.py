"""Which of several answers of one address stands, and what a build asks again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.tables import FETCHED
from pipeline.fetching.consent.statements import HEADERS, Consent
from pipeline.stages.fetch.rounds import COUNTS, FetchedFiles, addresses_to_fetch, view_fetched
from pipeline.store.files import Files

URL = "https://a.example/1.jpg"
NOW = Consent("plantmix", False, ("noai",), ())
LACKING = {"unread": (HEADERS,)}
Values = dict[str, Any]


def read(folder: Path, *answers: tuple[Values, Values]) -> tuple[Any, list[Any]]:
    """The answer that counts (outcome, pool file, whether it stands), and for what is asked whether it is stored.

    An answer is a row, and what `FetchedFiles` says of its settings.
    """
    fetched = []
    for number, (row, settings) in enumerate(answers):
        path = folder / f"{number}.parquet"
        values = {"sample_id": "s1", "url": URL, "host": "a.example", "round": 0, **row}
        pq.write_table(pa.Table.from_pylist([values], FETCHED), path)
        fetched.append(FetchedFiles(Files((str(path),)), **{"outdated": (), **settings}))
    with duckdb.connect() as sql:
        columns = f"'s1' AS sample_id, '{URL}' AS asked, asked AS address, NULL AS locator"
        sql.execute(f"CREATE TABLE candidates AS SELECT {columns}")
        view_fetched(sql, fetched, NOW)
        (counting,) = sql.execute(f"SELECT outcome, pool_file, stands FROM parts QUALIFY {COUNTS}").fetchall()
        return counting, sql.execute(f"SELECT is_stored FROM ({addresses_to_fetch(None)})").fetchall()


def stored(pool: str, **more: Any) -> Values:
    return {"outcome": "ok", "pool_file": pool, **more}


def test_a_picture_that_lacks_a_signal_is_asked_once_more(tmp_path: Path) -> None:
    assert read(tmp_path, (stored("a"), {})) == (("ok", "a", True), [])
    assert read(tmp_path, (stored("a"), LACKING)) == (("ok", "a", False), [(True,)])
    heard = {"signals": {HEADERS: []}}
    newer = stored("b", **heard)
    assert read(tmp_path, (stored("z"), LACKING), (newer, {})) == (("ok", "b", True), []), "the newer picture counts"
    gone = {"outcome": "http_404", "http_status": 404}
    assert read(tmp_path, (stored("a"), LACKING), (gone, {})) == (("http_404", None, True), [])
    assert read(tmp_path, (stored("a"), LACKING), (gone | heard, {})) == (("ok", "a", True), []), "it was heard"
    assert read(tmp_path, (gone, LACKING)) == (("http_404", None, True), []), "only a picture has such headers"


def test_a_statement_that_is_stored_refuses_without_a_question(tmp_path: Path) -> None:
    said = {"signals": {HEADERS: ["X-Robots-Tag: noai"]}}
    assert read(tmp_path, (stored("a", **said), LACKING)) == (("ok", "a", True), [])


def test_a_failure_before_an_answer_that_a_setting_decided_does_not_stand(tmp_path: Path) -> None:
    failed = {"outcome": "http_5xx", "http_status": 503}
    refused = {"outcome": "refused_target", "round": 1}
    loosened = {"outdated": ("refused_target",)}
    assert read(tmp_path, (failed, {}), (refused, {})) == (("refused_target", None, True), [])
    assert read(tmp_path, (failed, {}), (refused, loosened))[1] == [(False,)]
    again = {**failed, "round": 1}
    assert read(tmp_path, (failed, {}), (refused, loosened), (again, {})) == (("http_5xx", None, True), [])
    assert read(tmp_path, (stored("a"), {}), (refused, loosened)) == (("ok", "a", True), []), "a picture stands"
