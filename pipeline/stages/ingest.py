"""ingest: rows of every source to candidates, each with an identity; rows without one end here with a reason.

Reads the sources through their readers. Writes `candidates` (sorted by sample_id) and `rejects`, one part a source. A
source is read again only when its bytes or its settings change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests import storage, tables
from manifests.errors import RunError
from manifests.records import Funnel, fingerprint
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.sources.reading import digest_inputs, read_rows
from pipeline.sources.rows import MAX_VALUE_CHARS, Batch
from pipeline.sources.settings import SourceSettings
from pipeline.store.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.store.writing import TableWriter

VERSION = 2
URL_PATTERN = r"(?i)^https?://[^\s/?#]+"
REASONS = (
    "malformed_row", "missing_key", "missing_url", "invalid_url", "duplicate_record",
    "missing_file", "file_outside_folder", "no_image", "broken_shard", "no_record", "no_media",
)  # fmt: skip  # and where_TERM, for the filters of a source

_STAGED = tables.CANDIDATES.append(pa.field("reason", pa.string())).append(pa.field("value", pa.string()))


def map_rows(batch: Batch, source: SourceSettings) -> pa.Table:
    """A batch of a reader to candidate rows plus `reason` and `value` (null reason: the row goes on).

    Duplicate records are found later, over the whole source.
    """
    rows = batch.rows
    num_rows = rows.num_rows
    mapped: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    for name, value in source.defaults.given().items():
        empty = pc.equal(pc.fill_null(pc.utf8_trim_whitespace(rows[name]), ""), "")
        mapped[name] = pc.if_else(empty, value, rows[name])
    mapped["url"] = pc.utf8_trim_whitespace(rows["url"])
    mapped["record_key"] = pc.utf8_trim_whitespace(rows["record_key"])
    mapped["reason"], mapped["value"] = _judge(mapped["record_key"], mapped["url"], rows["locator"])
    mapped |= {
        "sample_id": _sample_ids(source.name, mapped["record_key"]),
        "source": pa.repeat(source.name, num_rows),
        "domain": pa.repeat(source.domain, num_rows),
        "row_number": pa.array(batch.numbers, pa.int64()),
    }
    table = pa.table([mapped[name] for name in _STAGED.names], _STAGED.names).cast(_STAGED)
    return pa.concat_tables([table, _lost_rows(batch.lost, source)]) if batch.lost.num_rows else table


def _judge(key: pa.ChunkedArray, url: pa.ChunkedArray, locator: pa.ChunkedArray) -> tuple[Any, Any]:
    """The first reason why a row is no candidate, and what was seen; null where it is one.

    A row with a locator needs no URL; what stands in its URL is told, not asked.
    """
    on_web = pc.is_null(locator)
    no_url = pc.and_(on_web, pc.equal(pc.fill_null(url, ""), ""))
    bad_url = pc.and_(on_web, pc.invert(pc.fill_null(pc.match_substring_regex(url, URL_PATTERN), False)))
    no_key = pc.equal(pc.fill_null(key, ""), "")
    conditions = pc.make_struct(no_url, bad_url, no_key, field_names=["no_url", "bad_url", "no_key"])
    reason = pc.case_when(conditions, "missing_url", "invalid_url", "missing_key")
    value = pc.if_else(pc.equal(reason, "invalid_url"), pc.utf8_slice_codeunits(url, 0, MAX_VALUE_CHARS), None)
    return reason, value


def _sample_ids(source: str, keys: pa.ChunkedArray) -> pa.Array:
    return pa.array([tables.sample_id(source, key or "") for key in keys.to_pylist()], pa.string())


def _lost_rows(lost: pa.Table, source: SourceSettings) -> pa.Table:
    """Rows that ended in the reader, as rows with a reason."""
    columns = {name: lost[name] for name in lost.column_names} | {
        "source": pa.repeat(source.name, lost.num_rows),
        "domain": pa.repeat(source.domain, lost.num_rows),
    }
    return pa.table(
        [columns.get(name, pa.nulls(lost.num_rows, pa.string())) for name in _STAGED.names], _STAGED.names
    ).cast(_STAGED)


def read_source(payload: dict[str, Any]) -> PartResult:
    """Stream one source into a staging file, then settle duplicates and order in SQL."""
    source: SourceSettings = payload["source"]
    workdir, stem = payload["workdir"], f"tables/ingest/{payload['stem']}"
    staged = TableWriter(workdir, "staged", f"{stem}-staged.parquet", _STAGED)
    for batch in read_rows(source, partial(open_scratch, payload)):
        staged.write(map_rows(batch, source))
    temp = staged.close().temp
    with open_scratch(payload) as sql:
        view_parquet(sql, "staged", [temp])
        sql.execute(
            "CREATE TABLE firsts AS SELECT sample_id, min(row_number) AS row_number "
            "FROM staged WHERE reason IS NULL GROUP BY sample_id"
        )
        sql.execute(
            "CREATE VIEW judged AS SELECT * REPLACE (if(again, 'duplicate_record', reason) AS reason, "
            "if(again, 'row ' || first, value) AS value) FROM "
            "(SELECT s.*, f.row_number AS first, s.reason IS NULL AND f.row_number < s.row_number AS again "
            "FROM staged s LEFT JOIN firsts f USING (sample_id))"
        )
        kept = copy_sorted(
            sql,
            "SELECT * FROM judged WHERE reason IS NULL",
            "sample_id",
            TableWriter(workdir, "candidates", f"{stem}-candidates.parquet", tables.CANDIDATES),
        )
        rejected = copy_sorted(
            sql,
            "SELECT * FROM judged WHERE reason IS NOT NULL",
            "row_number, reason, record_key, value",
            TableWriter(workdir, "rejects", f"{stem}-rejects.parquet", tables.REJECTS),
        )
        reasons = dict(
            sql.execute("SELECT reason, count(*) FROM judged WHERE reason IS NOT NULL GROUP BY 1").fetchall()
        )
        addresses = facet(sql, ("sample_id", "url", "locator"), "judged WHERE reason IS NULL")
    storage.remove(temp)
    num_kept = kept.num_rows
    funnel = Funnel(num_kept + rejected.num_rows, num_kept, reasons)
    return PartResult(
        (kept, rejected), funnel, {"source": source.name, "domain": source.domain, "addresses": addresses}
    )


def _plan(context: BuildContext) -> Sequence[Part]:
    return [_plan_source(context, source) for source in context.config.sources]


def _plan_source(context: BuildContext, source: SourceSettings) -> Part:
    key = fingerprint(_source_identity(context, source))
    payload = {
        "source": source,
        "stem": f"{source.name}-{key[:16]}",
        **context.execution(),
    }
    return Part(key, payload)


def _source_identity(context: BuildContext, source: SourceSettings) -> dict[str, Any]:
    return {
        "version": VERSION,
        "source": source.identity(),
        "files": digest_inputs(source, context.catalog.input_sha256),
    }


def _identity(context: BuildContext) -> dict[str, Any]:
    return {"sources": [_source_identity(context, source) for source in context.config.sources]}


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    parts = context.own_parts("read")
    funnel = sum((part.funnel for part in parts if part.funnel), Funnel(0, 0))
    if not funnel.num_kept:
        dropped = ", ".join(f"{num:,} {reason}" for reason, num in sorted(funnel.reasons.items()))
        raise RunError(
            f"ingest: none of {funnel.num_in:,} rows of the sources can be used ({dropped or 'the tables are empty'}); "
            "check what each source says of its columns"
        )
    by_domain: dict[str, int] = {}
    for part in parts:
        assert part.funnel is not None
        domain = str(part.notes["domain"])
        by_domain[domain] = by_domain.get(domain, 0) + part.funnel.num_kept
    return funnel, {"addresses": [part.notes["addresses"] for part in parts], "domains": by_domain}


STAGE = Stage(
    name="ingest",
    about="read the sources' tables, give every row an identity",
    identity=_identity,
    steps=(Step("read", _plan, read_source, "sources"),),
    conclude=_conclude,
)
