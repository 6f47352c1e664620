"""dedup: measure which images look alike; who of them stays is decided in select, where all else is known.

Reads facts. Writes `pairs`: every pair of different pHashes within the radius (exact search). Drops nothing:
if the better of two duplicates later falls to a caption rule, the other one must still be there.

Hashes that no earlier build has seen become a segment of their own; pairs within a segment, and between two, are
parts that any later build finds again: new sources are matched against the old ones, the old ones not once more, and
a smaller radius searches nothing. What `pairs` holds follows from the facts and the radius alone.

The images of evaluation sets are measured and matched here too, see stages/evaluation.py, and pictures that mean the
same, see stages/semantic.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
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
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.stages import dedup_evaluation as evaluation
from pipeline.stages import dedup_semantic as semantic
from pipeline.store.sql import copy_sorted, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, write_table

VERSION = 2
MAX_NAMED_PLACEHOLDERS = 20
SEGMENT = pa.schema([("phash", pa.uint64())])  # distinct, ascending
_ROW_BYTES = 33  # of memory a fact's hash takes while equal ones are collapsed
_READ_ROWS = 1 << 20


# ---- segments


def cut_segment(payload: dict[str, Any]) -> PartResult:
    """The pHashes of fetched images that no known segment holds, ascending."""
    path = f"tables/dedup/segment-{payload['stem']}.parquet"
    writer = TableWriter(payload["workdir"], "segment", path, SEGMENT)
    num_rows = sum(pq.ParquetFile(file).metadata.num_rows for file in payload["facts"])
    num_passes = 1 << max(0, (int(num_rows * _ROW_BYTES / (payload["memory_gb"] * 1e9))).bit_length())
    num_alive, sample = 0, []
    for number in range(num_passes):  # the hashes by their leading bits, so that a pass fits the memory
        alive = distinct_of(_read_phashes(payload["facts"], number, num_passes))
        num_alive += len(alive)
        fresh = new_hashes(alive, (_stream(file) for file in payload["known"]))
        del alive
        sample.append(fresh[:: max(1, len(fresh) * num_passes // 4096)])
        for start in range(0, len(fresh), _READ_ROWS):
            writer.write(pa.table({"phash": pa.array(fresh[start : start + _READ_ROWS], pa.uint64())}))
    file = writer.close()
    entropies = bit_entropies(np.concatenate(sample), 64) if file.num_rows else ()
    notes = {
        "facts": payload["facts_content"],
        "stands_on": payload["stands_on"],
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


def _plan_segment(context: BuildContext) -> Sequence[Part]:
    evaluation.check_readable(context)  # before the search: a set that cannot be matched ends the build anyway
    covering = _covering_segment(context)
    known = _known_segments(context)
    facts = context.sealed["fetch"].notes["content"]
    stands_on = sorted(part.key for part in known)
    key = covering.key if covering else fingerprint({"version": VERSION, "facts": facts, "stands_on": stands_on})
    payload = {
        "facts": context.files("fetch", "facts"),
        "facts_content": facts,
        "known": [path for part in known for path in context.paths(part, "segment")],
        "stands_on": stands_on,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload, _SEGMENTS)]


_SEGMENTS = fingerprint({"version": VERSION, "step": "segment"})


def _known_segments(context: BuildContext) -> list[PartRecord]:
    return list(context.catalog.parts_like("dedup", "segment", _SEGMENTS))


def _covering_segment(context: BuildContext) -> PartRecord | None:
    """A segment cut for these very facts, if all that it stands on is still there."""
    known = _known_segments(context)
    keys = {part.key for part in known}
    facts = context.sealed["fetch"].notes["content"]
    return next((p for p in known if p.notes["facts"] == facts and keys.issuperset(p.notes["stands_on"])), None)


def _segments_below(context: BuildContext) -> Sequence[PartRecord]:
    """The older segments that hold the rest of the hashes."""
    covering = _covering_segment(context)
    if covering is None:
        return _known_segments(context)
    return [part for part in _known_segments(context) if part.key in covering.notes["stands_on"]]


# ---- search


def search(payload: dict[str, Any]) -> PartResult:
    """Pairs of one unit of one segment, or of two."""
    memory = int(payload["memory_gb"] * 1e9)
    segments = [Segment(num, tuple(bits)) for num, bits in payload["segments"]]
    streams = [lambda file=file: _stream(file) for file in payload["files"]]
    unit, radius = Unit(*payload["unit"]), payload["radius"]
    if len(segments) == 1:
        plan = plan_within(segments[0], radius)
        low, high = search_within(streams[0], plan, unit, memory_bytes=memory)
    else:
        plan = plan_between(segments[0], segments[1], radius)
        low, high = search_between(streams[0], streams[1], plan, unit, memory_bytes=memory)
    rows = pa.table({"phash_a": low, "phash_b": high, "distance": np.bitwise_count(low ^ high)})
    path = f"tables/dedup/pairs-{payload['stem']}.parquet"
    sizes = [segment.num_hashes for segment in segments]
    notes = {"num_hashes": sizes, "radius": radius, "num_units": payload["num_units"]}
    return PartResult((write_table(payload["workdir"], "found_pairs", path, rows, tables.PAIRS),), None, notes)


def _plan_search(context: BuildContext) -> Sequence[Part]:
    """All units; those that an earlier build did at a radius as large are taken as they are."""
    segments = sorted((p for p in context.own_parts("segment") if p.notes["num_hashes"]), key=_by_size)
    groups = [[a] for a in segments] + [[a, b] for at, a in enumerate(segments) for b in segments[at + 1 :]]
    return [part for group in groups for part in _done_units(context, group) or _new_units(context, group)]


def _by_size(part: PartRecord) -> tuple[int, str]:
    return -part.notes["num_hashes"], part.key


def _search_identity(group: Sequence[PartRecord]) -> dict[str, Any]:
    return {"version": VERSION, "segments": [file.sha256 for part in group for file in part.files]}


def _done_units(context: BuildContext, group: Sequence[PartRecord]) -> list[Part]:
    """The committed units of the smallest radius that serves, if all of its units are there."""
    done: dict[tuple[int, int], list[Part]] = {}
    for part in context.catalog.parts_like("dedup", "search", fingerprint(_search_identity(group))):
        done.setdefault((part.notes["radius"], part.notes["num_units"]), []).append(Part(part.key, {}, part.reuse_key))
    whole = (key for key in sorted(done) if key[0] >= context.config.dedup.radius and len(done[key]) == key[1])
    return done.get(next(whole, (-1, 0)), [])


def _new_units(context: BuildContext, group: Sequence[PartRecord]) -> list[Part]:
    radius = context.config.dedup.radius
    facts = [Segment(part.notes["num_hashes"], tuple(part.notes["bit_entropies"])) for part in group]
    plan = plan_within(facts[0], radius) if len(facts) == 1 else plan_between(facts[0], facts[1], radius)
    units = cut_units(sum(segment.num_hashes for segment in facts), plan, context.config.run.match_part_hashes)
    parts = []
    for unit in units:
        place = (unit.key, unit.bucket, unit.bucket_bits)
        key = fingerprint({**_search_identity(group), "radius": radius, "unit": place, "num_units": len(units)})
        payload = {
            "files": [path for part in group for path in context.paths(part, "segment")],
            "segments": [(segment.num_hashes, segment.bit_entropies) for segment in facts],
            "radius": radius,
            "unit": place,
            "num_units": len(units),
            "stem": key[:16],
            **context.execution(),
        }
        parts.append(Part(key, payload, fingerprint(_search_identity(group))))
    return parts


# ---- all pairs of this build


def collect(payload: dict[str, Any]) -> PartResult:
    """One sorted table of the pairs within the radius whose hashes this build has, and the placeholders by name."""
    path = f"tables/dedup/{payload['stem']}.parquet"
    writer = TableWriter(payload["workdir"], "pairs", path, tables.PAIRS)
    with open_scratch(payload) as sql:
        view_parquet(sql, "facts", payload["facts"])
        if payload["found_pairs"]:
            view_parquet(sql, "found", payload["found_pairs"])
        else:
            sql.register("found", tables.PAIRS.empty_table())
        here = "true"
        if payload["others"]:  # some segment holds hashes of images that are no longer part of the build
            sql.execute("CREATE TABLE alive AS SELECT DISTINCT phash FROM facts WHERE outcome = 'ok'")
            here = "phash_a IN (SELECT phash FROM alive) AND phash_b IN (SELECT phash FROM alive)"
        file = copy_sorted(
            sql,
            f"SELECT * FROM found WHERE distance <= {payload['radius']} AND {here}",
            "phash_a, phash_b",
            writer,
        )
        placeholders = _name_placeholders(sql, payload["placeholder_min_count"])
    notes = {
        "num_hashes": payload["num_alive"],
        "num_hash_pairs": file.num_rows,
        "radius": payload["radius"],
        "placeholders": placeholders,
    }
    return PartResult((file,), None, notes)


def _name_placeholders(sql: Any, min_count: int) -> dict[str, int]:
    """pHashes that many images of different pixels share, most frequent first; one image of many URLs counts once."""
    sql.execute(
        "CREATE TABLE often AS SELECT phash FROM facts WHERE outcome = 'ok' "
        f"GROUP BY phash HAVING count(*) >= {min_count}"
    )
    rows = sql.execute(
        "SELECT phash, count(DISTINCT pixels_sha256) AS num FROM facts JOIN often USING (phash) WHERE outcome = 'ok' "
        f"GROUP BY phash HAVING num >= {min_count} ORDER BY num DESC, phash LIMIT {MAX_NAMED_PLACEHOLDERS}"
    ).fetchall()
    return {f"{phash:016x}": num for phash, num in rows}


def _plan_collect(context: BuildContext) -> Sequence[Part]:
    found = context.own_parts("search")
    segments = context.own_parts("segment")
    facts = context.sealed["fetch"].notes["content"]
    num_alive = next(part.notes["num_alive"] for part in segments if part.notes["facts"] == facts)
    key = fingerprint({"stage": context.fingerprint})
    payload = {
        "facts": context.files("fetch", "facts"),
        "found_pairs": [path for part in found for path in context.paths(part, "found_pairs")],
        "radius": context.config.dedup.radius,
        "placeholder_min_count": context.config.dedup.placeholder_min_count,
        "num_alive": num_alive,
        "others": sum(part.notes["num_hashes"] for part in segments) > num_alive,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _identity(context: BuildContext) -> dict[str, Any]:
    dedup = context.config.dedup
    return {
        "version": VERSION,
        "radius": dedup.radius,
        "placeholder_min_count": dedup.placeholder_min_count,
        "facts": context.sealed["fetch"].notes["content"],
        **evaluation.identity(context),
        **semantic.identity(context),
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    (part,) = context.own_parts("collect")
    num = context.sealed["fetch"].funnel.num_kept
    notes = dict(part.notes)
    for leaks in context.own_parts("leaks"):
        notes |= leaks.notes
    return Funnel(num, num), notes


STAGE = Stage(
    name="dedup",
    about="find images that look alike (measured here, decided in select)",
    identity=_identity,
    steps=(
        evaluation.LIST_SETS,
        evaluation.MEASURE_SETS,
        Step("segment", _plan_segment, cut_segment, committed=_segments_below),
        Step("search", _plan_search, search),
        Step("collect", _plan_collect, collect),
        evaluation.FIND_LEAKS,
        semantic.EMBED,
        semantic.CLUSTER,
        semantic.COMPARE,
    ),
    conclude=_conclude,
)
