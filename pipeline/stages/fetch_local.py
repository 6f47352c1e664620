"""The step of fetch for pictures that lie here: candidates with a locator, in the order in which they lie.

Reads candidates and, through pipeline/fetching/local.py, the sources' own files. Writes pool tars and the facts of
each part, as the download step does; a picture that was measured by the same image recipe is not read again, but by
`plantmix retry` where its file was missing or unreadable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline.fetching.local import read_local
from pipeline.runner.work import BuildContext, Part, PartResult, Step
from pipeline.sources.reading import root_of
from pipeline.stages.fetch_rounds import parts_that_count, paths_of, round_of, view_fetched, wanted
from pipeline.store.sql import open_scratch, view_parquet
from pipeline.store.writing import private_file, write_groups, write_table

VERSION = 3


def read(payload: dict[str, Any]) -> PartResult:
    """Measure the pictures of one part into a pool tar and a table of facts."""
    todo = pq.ParquetFile(payload["todo"]).read_row_group(payload["row_group"])
    rows = list(zip(*(todo[name].to_pylist() for name in ("sample_id", "source", "locator")), strict=True))
    workdir, pool_path = payload["workdir"], f"pool/{payload['stem']}.tar"
    storage.make_folder(storage.join(workdir, "pool"))
    temp = storage.temp_path(storage.join(workdir, pool_path))
    facts = read_local(rows, payload["roots"], payload["image"], temp)
    names = [f"{payload['stem']}.tar" if offset is not None else None for offset in facts["offset"].to_pylist()]
    place = facts.schema.get_field_index("pool_file")
    facts = facts.set_column(place, "pool_file", pa.array(names, pa.string()))
    locators = {sample_id: locator for sample_id, _, locator in rows}
    address = pa.array([locators[sample_id] for sample_id in facts["sample_id"].to_pylist()], pa.string())
    facts = facts.append_column("url", address)  # the address a fact is about: here a locator
    facts = facts.append_column("round", pa.array([payload["round"]] * facts.num_rows, pa.int32()))
    table = write_table(workdir, "fetched", f"tables/fetch/{payload['stem']}.parquet", facts, tables.FETCHED)
    counts = {entry["values"]: entry["counts"] for entry in facts["outcome"].value_counts().to_pylist()}
    num_ok = counts.pop("ok", 0)
    pool = private_file("pool", pool_path, temp, num_ok)
    return PartResult((pool, table), Funnel(facts.num_rows, num_ok, counts), {"round": payload["round"]})


def _plan(context: BuildContext) -> Sequence[Part]:
    """What no part has measured yet, a file's pictures together, cut into parts of equal length."""
    size = context.config.run.fetch_part_size
    number = round_of(context)
    todo = storage.join(context.workdir, "scratch", "local-todo.parquet")
    storage.make_folder(storage.join(context.workdir, "scratch"))
    with open_scratch(context.execution()) as sql:
        view_parquet(sql, "candidates", context.files("ingest", "candidates"))
        view_fetched(sql, "parts", paths_of(context, _measured(context)))
        sql.execute(
            "CREATE TABLE todo AS SELECT sample_id, source, locator, row_number() OVER (ORDER BY source, row_number) "
            "- 1 AS place FROM "
            f"({wanted(context, 'sample_id, source, locator, row_number', 'locator', 'locator IS NOT NULL')})"
        )
        keys = sql.execute(
            f"SELECT place // {size}, count(*), to_hex(bit_xor(md5_number(sample_id || chr(31) || locator))) "
            "FROM todo GROUP BY 1 ORDER BY 1"
        ).fetchall()
        reader = sql.sql("SELECT sample_id, source, locator FROM todo ORDER BY place").to_arrow_reader(size)
        write_groups(todo, reader, size)
    roots = {source.name: root for source in context.config.sources if (root := root_of(source)) is not None}
    recipe = _recipe(context)
    parts = []
    for row_group, num_rows, rows_key in keys:
        key = fingerprint({"recipe": recipe, "rows": rows_key, "num_rows": num_rows, "round": number})
        payload = {
            "todo": todo,
            "row_group": row_group,
            "round": number,
            "stem": key[:16],
            "image": context.config.fetch.image,
            "roots": roots,
            **context.execution(),
        }
        parts.append(Part(key, payload, recipe, num_rows))
    return parts


def _recipe(context: BuildContext) -> str:
    return fingerprint({"local": VERSION, "image": context.config.fetch.identity()})


def _measured(context: BuildContext) -> Sequence[PartRecord]:
    return parts_that_count(context, "local", _recipe(context))


STEP = Step("local", _plan, read, "images", committed=_measured)
