"""fetch: every candidate's bytes, measured in one decode, into pool parts; one outcome for every URL.

Reads candidates; those with a locator, whose bytes lie here, go through stages/fetch_local.py and the same
measurement. Writes pool tars, the facts of each part, and `facts` (one row a candidate, sorted by
sample_id). What was downloaded by the same image recipe under the same address is never asked for again,
whichever build asked for it: an edited caption downloads nothing, a new URL just that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.catalog import Funnel, PartRecord
from pipeline.fetching.engine import fetch_rows
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.settings import FetchSettings
from pipeline.stages import fetch_local
from pipeline.stages.fetch_local import FETCHED
from pipeline.stages.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.work import (
    BuildContext,
    Part,
    PartResult,
    Stage,
    Step,
    TableWriter,
    fingerprint,
    private_file,
    write_table,
)

VERSION = 1

# What later stages may depend on: all that is seen of an image, nothing of where and how it was got.
_CONTENT = ("sample_id", "outcome", "image_id", "stored_sha256", "pixels_sha256", "phash", "width_px", "height_px")


def download(payload: dict[str, Any]) -> PartResult:
    """Fetch the rows of one part into a pool tar and a table of facts."""
    settings: FetchSettings = payload["settings"]
    todo = pq.ParquetFile(payload["todo"]).read_row_group(payload["row_group"])
    rows = list(zip(todo["sample_id"].to_pylist(), todo["url"].to_pylist(), strict=True))
    pool_path = f"pool/{payload['stem']}.tar"
    storage.make_folder(storage.join(payload["workdir"], "pool"))
    temp = storage.temp_path(storage.join(payload["workdir"], pool_path))
    facts = fetch_rows(rows, settings, payload["shared"], temp)
    stored = [value is not None for value in facts["offset"].to_pylist()]
    pool_names = pa.array([f"{payload['stem']}.tar" if there else None for there in stored], pa.string())
    facts = facts.set_column(facts.schema.get_field_index("pool_file"), "pool_file", pool_names)
    url_of = dict(rows)
    facts = facts.append_column("url", pa.array([url_of[key] for key in facts["sample_id"].to_pylist()], pa.string()))
    table = write_table(payload["workdir"], "fetched", f"tables/fetch/{payload['stem']}.parquet", facts, FETCHED)
    outcomes = facts["outcome"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in outcomes}
    num_ok = counts.pop("ok", 0)
    pool = private_file("pool", pool_path, temp, num_ok)
    return PartResult((pool, table), Funnel(facts.num_rows, num_ok, counts), {})


def collect(payload: dict[str, Any]) -> PartResult:
    """One fact a candidate out of all fetched parts, the newest where a row was fetched more than once."""
    workdir = payload["workdir"]
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        if payload["fetched"]:
            view_parquet(sql, "parts", payload["fetched"])
        else:
            sql.register("parts", FETCHED.empty_table())
        names = ", ".join(f'f."{name}"' for name in tables.FACTS.names)
        facts = copy_sorted(
            sql,
            f"SELECT {names} FROM candidates c JOIN parts f "
            "ON f.sample_id = c.sample_id AND f.url = coalesce(c.locator, c.url) "
            "QUALIFY row_number() OVER (PARTITION BY f.sample_id ORDER BY f.outcome = 'ok' DESC, f.pool_file DESC) = 1",
            "sample_id",
            TableWriter(workdir, "facts", f"tables/fetch/facts-{payload['stem']}.parquet", tables.FACTS),
        )
        view_parquet(sql, "facts", [facts.temp])
        outcomes = dict(sql.execute("SELECT outcome, count(*) FROM facts GROUP BY 1").fetchall())
        num_in = sql.execute("SELECT count(*) FROM candidates").fetchall()[0][0]
        content = facet(sql, _CONTENT, "facts")
    num_ok = outcomes.pop("ok", 0)
    return PartResult((facts,), Funnel(num_in, num_ok, outcomes), {"content": content})


def _recipe(context: BuildContext) -> str:
    return fingerprint({"version": VERSION, "image": context.config.fetch.identity()})


def _plan_downloads(context: BuildContext) -> Sequence[Part]:
    """What no part has fetched yet, in an order that interleaves hosts, cut into parts of equal length."""
    size = context.config.run.fetch_part_size
    fetched = [file for part in _fetched(context) for file in _paths(context, part, "fetched")]
    todo = storage.join(context.workdir, "scratch", "fetch-todo.parquet")
    storage.make_folder(storage.join(context.workdir, "scratch"))
    with open_scratch(context.execution()) as sql:
        view_parquet(sql, "candidates", context.files("ingest", "candidates"))
        if fetched:
            view_parquet(sql, "parts", fetched)
        else:
            sql.register("parts", FETCHED.empty_table())
        sql.execute(
            "CREATE TABLE todo AS SELECT sample_id, url, row_number() OVER (ORDER BY md5(sample_id)) - 1 AS place "
            "FROM candidates c WHERE locator IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.url)"
        )
        keys = sql.execute(
            f"SELECT place // {size} AS row_group, count(*), to_hex(bit_xor(md5_number(sample_id || chr(31) || url))) "
            "FROM todo GROUP BY 1 ORDER BY 1"
        ).fetchall()
        reader = sql.sql("SELECT sample_id, url FROM todo ORDER BY place").to_arrow_reader(size)
        with pq.ParquetWriter(todo, reader.schema, compression="zstd") as writer:
            _write_groups(writer, reader, size)
        urls = (row[0] for row in sql.execute("SELECT url FROM todo ORDER BY place").fetchall())
        context.config.fetch.network.require_contact(urls)
    recipe = _recipe(context)
    parts = []
    for row_group, num_rows, rows_key in keys:
        key = fingerprint({"recipe": recipe, "rows": rows_key, "num_rows": num_rows})
        payload = {
            "todo": todo,
            "row_group": row_group,
            "stem": key[:16],
            "settings": context.config.fetch,
            **context.execution(),
        }
        parts.append(Part(key, payload, recipe, num_rows))
    return parts


def _write_groups(writer: pq.ParquetWriter, batches: Any, size: int) -> None:
    """Row groups of exactly `size` rows, however the batches come."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        rows = pa.Table.from_batches(waiting)
        while rows.num_rows >= size:
            writer.write_table(rows.slice(0, size), row_group_size=size)
            rows = rows.slice(size)
        waiting = rows.to_batches()
    if waiting and (rows := pa.Table.from_batches(waiting)).num_rows:
        writer.write_table(rows, row_group_size=size)


def _gate(context: BuildContext) -> Callable[[], HostGate]:
    return partial(HostGate, context.config.fetch.network)


def _fetched(context: BuildContext) -> Sequence[PartRecord]:
    return list(context.catalog.parts_like("fetch", "download", _recipe(context)))


def _paths(context: BuildContext, part: PartRecord, table: str) -> list[str]:
    return [storage.join(context.workdir, file.path) for file in part.files if file.table == table]


def _plan_collect(context: BuildContext) -> Sequence[Part]:
    parts = [*context.own_parts("download"), *context.own_parts("local")]
    fetched = [path for part in parts for path in _paths(context, part, "fetched")]
    key = fingerprint({"stage": context.fingerprint, "parts": [part.key for part in parts]})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "fetched": fetched,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _identity(context: BuildContext) -> dict[str, Any]:
    return {"recipe": _recipe(context), "addresses": context.sealed["ingest"].notes["addresses"]}


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    (part,) = context.own_parts("collect")
    assert part.funnel is not None
    return part.funnel, dict(part.notes)


STAGE = Stage(
    name="fetch",
    about="download, decode once, measure, store",
    identity=_identity,
    steps=(
        Step("download", _plan_downloads, download, "images", committed=_fetched, shared=_gate),
        fetch_local.STEP,
        Step("collect", _plan_collect, collect),
    ),
    conclude=_conclude,
)
