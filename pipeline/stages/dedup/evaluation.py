"""The steps of dedup that keep evaluation sets out of the training data.

They list the images of each set, measure them like those of the pool, and find which fetched images show one of them.

Reads the sets through the readers of pipeline/sources, facts and candidates. Writes `evaluation` (one row an image of
a set) and `leaks` (one row a fetched image and set). A set is measured once: a new radius or a new source does not read
it again. Leaks are found image by image, before any duplicate is dropped, so that no group of duplicates hides one. An
image within the duplicate radius of a leak is a leak too.

Raises ConfigError when images of a set cannot be read and the set says `unreadable: refuse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from manifests.contract import tables
from manifests.contract.copies import FLAT_BITS, FLAT_PIXEL_STD
from manifests.contract.reader import literals
from manifests.contract.records import PartRecord, fingerprint
from manifests.errors import ConfigError
from manifests.names.addresses import VERSION as ADDRESSES
from manifests.names.addresses import address_key
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, StageRun, Step
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.judging.matching.looks import find_near_looks, view_shown
from pipeline.sources.files import BytesUnreadable, LocalReader
from pipeline.sources.reading import content_of, digest_inputs, pictures_of, read_rows
from pipeline.sources.rows import without_secrets
from pipeline.stages.dedup.semantic import DedupInputs, SetInputs
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import count_within

VERSION = 2
PART_ROWS = 1000
MEMBERS = pa.schema([(name, pa.string()) for name in ("member", "url", "locator", "outcome", "detail")])


# ---- the images of a set


def sets_of(context: BuildContext) -> tuple[SetInputs, ...]:
    """Return the evaluation sets of a configuration, with hashes of all that their images depend on."""
    sets = []
    for settings in context.config.evaluation:
        hashes = digest_inputs(settings, context.catalog.input_sha256)
        pictures = content_of(settings, context.catalog.stamps, pictures=True)
        sets.append(SetInputs(settings, (*hashes, *pictures)))
    return tuple(sets)


def candidates_of(context: BuildContext) -> Files:
    """Return the candidates; their content counts only when a set is matched by names."""
    if not context.config.evaluation:
        return Files()
    candidates = context.files("ingest", "candidates")
    by_name = any(settings.match_names for settings in context.config.evaluation)
    return candidates if by_name else candidates.digested()


@dataclass(frozen=True)
class ListInputs:
    """One set, without how it is matched."""

    set: SetInputs

    def identity(self) -> dict[str, Any]:
        """Return the values that the images of a set depend on."""
        return {**self.set.settings.identity(), "inputs": list(self.set.content)}


def list_members(inputs: ListInputs, run: Execution[None]) -> PartResult:
    """One row an image. An image that the reader could not use has the reason as its outcome."""
    settings = inputs.set.settings
    writer = run.writer("members", row_group_rows=PART_ROWS)
    for batch in read_rows(settings, run.scratch):
        rows, lost = batch.rows, batch.lost
        key, url = (without_secrets(rows[name], name == "url") for name in ("record_key", "url"))
        none = pa.nulls(len(rows), pa.string())
        writer.write(pa.table([key, url, rows["locator"], none, none], MEMBERS.names))
        key, url, value = (without_secrets(lost[name], name == "url") for name in ("record_key", "url", "value"))
        named = pa.compute.coalesce(key, url, value)
        none = pa.nulls(len(lost), pa.string())
        writer.write(pa.table([named, url, none, lost["reason"], value], MEMBERS.names))
    file = writer.close()
    return PartResult((file,), None, {"set": settings.name, "num_images": file.num_rows})


def _plan_list(inputs: DedupInputs, run: StageRun[None]) -> Sequence[ListInputs]:
    return [ListInputs(item) for item in inputs.evaluation]


# ---- their measurements


@dataclass(frozen=True)
class MeasureInputs:
    """One row group of a set's list of images, hashes of the files that hold them, and how they are decoded."""

    set: str
    members: RowGroup
    content: tuple[str, ...]
    image: ImageSettings

    def identity(self) -> dict[str, Any]:
        """Every image of a set is measured, whatever its shape (infinity is no JSON number)."""
        image = self.image.identity()
        del image["max_aspect_ratio"]
        return {"set": self.set, "members": self.members.identity(), "inputs": list(self.content), "image": image}


def measure(inputs: MeasureInputs, run: Execution[dict[str, LocalReader]]) -> PartResult:
    """Return the measurements of the pool on one row group of a set, and the pHash of each mirror image.

    `run.how` reads the pictures of each set.
    """
    members = inputs.members.read().to_pylist()
    rows = []
    with run.how.get(inputs.set, LocalReader("")) as reader:
        for member in members:
            row = {**member, "evaluation_set": inputs.set}
            rows.append(row if member["locator"] is None else row | _measure(reader, member["locator"], inputs.image))
    table = pa.Table.from_pylist(rows, tables.EVALUATION)
    file = run.write("evaluation", table)
    content = fingerprint({"rows": table.drop_columns(["detail"]).to_pylist()})  # which libraries word
    return PartResult((file,), None, {**_counts_of(rows), "content": content})


def _measure(reader: LocalReader, locator: str, settings: ImageSettings) -> dict[str, Any]:
    from pipeline.fetching.pictures.image import StoredImage, fact_of, measure_image

    try:
        result = measure_image(reader.read(locator, settings.max_body_bytes), settings)
    except BytesUnreadable as error:
        return {"outcome": error.outcome.value, "detail": error.detail}
    if not isinstance(result, StoredImage):
        return {"outcome": result.outcome.value, "detail": result.detail}
    return fact_of(result) | {"outcome": "ok", "detail": None}


def _counts_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [row for row in rows if row["outcome"] not in (None, "ok")]
    return {
        "set": rows[0]["evaluation_set"],
        "num_images": len(rows),
        "num_measured": sum(row["outcome"] == "ok" for row in rows),
        "num_flat": sum(row["outcome"] == "ok" and row["pixel_std"] < FLAT_PIXEL_STD for row in rows),
        "num_unreadable": len(bad),
        "unreadable": [f"{row['member']}: {row['outcome']} ({row['detail']})" for row in bad[:3]],
    }


def _plan_measure(inputs: DedupInputs, run: StageRun[dict[str, LocalReader]]) -> Sequence[Part[MeasureInputs]]:
    parts: list[Part[MeasureInputs]] = []
    if inputs.image is None:
        return parts
    # an image too small for training may be the original of one that is large enough
    image = inputs.image.of_any_shape()
    for item, listed in zip(inputs.evaluation, run.parts("list"), strict=True):
        (file,) = listed.files
        path = run.files_of([listed], "members").path
        for number in range(-(-file.num_rows // PART_ROWS)):
            rows = RowGroup(path, number, f"{file.sha256}-{number}")
            num_rows = min(PART_ROWS, file.num_rows - number * PART_ROWS)
            parts.append(Part(MeasureInputs(item.settings.name, rows, item.content, image), num_rows=num_rows))
    return parts


def _readers(context: BuildContext) -> dict[str, LocalReader]:
    return {settings.name: reader for settings in context.config.evaluation if (reader := pictures_of(settings))}


# ---- what leaks


def describe_sets(inputs: DedupInputs, run: StageRun[Any]) -> list[dict[str, Any]]:
    """One entry a set, as release.json shows it; the leaks step adds what leaked."""
    return [_describe(item, _measured(item, run)) for item in inputs.evaluation]


def _measured(item: SetInputs, run: StageRun[Any]) -> list[PartRecord]:
    return [part for part in run.parts("measure") if part.notes["set"] == item.settings.name]


def _describe(item: SetInputs, parts: Sequence[PartRecord]) -> dict[str, Any]:
    settings = item.settings
    counts = {
        name: sum(part.notes[name] for part in parts)
        for name in ("num_images", "num_measured", "num_flat", "num_unreadable")
    }
    return {
        "name": settings.name,
        "kind": settings.kind,
        **counts,
        "radius": settings.radius,
        "mirrored": True,
        "match_names": settings.match_names,
        "content": fingerprint({"parts": [part.notes["content"] for part in parts]}),
    }


def check_readable(inputs: DedupInputs, run: StageRun[Any]) -> None:
    """Raise ConfigError for a set without one readable image, or with unreadable ones that it refuses."""
    for item in inputs.evaluation:
        settings, parts = item.settings, _measured(item, run)
        described = _describe(item, parts)
        bad = [line for part in parts for line in part.notes["unreadable"]]
        if described["num_unreadable"] and settings.unreadable == "refuse":
            raise ConfigError(
                f"{settings.config_key}: {described['num_unreadable']:,} of {described['num_images']:,} images cannot "
                f"be read, so their leaks would not be seen; first: {bad[0]}. Mend or remove them, or set unreadable: "
                "report"
            )
        if not described["num_measured"] and not settings.match_names:
            raise ConfigError(
                f"{settings.config_key}: not one image of this set can be read; first: {(bad or ['none'])[0]}"
            )


_BEST = "min({'rank': rank, 'distance': distance, 'member': member, 'matched': matched})"

_DIRECT = """
    CREATE TABLE direct AS SELECT sample_id, evaluation_set, best.member AS evaluation_member, best.matched AS matched,
        nullif(best.distance, -1)::UTINYINT AS distance FROM (SELECT sample_id, evaluation_set, {best} AS best FROM (
    SELECT f.sample_id, e.evaluation_set, 0 AS rank, -1 AS distance, e.member, 'bytes' AS matched
        FROM fetched f JOIN evaluation e USING (image_id)
    UNION ALL SELECT f.sample_id, e.evaluation_set, 1, -1, e.member, 'pixels'
        FROM fetched f JOIN evaluation e USING (pixels_sha256)
    UNION ALL SELECT f.sample_id, n.evaluation_set, 2 + n.mirrored, n.distance, n.member,
        if(n.mirrored = 1, 'mirrored', 'near') FROM fetched f JOIN near n USING (look)
    UNION ALL {by_name}) GROUP BY ALL)
"""
_BY_NAME = """
    SELECT f.sample_id, n.evaluation_set, 4, -1, n.member, 'record_key'
        FROM fetched f JOIN candidates c USING (sample_id) JOIN names n ON n.name = c.record_key
    UNION ALL SELECT f.sample_id, n.evaluation_set, 5, -1, n.member, 'url'
        FROM fetched f JOIN candidates c USING (sample_id) JOIN names n ON n.address = {address}
"""
_SPREAD = """
    CREATE TABLE spread AS SELECT f.sample_id, b.evaluation_set, b.evaluation_member, 'duplicate' AS matched,
        b.distance::UTINYINT AS distance, b.via AS via_sample_id
    FROM fetched f JOIN (
        SELECT look, evaluation_set, unnest(best) FROM (
        SELECT look, evaluation_set, min({'distance': distance, 'via': sample_id,
            'evaluation_member': evaluation_member}) AS best FROM (
            SELECT look, 0 AS distance, sample_id, evaluation_set, evaluation_member FROM leaking
            UNION ALL SELECT p.look_b, p.distance, l.sample_id, l.evaluation_set, l.evaluation_member
                FROM leaking l JOIN pairs p ON p.look_a = l.look
            UNION ALL SELECT p.look_a, p.distance, l.sample_id, l.evaluation_set, l.evaluation_member
                FROM leaking l JOIN pairs p ON p.look_b = l.look) GROUP BY look, evaluation_set)) b USING (look)
    ANTI JOIN direct d ON d.sample_id = f.sample_id AND d.evaluation_set = b.evaluation_set
"""


def find_leaks(
    inputs: Inputs, run: Execution[None], sets: tuple[dict[str, Any], ...], named: tuple[tuple[str, int], ...]
) -> PartResult:
    """Return the best evidence for every fetched image and set: bytes, pixels, near, mirrored, names, in this order.

    `named` are the sets that are matched by names too, with the version of how addresses are compared.
    """
    with run.views(inputs) as sql:
        view_shown(sql)
        sql.execute("CREATE VIEW fetched AS FROM shown")
        sql.register("near", _near(sql, sets))
        sql.register("named", _names(sql, [name for name, _ in named]))
        sql.execute(f"CREATE VIEW names AS SELECT *, {address_key('url')} AS address FROM named")
        none = "SELECT NULL, NULL, 6, -1, NULL, NULL WHERE false"
        by_name = _BY_NAME.format(address=address_key("c.url")) if named else none
        sql.execute(_DIRECT.format(best=_BEST, by_name=by_name))
        sql.execute(
            "CREATE TABLE leaking AS SELECT d.*, f.look FROM direct d JOIN fetched f USING (sample_id) WHERE f.tells"
        )
        sql.execute(_SPREAD)
        sql.execute("CREATE VIEW leaks AS SELECT *, NULL AS via_sample_id FROM direct UNION ALL FROM spread")
        file = run.save(sql, "leaks", "FROM leaks", "sample_id, evaluation_set")
        leaks = count_within(sql, "SELECT evaluation_set, matched, count(*) FROM leaks GROUP BY ALL ORDER BY ALL")
    counts = [leaks.get(described["name"], {}) for described in sets]
    counted = [{"num_leaks": sum(of_set.values()), "leaks": of_set} for of_set in counts]
    notes = {"evaluation": [described | more for described, more in zip(sets, counted, strict=True)]}
    return PartResult((file,), None, notes)


def _near(sql: Any, sets: Sequence[dict[str, Any]]) -> pa.Table:
    """Every look of the pool near one of a set, with the nearest member of the set."""
    pieces = []
    for radius in sorted({described["radius"] for described in sets}):
        listed = literals(described["name"] for described in sets if described["radius"] == radius)
        sql.execute(
            "CREATE OR REPLACE TABLE asked AS SELECT hash, middle, evaluation_set, mirrored, min(member) AS member "
            "FROM (SELECT phash AS hash, middle_hash AS middle, evaluation_set, 0 AS mirrored, member FROM evaluation "
            f"WHERE outcome = 'ok' AND pixel_std >= {FLAT_PIXEL_STD} "
            "UNION ALL SELECT phash_mirrored, middle_mirrored, evaluation_set, 1, member FROM evaluation "
            f"WHERE outcome = 'ok' AND pixel_std >= {FLAT_PIXEL_STD}) "
            f"WHERE evaluation_set IN ({listed}) AND bit_count(hash::HUGEINT) > {FLAT_BITS} GROUP BY ALL"
        )
        find_near_looks(sql, radius)
        pieces.append(
            sql.sql(
                "SELECT look, evaluation_set, unnest(best) FROM (SELECT look, evaluation_set, "
                "min({'distance': distance::INTEGER, 'mirrored': mirrored, 'member': member}) AS best "
                "FROM near_looks GROUP BY look, evaluation_set)"
            ).to_arrow_table()
        )
    return pa.concat_tables(pieces)


def _names(sql: Any, named: Sequence[str]) -> pa.Table:
    """Return the names of the images in the sets that are matched by name.

    Key, file name without folder and ending, URL.
    """
    rows = sql.execute("SELECT evaluation_set, member, url FROM evaluation").fetchall()
    image_names = sorted(
        {
            (name, where, member, url)
            for where, member, url in rows
            if where in named
            for name in {member, PurePosixPath(member or "").stem or None}
        },
        key=str,
    )
    columns = ("name", "evaluation_set", "member", "url")
    return pa.table({name: pa.array([row[at] for row in image_names], pa.string()) for at, name in enumerate(columns)})


def _plan_leaks(inputs: DedupInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    if not inputs.evaluation:
        return []
    contents = [part.notes["content"] for part in run.parts("measure")]
    return [
        {
            # without files where every set is a list of names
            "evaluation": run.files("measure", "evaluation").digested(*contents),
            "sets": tuple(describe_sets(inputs, run)),
            "named": tuple((item.settings.name, ADDRESSES) for item in inputs.evaluation if item.settings.match_names),
        }
    ]


LIST_SETS = Step("list", list_members, version=VERSION, gives=("members",), plan=_plan_list, unit="sets")
MEASURE_SETS = Step(
    "measure", measure, version=5, gives=("evaluation",), plan=_plan_measure, how=_readers, unit="images"
)
FIND_LEAKS = Step(
    "leaks",
    find_leaks,
    version=3,
    reads=("facts", "evaluation", "pairs", "candidates"),
    gives=("leaks",),
    plan=_plan_leaks,
)
