"""The steps of fetch for pictures that lie on this machine: candidates with a locator, in the order in which they lie.

Reads candidates and, through pipeline/fetching/local.py, the files of the sources. Writes pool tars and the facts of
each part, as the download step does. A picture that was measured under the same image settings is not read again,
except by `plantmix retry` where its file was missing or unreadable.

Where facts are collected in buckets, a second step sorts those of these pictures by id. Pictures lie in no order of
ids, so each bucket would else read all facts of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.outcomes import Outcome
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline.fetching.local import read_local
from pipeline.pictures.settings import ImageSettings
from pipeline.runner.work import BuildContext, Execution, Part, PartResult, StageRun, Step
from pipeline.sources.reading import root_of
from pipeline.stages.fetch_rounds import (
    FetchedFiles,
    FetchInputs,
    PicturesInputs,
    rows_to_fetch,
    view_fetched,
)
from pipeline.store.buckets import rows_of_bucket
from pipeline.store.files import Files
from pipeline.store.sql import copy_sorted, cut_rows, view_parquet
from pipeline.store.writing import private_file

VERSION = 5
SORTED_GROUP_ROWS = 10_000
"""Of a row group of sorted facts: a bucket reads those that hold its ids."""


@dataclass(frozen=True)
class SortInputs:
    """Facts of pictures, in files of any order."""

    fetched: Files


def read(inputs: PicturesInputs, run: Execution[dict[str, str]]) -> PartResult:
    """Measure the pictures of one part into a pool tar and a table of facts; `run.how` is the folder of each source."""
    todo = pq.ParquetFile(inputs.rows.path).read_row_group(inputs.rows.number)
    rows = list(zip(*(todo[name].to_pylist() for name in ("sample_id", "source", "locator")), strict=True))
    temp = new_pool_file(run)
    facts = read_local(rows, run.how, inputs.image, temp, with_c2pa=bool(inputs.deciding))
    locators = {sample_id: locator for sample_id, _, locator in rows}
    return finish(facts, locators, {"round": inputs.round}, temp, run.stem, run)


def new_pool_file(run: Execution[Any]) -> str:
    """A private name to write a pool file under."""
    storage.make_folder(storage.join(run.workdir, "pool"))
    return storage.temp_path(storage.join(run.workdir, f"pool/{run.stem}.tar"))


def finish(
    facts: pa.Table,
    addresses: Mapping[str, str],
    notes: Mapping[str, Any],
    temp: str,
    name: str,
    run: Execution[Any],
    is_piece: bool = False,
) -> PartResult:
    """The result of a part, or of a piece of one, whose files will be called `name`.

    It is the pool file, written as `temp`, and the facts with pool file, address (URL or locator) and the round that
    the notes name. To the notes come the first and the last of its ids.
    """
    names = [f"{name}.tar" if offset is not None else None for offset in facts["offset"].to_pylist()]
    facts = facts.set_column(facts.schema.get_field_index("pool_file"), "pool_file", pa.array(names, pa.string()))
    address = pa.array([addresses[sample_id] for sample_id in facts["sample_id"].to_pylist()], pa.string())
    facts = facts.append_column("url", address)
    facts = facts.append_column("round", pa.array([notes["round"]] * facts.num_rows, pa.int32()))
    table = run.write("fetched", f"tables/fetch/{name}.parquet", facts, tables.FETCHED)
    counts = {entry["values"]: entry["counts"] for entry in facts["outcome"].value_counts().to_pylist()}
    num_ok = counts.pop("ok", 0)
    pool = private_file("pool", f"pool/{name}.tar", temp, num_ok)
    if facts.num_rows:
        notes = {**notes, "ids": list(pc.min_max(facts["sample_id"]).as_py().values())}
    return PartResult((pool, table), Funnel(facts.num_rows, num_ok, counts), notes, is_piece)


def _plan(inputs: FetchInputs, run: StageRun[dict[str, str]]) -> Sequence[Part[PicturesInputs]]:
    """The rows that no part has measured, with the pictures of one file together, cut into parts of equal length."""
    columns = "sample_id, source, locator, row_number"
    with run.scratch() as sql:
        view_parquet(sql, "candidates", inputs.candidates.paths)
        view_fetched(sql, [FetchedFiles(run.files_of(_measured(inputs, run), "fetched"), ())], inputs.consent)
        groups = cut_rows(
            sql,
            rows_to_fetch(run.fetch_round, columns, "locator", "locator IS NOT NULL"),
            "source, row_number",
            "sample_id || chr(31) || locator",
            run.scratch_file("local-todo.parquet"),
            run.settings.fetch_part_size,
        )
    deciding, reuse = _deciding(inputs), _reuse(inputs)
    return [
        Part(PicturesInputs(rows, inputs.image, deciding, inputs.round), reuse, num_rows) for rows, num_rows in groups
    ]


def _deciding(inputs: FetchInputs) -> tuple[tuple[str, str], ...]:
    """C2PA's assertion is read only where it counts; what else a picture says of itself always is."""
    return ((Outcome.OPTED_OUT.value, "c2pa_training"),) if "c2pa_training" in inputs.consent.signals else ()


def _reuse(inputs: FetchInputs) -> tuple[ImageSettings, tuple[tuple[str, str], ...]]:
    return inputs.image, _deciding(inputs)


def _measured(inputs: FetchInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    values = {"local": 5, "image": inputs.image.model_dump(mode="json")}
    before = fingerprint(values | {"deciding": deciding} if (deciding := _deciding(inputs)) else values)
    measured = run.made_of("local", _reuse(inputs), {5: before})
    return [part for part in measured if part.notes["round"] <= inputs.round]


def _roots(context: BuildContext) -> dict[str, str]:
    return {source.name: root for source in context.config.sources if (root := root_of(source)) is not None}


def sort(inputs: SortInputs, run: Execution[None]) -> PartResult:
    """The facts in the order of their ids."""
    with run.scratch() as sql:
        view_fetched(sql, [FetchedFiles(inputs.fetched, ())])
        path = f"tables/fetch/sorted-{run.stem}.parquet"
        writer = run.writer("sorted", path, tables.FETCHED, SORTED_GROUP_ROWS)
        return PartResult((copy_sorted(sql, "FROM parts", "sample_id, url, round, pool_file, outcome", writer),))


def _plan_sort(inputs: FetchInputs, run: StageRun[None]) -> Sequence[Part[SortInputs]]:
    """As many files a part as fit the memory; no part where one bucket takes all."""
    if len(run.buckets(inputs.candidates)) == 1:
        return []
    most, chunks, room = rows_of_bucket(run.settings.memory_gb), list[list[PartRecord]](), 0
    for part in sorted(run.parts("local"), key=lambda part: part.key):
        num_rows = part.funnel.num_in if part.funnel else 0
        if not chunks or num_rows > room:
            chunks.append([])
            room = most
        room -= num_rows
        chunks[-1].append(part)
    return [Part(SortInputs(run.files_of(chunk, "fetched"))) for chunk in chunks]


STEP = Step("local", _plan, read, version=VERSION, how=_roots, unit="images", committed=_measured)
SORT = Step("sort", _plan_sort, sort, prepares=True)
