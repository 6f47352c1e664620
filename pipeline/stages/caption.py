"""caption: clean and measure texts, then apply the caption rules of the config.

Reads candidates and facts. Writes `captions` (measurements, one row a candidate) and `caption_verdicts` (one
row a fetched image). Measurements are parts of their own: a moved threshold judges again, it never measures again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import tables
from manifests.catalog import Funnel
from pipeline.captions.measure import measure_captions
from pipeline.captions.rules import columns_needed, count_reasons, judge_captions
from pipeline.captions.settings import CaptionSettings
from pipeline.stages.sql import facet, open_scratch, view_parquet
from pipeline.work import (
    BuildContext,
    Part,
    PartResult,
    Stage,
    Step,
    TableWriter,
    fingerprint,
    write_table,
)

VERSION = 1
JUDGE_ROWS = 500_000

# what the rules may look at, beside the columns of `captions`
_JOINED = {
    "domain": "c.domain",
    "source": "c.source",
    "width_px": "f.width_px",
    "height_px": "f.height_px",
    "pixel_std": "f.pixel_std",
    "num_same_text": "CASE WHEN t.text_key IS NOT NULL THEN count(*) OVER (PARTITION BY t.text_key) END",
    "num_same_text_host": "CASE WHEN t.text_key IS NOT NULL THEN count(*) OVER (PARTITION BY t.text_key, f.host) END",
}


def measure(payload: dict[str, Any]) -> PartResult:
    """Measure one row group of candidates."""
    settings: CaptionSettings = payload["settings"]
    candidates = pq.ParquetFile(payload["candidates"]).read_row_group(payload["row_group"])
    rows = measure_captions(candidates, settings)
    path = f"tables/caption/{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "captions", path, rows, tables.CAPTIONS),))


def judge(payload: dict[str, Any]) -> PartResult:
    """Verdicts over every fetched image."""
    settings: CaptionSettings = payload["settings"]
    path = f"tables/caption/verdicts-{payload['stem']}.parquet"
    writer = TableWriter(payload["workdir"], "caption_verdicts", path, tables.VERDICTS)
    counts: dict[str, int] = {}
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        view_parquet(sql, "facts", payload["facts"])
        view_parquet(sql, "captions", payload["captions"])
        content = facet(sql, tables.CAPTIONS.names, "captions")
        for rows in _joined_rows(sql, settings):
            verdicts = judge_captions(rows, settings)
            for reason, num in count_reasons(verdicts).items():
                counts[reason] = counts.get(reason, 0) + num
            writer.write(verdicts)
    num_kept = counts.pop("kept", 0)
    funnel = Funnel(num_kept + sum(counts.values()), num_kept, counts)
    return PartResult((writer.close(),), funnel, {"content": content})


def _joined_rows(sql: Any, settings: CaptionSettings) -> Iterator[pa.Table]:
    columns = [
        f'{_JOINED[name]} AS "{name}"' if name in _JOINED else f't."{name}"'
        for name in sorted(columns_needed(settings))
    ]
    # repeats are counted over what was fetched: a caption of pictures nobody has is no boilerplate
    reader = sql.sql(
        f"SELECT {', '.join(columns)} FROM facts f JOIN candidates c USING (sample_id) "
        "JOIN captions t USING (sample_id) WHERE f.outcome = 'ok' ORDER BY f.sample_id"
    ).to_arrow_reader(JUDGE_ROWS)
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _plan_measure(context: BuildContext) -> Sequence[Part]:
    parts = []
    settings = context.config.caption
    hashes = context.content("ingest", "candidates")
    for path, sha256 in zip(context.files("ingest", "candidates"), hashes, strict=True):
        metadata = pq.ParquetFile(path).metadata
        for row_group in range(metadata.num_row_groups):
            key = fingerprint(
                {
                    "version": VERSION,
                    "measure": settings.measure_identity(),
                    "candidates": sha256,
                    "row_group": row_group,
                }
            )
            payload = {
                "candidates": path,
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


def _identity(context: BuildContext) -> dict[str, Any]:
    settings = context.config.caption
    return {
        "version": VERSION,
        "measure": settings.measure_identity(),
        "rules": settings.rules_identity(),
        "candidates": context.content("ingest", "candidates"),
        "facts": context.sealed["fetch"].notes["content"],
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    (part,) = context.own_parts("judge")
    assert part.funnel is not None
    return part.funnel, dict(part.notes)


STAGE = Stage(
    name="caption",
    about="clean and measure texts, apply the caption rules",
    identity=_identity,
    steps=(Step("measure", _plan_measure, measure, "rows"), Step("judge", _plan_judge, judge)),
    conclude=_conclude,
)
