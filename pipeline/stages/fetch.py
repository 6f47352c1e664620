"""fetch: every candidate's bytes, measured in one decode, into pool parts; one outcome for every URL.

Reads candidates; those with a locator, whose bytes lie here, go through stages/fetch_local.py and the same
measurement. Writes pool tars, the facts of each part, and `facts` (one row a candidate, sorted by
sample_id). What was downloaded by the same image recipe under the same address is never asked for again,
whichever build asked for it: an edited caption downloads nothing, a new URL just that. Only `plantmix retry` asks
again, in a round of its own, for rows that ended with a passing outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline.fetching.engine import fetch_rows
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.settings import FetchSettings
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.stages import fetch_local
from pipeline.stages.fetch_rounds import (
    COUNTS,
    download_recipe,
    parts_that_count,
    paths_of,
    round_of,
    view_fetched,
    wanted,
)
from pipeline.store.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, private_file, write_groups, write_table

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
    facts = facts.append_column("round", pa.array([payload["round"]] * facts.num_rows, pa.int32()))
    table = write_table(payload["workdir"], "fetched", f"tables/fetch/{payload['stem']}.parquet", facts, tables.FETCHED)
    outcomes = facts["outcome"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in outcomes}
    num_ok = counts.pop("ok", 0)
    pool = private_file("pool", pool_path, temp, num_ok)
    return PartResult((pool, table), Funnel(facts.num_rows, num_ok, counts), {"round": payload["round"]})


def collect(payload: dict[str, Any]) -> PartResult:
    """One fact a candidate out of all fetched parts: a picture where any round got one, else the newest failure."""
    workdir = payload["workdir"]
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        view_fetched(sql, "parts", payload["fetched"])
        names = ", ".join(f'f."{name}"' for name in tables.FACTS.names)
        facts = copy_sorted(
            sql,
            f"SELECT {names} FROM candidates c JOIN parts f "
            f"ON f.sample_id = c.sample_id AND f.url = coalesce(c.locator, c.url) QUALIFY {COUNTS}",
            "sample_id",
            TableWriter(workdir, "facts", f"tables/fetch/facts-{payload['stem']}.parquet", tables.FACTS),
        )
        view_parquet(sql, "facts", [facts.temp])
        outcomes = dict(sql.execute("SELECT outcome, count(*) FROM facts GROUP BY 1").fetchall())
        num_in = sql.execute("SELECT count(*) FROM candidates").fetchall()[0][0]
        content = facet(sql, _CONTENT, "facts")
    num_ok = outcomes.pop("ok", 0)
    return PartResult((facts,), Funnel(num_in, num_ok, outcomes), {"content": content})


def _plan_downloads(context: BuildContext) -> Sequence[Part]:
    """What is to be asked now, in an order that interleaves hosts, cut into parts of equal length.

    Parts are cut from the sorted remainder, whole ones first: however often a build is killed, the parts stay the same.
    """
    size = context.config.run.fetch_part_size
    number = round_of(context)
    todo = storage.join(context.workdir, "scratch", "fetch-todo.parquet")
    storage.make_folder(storage.join(context.workdir, "scratch"))
    with open_scratch(context.execution()) as sql:
        view_parquet(sql, "candidates", context.files("ingest", "candidates"))
        view_fetched(sql, "parts", paths_of(context, _fetched(context)))
        sql.execute(
            "CREATE TABLE todo AS SELECT sample_id, url, row_number() OVER (ORDER BY md5(sample_id)) - 1 AS place "
            f"FROM ({wanted(context, 'sample_id, url', 'url', 'locator IS NULL')})"
        )
        keys = sql.execute(
            f"SELECT place // {size} AS row_group, count(*), to_hex(bit_xor(md5_number(sample_id || chr(31) || url))) "
            "FROM todo GROUP BY 1 ORDER BY 1"
        ).fetchall()
        reader = sql.sql("SELECT sample_id, url FROM todo ORDER BY place").to_arrow_reader(size)
        write_groups(todo, pa.RecordBatchReader.from_batches(reader.schema, _checked(reader, context)), size)
    recipe = download_recipe(context)
    parts = []
    for row_group, num_rows, rows_key in keys:
        key = fingerprint({"recipe": recipe, "rows": rows_key, "num_rows": num_rows, "round": number})
        payload = {
            "todo": todo,
            "row_group": row_group,
            "round": number,
            "stem": key[:16],
            "settings": context.config.fetch,
            **context.execution(),
        }
        parts.append(Part(key, payload, recipe, num_rows))
    return parts


def _checked(batches: Iterable[pa.RecordBatch], context: BuildContext) -> Iterator[pa.RecordBatch]:
    """The batches as they come, once no address in them lacks a contact that the config must give."""
    for batch in batches:
        context.config.fetch.network.require_contact(batch["url"].to_pylist())
        yield batch


def _gate(context: BuildContext) -> Callable[[], HostGate]:
    return partial(HostGate, context.config.fetch.network)


def _fetched(context: BuildContext) -> Sequence[PartRecord]:
    return parts_that_count(context, "download", download_recipe(context))


def _plan_collect(context: BuildContext) -> Sequence[Part]:
    parts = [*context.own_parts("download"), *context.own_parts("local")]
    key = fingerprint({"stage": context.fingerprint, "parts": sorted(part.key for part in parts)})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "fetched": paths_of(context, parts),
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _identity(context: BuildContext) -> dict[str, Any]:
    identity = {"recipe": download_recipe(context), "addresses": context.sealed["ingest"].notes["addresses"]}
    return {**identity, "round": round_of(context)}


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
