"""score: image-text similarity by an open_clip model, stored once; thresholds move without scoring again.

Off unless the config names a model. Reads pool images and caption texts of rows that passed the caption rules;
writes `scores` and `score_verdicts`. Gives up before any work when the model cannot be had.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests import storage, tables
from manifests.catalog import Funnel
from manifests.errors import ConfigError
from pipeline.config import ScoreSettings
from pipeline.stages.pool import PoolReader
from pipeline.stages.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.work import BuildContext, Part, PartResult, Stage, Step, TableWriter, fingerprint, write_table

VERSION = 1
PART_ROWS = 2_000


def check_model(settings: ScoreSettings) -> None:
    """Make sure that the model can be had, before any work.

    Raises: ConfigError when open_clip is not installed, or knows neither the model nor its weights.
    """
    if settings.model is None:
        return
    if importlib.util.find_spec("open_clip") is None:
        raise ConfigError("score.model: open_clip is not installed; pip install 'plantmix[training]' or take score out")
    import open_clip

    model = _register_model(str(settings.model))
    if model not in open_clip.list_models():
        raise ConfigError(
            f"score.model: open_clip knows no model '{settings.model}'; take a name of open_clip.list_models() or the "
            "path of a model config (.json)"
        )
    fs, inner = storage.filesystem(str(settings.pretrained))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if settings.pretrained not in tags and not fs.exists(inner):
        raise ConfigError(
            f"score.pretrained: '{settings.pretrained}' is neither a file nor a tag of {settings.model} "
            f"({', '.join(tags) or 'it has none'})"
        )


def _register_model(model: str) -> str:
    """The name open_clip knows a model by; a config file is made known to it first."""
    if not model.endswith(".json") or not Path(model).is_file():
        return model
    import open_clip

    open_clip.add_model_config(model)
    return Path(model).stem


@lru_cache(maxsize=1)
def _load_model(model: str, pretrained: str, device: str) -> tuple[Any, Any, Any]:
    import open_clip

    name = _register_model(model)
    net, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
    net.eval()
    return net, preprocess, open_clip.get_tokenizer(name)


def measure(payload: dict[str, Any]) -> PartResult:
    """Cosine similarity of each image and its text, in batches."""
    import torch
    from PIL import Image

    settings: ScoreSettings = payload["settings"]
    net, preprocess, tokenize = _load_model(str(settings.model), str(settings.pretrained), settings.device)
    scores: list[float] = []
    with open_scratch(payload) as sql, PoolReader(payload["workdir"]) as pool:
        rows = _rows_to_score(sql, payload, offset=payload["offset"]).to_pylist()
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]
            images = [Image.open(io.BytesIO(pool.read(r["pool_file"], r["offset"], r["length"]))) for r in batch]
            with torch.inference_mode():
                image = net.encode_image(
                    torch.stack([preprocess(i) for i in images]).to(settings.device), normalize=True
                )
                text = net.encode_text(tokenize([row["text"] for row in batch]).to(settings.device), normalize=True)
            scores.extend((image * text).sum(-1).float().cpu().tolist())
    table = pa.table(
        {
            "sample_id": pa.array([row["sample_id"] for row in rows], pa.string()),
            "scorer": pa.array([f"{settings.model}/{settings.pretrained}"] * len(rows), pa.string()),
            "score": pa.array(scores, pa.float32()),
        }
    )
    path = f"tables/score/{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "scores", path, table, tables.SCORES),))


def _rows_to_score(sql: Any, payload: dict[str, Any], offset: int) -> pa.Table:
    view_parquet(sql, "facts", payload["facts"])
    view_parquet(sql, "captions", payload["captions"])
    # all fetched images with a text, whatever the rules say: a rule that moves later finds its score here
    return sql.sql(
        "SELECT f.sample_id, f.pool_file, f.offset, f.length, t.text FROM facts f JOIN captions t USING (sample_id) "
        f"WHERE f.outcome = 'ok' AND t.text <> '' ORDER BY f.sample_id LIMIT {PART_ROWS} OFFSET {offset}"
    ).to_arrow_table()


def judge(payload: dict[str, Any]) -> PartResult:
    """Verdicts over the rows that passed the caption rules; the first rule that a row fails is its reason."""
    settings: ScoreSettings = payload["settings"]
    path = f"tables/score/verdicts-{payload['stem']}.parquet"
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        view_parquet(sql, "caption_verdicts", payload["caption_verdicts"])
        view_parquet(sql, "scores", payload["scores"])
        sql.execute(
            "CREATE TABLE alive AS SELECT v.sample_id, c.domain, s.score FROM caption_verdicts v "
            "JOIN candidates c USING (sample_id) LEFT JOIN scores s USING (sample_id) WHERE v.keep"
        )
        fails = " UNION ALL ".join(_failing(number, rule) for number, rule in enumerate(settings.rules))
        sql.execute(f"CREATE TABLE fails AS {fails or 'SELECT NULL sample_id, 0 rule, NULL threshold LIMIT 0'}")
        verdicts = copy_sorted(
            sql,
            "SELECT a.sample_id, f.sample_id IS NULL AS keep, CASE WHEN f.sample_id IS NOT NULL THEN 'low_score' END "
            "AS reason, CASE WHEN f.sample_id IS NOT NULL THEN printf('%.4f', a.score) END AS value, f.threshold "
            "FROM alive a LEFT JOIN (SELECT sample_id, min_by(threshold, rule) AS threshold FROM fails GROUP BY 1) f "
            "USING (sample_id)",
            "sample_id",
            TableWriter(payload["workdir"], "score_verdicts", path, tables.VERDICTS),
        )
        num_in = sql.execute("SELECT count(*) FROM alive").fetchall()[0][0]
        num_low = sql.execute("SELECT count(DISTINCT sample_id) FROM fails").fetchall()[0][0]
        view_parquet(sql, "verdicts", [verdicts.temp])
        content = facet(sql, tables.VERDICTS.names, "verdicts")
    return PartResult((verdicts,), Funnel(num_in, num_in - num_low, {"low_score": num_low}), {"content": content})


def _failing(number: int, rule: Any) -> str:
    where = "true"
    if rule.domains is not None:
        listed = ", ".join("'" + domain.replace("'", "''") + "'" for domain in rule.domains)
        where = f"domain IN ({listed})"
    if rule.min_score is not None:
        return (
            f"SELECT sample_id, {number} AS rule, '>= {rule.min_score:g}' AS threshold FROM alive "
            f"WHERE {where} AND (score IS NULL OR score < {rule.min_score})"
        )
    return (
        f"SELECT sample_id, {number} AS rule, 'top {rule.top_fraction:g} of its domain' AS threshold FROM "
        "(SELECT *, row_number() OVER (PARTITION BY domain ORDER BY score DESC NULLS LAST, sample_id) AS place, "
        f"count(*) OVER (PARTITION BY domain) AS num FROM alive WHERE {where}) "
        f"WHERE place > ceil(num * {rule.top_fraction})"
    )


def _plan_measure(context: BuildContext) -> Sequence[Part]:
    settings = context.config.score
    if settings.model is None:
        return []
    parts = []
    for offset in range(0, context.sealed["fetch"].funnel.num_kept, PART_ROWS):
        key = fingerprint({"measure": _measure_identity(context), "offset": offset})
        payload = {
            "facts": context.files("fetch", "facts"),
            "captions": context.files("caption", "captions"),
            "settings": settings,
            "offset": offset,
            "stem": key[:16],
            **context.execution(),
        }
        parts.append(Part(key, payload))
    return parts


def _plan_judge(context: BuildContext) -> Sequence[Part]:
    if context.config.score.model is None:
        return []
    key = fingerprint({"stage": context.fingerprint})
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "caption_verdicts": context.files("caption", "caption_verdicts"),
        "scores": context.own_files("measure", "scores"),
        "settings": context.config.score,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _measure_identity(context: BuildContext) -> dict[str, Any]:
    settings = context.config.score
    return {
        "version": VERSION,
        "model": _content_of(context, settings.model),
        "weights": _content_of(context, settings.pretrained),
        "facts": context.sealed["fetch"].notes["content"],
        "captions": context.sealed["caption"].notes["content"],
    }


def _content_of(context: BuildContext, named: str | None) -> str | None:
    """Hash of the file that a name leads to; the name itself when it is one of open_clip's."""
    if named is None:
        return None
    fs, inner = storage.filesystem(named)
    return context.catalog.input_sha256(named) if fs.isfile(inner) else named


def _identity(context: BuildContext) -> dict[str, Any]:
    settings = context.config.score
    if settings.model is None:
        return {"version": VERSION, "off": True, "caption": context.sealed["caption"].fingerprint}
    return {
        "measure": _measure_identity(context),
        "rules": [rule.model_dump(mode="json") for rule in settings.rules],
        "caption": context.sealed["caption"].fingerprint,
    }


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    if context.config.score.model is None:
        num = context.sealed["caption"].funnel.num_kept
        return Funnel(num, num), {"off": True, "content": "off"}
    (part,) = context.own_parts("judge")
    assert part.funnel is not None
    return part.funnel, dict(part.notes)


STAGE = Stage(
    name="score",
    about="CLIP score of image and text (off unless a model is named)",
    identity=_identity,
    steps=(Step("measure", _plan_measure, measure), Step("judge", _plan_judge, judge)),
    conclude=_conclude,
)
