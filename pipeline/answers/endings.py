"""When a stage keeps nothing, or less than the mixture needs: why, for each domain, and which setting decides.

Reads the tables of the stages that are sealed so far. Writes nothing. Gives up with ConfigError: the mixture cannot be
drawn any more, so no later stage is worth its work. A RunError says that a source's host or storage was away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from manifests.contract.outcomes import PASSING
from manifests.contract.reader import SAMPLE_VIEWS
from manifests.errors import ConfigError, RunError
from pipeline.config import BuildConfig, DedupSettings
from pipeline.engine.work import BuildContext
from pipeline.fetching.pictures.limits import LIMITS
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.judging.captions.rules import RULE_OF_REASON
from pipeline.stages.mix import plan_mixture, read_target
from pipeline.store.files import Files
from pipeline.store.sql import count_within, open_scratch, view_table

SHOWN_REASONS = 6
SHOWN_HOSTS = 3
_CHECKED = ("ingest", "fetch", "caption", "score", "select")
_VERDICTS = ("caption_verdicts", "score_verdicts")
_READ = ("rejects", "candidates", "facts", *_VERDICTS, "decisions")

# Which setting lies behind a reason, as YAML to change or as words. Caption rules are named by their own key.
_SETTINGS = {
    **{
        limit.outcome.value: f"`fetch: {{image: {{{limit.setting}: {limit.shown(ImageSettings())}}}}}` is the default; "
        f"a {'lower' if limit.is_least else 'higher'} one keeps more"
        for limit in LIMITS
    },
    "refused_target": "the address is not public; `fetch: {network: {allow_private_addresses: [HOST]}}` allows it",
    "robots_disallowed": "robots.txt of the host forbids it; `fetch: {network: {robots_txt: true}}` obeys it",
    "opted_out": "the owner opts out of training; `x_robots_directives` and `consent_signals` of `fetch.network` name "
    "what counts",
    "too_costly": "built to be slow, such as a JPEG of more than 100 scans; no setting keeps them",
    "http_404": "the pictures are gone; no setting brings them back",
    "http_410": "the pictures are gone; no setting brings them back",
    "licence": "`select: {licences: {allow: [known, unknown]}}` takes pictures whose licence is not stated; "
    "`defaults: {licence: ...}` in a source states it",
    "conflicting_licence": "another row of the same picture states a licence that is not allowed; `plantmix explain` "
    "names it",
    "conflicting_label": "copies have other taxa or class folders; `select: {other_labels: keep_one}` keeps one",
    "flat_picture": "each is of one colour and shows nothing; no setting keeps them",
    "exact_duplicate": "each has the bytes or pixels of a picture that stays; no setting keeps both",
    "near_duplicate": f"`dedup: {{radius: {DedupSettings().radius}}}` is the default; a smaller one calls fewer "
    "pictures the same",
    "semantic_duplicate": "`dedup: {semantic: {threshold: 0.95}}`; a higher one calls fewer pictures the same",
    "eval_leak": "`evaluation` names sets that show these pictures",
    "invalid_score": "the scorer gave NaN or infinity, or boxes that are none; mend it: what changed is scored anew",
    "takedown": "takedowns.jsonl in the work folder lists them",
    "missing_url": "`columns: {url: ...}` of the source names a column that is empty there",
    "invalid_url": "`columns: {url: ...}` of the source names a column of other things than http addresses",
    "missing_file": "`columns: {file: ...}` of the source names files that are not in its folder",
    "where_media_type": "each is a sound, a video or the like; no setting keeps them",
}


def check_ending(config: BuildConfig, context: BuildContext, stage: str, is_new: bool) -> None:
    """See that the mixture can still be drawn from what a stage left.

    Stages whose tables are large are counted once, when they are new.

    Raises: ConfigError with the reasons of each domain, and the settings behind the largest.
    """
    if stage not in _CHECKED or not (is_new or stage == "select"):
        return
    kept = _kept(context, stage)
    try:
        plan_mixture(config.mix, read_target(config.mix, config.domains), kept, config.pack.kind)
    except ConfigError as error:
        with _open_tables(context) as sql:
            lines = _describe_reasons(_reasons_by_domain(sql, config), config.domains, kept, _worst_hosts(sql))
        room = "" if stage == "select" else "; later stages drop more, so leave room"
        raise ConfigError(f"after {stage}: {error}{room}\n" + "\n".join(lines)) from None


def check_passing(config: BuildConfig, context: BuildContext, stage: str) -> None:
    """See that no source lost most of its pictures for reasons that may pass, as when its host or storage was away.

    Raises: RunError that names the sources, the reasons, and the command that asks again.
    """
    if stage != "fetch" or not any(context.sealed["fetch"].funnel.reasons.get(name) for name in PASSING):
        return
    most = config.run.max_passing_share
    with _open_tables(context) as sql:
        names = ", ".join(f"'{name}'" for name in sorted(PASSING))
        rows = sql.execute(
            "SELECT source, sum(num), sum(num) FILTER (passing), string_agg(num || ' ' || outcome, ', ' ORDER BY num "
            f"DESC) FILTER (passing) FROM (SELECT source, outcome, count(*) AS num, outcome IN ({names}) AS passing "
            "FROM facts JOIN candidates USING (sample_id) GROUP BY ALL) GROUP BY source ORDER BY source"
        ).fetchall()
    short = [
        f"  {source}: {passing:,} of {num:,} pictures ({reasons})"
        for source, num, passing, reasons in rows
        if passing and passing > most * num
    ]
    if short:
        raise RunError(
            "after fetch: pictures failed for reasons that may pass:\n"
            + "\n".join(short)
            + "\nA release without them would be short. Ask again for these alone, then run the same command again:\n"
            f"  plantmix retry {context.workdir}\n"
            f"Or go on without them: `run: {{max_passing_share: 1}}` (it is {most:g})"
        )


@contextmanager
def _open_tables(context: BuildContext, names: Sequence[str] = _READ) -> Iterator[Any]:
    """Create views over the tables of sealed stages. The views of other stages are empty."""
    with open_scratch(context.workdir, context.config.run.memory_gb) as sql:
        for name in names:
            stage, schema, _ = SAMPLE_VIEWS[name]
            view_table(sql, name, context.files(stage, name) if stage in context.sealed else Files(), schema)
        yield sql


def _kept(context: BuildContext, stage: str) -> dict[str, dict[str, int]]:
    """Rows that are left after a stage, domain -> source -> number."""
    if stage == "select":
        selected: dict[str, dict[str, int]] = context.sealed["select"].notes["sources"]
        return selected
    fetched = "SEMI JOIN (SELECT sample_id FROM facts WHERE outcome = 'ok') USING (sample_id)"
    verdicts = [name for name in _VERDICTS if SAMPLE_VIEWS[name][0] in context.sealed]
    dropped = " ".join(
        f"ANTI JOIN (SELECT sample_id FROM {name} WHERE NOT keep) USING (sample_id)" for name in verdicts
    )
    asked = f"FROM candidates {'' if stage == 'ingest' else fetched} {dropped} GROUP BY ALL"
    with _open_tables(context, ("candidates", "facts", *verdicts)) as sql:
        return count_within(sql, f"SELECT domain, source, count(*) {asked}")


def _reasons_by_domain(sql: Any, config: BuildConfig) -> dict[str, list[tuple[str, str, int]]]:
    """Domain -> (stage, reason, rows) of all that is lost so far, the largest first."""
    domain_of = {source.name: source.domain for source in config.sources}
    losses: dict[str, list[tuple[str, str, int]]] = {}
    for source, reason, num in sql.execute("SELECT source, reason, count(*) FROM rejects GROUP BY ALL").fetchall():
        losses.setdefault(domain_of.get(source, source), []).append(("ingest", reason, num))
    rows = sql.execute(
        "SELECT domain, stage, reason, count(*) FROM ("
        "SELECT sample_id, 'fetch' AS stage, outcome AS reason FROM facts WHERE outcome <> 'ok' "
        "UNION ALL SELECT sample_id, 'caption', reason FROM caption_verdicts WHERE NOT keep "
        "UNION ALL SELECT sample_id, 'score', reason FROM score_verdicts WHERE NOT keep "
        "UNION ALL SELECT sample_id, stage, reason FROM decisions WHERE NOT keep AND stage = 'select'"
        ") JOIN candidates USING (sample_id) GROUP BY ALL"
    ).fetchall()
    for domain, stage, reason, num in rows:
        losses.setdefault(domain, []).append((stage, reason, num))
    return {domain: sorted(rows, key=lambda row: (-row[2], row)) for domain, rows in losses.items()}


def _worst_hosts(sql: Any) -> dict[str, str]:
    """Outcome of fetch -> the hosts that gave most of it, in words."""
    hosts_of: dict[str, list[str]] = {}
    rows = sql.execute(
        "SELECT outcome, host, count(*) AS num FROM facts WHERE outcome <> 'ok' AND host IS NOT NULL "
        "GROUP BY ALL ORDER BY num DESC, host"
    ).fetchall()
    for outcome, host, num in rows:
        hosts_of.setdefault(outcome, []).append(f"{host} ({num:,})")
    return {outcome: ", ".join(hosts[:SHOWN_HOSTS]) for outcome, hosts in hosts_of.items()}


def _describe_reasons(
    reasons: dict[str, list[tuple[str, str, int]]],
    domains: Sequence[str],
    kept: dict[str, dict[str, int]],
    hosts: Mapping[str, str],
) -> list[str]:
    """Describe each domain's losses; the setting behind its largest reason, and the hosts that gave most of it."""
    lines = []
    for domain in domains:
        rows = reasons.get(domain, [])
        listed = ", ".join(f"{num:,} {reason} ({stage})" for stage, reason, num in rows[:SHOWN_REASONS])
        rest = sum(num for *_, num in rows[SHOWN_REASONS:])
        more = f", {rest:,} for other reasons" if rest else ""
        lines.append(f"  {domain}: {sum(kept.get(domain, {}).values()):,} left; dropped: {listed or 'none'}{more}")
        if rows:
            _, reason, _ = rows[0]
            at = f"{hosts[reason]}: " if reason in hosts else ""
            lines.append(f"    {reason}: {at}{_setting_behind(reason, domain)}")
    return lines


def _setting_behind(reason: str, domain: str) -> str:
    """Which key decides over a reason, in words with its YAML."""
    if reason in _SETTINGS:
        return _SETTINGS[reason]
    if reason == "bare_scientific_name":
        return f"`caption: {{rules: [{{domains: [{domain}], preset: plant}}, ...]}}` keeps bare scientific names"
    if rule := RULE_OF_REASON.get(reason):
        return f"`caption: {{rules: [{{domains: [{domain}], preset: general, {rule}: null}}, ...]}}` turns it off"
    if reason in PASSING:
        return "it may pass; `plantmix retry` asks again for these alone"
    if reason.startswith("where_"):
        return "`where` of the source leaves them out"
    return "`plantmix query WORKDIR` and `plantmix explain WORKDIR URL` show the rows"
