"""dedup: measure which images look alike. `select` decides which duplicate to keep, since only it has seen every rule.

Reads facts. Writes `pairs`: every pair of different pHashes within the radius, by an exact search. Drops nothing: if
the better of two duplicates later falls to a caption rule, the other one must still be there.

Hashes that no earlier build has seen become a segment. Pairs within a segment, and between two segments, are parts that
any later build finds again. So new sources are matched against the old ones, the old ones are not matched again, and a
smaller radius searches nothing. What `pairs` holds follows from the facts and the radius alone.

Where a near copy has another size, the detail of both is measured from the pool (`details`), so that `select` keeps the
original and not a copy of it that was blown up.

Images of evaluation sets are measured and matched here too (dedup_evaluation.py), and so are pictures that mean the
same (dedup_semantic.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
from manifests.pictures.opening import open_stored
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline.matching.pairs import distinct_of
from pipeline.matching.search import Hashes, bit_entropies
from pipeline.matching.segments import (
    Segment,
    Unit,
    cut_units,
    new_hashes,
    plan_between,
    plan_within,
    search_between,
    search_within,
)
from pipeline.pictures.detail import detail_px
from pipeline.runner.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.stages import dedup_evaluation as evaluation
from pipeline.stages import dedup_semantic as semantic
from pipeline.stages.dedup_inputs import DedupInputs
from pipeline.store.files import Files, RowGroup
from pipeline.store.pool import STORED_COLUMNS, PoolReader
from pipeline.store.sql import copy_sorted, cut_rows, view_parquet, view_table

VERSION = 2
MAX_NAMED_PLACEHOLDERS = 20
SEGMENT = pa.schema([("phash", pa.uint64())])  # distinct, ascending
_ONE_COLOUR = 1 << 63
_ROW_BYTES = 33  # memory a hash takes while equal ones are removed
_READ_ROWS = 1 << 20
_EVERY = ()  # a segment serves every build that has its hashes
DETAIL_PART_ROWS = 2_000


# ---- segments


@dataclass(frozen=True)
class SegmentInputs:
    """The facts, and the segments that hold what earlier builds have seen."""

    facts: Files
    known: Files


def cut_segment(inputs: SegmentInputs, run: Execution[None]) -> PartResult:
    """The pHashes of fetched images that no known segment holds, ascending."""
    writer = run.writer("segment", f"tables/dedup/segment-{run.stem}.parquet", SEGMENT)
    num_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in inputs.facts.paths)
    num_passes = 1 << max(0, (int(num_rows * _ROW_BYTES / (run.memory_gb * 1e9))).bit_length())
    num_alive, sample = 0, []
    for number in range(num_passes):  # each pass takes the hashes with certain leading bits, to fit the memory
        alive = distinct_of(_read_phashes(inputs.facts.paths, number, num_passes))
        num_alive += len(alive)
        fresh = new_hashes(alive, (_stream(file) for file in inputs.known.paths))
        del alive
        sample.append(fresh[:: max(1, len(fresh) * num_passes // 4096)])
        for start in range(0, len(fresh), _READ_ROWS):
            writer.write(pa.table({"phash": pa.array(fresh[start : start + _READ_ROWS], pa.uint64())}))
    file = writer.close()
    entropies = bit_entropies(np.concatenate(sample), 64) if file.num_rows else ()
    notes = {
        "facts": inputs.facts.identity(),
        "stands_on": inputs.known.identity(),
        "num_hashes": file.num_rows,
        "num_alive": num_alive,
        "bit_entropies": [round(value, 6) for value in entropies],
    }
    return PartResult((file,), None, notes)


def _read_phashes(files: Sequence[str], number: int, num_passes: int) -> Hashes:
    pieces = [np.empty(0, np.uint64)]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(_READ_ROWS, columns=["outcome", "phash"]):
            ok = pa.compute.equal(batch["outcome"], "ok")
            values = batch["phash"].filter(ok).to_numpy(zero_copy_only=False).astype(np.uint64)
            if num_passes > 1:
                values = values[values >> np.uint64(65 - num_passes.bit_length()) == np.uint64(number)]
            pieces.append(values)
    return np.concatenate(pieces)


def _stream(file: str) -> Iterator[Hashes]:
    for batch in pq.ParquetFile(file).iter_batches(_READ_ROWS):
        yield batch["phash"].to_numpy()


def _plan_segment(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[SegmentInputs] | PartRecord]:
    evaluation.check_readable(inputs, run)  # before the search, which would be in vain
    covering = _covering_segment(inputs, run)
    if covering is not None:
        return [covering]
    known = run.files_of(_known_segments(run), "segment")
    return [Part(SegmentInputs(inputs.facts, known), _EVERY)]


def _known_segments(run: StageRun[Any]) -> list[PartRecord]:
    return run.made_of("segment", _EVERY, {2: fingerprint({"version": 2, "step": "segment"})})


def _content_of(part: PartRecord) -> str:
    return next(file.sha256 for file in part.files if file.table == "segment")


def _covering_segment(inputs: DedupInputs, run: StageRun[Any]) -> PartRecord | None:
    """A segment that was cut for exactly these facts, if all segments that it builds on are still there."""
    known = _known_segments(run)
    contents = {_content_of(part) for part in known}
    facts = inputs.facts.identity()
    return next((p for p in known if p.notes["facts"] == facts and contents.issuperset(p.notes["stands_on"])), None)


def _segments_below(inputs: DedupInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    """The older segments that hold the rest of the hashes."""
    covering = _covering_segment(inputs, run)
    if covering is None:
        return _known_segments(run)
    return [part for part in _known_segments(run) if _content_of(part) in covering.notes["stands_on"]]


# ---- search


@dataclass(frozen=True)
class SearchInputs:
    """One unit of the search within one segment, or between two."""

    segments: Files
    sizes: tuple[Segment, ...]
    radius: int
    unit: Unit
    num_units: int


def search(inputs: SearchInputs, run: Execution[None]) -> PartResult:
    """Pairs of one unit of one segment, or of two."""
    memory = int(run.memory_gb * 1e9)
    streams = [lambda file=file: _stream(file) for file in inputs.segments.paths]
    if len(inputs.sizes) == 1:
        plan = plan_within(inputs.sizes[0], inputs.radius)
        low, high = search_within(streams[0], plan, inputs.unit, memory_bytes=memory)
    else:
        plan = plan_between(inputs.sizes[0], inputs.sizes[1], inputs.radius)
        low, high = search_between(streams[0], streams[1], plan, inputs.unit, memory_bytes=memory)
    rows = pa.table({"phash_a": low, "phash_b": high, "distance": np.bitwise_count(low ^ high)})
    sizes = [segment.num_hashes for segment in inputs.sizes]
    notes = {"num_hashes": sizes, "radius": inputs.radius, "num_units": inputs.num_units}
    file = run.write("found_pairs", f"tables/dedup/pairs-{run.stem}.parquet", rows, tables.PAIRS)
    return PartResult((file,), None, notes)


def _plan_search(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[SearchInputs] | PartRecord]:
    """All units; those that an earlier build searched at a radius as large are taken as they are."""
    segments = sorted((p for p in run.parts("segment") if p.notes["num_hashes"]), key=_by_size)
    groups = [[a] for a in segments] + [[a, b] for at, a in enumerate(segments) for b in segments[at + 1 :]]
    parts: list[Part[SearchInputs] | PartRecord] = []
    for group in groups:
        parts += _done_units(inputs.radius, run, group) or _new_units(inputs.radius, run, group)
    return parts


def _by_size(part: PartRecord) -> tuple[int, str]:
    return -part.notes["num_hashes"], _content_of(part)


def _contents(group: Sequence[PartRecord]) -> list[str]:
    return [file.sha256 for part in group for file in part.files]


def _done_units(radius: int, run: StageRun[None], group: Sequence[PartRecord]) -> list[PartRecord]:
    """The committed units of the smallest radius that is large enough, if all of them are there."""
    done: dict[tuple[int, int], list[PartRecord]] = {}
    contents = _contents(group)
    for part in run.made_of("search", contents, {2: fingerprint({"version": 2, "segments": contents})}):
        done.setdefault((part.notes["radius"], part.notes["num_units"]), []).append(part)
    whole = (key for key in sorted(done) if key[0] >= radius and len(done[key]) == key[1])
    return done.get(next(whole, (-1, 0)), [])


def _new_units(radius: int, run: StageRun[None], group: Sequence[PartRecord]) -> list[Part[SearchInputs]]:
    sizes = tuple(Segment(part.notes["num_hashes"], tuple(part.notes["bit_entropies"])) for part in group)
    plan = plan_within(sizes[0], radius) if len(sizes) == 1 else plan_between(sizes[0], sizes[1], radius)
    units = cut_units(sum(segment.num_hashes for segment in sizes), plan, run.settings.match_part_hashes)
    segments = run.files_of(group, "segment")
    return [Part(SearchInputs(segments, sizes, radius, unit, len(units)), _contents(group)) for unit in units]


# ---- all pairs of this build


@dataclass(frozen=True)
class CollectInputs:
    """All pairs that were found, and the facts whose pairs are kept."""

    facts: Files
    found_pairs: Files
    radius: int
    placeholder_min_count: int
    num_alive: int
    """Distinct pHashes of the facts."""
    others: bool
    """Whether some segment holds hashes of images that are no longer part of the build."""


def collect(inputs: CollectInputs, run: Execution[None]) -> PartResult:
    """One sorted table of the pairs within the radius whose hashes this build has, and the placeholders by name."""
    writer = run.writer("pairs", f"tables/dedup/{run.stem}.parquet", tables.PAIRS)
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "found", inputs.found_pairs, tables.PAIRS)
        here = "true"
        if inputs.others:
            sql.execute("CREATE TABLE alive AS SELECT DISTINCT phash FROM facts WHERE outcome = 'ok'")
            here = "phash_a IN (SELECT phash FROM alive) AND phash_b IN (SELECT phash FROM alive)"
        file = copy_sorted(
            sql,
            f"SELECT * FROM found WHERE distance <= {inputs.radius} AND {here}",
            "phash_a, phash_b",
            writer,
        )
        placeholders = _name_placeholders(sql, inputs.placeholder_min_count)
    notes = {
        "num_hashes": inputs.num_alive,
        "num_hash_pairs": file.num_rows,
        "radius": inputs.radius,
        "placeholders": placeholders,
    }
    return PartResult((file,), None, notes)


def _name_placeholders(sql: Any, min_count: int) -> dict[str, int]:
    """pHashes that many images of different pixels share, most frequent first; one image of many URLs counts once.

    Flat pictures are named together, under the hash of a picture of one colour.
    """
    sql.execute(
        f"CREATE VIEW shown AS SELECT pixels_sha256, CASE WHEN bit_count(phash::HUGEINT) <= {evaluation.FLAT_BITS} "
        f"THEN {_ONE_COLOUR}::UBIGINT ELSE phash END AS phash FROM facts WHERE outcome = 'ok'"
    )
    sql.execute(f"CREATE TABLE often AS SELECT phash FROM shown GROUP BY phash HAVING count(*) >= {min_count}")
    rows = sql.execute(
        "SELECT phash, count(DISTINCT pixels_sha256) AS num FROM shown JOIN often USING (phash) "
        f"GROUP BY phash HAVING num >= {min_count} ORDER BY num DESC, phash LIMIT {MAX_NAMED_PLACEHOLDERS}"
    ).fetchall()
    return {f"{phash:016x}": num for phash, num in rows}


def _plan_collect(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[CollectInputs]]:
    segments = run.parts("segment")
    facts = inputs.facts.identity()
    num_alive = next(part.notes["num_alive"] for part in segments if part.notes["facts"] == facts)
    others = sum(part.notes["num_hashes"] for part in segments) > num_alive
    found = run.files("search", "found_pairs")
    return [Part(CollectInputs(inputs.facts, found, inputs.radius, inputs.placeholder_min_count, num_alive, others))]


# ---- detail of near copies

# Pictures that have a near copy of another size. Equal pixels have equal pHashes and sizes, so that the few hashes are
# found first, over narrow columns, and only their pictures are looked at whole.
_WANTED_DETAILS = f"""
    CREATE TABLE sizes AS SELECT DISTINCT phash, stored_width_px::BIGINT * stored_height_px AS num_pixels
        FROM facts WHERE outcome = 'ok';
    CREATE TABLE several AS SELECT phash FROM sizes GROUP BY phash HAVING count(*) > 1
        UNION SELECT unnest([phash_a, phash_b]) FROM pairs JOIN sizes a ON a.phash = phash_a
        JOIN sizes b ON b.phash = phash_b WHERE a.num_pixels <> b.num_pixels;
    CREATE TABLE wanted AS SELECT DISTINCT ON (pixels_sha256) pixels_sha256, {STORED_COLUMNS}
        FROM facts SEMI JOIN several USING (phash) WHERE outcome = 'ok' ORDER BY pixels_sha256, sample_id
"""


@dataclass(frozen=True)
class DetailInputs:
    """The pictures of one part."""

    rows: RowGroup


def measure_detail(inputs: DetailInputs, run: Execution[None]) -> PartResult:
    """Detail of one row group of pictures."""
    rows = pq.ParquetFile(inputs.rows.path).read_row_group(inputs.rows.number).to_pylist()
    found = []
    with PoolReader(run.workdir) as pool:
        for stored in pool.read_rows(rows):
            with open_stored(stored) as image:
                found.append(detail_px(image))
    table = pa.table([[row["pixels_sha256"] for row in rows], found], schema=tables.DETAILS)
    return PartResult((run.write("found_details", f"tables/dedup/detail-{run.stem}.parquet", table, tables.DETAILS),))


def _plan_detail(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[DetailInputs]]:
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "pairs", run.files("collect", "pairs"), tables.PAIRS)
        view_table(sql, "found", run.files_of(_details_found(inputs, run), "found_details"), tables.DETAILS)
        sql.execute(_WANTED_DETAILS)
        groups = cut_rows(
            sql,
            "FROM wanted ANTI JOIN found USING (pixels_sha256)",
            "pixels_sha256",
            "pixels_sha256",
            run.scratch_file("detail-todo.parquet"),
            DETAIL_PART_ROWS,
        )
    return [Part(DetailInputs(rows), _EVERY, num_rows) for rows, num_rows in groups]


def _details_found(inputs: DedupInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    return run.made_of("detail", _EVERY, {1: fingerprint({"step": "dedup.detail", "version": 1})})


@dataclass(frozen=True)
class DetailsInputs:
    """All details that were ever measured, and what says which of them this build wants."""

    facts: Files
    pairs: Files
    found: Files


def collect_details(inputs: DetailsInputs, run: Execution[None]) -> PartResult:
    """One sorted table of the details that this build wants, whichever build measured them."""
    writer = run.writer("details", f"tables/dedup/details-{run.stem}.parquet", tables.DETAILS)
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "pairs", inputs.pairs, tables.PAIRS)
        view_table(sql, "found", inputs.found, tables.DETAILS)
        sql.execute(_WANTED_DETAILS)
        rows = "SELECT DISTINCT pixels_sha256, detail_px FROM found SEMI JOIN wanted USING (pixels_sha256)"
        return PartResult((copy_sorted(sql, rows, "pixels_sha256", writer),))


def _plan_details(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[DetailsInputs]]:
    found = run.files("detail", "found_details")
    return [Part(DetailsInputs(inputs.facts, run.files("collect", "pairs"), found))] if found else []


# ---- the stage


def _inputs(context: BuildContext) -> DedupInputs:
    dedup = context.config.dedup
    return DedupInputs(
        facts=context.facts(),
        candidates=evaluation.candidates_of(context),
        radius=dedup.radius,
        placeholder_min_count=dedup.placeholder_min_count,
        evaluation=evaluation.sets_of(context),
        image=context.config.fetch.image if context.config.evaluation else None,
        semantic=semantic.inputs_of(context),
        num_images=context.sealed["fetch"].funnel.num_kept,
    )


def _conclude(inputs: DedupInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    (part,) = run.parts("collect")
    notes = dict(part.notes)
    for leaks in run.parts("leaks"):
        notes |= leaks.notes
    return Funnel(inputs.num_images, inputs.num_images), notes


STAGE = Stage(
    name="dedup",
    about="find images that look alike (measured here, decided in select)",
    inputs=_inputs,
    steps=(
        evaluation.LIST_SETS,
        evaluation.MEASURE_SETS,
        Step("segment", _plan_segment, cut_segment, version=VERSION, committed=_segments_below),
        Step("search", _plan_search, search, version=VERSION),
        Step("collect", _plan_collect, collect, version=3),
        Step("detail", _plan_detail, measure_detail, unit="images", committed=_details_found),
        Step("details", _plan_details, collect_details),
        evaluation.FIND_LEAKS,
        semantic.EMBED,
        semantic.CLUSTER,
        semantic.COMPARE,
    ),
    conclude=_conclude,
)
