"""The steps of dedup that keep evaluation sets out: list their images, measure them as the pool's, find what leaks.

Reads the sets through the readers of pipeline/sources, facts and candidates. Writes `evaluation` (one row an image of
a set) and `leaks` (one row a fetched image and set). A set is measured once: neither a radius nor a new source reads
it again. Leaks are found image by image, before any duplicate is dropped, so that no group hides one; what lies
within the duplicate radius of a leak leaks with it.

Gives up with ConfigError when images of a set cannot be read and the set says `unreadable: refuse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
from manifests.errors import ConfigError
from manifests.records import PartRecord, fingerprint
from pipeline.config import EvaluationSet
from pipeline.matching.cross import distinct_cross_pairs
from pipeline.matching.pairs import distinct_of
from pipeline.matching.plan import choose_plan
from pipeline.matching.search import bit_entropies
from pipeline.runner.work import BuildContext, Part, PartResult, Step
from pipeline.sources.files import BytesUnreadable, LocalReader
from pipeline.sources.reading import digest_inputs, read_rows, root_of
from pipeline.store.sql import copy_sorted, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, write_table

VERSION = 1
PART_ROWS = 1000
MEMBERS = pa.schema([(name, pa.string()) for name in ("member", "url", "locator", "outcome", "detail")])

# A picture of nearly one colour has a pHash made of noise, which it shares with every other such picture: it is matched
# by bytes and pixels alone. Grocery photos have a standard deviation of 24 and more.
FLAT_PIXEL_STD = 2.0


# ---- the images of a set


def list_members(payload: dict[str, Any]) -> PartResult:
    """One row an image; what the reader could not use stands there with its reason as outcome."""
    settings: EvaluationSet = payload["set"]
    path = f"tables/dedup/members-{payload['stem']}.parquet"
    writer = TableWriter(payload["workdir"], "members", path, MEMBERS, PART_ROWS)
    for batch in read_rows(settings, partial(open_scratch, payload)):
        rows, lost = batch.rows, batch.lost
        writer.write(
            pa.table(
                [rows["record_key"], rows["url"], rows["locator"], *[pa.nulls(len(rows), pa.string())] * 2],
                MEMBERS.names,
            )
        )
        named = pa.compute.coalesce(lost["record_key"], lost["url"], lost["value"])
        none = pa.nulls(len(lost), pa.string())
        writer.write(pa.table([named, lost["url"], none, lost["reason"], lost["value"]], MEMBERS.names))
    file = writer.close()
    return PartResult((file,), None, {"set": settings.name, "num_images": file.num_rows})


def _plan_list(context: BuildContext) -> Sequence[Part]:
    parts = []
    for settings in context.config.evaluation:
        key = fingerprint({"version": VERSION, "set": _content(context, settings)})
        payload = {"set": settings, "stem": key[:16], **context.execution()}
        parts.append(Part(key, payload))
    return parts


def _content(context: BuildContext, settings: EvaluationSet) -> dict[str, Any]:
    """What the images of a set depend on."""
    return {**settings.identity(), "inputs": digest_inputs(settings, context.catalog.input_sha256)}


# ---- their measurements


def measure(payload: dict[str, Any]) -> PartResult:
    """The measurements of the pool on one row group of a set, and the pHash of each mirror image."""
    members = pq.ParquetFile(payload["members"]).read_row_group(payload["row_group"]).to_pylist()
    rows = []
    with LocalReader(payload["root"] or "") as reader:
        for member in members:
            row = {**member, "evaluation_set": payload["set"]}
            rows.append(row if member["locator"] is None else row | _measure(reader, member["locator"], payload))
    table = pa.Table.from_pylist(rows, tables.EVALUATION)
    path = f"tables/dedup/evaluation-{payload['stem']}.parquet"
    return PartResult(
        (write_table(payload["workdir"], "evaluation", path, table, tables.EVALUATION),), None, _say(rows)
    )


def _measure(reader: Any, locator: str, payload: dict[str, Any]) -> dict[str, Any]:
    import io

    from PIL import Image, ImageOps

    from pipeline.pictures.image import StoredImage, measure_image, measure_pixels

    try:
        result = measure_image(reader.read(locator, payload["image"].max_body_bytes), payload["image"])
    except BytesUnreadable as error:
        return {"outcome": error.outcome.value, "detail": error.detail}
    if not isinstance(result, StoredImage):
        return {"outcome": result.outcome.value, "detail": result.detail}
    with Image.open(io.BytesIO(result.body), formats=("JPEG",)) as stored:
        mirrored = measure_pixels(ImageOps.mirror(stored))
    return {
        "outcome": "ok",
        "image_id": result.original.image_id,
        "pixels_sha256": result.pixels_sha256,
        "phash": result.phash,
        "phash_mirrored": mirrored.phash,
        "pixel_std": result.pixel_std,
    }


def _say(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bad = [row for row in rows if row["outcome"] not in (None, "ok")]
    return {
        "set": rows[0]["evaluation_set"],
        "num_images": len(rows),
        "num_measured": sum(row["outcome"] == "ok" for row in rows),
        "num_flat": sum(row["outcome"] == "ok" and row["pixel_std"] < FLAT_PIXEL_STD for row in rows),
        "num_unreadable": len(bad),
        "unreadable": [f"{row['member']}: {row['outcome']} ({row['detail']})" for row in bad[:3]],
    }


def _plan_measure(context: BuildContext) -> Sequence[Part]:
    # what is too small or too long for training may still be the original of something that is not
    image = context.config.fetch.image.model_copy(update={"min_side_px": 1, "max_aspect_ratio": float("inf")})
    recipe = {name: value for name, value in image.model_dump(mode="json").items() if name != "max_aspect_ratio"}
    parts = []
    for settings, listed in zip(context.config.evaluation, context.own_parts("list"), strict=True):
        (file,) = listed.files
        for row_group in range(-(-file.num_rows // PART_ROWS)):
            key = fingerprint(
                {"version": VERSION, "image": recipe, "set": settings.name, "members": file.sha256, "group": row_group}
            )
            payload = {
                "set": settings.name,
                "members": context.paths(listed, "members")[0],
                "row_group": row_group,
                "root": root_of(settings),
                "image": image,
                "stem": key[:16],
                **context.execution(),
            }
            parts.append(Part(key, payload, num_rows=min(PART_ROWS, file.num_rows - row_group * PART_ROWS)))
    return parts


# ---- what leaks


def describe_sets(context: BuildContext) -> list[dict[str, Any]]:
    """One entry a set, as release.json tells it; what leaked is added by the leaks step."""
    measured = context.own_parts("measure")
    return [_describe(settings, [part for part in measured if part.notes["set"] == settings.name])
            for settings in context.config.evaluation]  # fmt: skip


def _describe(settings: EvaluationSet, parts: Sequence[PartRecord]) -> dict[str, Any]:
    counts = {
        name: sum(part.notes[name] for part in parts)
        for name in ("num_images", "num_measured", "num_flat", "num_unreadable")
    }
    return {
        "name": settings.name,
        "kind": settings.kind,
        **counts,
        "radius": settings.radius,
        "mirrored": settings.mirrored,
        "match_names": settings.match_names,
        "content": fingerprint({"parts": [file.sha256 for part in parts for file in part.files]}),
    }


def check_readable(context: BuildContext) -> None:
    """Raises: ConfigError for a set that may not be matched in part, or of which nothing can be matched."""
    for settings, said in zip(context.config.evaluation, describe_sets(context), strict=True):
        bad = [
            line
            for part in context.own_parts("measure")
            if part.notes["set"] == settings.name
            for line in part.notes["unreadable"]
        ]
        if said["num_unreadable"] and settings.unreadable == "refuse":
            raise ConfigError(
                f"{settings.where}: {said['num_unreadable']:,} of {said['num_images']:,} images cannot be read, so "
                f"their leaks would not be seen; first: {bad[0]}. Mend or remove them, or set unreadable: report"
            )
        if not said["num_measured"] and not settings.match_names:
            raise ConfigError(f"{settings.where}: not one image of this set can be read; first: {(bad or ['none'])[0]}")


_BEST = "min({'rank': rank, 'distance': distance, 'member': member, 'matched': matched})"

_DIRECT = """
    CREATE TABLE direct AS SELECT sample_id, evaluation_set, best.member AS evaluation_member, best.matched AS matched,
        nullif(best.distance, -1)::UTINYINT AS distance FROM (SELECT sample_id, evaluation_set, {best} AS best FROM (
    SELECT f.sample_id, e.evaluation_set, 0 AS rank, -1 AS distance, e.member, 'bytes' AS matched
        FROM fetched f JOIN evaluation e USING (image_id)
    UNION ALL SELECT f.sample_id, e.evaluation_set, 1, -1, e.member, 'pixels'
        FROM fetched f JOIN evaluation e USING (pixels_sha256)
    UNION ALL SELECT f.sample_id, n.evaluation_set, 2 + n.mirrored, n.distance, n.member,
        if(n.mirrored = 1, 'mirrored', 'near') FROM fetched f JOIN near n USING (phash)
    UNION ALL {by_name}) GROUP BY ALL)
"""
_BY_NAME = """
    SELECT f.sample_id, n.evaluation_set, 4, -1, n.member, 'record_key'
        FROM fetched f JOIN candidates c USING (sample_id) JOIN names n ON n.name = c.record_key
    UNION ALL SELECT f.sample_id, n.evaluation_set, 5, -1, n.member, 'url'
        FROM fetched f JOIN candidates c USING (sample_id) JOIN names n ON n.url = c.url
"""
_SPREAD = """
    CREATE TABLE spread AS SELECT f.sample_id, b.evaluation_set, b.evaluation_member, 'duplicate' AS matched,
        b.distance::UTINYINT AS distance, b.via AS via_sample_id
    FROM fetched f JOIN (
        SELECT phash, evaluation_set, unnest(best) FROM (
        SELECT phash, evaluation_set, min({'distance': distance, 'via': sample_id,
            'evaluation_member': evaluation_member}) AS best FROM (
            SELECT phash, 0 AS distance, sample_id, evaluation_set, evaluation_member FROM leaking
            UNION ALL SELECT p.phash_b, p.distance, l.sample_id, l.evaluation_set, l.evaluation_member
                FROM leaking l JOIN pairs p ON p.phash_a = l.phash
            UNION ALL SELECT p.phash_a, p.distance, l.sample_id, l.evaluation_set, l.evaluation_member
                FROM leaking l JOIN pairs p ON p.phash_b = l.phash) GROUP BY phash, evaluation_set)) b USING (phash)
    ANTI JOIN direct d ON d.sample_id = f.sample_id AND d.evaluation_set = b.evaluation_set
"""


def find_leaks(payload: dict[str, Any]) -> PartResult:
    """The best evidence for every fetched image and set: bytes, pixels, near, mirrored, names, in this order."""
    path = f"tables/dedup/leaks-{payload['stem']}.parquet"
    with open_scratch(payload) as sql:
        view_parquet(sql, "facts", payload["facts"])
        if payload["evaluation"]:
            view_parquet(sql, "evaluation", payload["evaluation"])
        else:  # lists of names that name nothing
            sql.register("evaluation", tables.EVALUATION.empty_table())
        view_parquet(sql, "pairs", payload["pairs"])
        view_parquet(sql, "candidates", payload["candidates"])
        sql.execute("CREATE VIEW fetched AS SELECT * FROM facts WHERE outcome = 'ok'")
        sql.register("near", _near(sql, payload))
        sql.register("names", _names(sql, payload["named"]))
        by_name = _BY_NAME if payload["named"] else "SELECT NULL, NULL, 6, -1, NULL, NULL WHERE false"
        sql.execute(_DIRECT.format(best=_BEST, by_name=by_name))
        sql.execute(
            "CREATE TABLE leaking AS SELECT d.*, f.phash FROM direct d JOIN fetched f USING (sample_id) "
            f"WHERE f.pixel_std IS NULL OR f.pixel_std >= {FLAT_PIXEL_STD}"
        )
        sql.execute(_SPREAD)
        sql.execute("CREATE VIEW leaks AS SELECT *, NULL AS via_sample_id FROM direct UNION ALL FROM spread")
        file = copy_sorted(
            sql, "FROM leaks", "sample_id, evaluation_set", TableWriter(payload["workdir"], "leaks", path, tables.LEAKS)
        )
        counts: dict[str, dict[str, int]] = {said["name"]: {} for said in payload["sets"]}
        for name, matched, num in sql.execute(
            "SELECT evaluation_set, matched, count(*) FROM leaks GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            counts[name][matched] = num
    sets = [
        said | {"num_leaks": sum(counts[said["name"]].values()), "leaks": counts[said["name"]]}
        for said in payload["sets"]
    ]
    return PartResult((file,), None, {"evaluation": sets})


def _near(sql: Any, payload: dict[str, Any]) -> pa.Table:
    """Every hash of the pool near one of a set, with the nearest member of the set."""
    pieces = []
    pool = np.concatenate([pq.read_table(file)["phash"].to_numpy() for file in payload["segments"]])
    for radius in sorted({said["radius"] for said in payload["sets"]}):
        listed = ", ".join(_quoted(said["name"]) for said in payload["sets"] if said["radius"] == radius)
        turned = ", ".join(_quoted(said["name"]) for said in payload["sets"] if said["mirrored"]) or "NULL"
        sql.execute(
            "CREATE OR REPLACE TABLE asked AS SELECT hash, evaluation_set, mirrored, min(member) AS member FROM ("
            "SELECT phash AS hash, evaluation_set, 0 AS mirrored, member FROM evaluation WHERE outcome = 'ok' AND "
            f"pixel_std >= {FLAT_PIXEL_STD} UNION ALL SELECT phash_mirrored, evaluation_set, 1, member FROM evaluation "
            f"WHERE outcome = 'ok' AND pixel_std >= {FLAT_PIXEL_STD} AND evaluation_set IN ({turned})) "
            f"WHERE evaluation_set IN ({listed}) GROUP BY ALL"
        )
        asked = distinct_of(sql.sql("SELECT hash FROM asked").to_arrow_table()["hash"].to_numpy().astype(np.uint64))
        if not len(asked) or not len(pool):
            continue
        plan = choose_plan(len(pool), radius, bit_entropies(asked, 64), num_others=len(asked))
        near, wanted = distinct_cross_pairs(pool, asked, plan)
        sql.register("found", pa.table({"phash": near, "hash": wanted, "distance": np.bitwise_count(near ^ wanted)}))
        pieces.append(
            sql.sql(
                "SELECT phash, evaluation_set, unnest(best) FROM (SELECT phash, evaluation_set, "
                "min({'distance': distance::INTEGER, 'mirrored': mirrored, 'member': member}) AS best "
                "FROM found JOIN asked USING (hash) GROUP BY phash, evaluation_set)"
            ).to_arrow_table()
        )
        sql.unregister("found")
    return pa.concat_tables(pieces) if pieces else _NO_NEAR.empty_table()


_NO_NEAR = pa.schema(
    [
        ("phash", pa.uint64()),
        ("evaluation_set", pa.string()),
        ("distance", pa.int32()),
        ("mirrored", pa.int32()),
        ("member", pa.string()),
    ]
)


def _names(sql: Any, named: Sequence[str]) -> pa.Table:
    """What the images of the sets that are matched by name go by: key, file name without folder and ending, URL."""
    rows = sql.execute("SELECT evaluation_set, member, url FROM evaluation").fetchall()
    found = sorted(
        {
            (name, where, member, url)
            for where, member, url in rows
            if where in named
            for name in {member, PurePosixPath(member or "").stem or None}
        },
        key=str,
    )
    columns = ("name", "evaluation_set", "member", "url")
    return pa.table({name: pa.array([row[at] for row in found], pa.string()) for at, name in enumerate(columns)})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plan_leaks(context: BuildContext) -> Sequence[Part]:
    if not context.config.evaluation:
        return []
    key = fingerprint({"stage": context.fingerprint, "step": "leaks"})
    payload = {
        "facts": context.files("fetch", "facts"),
        "candidates": context.files("ingest", "candidates"),
        "segments": context.own_files("segment", "segment"),
        "pairs": context.own_files("collect", "pairs"),
        "evaluation": context.own_files("measure", "evaluation"),
        "sets": describe_sets(context),
        "named": [settings.name for settings in context.config.evaluation if settings.match_names],
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def identity(context: BuildContext) -> dict[str, Any]:
    """What leaks depend on beside the facts: empty without evaluation sets."""
    sets = context.config.evaluation
    if not sets:
        return {}
    named = {"candidates": context.content("ingest", "candidates")} if any(s.match_names for s in sets) else {}
    return {
        "evaluation": [
            {
                **_content(context, settings),
                "radius": settings.radius,
                "mirrored": settings.mirrored,
                "match_names": settings.match_names,
            }
            for settings in sets
        ],
        "evaluation_version": VERSION,
        "image": context.config.fetch.image.model_dump(mode="json"),
        **named,
    }


LIST_SETS = Step("list", _plan_list, list_members, "sets")
MEASURE_SETS = Step("measure", _plan_measure, measure, "images")
FIND_LEAKS = Step("leaks", _plan_leaks, find_leaks)
