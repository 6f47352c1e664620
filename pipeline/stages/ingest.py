"""ingest: rows of every source to candidates, each with an identity; rows without one end here with a reason.

Reads the sources' tables. Writes `candidates` (sorted by sample_id) and `rejects`, one part a source. A source
is read again only when its bytes or its settings change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests import storage, tables
from manifests.catalog import Funnel
from manifests.errors import RunError
from pipeline.config import SourceSettings, recipe_of
from pipeline.sources.table import Batch, list_files, read_batches
from pipeline.stages.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.work import BuildContext, Part, PartResult, Stage, Step, TableWriter, fingerprint

VERSION = 1
URL_PATTERN = re.compile(r"^https?://[^\s/?#]+", re.IGNORECASE)
REASONS = ("malformed_row", "missing_key", "missing_url", "invalid_url", "duplicate_record")

_STAGED = tables.CANDIDATES.append(pa.field("reason", pa.string())).append(pa.field("value", pa.string()))
_PLAIN = tuple(
    name
    for name in tables.CANDIDATES.names
    if name.startswith("taxon_") or name in ("licence", "licence_url", "rights_holder", "creator", "reference_url")
)


def map_rows(batch: Batch, source: SourceSettings) -> pa.Table:
    """A batch of a table to candidate rows plus `reason` and `value` (null reason: the row goes on).

    Duplicate records are found later, over the whole source.
    """
    rows, columns = batch.rows, source.columns
    url = pc.utf8_trim_whitespace(rows[columns.url])
    key = pc.utf8_trim_whitespace(rows[columns.record_key]) if columns.record_key else url
    keys = key.to_pylist()
    verdicts = [_judge(row_key, row_url) for row_key, row_url in zip(keys, url.to_pylist(), strict=True)]
    mapped: dict[str, Any] = {
        "sample_id": pa.array([tables.sample_id(source.name, row_key or "") for row_key in keys], pa.string()),
        "source": pa.array([source.name] * rows.num_rows, pa.string()),
        "domain": pa.array([source.domain] * rows.num_rows, pa.string()),
        "record_key": key,
        "row_number": pa.array(batch.numbers, pa.int64()),
        "url": url,
        "locator": pa.nulls(rows.num_rows, pa.string()),
        "caption": _caption(rows, columns.caption),
        "extra": _extra(rows, columns.extra),
        "reason": pa.array([reason for reason, _ in verdicts], pa.string()),
        "value": pa.array([value for _, value in verdicts], pa.string()),
    }
    for name in _PLAIN:
        column = getattr(columns, name)
        mapped[name] = rows[column] if column else pa.nulls(rows.num_rows, pa.string())
    table = pa.table({name: mapped[name] for name in _STAGED.names}).cast(_STAGED)
    return pa.concat_tables([table, _lost_rows(batch.malformed, source)]) if batch.malformed else table


def _judge(key: str | None, url: str | None) -> tuple[str | None, str | None]:
    if not url:
        return "missing_url", None
    if not URL_PATTERN.match(url):
        return "invalid_url", url[:200]
    if not key:
        return "missing_key", None
    return None, None


def _lost_rows(lost: list[tuple[int, str]], source: SourceSettings) -> pa.Table:
    """Rows that the reader had to skip, as rows with a reason."""
    row = dict.fromkeys(_STAGED.names)
    return pa.Table.from_pylist(
        [
            row
            | {
                "source": source.name,
                "domain": source.domain,
                "row_number": number,
                "reason": "malformed_row",
                "value": text,
            }
            for number, text in lost
        ],
        schema=_STAGED,
    )


def _caption(rows: pa.Table, columns: str | list[str]) -> pa.ChunkedArray:
    if isinstance(columns, str):
        return rows[columns]
    # the empty text in front: without it pyarrow 26 leaves rows of nulls alone out of its answer
    joined = pc.binary_join_element_wise("", *(rows[name] for name in columns), " ", null_handling="skip")
    return pc.utf8_slice_codeunits(joined, 1)


def _extra(rows: pa.Table, columns: list[str]) -> pa.Array:
    if not columns:
        return pa.nulls(rows.num_rows, pa.string())
    picked = rows.select(columns).to_pylist()
    return pa.array([json.dumps(row, sort_keys=True, ensure_ascii=False) for row in picked], pa.string())


def read_source(payload: dict[str, Any]) -> PartResult:
    """Stream one source into a staging file, then settle duplicates and order in SQL."""
    source: SourceSettings = payload["source"]
    workdir, stem = payload["workdir"], f"tables/ingest/{payload['stem']}"
    staged = TableWriter(workdir, "staged", f"{stem}-staged.parquet", _STAGED)
    for batch in read_batches(source):
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
            "row_number, reason",
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
        "source": recipe_of(source, without=("table", "priority")),
        "files": [context.catalog.input_sha256(file) for file in list_files(source)],
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
            "check `columns` of each source"
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
