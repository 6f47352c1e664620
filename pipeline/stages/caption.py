"""caption: clean and measure texts, then apply the caption rules of the config.

Reads candidates and facts, and the backbone where one is given. Writes `names` (one row a name looked up in it),
`captions` (measurements, one row a candidate) and `caption_verdicts` (one row a fetched image). Measurements are
parts of their own: a moved threshold judges again, it never measures again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.records import Funnel, fingerprint
from pipeline.captions.measure import measure_captions
from pipeline.captions.rules import columns_needed, count_reasons, judge_captions
from pipeline.captions.settings import CaptionSettings
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.store.sql import copy_sorted, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, write_table
from pipeline.vocabulary.backbone import backbone_files, names_to_resolve, resolve_names

VERSION = 2
JUDGE_ROWS = 500_000

# what the rules may look at, beside the columns of `captions`
_JOINED = {
    "domain": "c.domain",
    "source": "c.source",
    "width_px": "f.width_px",
    "height_px": "f.height_px",
    "pixel_std": "f.pixel_std",
    "num_same_text": "CASE WHEN t.text_key IS NOT NULL THEN coalesce(r.num, 1) END",
    "num_same_text_host": "CASE WHEN t.text_key IS NOT NULL THEN coalesce(h.num, 1) END",
}


def resolve(payload: dict[str, Any]) -> PartResult:
    """Look up every name of the candidates in the backbone."""
    settings: CaptionSettings = payload["settings"]
    assert settings.backbone is not None
    columns = [f"taxon_{name}" for name in ("kingdom", "genus", "species", "scientific_name")]
    distinct = None
    for path in payload["candidates"]:
        for batch in pq.ParquetFile(path).iter_batches(columns=columns):
            names = names_to_resolve(pa.Table.from_batches([batch]))
            names = pa.concat_tables([names, distinct] if distinct else [names])
            distinct = names.filter(names["name"].is_valid()).group_by(["name", "kingdom"]).aggregate([])
    assert distinct is not None
    scratch = storage.join(payload["workdir"], "scratch")
    storage.make_folder(scratch)
    rows = resolve_names(distinct, settings.backbone, scratch, payload["memory_gb"])
    path = f"tables/caption/names-{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "names", path, rows, tables.NAMES),))


def measure(payload: dict[str, Any]) -> PartResult:
    """Measure one row group of candidates."""
    settings: CaptionSettings = payload["settings"]
    candidates = pq.ParquetFile(payload["candidates"]).read_row_group(payload["row_group"])
    names = pq.read_table(payload["names"]) if payload["names"] else None
    rows = measure_captions(candidates, settings, names)
    path = f"tables/caption/{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "captions", path, rows, tables.CAPTIONS),))


def judge(payload: dict[str, Any]) -> PartResult:
    """Verdicts over every fetched image."""
    settings: CaptionSettings = payload["settings"]
    path = f"tables/caption/verdicts-{payload['stem']}.parquet"
    counts: dict[str, int] = {}
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        view_parquet(sql, "facts", payload["facts"])
        view_parquet(sql, "captions", payload["captions"])
        sql.register("no_verdicts", tables.VERDICTS.empty_table())
        sql.execute("CREATE TABLE verdicts AS FROM no_verdicts")
        adding = sql.cursor()  # while the rows of the join are still coming
        for rows in _joined_rows(sql, settings):
            verdicts = judge_captions(rows, settings)
            for reason, num in count_reasons(verdicts).items():
                counts[reason] = counts.get(reason, 0) + num
            adding.register("judged", verdicts)
            adding.execute("INSERT INTO verdicts FROM judged")
        # rows are judged as they come and their verdicts sorted: a third of the bytes of sorting the rows
        writer = TableWriter(payload["workdir"], "caption_verdicts", path, tables.VERDICTS)
        file = copy_sorted(sql, "FROM verdicts", "sample_id", writer)
    num_kept = counts.pop("kept", 0)
    funnel = Funnel(num_kept + sum(counts.values()), num_kept, counts)
    return PartResult((file,), funnel)


def _joined_rows(sql: Any, settings: CaptionSettings) -> Iterator[pa.Table]:
    needed = columns_needed(settings)
    columns = [f'{_JOINED[name]} AS "{name}"' if name in _JOINED else f't."{name}"' for name in sorted(needed)]
    # repeats are counted over what was fetched: a caption of pictures nobody has is no boilerplate
    counted = (
        "SELECT {0}, count(*) AS num FROM captions t JOIN facts f USING (sample_id) "
        "WHERE f.outcome = 'ok' AND text_key IS NOT NULL GROUP BY {0} HAVING count(*) > 1"
    )
    joins = "JOIN candidates c USING (sample_id) JOIN captions t USING (sample_id)"
    if "num_same_text" in needed:
        joins += f" LEFT JOIN ({counted.format('text_key')}) r ON r.text_key = t.text_key"
    if "num_same_text_host" in needed:
        joins += f" LEFT JOIN ({counted.format('text_key, host')}) h ON h.text_key = t.text_key AND h.host = f.host"
    reader = sql.sql(f"SELECT {', '.join(columns)} FROM facts f {joins} WHERE f.outcome = 'ok'").to_arrow_reader(
        JUDGE_ROWS
    )
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _plan_resolve(context: BuildContext) -> Sequence[Part]:
    if context.config.caption.backbone is None:
        return []
    key = fingerprint({**_measure_identity(context), "names of": context.content("ingest", "candidates")})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "settings": context.config.caption,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _plan_measure(context: BuildContext) -> Sequence[Part]:
    parts = []
    settings = context.config.caption
    identity = _measure_identity(context)
    names = context.own_files("resolve", "names")
    hashes = context.content("ingest", "candidates")
    for path, sha256 in zip(context.files("ingest", "candidates"), hashes, strict=True):
        metadata = pq.ParquetFile(path).metadata
        for row_group in range(metadata.num_row_groups):
            key = fingerprint({**identity, "candidates": sha256, "row_group": row_group})
            payload = {
                "candidates": path,
                "names": names[0] if names else None,
                "row_group": row_group,
                "settings": settings,
                "stem": key[:16],
                **context.execution(),
            }
            parts.append(Part(key, payload, num_rows=metadata.row_group(row_group).num_rows))
    return parts


def _plan_judge(context: BuildContext) -> Sequence[Part]:
    key = fingerprint({"stage": context.fingerprint})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "facts": context.files("fetch", "facts"),
        "captions": context.own_files("measure", "captions"),
        "settings": context.config.caption,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _measure_identity(context: BuildContext) -> dict[str, Any]:
    """What the measures of a row hang on beside the row."""
    settings = context.config.caption
    backbone = (
        [context.catalog.input_sha256(file) for file in backbone_files(settings.backbone)] if settings.backbone else []
    )
    return {"version": VERSION, "measure": settings.measure_identity(), "backbone": backbone}


def _identity(context: BuildContext) -> dict[str, Any]:
    return {
        **_measure_identity(context),
        "rules": context.config.caption.rules_identity(),
        "candidates": context.content("ingest", "candidates"),
        "facts": context.sealed["fetch"].notes["content"],
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    funnel, _ = context.own_result("judge")
    # a measured part is a pure function of what its key names
    content = fingerprint({"measured": [measured.key for measured in context.own_parts("measure")]})
    return funnel, {"content": content}


STAGE = Stage(
    name="caption",
    about="clean and measure texts, apply the caption rules",
    identity=_identity,
    steps=(
        Step("resolve", _plan_resolve, resolve),
        Step("measure", _plan_measure, measure, "rows"),
        Step("judge", _plan_judge, judge),
    ),
    conclude=_conclude,
)
