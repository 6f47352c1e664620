"""dedup: measure which images look alike. `select` decides which duplicate to keep, since only it has seen every rule.

Reads facts. Writes `pairs`: every pair of different pHashes within the radius, as they are or one of them mirrored, by
an exact search. Drops nothing: if the better of two duplicates later falls to a caption rule, the other one must still
be there.

One search finds both kinds of pairs, for it looks at the hashes of pictures and of their mirror images together. Facts
of earlier versions lack the latter; they are measured from the pool (`mirrors`).

Hashes that no earlier build has seen become a segment. Pairs within a segment, and between two segments, are parts that
any later build finds again. So new sources are matched against the old ones, the old ones are not matched again, and a
smaller radius searches nothing. What `pairs` holds follows from the facts and the radius alone.

Where a near copy has another size, the detail of both is measured from the pool (`details`), so that `select` keeps the
original and not a copy of it that was blown up.

Images of evaluation sets are measured and matched here too (dedup_evaluation.py), and so are pictures that mean the
same (dedup_semantic.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from manifests import tables
from manifests.pictures.opening import open_stored
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline import config
from pipeline.matching.mirrors import FLAT_BITS, make_pairs
from pipeline.matching.search import Hashes, bit_entropies, distinct_of
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
from pipeline.pictures.image import measure_pixels
from pipeline.pictures.phash import one_blas_thread
from pipeline.runner.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.stages import dedup_evaluation as evaluation
from pipeline.stages import dedup_semantic as semantic
from pipeline.stages.dedup_inputs import DedupInputs
from pipeline.store.files import Files, RowGroup
from pipeline.store.pool import STORED_COLUMNS, PoolReader
from pipeline.store.sql import copy_sorted, cut_rows, view_parquet, view_table

VERSION = 3
MAX_NAMED_PLACEHOLDERS = 20
SEGMENT = pa.schema([("phash", pa.uint64())])  # of pictures and of mirror images; distinct, ascending
FOUND = pa.schema([("hash_a", pa.uint64()), ("hash_b", pa.uint64()), ("distance", pa.uint8())])
MIRRORS = pa.schema([("pixels_sha256", pa.string()), ("phash_mirrored", pa.uint64())])
_ONE_COLOUR = 1 << 63
_ROW_BYTES = 66  # memory that the two hashes of a row take while equal ones are removed
_READ_ROWS = 1 << 20
_EVERY = ()  # a segment serves every build that has its hashes
PICTURES_PART_ROWS = 2_000


# ---- pictures of the pool, each measured once for all builds


@dataclass(frozen=True)
class PicturesInputs:
    """The pictures of one part."""

    rows: RowGroup


def _measure(
    inputs: PicturesInputs, run: Execution[None], measure: Callable[[Image.Image], int], schema: pa.Schema
) -> pa.Table:
    """`pixels_sha256` of each picture, and what is measured of it."""
    rows = pq.ParquetFile(inputs.rows.path).read_row_group(inputs.rows.number).to_pylist()
    measures = []
    with PoolReader(run.workdir) as pool, one_blas_thread():
        for stored in pool.read_rows(rows):
            with open_stored(stored) as image:
                measures.append(measure(image))
    return pa.table([[row["pixels_sha256"] for row in rows], measures], schema=schema)


def _cut_pictures(run: StageRun[Any], sql: Any, query: str, name: str) -> list[Part[PicturesInputs]]:
    path = run.scratch_file(f"{name}-todo.parquet")
    groups = cut_rows(sql, query, 'pool_file, "offset"', "pixels_sha256", path, PICTURES_PART_ROWS)
    return [Part(PicturesInputs(rows), _EVERY, num_rows) for rows, num_rows in groups]


def measure_mirrored(inputs: PicturesInputs, run: Execution[None]) -> PartResult:
    """pHashes of the mirror images of one row group of pictures."""
    table = _measure(inputs, run, lambda image: measure_pixels(image).phash_mirrored, MIRRORS)
    return PartResult((run.write("mirrors", f"tables/dedup/mirrors-{run.stem}.parquet", table, MIRRORS),))


def _plan_mirror(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[PicturesInputs]]:
    """Pictures that an earlier version fetched, which did not measure this."""
    evaluation.check_readable(inputs, run)  # before the work that would be in vain
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "mirrors", run.files_of(_mirrors(inputs, run), "mirrors"), MIRRORS)
        rows = (
            f"FROM (SELECT DISTINCT ON (pixels_sha256) pixels_sha256, {STORED_COLUMNS} FROM facts WHERE outcome = 'ok' "
            "AND phash_mirrored IS NULL ORDER BY pixels_sha256, sample_id) ANTI JOIN mirrors USING (pixels_sha256)"
        )
        return _cut_pictures(run, sql, rows, "mirror")


def _mirrors(inputs: DedupInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    return run.made_of("mirror", _EVERY)


# ---- segments


@dataclass(frozen=True)
class SegmentInputs:
    """The facts, what they lack of mirror images, and the segments that hold what earlier builds have seen."""

    facts: Files
    mirrors: Files
    known: Files


def cut_segment(inputs: SegmentInputs, run: Execution[None]) -> PartResult:
    """The pHashes of fetched images and their mirror images that no known segment holds, ascending."""
    writer = run.writer("segment", f"tables/dedup/segment-{run.stem}.parquet", SEGMENT)
    num_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in inputs.facts.paths)
    num_passes = 1 << max(0, (int(num_rows * _ROW_BYTES / (run.memory_gb * 1e9))).bit_length())
    sample = []
    for number in range(num_passes):  # each pass takes the hashes with certain leading bits, to fit the memory
        alive = distinct_of(_read_phashes(inputs, number, num_passes))
        fresh = new_hashes(alive, (_stream(file) for file in inputs.known.paths))
        del alive
        sample.append(fresh[:: max(1, len(fresh) * num_passes // 4096)])
        for start in range(0, len(fresh), _READ_ROWS):
            writer.write(pa.table({"phash": pa.array(fresh[start : start + _READ_ROWS], pa.uint64())}))
    file = writer.close()
    entropies = bit_entropies(np.concatenate(sample), 64) if file.num_rows else ()
    notes = {
        "cut_for": [inputs.facts.identity(), inputs.mirrors.identity()],
        "stands_on": inputs.known.identity(),
        "num_hashes": file.num_rows,
        "bit_entropies": [round(value, 6) for value in entropies],
    }
    return PartResult((file,), None, notes)


def _read_phashes(inputs: SegmentInputs, number: int, num_passes: int) -> Hashes:
    pieces = [np.empty(0, np.uint64)]

    def take(values: Any, least_bits: int) -> None:
        hashes = values.drop_null().to_numpy(zero_copy_only=False).astype(np.uint64)
        mine = np.bitwise_count(hashes) >= least_bits
        if num_passes > 1:
            mine &= hashes >> np.uint64(65 - num_passes.bit_length()) == np.uint64(number)
        pieces.append(hashes[mine])

    for file in inputs.facts.paths:
        for batch in pq.ParquetFile(file).iter_batches(_READ_ROWS, columns=["outcome", "phash", "phash_mirrored"]):
            ok = pa.compute.equal(batch["outcome"], "ok")
            take(batch["phash"].filter(ok), 0)
            take(batch["phash_mirrored"].filter(ok), FLAT_BITS + 1)
    for file in inputs.mirrors.paths:
        take(pq.read_table(file)["phash_mirrored"], FLAT_BITS + 1)
    return np.concatenate(pieces)


def _stream(file: str) -> Iterator[Hashes]:
    for batch in pq.ParquetFile(file).iter_batches(_READ_ROWS):
        yield batch["phash"].to_numpy()


def _plan_segment(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[SegmentInputs] | PartRecord]:
    covering = _covering_segment(inputs, run)
    if covering is not None:
        return [covering]
    segments = run.files_of(_known_segments(run), "segment")
    return [Part(SegmentInputs(inputs.facts, run.files("mirror", "mirrors"), segments), _EVERY)]


def _known_segments(run: StageRun[Any]) -> list[PartRecord]:
    return run.made_of("segment", _EVERY)


def _content_of(part: PartRecord) -> str:
    return next(file.sha256 for file in part.files if file.table == "segment")


def _covering_segment(inputs: DedupInputs, run: StageRun[Any]) -> PartRecord | None:
    """A segment that was cut for exactly these hashes, if all segments that it builds on are still there."""
    segments = _known_segments(run)
    contents = {_content_of(part) for part in segments}
    cut_for = [inputs.facts.identity(), run.files("mirror", "mirrors").identity()]
    return next(
        (p for p in segments if p.notes["cut_for"] == cut_for and contents.issuperset(p.notes["stands_on"])), None
    )


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
    rows = pa.table({"hash_a": low, "hash_b": high, "distance": np.bitwise_count(low ^ high)})
    sizes = [segment.num_hashes for segment in inputs.sizes]
    notes = {"num_hashes": sizes, "radius": inputs.radius, "num_units": inputs.num_units}
    file = run.write("found_pairs", f"tables/dedup/pairs-{run.stem}.parquet", rows, FOUND)
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
    for part in run.made_of("search", _contents(group)):
        done.setdefault((part.notes["radius"], part.notes["num_units"]), []).append(part)
    whole = (key for key in sorted(done) if key[0] >= radius and len(done[key]) == key[1])
    return done.get(next(whole, (-1, 0)), [])


def _new_units(radius: int, run: StageRun[None], group: Sequence[PartRecord]) -> list[Part[SearchInputs]]:
    sizes = tuple(Segment(part.notes["num_hashes"], tuple(part.notes["bit_entropies"])) for part in group)
    plan = plan_within(sizes[0], radius) if len(sizes) == 1 else plan_between(sizes[0], sizes[1], radius)
    units = cut_units(sum(segment.num_hashes for segment in sizes), plan, config.MATCH_PART_HASHES)
    segments = run.files_of(group, "segment")
    return [Part(SearchInputs(segments, sizes, radius, unit, len(units)), _contents(group)) for unit in units]


# ---- all pairs of this build


@dataclass(frozen=True)
class CollectInputs:
    """All pairs of hashes that were found, and the pictures whose pairs are kept."""

    facts: Files
    mirrors: Files
    found_pairs: Files
    radius: int
    placeholder_min_count: int


def collect(inputs: CollectInputs, run: Execution[None]) -> PartResult:
    """One sorted table of the pairs within the radius that this build has, and the placeholders by name."""
    writer = run.writer("pairs", f"tables/dedup/{run.stem}.parquet", tables.PAIRS)
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "mirrors", inputs.mirrors, MIRRORS)
        view_table(sql, "found", inputs.found_pairs, FOUND)
        make_pairs(sql, inputs.radius)
        file = copy_sorted(sql, "FROM pairs", "phash_a, phash_b", writer)
        ((num_hashes,),) = sql.execute("SELECT count(DISTINCT phash) FROM hashes").fetchall()
        placeholders = _name_placeholders(sql, inputs.placeholder_min_count)
    notes = {
        "num_hashes": num_hashes,
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
        f"CREATE VIEW shown AS SELECT pixels_sha256, CASE WHEN bit_count(phash::HUGEINT) <= {FLAT_BITS} "
        f"THEN {_ONE_COLOUR}::UBIGINT ELSE phash END AS phash FROM facts WHERE outcome = 'ok'"
    )
    sql.execute(f"CREATE TABLE often AS SELECT phash FROM shown GROUP BY phash HAVING count(*) >= {min_count}")
    rows = sql.execute(
        "SELECT phash, count(DISTINCT pixels_sha256) AS num FROM shown JOIN often USING (phash) "
        f"GROUP BY phash HAVING num >= {min_count} ORDER BY num DESC, phash LIMIT {MAX_NAMED_PLACEHOLDERS}"
    ).fetchall()
    return {f"{phash:016x}": num for phash, num in rows}


def _plan_collect(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[CollectInputs]]:
    mirrors, pairs = run.files("mirror", "mirrors"), run.files("search", "found_pairs")
    return [Part(CollectInputs(inputs.facts, mirrors, pairs, inputs.radius, inputs.placeholder_min_count))]


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


def measure_detail(inputs: PicturesInputs, run: Execution[None]) -> PartResult:
    """Detail of one row group of pictures."""
    table = _measure(inputs, run, detail_px, tables.DETAILS)
    return PartResult((run.write("found_details", f"tables/dedup/detail-{run.stem}.parquet", table, tables.DETAILS),))


def _plan_detail(inputs: DedupInputs, run: StageRun[None]) -> Sequence[Part[PicturesInputs]]:
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "pairs", run.files("collect", "pairs"), tables.PAIRS)
        view_table(sql, "found", run.files_of(_details_found(inputs, run), "found_details"), tables.DETAILS)
        sql.execute(_WANTED_DETAILS)
        return _cut_pictures(run, sql, "FROM wanted ANTI JOIN found USING (pixels_sha256)", "detail")


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
    details = run.files("detail", "found_details")
    return [Part(DetailsInputs(inputs.facts, run.files("collect", "pairs"), details))] if details else []


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
        Step("mirror", _plan_mirror, measure_mirrored, unit="images", committed=_mirrors),
        Step("segment", _plan_segment, cut_segment, version=VERSION, committed=_segments_below),
        Step("search", _plan_search, search, version=VERSION),
        Step("collect", _plan_collect, collect, version=4),
        Step("detail", _plan_detail, measure_detail, unit="images", committed=_details_found),
        Step("details", _plan_details, collect_details),
        evaluation.FIND_LEAKS,
        semantic.EMBED,
        semantic.CLUSTER,
        semantic.COMPARE,
    ),
    conclude=_conclude,
)
