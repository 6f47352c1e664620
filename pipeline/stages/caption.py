"""caption: clean and measure texts, then apply the caption rules of the config.

Reads candidates and facts, and the backbone where one is given. Writes `names` (one row a name looked up in it),
`captions` (measurements, one row a candidate), `repeats` (texts that stand on too many pictures) and `caption_verdicts`
(one row a fetched image). Measurements are parts of their own: a moved threshold judges again, it never measures again.

Texts that a source joins to its pictures are measured as captions of theirs, and judged one by one (`joined_texts`). A
rule that drops one leaves the picture alone. The first one of kind `caption` is the caption of a picture without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.records import Funnel, fingerprint
from manifests.names.sql import identifier
from manifests.stores import storage
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step, files_in
from pipeline.judging.captions.joined import MEASURED_TEXTS, ROWS_AT_ONCE, measure_texts, number_texts
from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.settings import MEASURE_VERSION, MEASURED, CaptionSettings, RuleSet
from pipeline.judging.captions.verdicts import columns_needed, count_reasons, judge_captions
from pipeline.judging.vocabulary.backbone import BackboneSettings, backbone_files, names_to_resolve, resolve_names
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import beside, facet, view_parquet

_OF_CANDIDATES = [
    name
    for name in tables.CANDIDATES.names
    if name.startswith("taxon_") or name in ("sample_id", "caption", "licence", "licence_url")
]
REPEATS = pa.schema([("text_key", pa.uint64()), ("num_same_text", pa.int64())])

# what rules may look at, besides the columns of `captions`
_JOINED = {
    "domain": "c.domain",
    "source": "c.source",
    "width_px": "f.width_px",
    "height_px": "f.height_px",
    "num_same_text": "CASE WHEN t.text_key IS NOT NULL THEN coalesce(r.num_same_text, 1) END",
}


@dataclass(frozen=True)
class CaptionInputs:
    """All that caption reads. `backbone_content` is the hash of each file of the backbone.

    `joined` are the texts that are joined to the candidates of each source, `licences` what its licence texts mean; as
    many as files of candidates.
    """

    candidates: Files
    facts: Files
    backbone: BackboneSettings | None
    backbone_content: tuple[str, ...]
    rules: tuple[RuleSet, ...]
    measure: dict[str, bool] = field(default_factory=MEASURED.copy)
    joined: tuple[Files, ...] = ()
    licences: tuple[dict[str, str], ...] = ()


def resolve(
    inputs: Inputs, run: Execution[None], backbone: BackboneSettings, backbone_content: tuple[str, ...]
) -> PartResult:
    """Look up every name of the candidates in the backbone, which counts by its content."""
    columns = [f"taxon_{name}" for name in ("kingdom", "genus", "species", "scientific_name")]
    distinct = None
    for path in inputs["candidates"].paths:
        for batch in pq.ParquetFile(path).iter_batches(columns=columns):
            names = names_to_resolve(pa.Table.from_batches([batch]))
            names = pa.concat_tables([names, distinct] if distinct else [names])
            distinct = names.filter(names["name"].is_valid()).group_by(["name", "kingdom"]).aggregate([])
    assert distinct is not None
    scratch = storage.join(run.workdir, "scratch")
    storage.make_folder(scratch)
    rows = resolve_names(distinct, backbone, scratch, run.memory_gb)
    return PartResult((run.write("names", rows),))


def measure_rows(
    inputs: Inputs,
    run: Execution[None],
    candidates: RowGroup,
    measure: dict[str, bool],
    licences: dict[str, str],
    joined: Files | None = None,
) -> PartResult:
    """Measure one row group of candidates, and the texts that their source joins to them.

    `names` are there as the backbone resolved them, if any. `licences` are those of the source.
    """
    rows = candidates.read(_OF_CANDIDATES)
    names = pq.read_table(inputs["names"].path) if inputs["names"] else None
    files = []
    if joined:
        ids = rows["sample_id"]
        writer = run.writer("texts")
        with run.scratch() as sql:
            view_parquet(sql, "joined", joined.paths, f"sample_id BETWEEN '{ids[0]}' AND '{ids[-1]}'")
            rows = measure_texts(sql, rows, names, writer.write)
        files.append(writer.close())
    writer = run.writer("captions")
    for at in range(0, len(rows), ROWS_AT_ONCE):
        writer.write(measure_captions(rows.slice(at, ROWS_AT_ONCE), names, licences))
    return PartResult((writer.close(), *files))


def count_repeats(inputs: Inputs, run: Execution[None], allowed: int) -> PartResult:
    """List the texts that stand on more than `allowed` fetched pictures.

    One pass over all: a text's pictures lie in every bucket. Of joined texts the rows of their tables count: one row
    for all pictures of a species is no boilerplate.
    """
    with run.views(inputs) as sql:
        query = (
            "SELECT text_key, count(*) AS num_same_text FROM (SELECT text_key FROM captions JOIN facts USING "
            "(sample_id) WHERE outcome = 'ok' "
            "UNION ALL SELECT text_key FROM (SELECT DISTINCT text_key, source, entry, row_number FROM texts "
            "WHERE NOT is_caption)) "
            f"WHERE text_key IS NOT NULL GROUP BY text_key HAVING count(*) > {allowed}"
        )
        return PartResult((run.save(sql, "repeats", query, "text_key"),))


def judge(inputs: Inputs, run: Execution[None], rules: tuple[RuleSet, ...]) -> PartResult:
    """Verdicts over every fetched image of a bucket."""
    settings = CaptionSettings(rules=rules)
    counts: Counter[str] = Counter()
    files = []
    with run.views(inputs) as sql:
        sql.register("no_verdicts", tables.VERDICTS.empty_table())
        sql.execute("CREATE TABLE verdicts AS FROM no_verdicts")
        adding = beside(sql)
        for rows in _joined_rows(sql, settings, "captions"):
            verdicts = judge_captions(rows, settings)
            counts.update(count_reasons(verdicts))
            adding.register("judged", verdicts)
            adding.execute("INSERT INTO verdicts FROM judged")
        # verdicts are sorted, not the rows they were made from: a third of the bytes
        files.append(run.save(sql, "caption_verdicts", "FROM verdicts", "sample_id"))
        if inputs["texts"]:
            texts = _joined_rows(sql, settings, "texts", MEASURED_TEXTS.names)
            query = number_texts(adding, ((rows, judge_captions(rows, settings)) for rows in texts))
            order = "sample_id, kind, entry, row_number"
            files.append(run.save(adding, "joined_texts", query, order))
    num_kept = counts.pop("kept", 0)
    return PartResult(tuple(files), Funnel(num_kept + counts.total(), num_kept, dict(counts)))


def _joined_rows(sql: Any, settings: CaptionSettings, texts: str, more: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yield the texts of fetched pictures, out of a view: what the rules read of them, and `more` columns."""
    needed = columns_needed(settings)
    listed = sorted(needed.union(more))
    columns = [
        f"{_JOINED[name]} AS {identifier(name)}" if name in _JOINED else f"t.{identifier(name)}" for name in listed
    ]
    joins = f"JOIN candidates c USING (sample_id) JOIN {texts} t USING (sample_id)"
    if "num_same_text" in needed:
        joins += " LEFT JOIN repeats r USING (text_key)"
    rows = sql.sql(f"SELECT {', '.join(columns)} FROM facts f {joins} WHERE f.outcome = 'ok'")
    for batch in rows.to_arrow_reader(ROWS_AT_ONCE):
        yield pa.Table.from_batches([batch])


def _inputs(context: BuildContext) -> CaptionInputs:
    settings = context.config.caption
    backbone = backbone_files(settings.backbone) if settings.backbone else []
    joins = context.catalog.parts_of(context.sealed["ingest"].fingerprint, "join")
    joined = tuple(
        files_in(context.workdir, [part for part in joins if part.notes["source"] == source.name], "joined")
        for source in context.config.sources
    )
    return CaptionInputs(
        context.files("ingest", "candidates"),
        context.facts(),
        settings.backbone,
        tuple(context.catalog.input_sha256(file) for file in backbone),
        settings.rules,
        joined=joined if joins else (),
        licences=tuple(source.licences for source in context.config.sources),
    )


def _plan_measure(inputs: CaptionInputs, run: StageRun[None]) -> list[Part[dict[str, Any]]]:
    parts = []
    candidates = inputs.candidates
    joined = inputs.joined or [Files()] * len(candidates.paths)
    licences = inputs.licences or (dict[str, str](),) * len(candidates.paths)
    for path, sha256, texts, meant in zip(candidates.paths, candidates.content, joined, licences, strict=True):
        metadata = pq.ParquetFile(path).metadata
        for number in range(metadata.num_row_groups):
            rows = RowGroup(path, number, f"{sha256}-{number}")
            of_part = {"candidates": rows, "licences": meant} | ({"joined": texts} if texts else {})
            parts.append(Part(of_part, num_rows=metadata.row_group(number).num_rows))
    return parts


def _plan_repeats(inputs: CaptionInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    limits = [rules.thresholds()["max_repeats"] for rules in inputs.rules if "max_repeats" in rules.thresholds()]
    return [{"allowed": min(limits)}] if limits else []


def _conclude(inputs: CaptionInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    notes = {"content": fingerprint({"captions": run.files("measure", "captions").identity()})}
    if texts := run.files("judge", "joined_texts"):
        with run.scratch() as sql:
            view_parquet(sql, "texts", texts.paths, "name IS NOT NULL")
            notes["joined_texts"] = facet(sql, ("sample_id", "name", "text"), "texts")
    return run.funnel("judge"), notes


STAGE = Stage(
    name="caption",
    about="clean and measure texts, apply the caption rules",
    inputs=_inputs,
    tables={"repeats": REPEATS, "texts": MEASURED_TEXTS},
    steps=(
        Step(
            "resolve",
            resolve,
            version=MEASURE_VERSION,
            reads=("candidates",),
            gives=("names",),
            plan=lambda inputs, _: [{}] if inputs.backbone else [],
        ),
        Step(
            "measure",
            measure_rows,
            MEASURE_VERSION,
            ("names",),
            gives=("captions", "texts"),
            plan=_plan_measure,
            unit="rows",
        ),
        Step("repeats", count_repeats, reads=("facts", "captions", "texts"), gives=("repeats",), plan=_plan_repeats),
        Step(
            "judge",
            judge,
            version=4,
            reads=("repeats",),
            cut=("facts", "candidates", "captions", "texts"),
            gives=("caption_verdicts", "joined_texts"),
        ),
    ),
    conclude=_conclude,
)
