"""dedup: measure which images look alike. `select` decides which duplicate to keep, since only it has seen every rule.

Reads facts. Writes `pairs`: every pair of pictures whose hashes are near, as they are or one of them mirrored, by an
exact search. Drops nothing: if the better of two duplicates later falls to a caption rule, the other one must still
be there.

Where a near copy has another size, the detail of both is measured from the pool (`details`), so that `select` keeps the
original and not a copy of it that was blown up.

Images of evaluation sets are measured and matched here too (evaluation.py), and so are pictures that mean the
same (semantic.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.contract import tables
from manifests.contract.copies import FLAT_BITS
from manifests.contract.records import Funnel, PartRecord
from manifests.pictures.opening import open_stored
from pipeline import config
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.fetching.pictures.detail import detail_px
from pipeline.judging.matching.looks import distinct_hashes, make_pairs, view_shown
from pipeline.judging.matching.search import PAIRS_BYTES, Hashes, distinct_of, find_pairs
from pipeline.stages.dedup import evaluation, semantic
from pipeline.stages.dedup.semantic import DedupInputs
from pipeline.store.files import RowGroup
from pipeline.store.pool import STORED_COLUMNS, PoolReader
from pipeline.store.sql import cut_rows, view_parquet, view_table

MAX_NAMED_PLACEHOLDERS = 20
_ONE_COLOUR = 1 << 63
_EVERY = ()  # the detail of a picture is measured once, for every build that has it
PICTURES_PART_ROWS = 2_000


# ---- pairs


def _plan_pairs(inputs: DedupInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    evaluation.check_readable(inputs, run)  # before the work that would be in vain
    return [{}]


def find(inputs: Inputs, run: Execution[None], radius: int, placeholder_min_count: int) -> PartResult:
    """One sorted table of the pairs within the radius, and the placeholders by name."""
    with run.views(inputs) as sql:
        view_shown(sql)
        hashes, shared, num_hashes = distinct_hashes(sql)
    scratch = max(8, int(run.memory_gb * 1e9) - hashes.nbytes)
    low, high = find_pairs(hashes, radius, scratch_bytes=scratch, max_pairs=scratch // PAIRS_BYTES)
    low, high = np.append(low, shared), np.append(high, shared)
    near = pa.table({"hash_a": low, "hash_b": high, "distance": np.bitwise_count(low ^ high)})
    with run.views(inputs) as sql:
        view_shown(sql)
        sql.register("near", near)
        make_pairs(sql)
        file = run.save(sql, "pairs", "FROM pairs", "look_a, look_b")
        placeholders = _name_placeholders(sql, placeholder_min_count)
    notes = {"num_hashes": num_hashes, "num_hash_pairs": file.num_rows, "radius": radius}
    return PartResult((file,), None, notes | {"placeholders": placeholders})


def _name_placeholders(sql: Any, min_count: int) -> dict[str, int]:
    """pHashes that many images of different pixels share, most frequent first; one image of many URLs counts once.

    Flat pictures are named together, under the hash of a picture of one colour. Reads `shown`, sorted here: GROUP BY
    over 13 M rows takes ten times the CPU seconds.
    """
    values: Hashes = sql.sql("SELECT phash FROM shown").fetchnumpy()["phash"]
    values[np.bitwise_count(values) <= FLAT_BITS] = _ONE_COLOUR
    values.sort()
    last_of_many = values[min_count - 1 :]  # of equal hashes in a row
    often = last_of_many[last_of_many == values[: len(last_of_many)]]
    sql.register("often", pa.table({"phash": distinct_of(often)}))
    sql.execute(
        f"CREATE VIEW named AS SELECT pixels_sha256, CASE WHEN bit_count(phash::HUGEINT) <= {FLAT_BITS} "
        f"THEN {_ONE_COLOUR}::UBIGINT ELSE phash END AS phash FROM facts WHERE outcome = 'ok'"
    )
    rows = sql.execute(
        "SELECT phash, count(DISTINCT pixels_sha256) AS num FROM named JOIN often USING (phash) "
        f"GROUP BY phash HAVING num >= {min_count} ORDER BY num DESC, phash LIMIT {MAX_NAMED_PLACEHOLDERS}"
    ).fetchall()
    return {f"{phash:016x}": num for phash, num in rows}


# ---- detail of near copies

# Pictures that have a near copy of another size. Equal pixels have equal looks and sizes, so that the few looks are
# found first, over narrow columns, and only their pictures are looked at whole.
_WANTED_DETAILS = f"""
    CREATE TABLE sizes AS SELECT DISTINCT look, stored_width_px::BIGINT * stored_height_px AS num_pixels FROM shown;
    CREATE TABLE several AS SELECT look FROM sizes GROUP BY look HAVING count(*) > 1
        UNION SELECT unnest([look_a, look_b]) FROM pairs JOIN sizes a ON a.look = look_a
        JOIN sizes b ON b.look = look_b WHERE a.num_pixels <> b.num_pixels;
    CREATE TABLE wanted AS SELECT DISTINCT ON (pixels_sha256) pixels_sha256, {STORED_COLUMNS}
        FROM shown SEMI JOIN several USING (look) ORDER BY pixels_sha256, sample_id
"""


def measure_detail(_: Inputs, run: Execution[None], rows: RowGroup) -> PartResult:
    """Detail of one row group of pictures."""
    pictures, details = rows.read().to_pylist(), list[int]()
    with PoolReader(run.workdir) as pool:
        for stored in pool.read_rows(pictures):
            with open_stored(stored) as image:
                details.append(detail_px(image))
    table = pa.table([[row["pixels_sha256"] for row in pictures], details], schema=tables.DETAILS)
    return PartResult((run.write("found_details", table),))


def _view_wanted(sql: Any, inputs: DedupInputs, run: StageRun[None]) -> None:
    view_parquet(sql, "facts", inputs.facts.paths)
    view_shown(sql)
    view_table(sql, "pairs", run.files("pairs", "pairs"), tables.PAIRS)
    sql.execute(_WANTED_DETAILS)


def _plan_detail(inputs: DedupInputs, run: StageRun[None]) -> list[Part[dict[str, Any]]]:
    with run.scratch() as sql:
        _view_wanted(sql, inputs, run)
        view_table(sql, "found", run.files_of(_details_found(inputs, run), "found_details"), tables.DETAILS)
        rows = "FROM wanted ANTI JOIN found USING (pixels_sha256)"
        path = run.scratch_file("detail-todo.parquet")
        groups = cut_rows(sql, rows, 'pool_file, "offset"', "pixels_sha256", path, PICTURES_PART_ROWS)
    return [Part({"rows": rows}, _EVERY, num_rows) for rows, num_rows in groups]


def _details_found(inputs: DedupInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    return run.made_of("detail", _EVERY)


def collect_details(inputs: Inputs, run: Execution[None]) -> PartResult:
    """One sorted table of the details that this build wants, whichever build measured them."""
    with run.views(inputs) as sql:
        view_shown(sql)
        sql.execute(_WANTED_DETAILS)
        rows = "SELECT DISTINCT pixels_sha256, detail_px FROM found_details SEMI JOIN wanted USING (pixels_sha256)"
        return PartResult((run.save(sql, "details", rows, "pixels_sha256"),))


def _plan_details(inputs: DedupInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    """None where this build wants none, though an earlier one measured some: an empty table would be another input."""
    if not run.files("detail", "found_details"):
        return []
    with run.scratch() as sql:
        _view_wanted(sql, inputs, run)
        return [{}] if sql.execute("SELECT 1 FROM wanted LIMIT 1").fetchone() else []


# ---- the stage


def _inputs(context: BuildContext) -> DedupInputs:
    dedup = context.config.dedup
    return DedupInputs(
        facts=context.facts(),
        candidates=evaluation.candidates_of(context),
        radius=dedup.radius,
        placeholder_min_count=config.PLACEHOLDER_MIN_COUNT,
        evaluation=evaluation.sets_of(context),
        image=context.config.fetch.image if context.config.evaluation else None,
        semantic=semantic.inputs_of(context),
        num_images=context.sealed["fetch"].funnel.num_kept,
    )


def _conclude(inputs: DedupInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    (part,) = run.parts("pairs")
    notes = dict(part.notes)
    for leaks in run.parts("leaks"):
        notes |= leaks.notes
    return Funnel(inputs.num_images, inputs.num_images), notes


STAGE = Stage(
    name="dedup",
    about="find images that look alike (measured here, decided in select)",
    inputs=_inputs,
    tables={
        "members": evaluation.MEMBERS,
        "found_details": tables.DETAILS,
        "embeddings": semantic.EMBEDDINGS,
        "centroids": semantic.CENTROIDS,
    },
    steps=(
        evaluation.LIST_SETS,
        evaluation.MEASURE_SETS,
        Step("pairs", find, version=2, reads=("facts",), gives=("pairs",), plan=_plan_pairs),
        Step(
            "detail",
            measure_detail,
            gives=("found_details",),
            plan=_plan_detail,
            unit="images",
            committed=_details_found,
        ),
        Step(
            "details",
            collect_details,
            version=2,
            reads=("facts", "pairs", "found_details"),
            gives=("details",),
            plan=_plan_details,
        ),
        evaluation.FIND_LEAKS,
        semantic.EMBED,
        semantic.CLUSTER,
        semantic.COMPARE,
    ),
    conclude=_conclude,
)
