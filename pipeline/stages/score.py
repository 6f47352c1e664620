"""score: rate image and text by scorers (CLIP similarity, plug-ins). Scores are stored once, so thresholds can move.

Off unless the config names a model or a plug-in. Reads pool images and caption texts. Writes `scored` (one row a
scorer, image and text, kept for every later build) and `boxes` (what detectors found), `scores` (those of this build),
`score_verdicts` (rows that passed the caption rules) and `marks` (what pack shall blur or flag). Raises ConfigError
before any work when a scorer is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from manifests.contract import tables
from manifests.contract.reader import literals
from manifests.contract.records import Funnel, PartRecord, fingerprint
from manifests.errors import ConfigError
from manifests.masking import hide_in
from manifests.services.packages import code_of
from manifests.stores import storage
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.scoring.scorers import Box, find_boxes, loaded_scorer, make_scorer, score_batch
from pipeline.scoring.settings import CLIP, ScoreRule, ScoreSettings
from pipeline.sources.files import walk_files
from pipeline.store.files import Files, Named, RowGroup
from pipeline.store.pool import PoolReader
from pipeline.store.sql import cut_rows, view_parquet, view_table

VERSION = 2
PART_ROWS = 2_000
MOST_BELOW = 10_000  # files in sub-folders of a folder that an option names: more were not meant
SCORED = tables.SCORES.append(pa.field("stored_sha256", pa.string())).append(pa.field("text_md5", pa.string()))


BOXES = pa.schema(
    [*(field for field in SCORED if field.name != "score"), *((side, pa.float32()) for side in Box._fields)]
)


@dataclass(frozen=True)
class ScorerInputs:
    """One scorer: everything that a score depends on besides image and text. Its device is not in it.

    The CLIP scorer has a model (name or file), weights (tag or file) and a precision. A plug-in has a class, the
    code that it runs, and options.
    """

    name: str
    batch_size: int
    model: Named | None = None
    weights: Named | None = None
    precision: str = ""
    scorer_class: str = ""
    code: str = ""
    options: tuple[tuple[str, Named], ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return the values under which the scores are kept, for every later build."""
        values: dict[str, Any] = {"scorer": self.name, "batch_size": self.batch_size}
        if self.model is not None and self.weights is not None:
            clip = {"model": self.model.content, "weights": self.weights.content, "precision": self.precision}
            return values | clip
        options = {key: option.content for key, option in self.options}
        return values | {"class": self.scorer_class, "code": self.code, "options": options}

    def settings(self, device: str) -> ScoreSettings:
        """Return the settings that make this scorer and no other."""
        values: dict[str, Any] = {"device": device}
        if self.model is not None and self.weights is not None:
            values |= {"model": self.model.value, "pretrained": self.weights.value, "precision": self.precision}
        else:
            options = {key: option.value for key, option in self.options}
            values["plugins"] = [{"scorer": self.scorer_class, "name": self.name, "options": options}]
        return ScoreSettings.model_validate(values)


@dataclass(frozen=True)
class ScoreInputs:
    """All that score reads. Without scorers the stage lets everything pass."""

    scorers: tuple[ScorerInputs, ...]
    rules: tuple[ScoreRule, ...]
    candidates: Files
    facts: Files
    captions: Files
    caption_verdicts: Files
    num_passed: int
    """Rows that passed the caption rules."""


def measure(_: Inputs, run: Execution[str], rows: RowGroup, scorer: ScorerInputs) -> PartResult:
    """Scores of one part of images and texts by one scorer; `run.how` is the device."""
    from manifests.pictures.opening import open_stored

    name, size = scorer.name, scorer.batch_size
    loaded = loaded_scorer(scorer.settings(run.how), name)
    held = rows.read()
    scores: list[float] = []
    boxes: list[Sequence[Box]] = []
    with PoolReader(run.workdir) as pool:
        for start in range(0, held.num_rows, size):
            batch = held.slice(start, size).to_pylist()
            images = [open_stored(stored).convert("RGB") for stored in pool.read_rows(batch)]
            if hasattr(loaded, "boxes"):
                surest, placed = find_boxes(loaded, images)
                scores, boxes = scores + surest, boxes + placed
            else:
                scores += score_batch(loaded, images, [row["text"] for row in batch], size)
    table = held.select(["sample_id", "stored_sha256", "text_md5"])
    table = table.append_column("scorer", pa.array([name] * held.num_rows, pa.string()))
    table = table.append_column("score", pa.array(scores, pa.float32()))
    scored = run.write("scored", table)
    if not hasattr(loaded, "boxes"):
        return PartResult((scored,))
    places = table.drop_columns("score").take(pa.array([at for at, some in enumerate(boxes) for _ in some], pa.int64()))
    for number, side in enumerate(Box._fields):
        places = places.append_column(side, pa.array([box[number] for some in boxes for box in some], pa.float32()))
    return PartResult((scored, run.write("boxes", places)))


def judge(inputs: Inputs, run: Execution[None], rules: tuple[ScoreRule, ...]) -> PartResult:
    """Return the scores of this build, and verdicts over the rows that passed the caption rules."""
    with run.views(inputs) as sql:
        fetched = _fetched("sample_id, stored_sha256, md5(text) AS text_md5")
        scores = run.save(
            sql,
            "scores",
            f"SELECT s.sample_id, s.scorer, s.score FROM scored s JOIN ({fetched}) f USING (sample_id, "
            "stored_sha256, text_md5) QUALIFY row_number() OVER (PARTITION BY sample_id, scorer ORDER BY score) = 1",
            "sample_id, scorer",
        )
        view_parquet(sql, "scores", [scores.temp])
        sql.execute(
            "CREATE TABLE alive AS SELECT v.sample_id, c.domain FROM caption_verdicts v "
            "JOIN candidates c USING (sample_id) WHERE v.keep"
        )
        sql.execute(f"CREATE VIEW found AS {_FOUND.format(fetched=fetched)}")
        drops = [(number, rule) for number, rule in enumerate(rules) if rule.action == "drop"]
        failing = [_failing(number, rule) for number, rule in drops]
        fails = " UNION ALL ".join([*failing, *(_invalid(number, rule) for number, rule in enumerate(rules))])
        nothing = "SELECT NULL AS sample_id, 0 AS rule, '' AS reason, 0.0 AS score, '' AS threshold LIMIT 0"
        sql.execute(
            "CREATE TABLE fails AS "
            "SELECT sample_id, arg_min({'reason': reason, 'score': score, 'threshold': threshold}, "
            f"rule) AS first FROM ({fails or nothing}) GROUP BY sample_id"
        )
        verdicts, content = run.save_digested(
            sql,
            "score_verdicts",
            "SELECT a.sample_id, f.sample_id IS NULL AS keep, f.first.reason AS reason, "
            "printf('%.4f', f.first.score) AS value, f.first.threshold AS threshold "
            "FROM alive a LEFT JOIN fails f USING (sample_id)",
            "sample_id",
        )
        reasons = dict(sql.execute("SELECT first.reason, count(*) FROM fails GROUP BY 1").fetchall())
        files, notes = [scores, verdicts], {"content": content}
        if len(drops) < len(rules):
            marks, notes["marks"] = run.save_digested(sql, "marks", _marking(rules), "sample_id")
            files.append(marks)
    num_in = verdicts.num_rows
    funnel = Funnel(num_in, num_in - sum(reasons.values()), reasons)
    return PartResult(tuple(files), funnel, notes)


def _fetched(columns: str) -> str:
    # images that a caption rule drops are scored too, so that the rule can move later without scoring
    return f"SELECT {columns} FROM facts JOIN captions USING (sample_id) WHERE outcome = 'ok'"


# boxes of the pictures of this build; is_place as Box.is_place says, also of what an earlier version stored
_FOUND = """
    SELECT b.*, isfinite(b.confidence) AND b.left >= 0 AND b.top >= 0 AND b.right <= 1 AND b.bottom <= 1
        AND (b.right - b.left) * stored_width_px >= 1 AND (b.bottom - b.top) * stored_height_px >= 1 AS is_place
    FROM (SELECT DISTINCT b.* EXCLUDE (text_md5) FROM boxes b
        JOIN ({fetched}) USING (sample_id, stored_sha256, text_md5)) b JOIN facts USING (sample_id)
"""


def _scored_rows(rule: ScoreRule) -> str:
    """Return the rows that a rule judges: sample_id, domain, score."""
    where = "true" if rule.domains is None else f"domain IN ({literals(rule.domains)})"
    return (
        f"(SELECT a.sample_id, a.domain, s.score FROM alive a LEFT JOIN scores s "
        f"ON s.sample_id = a.sample_id AND s.scorer = '{rule.scorer}' WHERE {where})"
    )


def _failing(number: int, rule: ScoreRule) -> str:
    """Rows that one rule drops: sample_id, rule, reason, score, threshold. A row without a CLIP score fails."""
    reason = "low_score" if rule.scorer == CLIP else f"{rule.scorer}_score"
    rows = f"(FROM {_scored_rows(rule)} WHERE coalesce(isfinite(score), true))"
    head = f"SELECT sample_id, {number} AS rule, '{reason}' AS reason, score::DOUBLE AS score, "
    if rule.min_score is not None:
        return f"{head}'>= {rule.min_score:g}' AS threshold FROM {rows} WHERE score IS NULL OR score < {rule.min_score}"
    if rule.max_score is not None:
        return f"{head}'<= {rule.max_score:g}' AS threshold FROM {rows} WHERE score > {rule.max_score}"
    return (
        f"{head}printf('>= %.4f, the {rule.min_quantile:g} quantile of %s', least, domain) AS threshold FROM "
        f"(SELECT *, quantile_cont(score::DOUBLE, {rule.min_quantile}) OVER (PARTITION BY domain) AS least "
        f"FROM {rows}) WHERE score IS NULL OR score < least"
    )


def _invalid(number: int, rule: ScoreRule) -> str:
    """Rows that a rule cannot judge, whatever its action; columns as of `_failing`.

    Their score is no finite number, or a box that is to be blurred is no place in the picture.
    """
    head = f"SELECT sample_id, {number} AS rule, 'invalid_score' AS reason, score::DOUBLE AS score, "
    invalid = f"{head}'a finite number' AS threshold FROM {_scored_rows(rule)} WHERE NOT isfinite(score)"
    if rule.action != "blur":
        return invalid
    boxes = f"FROM found WHERE scorer = '{rule.scorer}' AND confidence > {rule.max_score}"
    return (
        f"{invalid} UNION ALL {head}'boxes within the picture' AS threshold FROM ({_failing(number, rule)}) "
        f"SEMI JOIN ({boxes} AND NOT is_place) USING (sample_id)"
    )


def _marking(rules: Sequence[ScoreRule]) -> str:
    """Describe rows packed with a mark (MARKS): those that fail a rule, yet are not dropped, and the boxes to blur."""
    done = {"blur": "blurred", "flag": "flagged"}
    failing = [
        f"SELECT sample_id, '{rule.scorer}' AS scorer, '{rule.scorer}:{done[rule.action]}' AS mark, "
        f"{rule.max_score if rule.action == 'blur' else 'NULL'}::DOUBLE AS above FROM ({_failing(number, rule)})"
        for number, rule in enumerate(rules)
        if rule.action != "drop"
    ]
    box = ", ".join(f"'{side}': b.{side}" for side in Box._fields[:4])
    return (
        f"WITH marked AS ({' UNION ALL '.join(failing)}), blurs AS (SELECT sample_id, "
        f"list(DISTINCT {{{box}}} ORDER BY {{{box}}}) AS blur FROM marked m "
        "JOIN found b USING (sample_id, scorer) WHERE b.confidence > m.above GROUP BY ALL) "
        "SELECT sample_id, string_agg(DISTINCT mark, ' ' ORDER BY mark) AS marks, any_value(blur) AS blur "
        "FROM marked LEFT JOIN blurs USING (sample_id) GROUP BY ALL"
    )


def _inputs(context: BuildContext) -> ScoreInputs:
    settings = context.config.score
    return ScoreInputs(
        tuple(_scorer_inputs(context, settings, name) for name in settings.scorers),
        tuple(settings.rules),
        context.files("ingest", "candidates"),
        context.facts(),
        context.files("caption", "captions"),
        context.files("caption", "caption_verdicts"),
        context.sealed["caption"].funnel.num_kept,
    )


def _scorer_inputs(context: BuildContext, settings: ScoreSettings, name: str) -> ScorerInputs:
    if name == CLIP:
        return ScorerInputs(
            name,
            settings.batch_size,
            model=named_file(context, str(settings.model)),
            weights=named_file(context, str(settings.pretrained)),
            precision=settings.precision,
        )
    plugin = next(plugin for plugin in settings.plugins if plugin.name == name)
    return ScorerInputs(
        name,
        plugin.batch_size,
        scorer_class=plugin.scorer,
        code=code_of(make_scorer(settings, name)),
        options=tuple((key, _option(context, key, value)) for key, value in sorted(plugin.options.items())),
    )


def _option(context: BuildContext, key: str, value: Any) -> Named:
    """Return an option of a plug-in: files count by their content, wherever in it they are named.

    A secret by its hash.
    """
    content = _content_of(context, value)
    is_shown = hide_in(content, key) == content
    return Named(value, content if is_shown else f"secret {fingerprint({key: content})}")


def _content_of(context: BuildContext, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _content_of(context, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_content_of(context, inner) for inner in value]
    return named_file(context, value).content


def named_file(context: BuildContext, value: Any) -> Named:
    """Return a value of the config: the name of a file or a folder counts by its content, any other value by itself.

    Of files in sub-folders the path counts too, since it may say what they are. No link to a folder is followed.

    Raises: ConfigError for a folder with more than MOST_BELOW files below it.
    """
    if not isinstance(value, str) or not value:
        return Named(value, value)
    fs, inner = storage.filesystem(value)
    if fs.isdir(inner):
        hash_file = context.catalog.input_sha256
        walked = (name for name, _ in walk_files(value, hidden=True) if "/" in name.rstrip("/"))
        below = list(islice((name for name in walked if not name.endswith("/")), MOST_BELOW + 1))
        if len(below) > MOST_BELOW:
            raise ConfigError(
                f"score: {value} has more than {MOST_BELOW:,} files in its sub-folders, and each counts for the "
                "scores; name the folder that holds what the scorer reads, and nothing else"
            )
        hashes = sorted(hash_file(path) for path in storage.files_in(value))
        if content := hashes + [f"{name}:{hash_file(storage.join(value, name))}" for name in sorted(below)]:
            return Named(value, content)
    return Named(value, context.catalog.input_sha256(value) if fs.isfile(inner) else value)


def _plan_measure(inputs: ScoreInputs, run: StageRun[str]) -> list[Part[dict[str, Any]]]:
    """Plan parts for what none has scored yet, by scorer, in the order in which it lies in the pool."""
    parts: list[Part[dict[str, Any]]] = []
    if not inputs.scorers:
        return parts
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_parquet(sql, "captions", inputs.captions.paths)
        for scorer in inputs.scorers:
            parts += _plan_scorer(scorer, run, sql)
    return parts


def _plan_scorer(scorer: ScorerInputs, run: StageRun[str], sql: Any) -> list[Part[dict[str, Any]]]:
    done = run.files_of(_scored_by(scorer, run), "scored")
    view_table(sql, "scored", done, SCORED)
    columns = 'sample_id, stored_sha256, md5(text) AS text_md5, pool_file, "offset", length, text'
    and_text = " AND text <> ''" if scorer.name == CLIP else ""  # a picture alone may show what must not be packed
    groups = cut_rows(
        sql,
        f"FROM ({_fetched(columns)}{and_text}) ANTI JOIN scored USING (sample_id, stored_sha256, text_md5)",
        'pool_file, "offset", sample_id',
        "sample_id || chr(31) || stored_sha256 || text_md5",
        run.scratch_file(f"score-{scorer.name}.parquet"),
        PART_ROWS,
    )
    sql.execute("DROP VIEW scored")
    return [Part({"rows": rows, "scorer": scorer}, scorer, num_rows) for rows, num_rows in groups]


def _scored_by(scorer: ScorerInputs, run: StageRun[Any]) -> list[PartRecord]:
    return run.made_of("measure", scorer)


def _conclude(inputs: ScoreInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    if not inputs.scorers:
        return Funnel(inputs.num_passed, inputs.num_passed), {"off": True, "content": "off"}
    return run.result("judge")


STAGE = Stage(
    name="score",
    about="CLIP score and other scorers (off unless one is named)",
    inputs=_inputs,
    tables={"scored": SCORED, "boxes": BOXES},
    steps=(
        Step(
            "measure",
            measure,
            version=VERSION,
            gives=("scored", "boxes"),
            plan=_plan_measure,
            how=lambda context: context.config.score.device,
            unit="images",
            committed=lambda inputs, run: [part for scorer in inputs.scorers for part in _scored_by(scorer, run)],
            gpus=lambda context: float(context.config.score.device != "cpu" and bool(context.config.score.model)),
        ),
        Step(
            "judge",
            judge,
            version=2,
            reads=("candidates", "facts", "captions", "caption_verdicts", "scored", "boxes"),
            gives=("scores", "score_verdicts", "marks"),
            plan=lambda inputs, _: [{}] if inputs.scorers else [],
        ),
    ),
    conclude=_conclude,
)
