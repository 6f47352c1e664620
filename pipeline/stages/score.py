"""score: what scorers (CLIP similarity, plug-ins) say of image and text, stored once; thresholds move without scoring.

Off unless the config names a model or a plug-in. Reads pool images and caption texts; writes `scored` (one row a
scorer, stored image and text: kept for every later build), `scores` (those of this build) and `score_verdicts` over
rows that passed the caption rules. Gives up before any work when a scorer cannot be had.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.records import Funnel, PartRecord, fingerprint
from pipeline.runner.work import BuildContext, Part, PartResult, Stage, Step
from pipeline.scoring.scorers import loaded_scorer, make_scorer, score_batch
from pipeline.scoring.settings import CLIP, ScoreRule, ScoreSettings
from pipeline.store.pool import PoolReader
from pipeline.store.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.store.writing import TableWriter, write_table

VERSION = 2
PART_ROWS = 2_000
SCORED = tables.SCORES.append(pa.field("stored_sha256", pa.string())).append(pa.field("text_md5", pa.string()))
UNSCORED = pa.schema(
    [
        *[(name, pa.string()) for name in ("sample_id", "stored_sha256", "text_md5", "pool_file")],
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("text", pa.string()),
    ]
)


def measure(payload: dict[str, Any]) -> PartResult:
    """Scores of one part of images by one scorer."""
    from PIL import Image

    settings: ScoreSettings = payload["settings"]
    scorer = loaded_scorer(settings, payload["scorer"])
    rows = pq.ParquetFile(payload["todo"]).read_row_group(payload["row_group"])
    size = payload["batch_size"]
    scores: list[float] = []
    with PoolReader(payload["workdir"]) as pool:
        for start in range(0, rows.num_rows, size):
            batch = rows.slice(start, size).to_pylist()
            images = [
                Image.open(io.BytesIO(pool.read(row["pool_file"], row["offset"], row["length"]))).convert("RGB")
                for row in batch
            ]
            scores += score_batch(scorer, images, [row["text"] for row in batch], size)
    table = rows.select(["sample_id", "stored_sha256", "text_md5"])
    table = table.append_column("scorer", pa.array([payload["scorer"]] * rows.num_rows, pa.string()))
    table = table.append_column("score", pa.array(scores, pa.float32()))
    path = f"tables/score/{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "scored", path, table, SCORED),))


def judge(payload: dict[str, Any]) -> PartResult:
    """The scores of this build, and verdicts over the rows that passed the caption rules."""
    settings: ScoreSettings = payload["settings"]
    workdir, stem = payload["workdir"], payload["stem"]
    with open_scratch(payload) as sql:
        for name in ("candidates", "facts", "captions", "caption_verdicts"):
            view_parquet(sql, name, payload[name])
        _view_scored(sql, payload["scored"])
        wanted = _rows_with_text("sample_id, stored_sha256, md5(text) AS text_md5")
        scores = copy_sorted(
            sql,
            f"SELECT s.sample_id, s.scorer, s.score FROM scored s JOIN ({wanted}) w USING (sample_id, stored_sha256, "
            "text_md5) QUALIFY row_number() OVER (PARTITION BY sample_id, scorer ORDER BY score) = 1",
            "sample_id, scorer",
            TableWriter(workdir, "scores", f"tables/score/scores-{stem}.parquet", tables.SCORES),
        )
        view_parquet(sql, "scores", [scores.temp])
        sql.execute(
            "CREATE TABLE alive AS SELECT v.sample_id, c.domain FROM caption_verdicts v "
            "JOIN candidates c USING (sample_id) WHERE v.keep"
        )
        fails = " UNION ALL ".join(_failing(number, rule) for number, rule in enumerate(settings.rules))
        nothing = "SELECT NULL AS sample_id, 0 AS rule, '' AS reason, 0.0 AS score, '' AS threshold LIMIT 0"
        sql.execute(
            "CREATE TABLE fails AS "
            "SELECT sample_id, arg_min({'reason': reason, 'score': score, 'threshold': threshold}, "
            f"rule) AS first FROM ({fails or nothing}) GROUP BY sample_id"
        )
        verdicts = copy_sorted(
            sql,
            "SELECT a.sample_id, f.sample_id IS NULL AS keep, f.first.reason AS reason, "
            "printf('%.4f', f.first.score) AS value, f.first.threshold AS threshold "
            "FROM alive a LEFT JOIN fails f USING (sample_id)",
            "sample_id",
            TableWriter(workdir, "score_verdicts", f"tables/score/verdicts-{stem}.parquet", tables.VERDICTS),
        )
        reasons = dict(sql.execute("SELECT first.reason, count(*) FROM fails GROUP BY 1").fetchall())
        view_parquet(sql, "verdicts", [verdicts.temp])
        content = facet(sql, tables.VERDICTS.names, "verdicts")
    num_in = verdicts.num_rows
    funnel = Funnel(num_in, num_in - sum(reasons.values()), reasons)
    return PartResult((scores, verdicts), funnel, {"content": content})


def _view_scored(sql: Any, paths: Sequence[str]) -> None:
    if paths:
        view_parquet(sql, "scored", paths)
    else:
        sql.register("scored", SCORED.empty_table())


def _rows_with_text(columns: str) -> str:
    # all fetched images with a text, whatever the rules say: a rule that moves later finds its score here
    return f"SELECT {columns} FROM facts JOIN captions USING (sample_id) WHERE outcome = 'ok' AND text <> ''"


def _failing(number: int, rule: ScoreRule) -> str:
    """Rows that one rule drops: sample_id, rule, reason, score, threshold. A row without a CLIP score fails."""
    reason = "low_score" if rule.scorer == CLIP else f"{rule.scorer}_score"
    where = "true"
    if rule.domains is not None:
        listed = ", ".join("'" + domain.replace("'", "''") + "'" for domain in rule.domains)
        where = f"domain IN ({listed})"
    rows = (
        f"(SELECT a.sample_id, a.domain, s.score FROM alive a LEFT JOIN scores s ON s.sample_id = a.sample_id "
        f"AND s.scorer = '{rule.scorer}' WHERE {where})"
    )
    head = f"SELECT sample_id, {number} AS rule, '{reason}' AS reason, score::DOUBLE AS score, "
    if rule.min_score is not None:
        return f"{head}'>= {rule.min_score:g}' AS threshold FROM {rows} WHERE score IS NULL OR score < {rule.min_score}"
    if rule.max_score is not None:
        return f"{head}'<= {rule.max_score:g}' AS threshold FROM {rows} WHERE score > {rule.max_score}"
    if rule.min_quantile is not None:
        return (
            f"{head}printf('>= %.4f, the {rule.min_quantile:g} quantile of %s', least, domain) AS threshold FROM "
            f"(SELECT *, quantile_cont(score::DOUBLE, {rule.min_quantile}) OVER (PARTITION BY domain) AS least "
            f"FROM {rows}) WHERE score IS NULL OR score < least"
        )
    return (
        f"{head}'top {rule.top_fraction:g} of its domain' AS threshold FROM "
        "(SELECT *, row_number() OVER (PARTITION BY domain ORDER BY score DESC NULLS LAST, sample_id) AS place, "
        f"count(*) OVER (PARTITION BY domain) AS num FROM {rows}) WHERE place > ceil(num * {rule.top_fraction})"
    )


def _plan_measure(context: BuildContext) -> Sequence[Part]:
    """What no part has scored yet, by scorer, in the order in which it lies in the pool."""
    settings = context.config.score
    parts: list[Part] = []
    if not settings.scorers:
        return parts
    storage.make_folder(storage.join(context.workdir, "scratch"))
    with open_scratch(context.execution()) as sql:
        view_parquet(sql, "facts", context.files("fetch", "facts"))
        view_parquet(sql, "captions", context.files("caption", "captions"))
        for name in settings.scorers:
            parts += _plan_scorer(context, sql, name)
    return parts


def _plan_scorer(context: BuildContext, sql: Any, name: str) -> list[Part]:
    settings = context.config.score
    recipe = _recipe(context, name)
    _view_scored(sql, _files(context, context.catalog.parts_like("score", "measure", recipe)))
    columns = 'sample_id, stored_sha256, md5(text) AS text_md5, pool_file, "offset", length, text'
    sql.execute(
        'CREATE OR REPLACE TABLE todo AS SELECT *, row_number() OVER (ORDER BY pool_file, "offset", sample_id) - 1 '
        f"AS place FROM ({_rows_with_text(columns)}) ANTI JOIN scored USING (sample_id, stored_sha256, text_md5)"
    )
    sql.execute("DROP VIEW scored")
    keys = sql.execute(
        f"SELECT place // {PART_ROWS} AS row_group, count(*), "
        "to_hex(bit_xor(md5_number(sample_id || chr(31) || stored_sha256 || text_md5))) FROM todo GROUP BY 1 ORDER BY 1"
    ).fetchall()
    writer = TableWriter(context.workdir, "todo", f"scratch/score-{name}.parquet", UNSCORED, PART_ROWS)
    todo = copy_sorted(sql, "SELECT * FROM todo", "place", writer).temp
    parts = []
    for row_group, num_rows, rows_key in keys:
        key = fingerprint({"recipe": recipe, "rows": rows_key, "num_rows": num_rows})
        payload = {
            "todo": todo,
            "row_group": row_group,
            "settings": settings,
            "scorer": name,
            "batch_size": _batch_size(settings, name),
            "stem": key[:16],
            **context.execution(),
        }
        parts.append(Part(key, payload, recipe, num_rows))
    return parts


def _scored(context: BuildContext) -> Sequence[PartRecord]:
    """Parts of any build that scored by one of this build's scorers."""
    recipes = [_recipe(context, name) for name in context.config.score.scorers]
    return [part for recipe in recipes for part in context.catalog.parts_like("score", "measure", recipe)]


def _files(context: BuildContext, parts: Sequence[PartRecord]) -> list[str]:
    return [path for part in parts for path in context.paths(part, "scored")]


def _plan_judge(context: BuildContext) -> Sequence[Part]:
    settings = context.config.score
    if not settings.scorers:
        return []
    parts = context.own_parts("measure")
    key = fingerprint({"stage": context.fingerprint, "parts": sorted(part.key for part in parts)})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "facts": context.files("fetch", "facts"),
        "captions": context.files("caption", "captions"),
        "caption_verdicts": context.files("caption", "caption_verdicts"),
        "scored": _files(context, parts),
        "settings": settings,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _gpus(context: BuildContext) -> float:
    return 0.0 if context.config.score.device == "cpu" or not context.config.score.model else 1.0


def _batch_size(settings: ScoreSettings, name: str) -> int:
    if name == CLIP:
        return settings.batch_size
    return next(plugin.batch_size for plugin in settings.plugins if plugin.name == name)


def _recipe(context: BuildContext, name: str) -> str:
    """Fingerprint of all that a score of this scorer hangs on beside image and text; the device is not in it."""
    settings = context.config.score
    identity: dict[str, Any] = {"version": VERSION, "scorer": name, "batch_size": _batch_size(settings, name)}
    if name == CLIP:
        identity |= {
            "model": content_of(context, str(settings.model)),
            "weights": content_of(context, str(settings.pretrained)),
            "precision": settings.precision,
        }
    else:
        plugin = next(plugin for plugin in settings.plugins if plugin.name == name)
        identity |= {
            "class": plugin.scorer,
            "code": str(getattr(make_scorer(settings, name), "version", "")),
            "options": {key: content_of(context, value) for key, value in sorted(plugin.options.items())},
        }
    return fingerprint(identity)


def content_of(context: BuildContext, named: Any) -> Any:
    """Hash of the file that a name leads to; the value itself when it leads to none."""
    if not isinstance(named, str) or not named:
        return named
    fs, inner = storage.filesystem(named)
    return context.catalog.input_sha256(named) if fs.isfile(inner) else named


def _identity(context: BuildContext) -> dict[str, Any]:
    settings = context.config.score
    caption = context.sealed["caption"]
    if not settings.scorers:
        return {"version": VERSION, "off": True, "caption": caption.fingerprint}
    return {
        "scorers": {name: _recipe(context, name) for name in settings.scorers},
        "rules": [rule.model_dump(mode="json") for rule in settings.rules],
        "facts": context.sealed["fetch"].notes["content"],
        "caption": caption.fingerprint,
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    if not context.config.score.scorers:
        num = context.sealed["caption"].funnel.num_kept
        return Funnel(num, num), {"off": True, "content": "off"}
    return context.own_result("judge")


STAGE = Stage(
    name="score",
    about="CLIP score and other scorers (off unless one is named)",
    identity=_identity,
    steps=(
        Step("measure", _plan_measure, measure, "images", committed=_scored, gpus=_gpus),
        Step("judge", _plan_judge, judge),
    ),
    conclude=_conclude,
)
