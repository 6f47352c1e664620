"""select: decide on every candidate, with one reason a drop. Of duplicates one stays.

Reads candidates, facts, pairs and the verdicts of caption and score. Writes `decisions`, one row a candidate.

Rules decide first, then duplicates (contenders.py), then caps (quotas/caps.py). Only rows that passed every rule
compete with their duplicates: when a rule drops the better of two duplicates, the other one is kept.

Some rules compare a row with other rows. They run first, on narrow tables. Everything else runs bucket by bucket:

    taken         rows that the takedown list names, and copies of what it took (matching/taken.py)
    relate        which looks are in company, and of which company (matching/companies.py); groups that leak
    contend       a bucket of sample ids: rows in company that passed every rule
    duplicates    some companies: which of their rows stay
    keys, caps    where caps are set: keys of the rows that are left, a bucket a part; then what the caps drop
    decide        a bucket of sample ids: one decision a row
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from manifests.contract import tables
from manifests.contract.catalog_file import TAKEDOWNS_FILE
from manifests.contract.outcomes import Outcome
from manifests.contract.records import Funnel
from manifests.contract.takedowns import (
    Entry,
    Picture,
    Takedowns,
    add_entries,
    standing_list,
    with_rows_of_secrets,
)
from pipeline.config import PREFER, BuildConfig
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, PartResult, Stage, StageRun, Step
from pipeline.fetching.pictures.limits import ASPECT_RATIO, LIMITS, PIXELS, SHORTER_SIDE
from pipeline.judging.matching import companies
from pipeline.judging.matching.conflicts import CONFLICTS, CONTRADICTED
from pipeline.judging.matching.taken import PICTURES, TAKEN
from pipeline.judging.quotas.balance import BalanceSettings
from pipeline.judging.quotas.caps import judge_caps, keys_schema, keys_sql
from pipeline.judging.vocabulary.licences import LicenceSettings
from pipeline.stages.select.contenders import (
    LEAK_GROUPS,
    OF_ROWS,
    contend,
    find_taken,
    judge_duplicates,
    judge_rules,
    pictures_found,
    relate,
)
from pipeline.store.buckets import join_facets
from pipeline.store.files import Files
from pipeline.store.sql import count_within

log = logging.getLogger("plantmix.select")

PAIRS_OF_ROW = 8  # rows and pairs as arrays in the memory of one row of a bucket; each takes about 200 bytes


@dataclass(frozen=True)
class Choice:
    """The choices besides the measurements: settings, and the takedown list of the work folder."""

    prefer: tuple[str, ...]
    extra_captions: int
    priority: dict[str, int]
    class_folders: tuple[str, ...]
    licences: LicenceSettings
    other_labels: str
    balance: BalanceSettings
    takedowns: tuple[Entry, ...]
    pictures: tuple[Picture, ...]
    limits: dict[str, str]
    """Outcomes of fetch that a limit decides, each with its limit."""

    @classmethod
    def of(cls, config: BuildConfig, takedowns: Takedowns, whole_addresses: Sequence[str]) -> Choice:
        """Return the choice that a configuration makes; `whole_addresses` are the files of SECRETS."""
        return cls(
            PREFER,
            config.dedup.extra_captions,
            {source.name: source.priority for source in config.sources},
            tuple(source.name for source in config.sources if source.reader.folders_are_classes),
            config.select.licences,
            config.select.other_labels,
            config.select.balance,
            tuple(with_rows_of_secrets(takedowns.entries, whole_addresses)),
            tuple(takedowns.pictures),
            {limit.outcome.value: limit.shown(config.fetch.image) for limit in LIMITS},
        )


@dataclass(frozen=True)
class SelectInputs:
    """All that select reads: the measurements, and what decides over them."""

    candidates: Files
    facts: Files
    captions: Files
    caption_verdicts: Files
    score_verdicts: Files
    leaks: Files
    choice: Choice
    radius: int
    pairs: Files
    details: Files
    semantic_pairs: Files


# ---- takedowns


def _plan_taken(inputs: SelectInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    entries = inputs.choice.takedowns
    return [{"entries": entries}] if entries or inputs.choice.pictures else []


def _learn_pictures(inputs: SelectInputs, run: StageRun[Any]) -> SelectInputs:
    """Return the inputs with the pictures that entries were found to name: a later build finds these in the list."""
    pictures = pictures_found(run.files("taken", "taken_pictures"))
    return replace(inputs, choice=replace(inputs.choice, pictures=pictures))


def _settle(context: BuildContext) -> None:
    add_entries(context.workdir, [], pictures_found(context.files("select", "taken_pictures")))
    if unmet := context.sealed["select"].notes.get("unmet_takedowns"):
        log.info("select: %s names nothing in this build: %s", TAKEDOWNS_FILE, "; ".join(unmet))


# ---- duplicates


def _plan_relate(inputs: SelectInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    num = math.ceil((run.num_rows(inputs.facts) + run.num_rows(inputs.pairs)) / PAIRS_OF_ROW)
    num_companies = len(run.buckets_of(num))
    return [{"num_companies": num_companies}]


def _plan_duplicates(inputs: SelectInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    (related,) = run.parts("relate")
    return [{"company": company} for company in range(related.notes["num_companies"])]


# ---- caps


def _view_rows(sql: Any, inputs: Inputs, licences: LicenceSettings) -> None:
    """View a bucket's tables, the rules' results for its rows, and `left_over`: rows that only a cap can drop."""
    inputs.view(sql)
    judge_rules(sql, licences)
    sql.execute("CREATE VIEW left_over AS FROM contenders ANTI JOIN duplicates USING (sample_id)")


def pick_keys(inputs: Inputs, run: Execution[None], licences: LicenceSettings, balance: BalanceSettings) -> PartResult:
    """Return the keys that the caps count in the rows of a bucket."""
    with run.scratch() as sql:
        _view_rows(sql, inputs, licences)
        query = (
            f"SELECT {keys_sql(balance)} FROM left_over JOIN candidates c USING (sample_id) "
            "JOIN facts f USING (sample_id) JOIN captions t USING (sample_id)"
        )
        return PartResult((run.save(sql, "keyed", query, "sample_id", keys_schema(balance)),))


def cap(inputs: Inputs, run: Execution[None], balance: BalanceSettings) -> PartResult:
    """Rows that the caps drop, one cap after the other."""
    with run.views(inputs) as sql:
        notes = {"balance": judge_caps(sql, balance)}
        return PartResult((run.save(sql, "cap_verdicts", "FROM cap_verdicts", "sample_id"),), None, notes)


def _where_capped(inputs: SelectInputs, _: StageRun[None]) -> list[dict[str, Any]]:
    return [{}] if inputs.choice.balance.caps else []


# ---- decisions

# what select drops: leaks, takedowns, licences, flat pictures, duplicates, caps, in this order; each row at most once
_DROPPED = """
    CREATE TABLE dropped AS
    SELECT sample_id, reason, value, threshold, via_sample_id AS other_sample_id, distance, evaluation_set,
        evaluation_member FROM leak_verdicts
    UNION ALL BY NAME SELECT sample_id, 'takedown' AS reason, value, threshold, other_sample_id, distance FROM taken
        SEMI JOIN alive USING (sample_id)
    UNION ALL BY NAME FROM rule_drops
    UNION ALL BY NAME SELECT * EXCLUDE (kept_in) FROM duplicates
    UNION ALL BY NAME SELECT sample_id, reason, value, threshold FROM cap_verdicts
"""

# what a limit was compared with; other outcomes of fetch have words beside them in facts, which libraries choose
_MEASURED = f"""
    CASE f.outcome WHEN '{Outcome.IMAGE_TOO_SMALL}' THEN {SHORTER_SIDE}::VARCHAR
        WHEN '{Outcome.ASPECT_TOO_EXTREME}' THEN round({ASPECT_RATIO}, 2)::VARCHAR
        WHEN '{Outcome.TOO_MANY_PIXELS}' THEN ({PIXELS})::VARCHAR END
"""

# one row a candidate; only the dropped rows, which are few, are joined
_DECISIONS = """
    SELECT f.sample_id,
        f.outcome = 'ok' AND v.sample_id IS NULL AND s.sample_id IS NULL AND d.sample_id IS NULL AS keep,
        CASE WHEN f.outcome <> 'ok' THEN 'fetch' WHEN v.sample_id IS NOT NULL THEN 'caption'
            WHEN s.sample_id IS NOT NULL THEN 'score' WHEN d.sample_id IS NOT NULL THEN 'select' END AS stage,
        CASE WHEN f.outcome <> 'ok' THEN f.outcome ELSE coalesce(v.reason, s.reason, d.reason) END AS reason,
        CASE WHEN f.outcome <> 'ok' THEN {measured} WHEN v.sample_id IS NOT NULL THEN v.value
            WHEN s.sample_id IS NOT NULL THEN s.value ELSE d.value END AS value,
        CASE WHEN f.outcome <> 'ok' THEN {limit} WHEN v.sample_id IS NOT NULL THEN v.threshold
            WHEN s.sample_id IS NOT NULL THEN s.threshold ELSE d.threshold END AS threshold,
        d.other_sample_id, d.distance, d.kept_because, d.evaluation_set, d.evaluation_member, x.conflicts
    FROM facts f
    LEFT JOIN (FROM caption_verdicts WHERE NOT keep) v USING (sample_id)
    LEFT JOIN (FROM score_verdicts WHERE NOT keep) s USING (sample_id)
    LEFT JOIN dropped d USING (sample_id)
    LEFT JOIN (
        SELECT sample_id, list({{{fields}}} ORDER BY about, matched, other_sample_id) AS conflicts
        FROM conflicts ANTI JOIN dropped USING (sample_id) GROUP BY sample_id
    ) x USING (sample_id)
""".format(
    fields=", ".join(f"'{field.name}': {field.name}" for field in tables.CONFLICT),
    measured=_MEASURED,
    limit="$limit",  # of each outcome, by the settings
)


def decide(inputs: Inputs, run: Execution[None], licences: LicenceSettings, limits: dict[str, str]) -> PartResult:
    """Decisions over every candidate of a bucket."""
    with run.scratch() as sql:
        _view_rows(sql, inputs, licences)
        sql.execute(_DROPPED)
        cases = "".join(f" WHEN '{name}' THEN '{limit}'" for name, limit in limits.items())
        decisions = _DECISIONS.replace("$limit", f"CASE f.outcome{cases} END" if cases else "NULL")
        file, content = run.save_digested(sql, "decisions", decisions, "sample_id")
        files, notes = [file], dict[str, Any](content=content)
        if inputs["left_captions"]:
            query = "FROM left_captions SEMI JOIN (FROM decisions WHERE keep) USING (sample_id)"
            file, notes["captions"] = run.save_digested(sql, "extra_captions", query, "sample_id, place")
            files.append(file)
        query = "SELECT reason, count(*) FROM decisions WHERE stage = 'select' GROUP BY 1"
        reasons = dict(sql.execute(query).fetchall())
        left = "ANTI JOIN dropped USING (sample_id) GROUP BY ALL"
        kept = count_within(sql, f"SELECT domain, source, count(*) FROM passed {left}")
        conflicts = dict(sql.execute(f"SELECT about, count(DISTINCT sample_id) FROM conflicts {left}").fetchall())
        lost = "SELECT domain, kept_in, count(*) FROM duplicates JOIN candidates USING (sample_id)"
        kept_elsewhere = count_within(sql, f"{lost} WHERE kept_in IS NOT NULL GROUP BY ALL")
        ((num_in,),) = sql.execute("SELECT count(*) FROM passed").fetchall()
    num_kept = sum(num for sources in kept.values() for num in sources.values())
    notes |= {"sources": kept, "conflicts": conflicts, "kept_elsewhere": kept_elsewhere}
    return PartResult(tuple(files), Funnel(num_in, num_kept, reasons), notes)


def _sum_within(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up counts by two names, as the parts noted them."""
    summed: dict[str, Counter[str]] = {}
    for outer, inner in (item for each in counts for item in each.items()):
        summed.setdefault(outer, Counter()).update(inner)
    return {outer: dict(sorted(inner.items())) for outer, inner in sorted(summed.items())}


def _conclude(inputs: SelectInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    parts = run.parts("decide")
    kept = _sum_within(part.notes["sources"] for part in parts)
    notes = {
        "domains": {domain: sum(sources.values()) for domain, sources in kept.items()},
        "sources": kept,
        "conflicts": {
            about: num
            for about in ("licence", "label")
            if (num := sum(part.notes["conflicts"].get(about, 0) for part in parts))
        },
        "unmet_takedowns": [words for part in run.parts("taken") for words in part.notes.get("unmet", ())],
        "kept_elsewhere": _sum_within(part.notes["kept_elsewhere"] for part in parts),
        "balance": [note for part in run.parts("caps") for note in part.notes["balance"]],
        "content": join_facets([part.notes["content"] for part in parts]),
    }
    if inputs.choice.extra_captions:
        notes["captions"] = [join_facets([part.notes["captions"] for part in parts])]
    return run.funnel("decide"), notes


def _inputs(context: BuildContext) -> SelectInputs:
    return SelectInputs(
        choice=Choice.of(
            context.config,
            standing_list(context.workdir, context.catalog.ask),
            context.files("ingest", "secrets").paths,
        ),
        radius=context.config.dedup.radius,
        candidates=context.files("ingest", "candidates"),
        facts=context.facts(),
        captions=context.files("caption", "captions"),
        pairs=context.files("dedup", "pairs"),
        details=context.files("dedup", "details"),
        leaks=context.files("dedup", "leaks"),
        semantic_pairs=context.files("dedup", "semantic_pairs"),
        caption_verdicts=context.files("caption", "caption_verdicts"),
        score_verdicts=context.files("score", "score_verdicts").digested(context.sealed["score"].notes["content"]),
    )


STAGE = Stage(
    name="select",
    about="decide on every image: licence, duplicates; one reason a drop",
    inputs=_inputs,
    tables={
        "taken": TAKEN,
        "taken_pictures": PICTURES,
        "companies": companies.COMPANIES,
        "leak_groups": LEAK_GROUPS,
        "contradicted": CONTRADICTED,
        "rivals": companies.RIVALS,
        "duplicates": companies.DUPLICATES,
        "conflicts": CONFLICTS,
        "left_captions": tables.EXTRA_CAPTIONS,
        "keyed": keys_schema(BalanceSettings()),  # and a column a cap
        "cap_verdicts": tables.VERDICTS,
    },
    steps=(
        Step(
            "taken",
            find_taken,
            reads=("candidates", "facts"),
            gives=("taken", "taken_pictures"),
            plan=_plan_taken,
            learns=_learn_pictures,
        ),
        Step(
            "relate",
            relate,
            version=3,
            reads=("facts", "pairs", "semantic_pairs", "candidates", "captions", "leaks"),
            gives=("companies", "leak_groups", "contradicted"),
            plan=_plan_relate,
        ),
        Step(
            "contend",
            contend,
            version=5,  # rivals have a domain
            reads=("leak_groups", "details", "companies"),
            cut=OF_ROWS,
            gives=("rivals",),
            plan=lambda inputs, _: [{"with_texts": inputs.choice.extra_captions > 0}],
        ),
        Step(
            "duplicates",
            judge_duplicates,
            version=5,  # priority and a named taxon come before pixels and captions
            reads=("rivals", "pairs", "semantic_pairs"),
            gives=("duplicates", "conflicts", "left_captions"),
            plan=_plan_duplicates,
        ),
        Step("keys", pick_keys, 1, ("leak_groups",), (*OF_ROWS, "duplicates"), ("keyed",), _where_capped),
        # 2: spellings of one owner count as one
        Step("caps", cap, 2, ("keyed",), gives=("cap_verdicts",), plan=_where_capped),
        Step(
            "decide",
            decide,
            version=10,  # counts rows that are kept in another domain
            reads=("leak_groups",),
            cut=(*OF_ROWS, "duplicates", "conflicts", "left_captions", "cap_verdicts"),
            gives=("decisions", "extra_captions"),
        ),
    ),
    conclude=_conclude,
    settle=_settle,
)
