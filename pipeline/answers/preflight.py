"""Everything that a user may have got wrong and that can be seen before any work. Writes nothing, asks no host.

`examine` gives one list of findings. An error makes the build useless or impossible, and stops it; a warning is
printed. Each says what is wrong, where, how many rows it touches, and the line of YAML that mends it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ConfigError
from manifests.services.printable import printable
from manifests.stores import storage
from manifests.stores.folder import check_store, local_place
from pipeline.answers.first_rows import Head, read_head
from pipeline.answers.previews import BESIDES
from pipeline.answers.tables import joined_counts
from pipeline.config import STAGES, BuildConfig, RunSettings
from pipeline.fetching.addresses import Resolver, TargetRefused
from pipeline.fetching.urls import BadURL, parse_url
from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.rules import RULE_OF_REASON
from pipeline.judging.captions.verdicts import count_reasons, judge_captions
from pipeline.judging.vocabulary.backbone import check_backbone
from pipeline.judging.vocabulary.licences import (
    ALL_RIGHTS_RESERVED,
    CONFLICTING,
    KNOWN,
    UNKNOWN,
    LicenceSettings,
    normalise_licences,
    unread_statements,
)
from pipeline.scoring.scorers import check_scorers
from pipeline.sources.reading import ask, check_source
from pipeline.sources.rows import LICENCE_PAIR
from pipeline.sources.settings import SourceSettings
from pipeline.stages.dedup.semantic import check_semantic
from pipeline.stages.mix import plan_mixture, read_target

MUCH = 0.5  # of the first rows: from here on a warning is printed
MIN_FREE_BYTES = 1_000_000_000
_COPY_OF_A_JOB = "/runtime_resources/working_dir_files/"  # where Ray 2.60 unpacks the folders of its jobs
_UNCOUNTED = 1_000_000_000  # stands for a source whose rows are not counted


@dataclass(frozen=True)
class Finding:
    """One mistake, or one thing to know. `mend` holds the line of YAML that mends it, or several to choose from."""

    is_error: bool
    text: str
    mend: tuple[str, ...] = ()
    is_broken: bool = False
    """True when the setting cannot be read at all, so that nothing behind it can be looked at."""
    stage: str = "ingest"
    """The stage where it shows: a build that ends before it is only warned."""

    def __str__(self) -> str:
        choice = " or ".join(f"`{line}`" for line in self.mend)
        return printable(f"{self.text}; write {choice}" if choice else self.text)


def check_config(config: BuildConfig, last: str | None = None) -> list[Finding]:
    """Return the warnings about a configuration that is built up to the stage `last`, to the end when None.

    Raises: ConfigError with every error, a line each.
    """
    findings = [
        replace(finding, is_error=False) if last and STAGES.index(finding.stage) > STAGES.index(last) else finding
        for finding in examine(config)
    ]
    refuse_errors(findings)
    return findings


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raise ConfigError with every error among the findings, a line each."""
    errors = [str(finding) for finding in findings if finding.is_error]
    if errors:
        head = "" if len(errors) == 1 else f"{len(errors)} mistakes:\n  "
        raise ConfigError(head + "\n  ".join(errors))


def examine(config: BuildConfig) -> list[Finding]:
    """Every finding about a configuration, errors first. Contents are looked at only where the settings hold."""
    findings = list(_broken_settings(config))
    if not findings:
        findings += _about_waiting(config)
        heads = {
            source.name: ask(source, partial(read_head, source, config.run.memory_gb)) for source in config.sources
        }
        findings += _about_empty_sources(config, heads)
        findings += _about_web(config, heads)
        findings += _about_nested_captions(config, heads)
        findings += _about_licences(config, heads)
        findings += _about_captions(config, heads)
        most_rows = {source.name: ask(source, source.reader.most_rows) for source in config.sources}
        findings += about_mixture(config, most_rows)
        findings += _about_files(config)
        findings += _about_disk(config)
        findings += _about_evaluation(config)
    return sorted(findings, key=lambda finding: not finding.is_error)


# ---- settings that do not hold


def _broken_settings(config: BuildConfig) -> Iterator[Finding]:
    checks: list[Callable[[], object]] = [partial(check_writable, config.work_dir), partial(_check_cluster, config.run)]
    origins = (*config.sources, *config.evaluation)
    checks += [partial(check_source, origin) for origin in origins if not origin.reader.waits_for()]
    checks += [
        partial(read_target, config.mix, config.domains),
        partial(check_backbone, config.caption.backbone),
        partial(check_scorers, config.score),
    ]
    if config.dedup.semantic is not None:
        checks.append(partial(check_semantic, config.dedup.semantic))
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield Finding(True, str(error), is_broken=True)


def _check_cluster(run: RunSettings) -> None:
    """Raise ConfigError when a cluster is named and would not be used."""
    if run.ray.address and run.executor != "ray":
        raise ConfigError(
            f"run.ray.address names a cluster ({run.ray.address}), and run.executor: {run.executor} would not use it; "
            "write `run: {executor: ray}`, or leave the address out"
        )


def check_writable(work_dir: str) -> None:
    """Check that the work folder can be made, without making it.

    Raises: ConfigError when it cannot.
    """
    if storage.is_remote(work_dir):
        check_store(work_dir)
    elif _COPY_OF_A_JOB in str(Path(work_dir).absolute()):
        raise ConfigError(
            f"work_dir {work_dir}: this is the copy of a folder that `ray job submit --working-dir` makes, and Ray "
            "may delete it once the job is over; give an absolute path on the shared disk, or an address as s3://"
        )
    folder = nearest_folder(work_dir)
    if not folder.is_dir():
        raise ConfigError(f"work_dir {work_dir}: {folder} is not a folder; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"work_dir {work_dir}: {folder} is not writable; choose another place or its permissions")


def nearest_folder(work_dir: str) -> Path:
    """Return the work folder, or the local one that stands for it; where there is none, the nearest folder above."""
    path = Path(local_place(work_dir)).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _about_waiting(config: BuildConfig) -> Iterator[Finding]:
    """Yield findings on sources whose data `build` will download, with what is missing for that."""
    for origin in (*config.sources, *config.evaluation):
        reader = origin.reader
        waits_for = reader.waits_for()
        if waits_for and (lacks := reader.lacks(os.environ)):
            yield Finding(True, lacks)
        elif waits_for:
            yield Finding(False, f"{origin.config_key}: {waits_for}, so its rows are not counted; `build` asks")


# ---- what the first rows show


def _about_web(config: BuildConfig, heads: Mapping[str, Head]) -> Iterator[Finding]:
    """Addresses that would be refused, and a contact that is not given."""
    resolver = Resolver(config.fetch.network, lookup=_names_are_public)
    missing = None
    for source in config.sources:
        rows = heads[source.name].rows
        urls = [url for url, local in zip(*(rows[c].to_pylist() for c in ("url", "locator")), strict=True) if not local]
        refused = [detail for url in urls if (detail := _refusal(resolver, url))]
        if refused:
            host = refused[0].partition(" ")[0]
            yield Finding(
                len(refused) == len(urls),
                f"sources.{source.name}: {len(refused):,} of the first {len(urls):,} addresses would be refused, since "
                f"they are not public (the first: {refused[0]})",
                (f'fetch: {{network: {{allow_private_addresses: ["{host}"]}}}}',),
                stage="fetch",
            )
        try:
            config.fetch.network.require_contact(urls)
        except ConfigError as error:
            mend = 'fetch: {network: {contact: "mailto:you@example.org"}}'
            missing = missing or Finding(True, str(error), (mend,), stage="fetch")
    resolver.close()
    if missing:
        yield missing


def _names_are_public(host: str) -> list[str]:
    """Stands in for the resolver of names, so that no host is asked: only addresses and `localhost` are judged."""
    return ["127.0.0.1"] if host == "localhost" or host.endswith(".localhost") else ["8.8.8.8"]


def _refusal(resolver: Resolver, url: str | None) -> str | None:
    """Why an address would be refused, or None."""
    try:
        resolver.addresses(parse_url(url or "").hostname)
    except TargetRefused as error:
        return str(error)
    except BadURL:
        return None
    return None


def _about_empty_sources(config: BuildConfig, heads: Mapping[str, Head]) -> Iterator[Finding]:
    """Yield findings on sources that give nothing: they have no rows, or none of them can be used."""
    empty = {name for name, head in heads.items() if head.whole and not head.rows.num_rows}
    for source in config.sources:
        if source.name in empty:
            reasons = joined_counts(heads[source.name].reasons.items())
            why = f"none of its rows can be used ({reasons})" if reasons else "it has no rows"
            yield Finding(
                _empties_its_domain(config, source.domain, empty),
                f"sources.{source.name}: {source.reader.path}: {why}; give another place or other `columns`, or "
                "take the source out",
                stage="mix",
            )


def _about_nested_captions(config: BuildConfig, heads: Mapping[str, Head]) -> Iterator[Finding]:
    """Captions that are lists, of which the first text is taken, or objects, which are no captions."""
    for source in config.sources:
        head = heads[source.name]
        where = f"sources.{source.name}:"
        if head.num_lists:
            yield Finding(
                False,
                f"{where} {head.num_lists:,} of the first captions are lists; the first text of each is the caption. "
                "To keep the others too, write a table with a row for each and join it (`captions`)",
            )
        if head.objects:
            yield Finding(
                False,
                f"{where} {len(head.objects):,} of the first captions are objects and no text (such as "
                f"{head.objects[0]!r:.80}), so their rows end as malformed_row; write one of their values into a "
                "column of its own and name that as `caption`",
            )


def _about_licences(config: BuildConfig, heads: Mapping[str, Head]) -> Iterator[Finding]:
    """Yield findings on sources whose pictures the licence policy would drop, all or most of them."""
    policy = config.select.licences
    # no `allow` should take the others in: a deny rule or the law forbids them, or they contradict themselves
    most = LicenceSettings(allow=(KNOWN, UNKNOWN), deny=(*policy.deny, ALL_RIGHTS_RESERVED, CONFLICTING))
    hopeless = set()
    findings: list[tuple[SourceSettings, str, tuple[str, ...]]] = []
    for source in config.sources:
        rows = heads[source.name].rows
        if not rows.num_rows or source.joined_columns() & {"licence", "licence_url"}:
            continue
        ids = normalise_licences(rows["licence"], rows["licence_url"], source.licences).to_pylist()
        dropped = Counter(licence for licence in ids if not policy.allows(licence))
        if dropped.total() == len(ids):
            hopeless.add(source.name)
        first = f"sources.{source.name}: {{:,}} of the first {len(ids):,} rows would be dropped for their licence"
        never = {licence: num for licence, num in dropped.items() if not most.allows(licence)}
        if never:
            text = f"{first.format(sum(never.values()))} ({joined_counts(never.items())})"
            cure = "`allow` is no cure: only the owner of a picture can give it another licence"
            findings.append((source, f"{text}; {cure}", ()))
        others = [licence for licence, _ in dropped.most_common() if licence not in never]
        num = sum(dropped[licence] for licence in others)
        if num < MUCH * len(ids):
            continue
        if others == [UNKNOWN]:
            stated = zip(*(rows[name].to_pylist() for name in LICENCE_PAIR), strict=True)
            unread = [text for name, url in stated for text in unread_statements(name, url, source.licences)]
            why = f"{unread[0]!r:.80} cannot be read" if unread else "they state none"
            what = f"{first.format(num)}: {why}, and unknown licences are dropped"
            allowed = ", ".join([*(policy.allow or (KNOWN,)), UNKNOWN])
            mapped = (
                f"licences: {{{json.dumps(unread[0])}: ID}} # in the source, if you know what it means"
                if unread
                else ""
            )
            mend: tuple[str, ...] = (
                mapped or "defaults: {licence: CC-BY-4.0} # in the source, if that is its licence",
                f"select: {{licences: {{allow: [{allowed}]}}}}",
            )
        else:
            what = f"{first.format(num)} ({', '.join(others[:3])})"
            parts = dict.fromkeys(part for licence in others[:3] for part in re.split(" OR | AND ", licence))
            mend = (f"select: {{licences: {{allow: [{', '.join([*(policy.allow or (KNOWN,)), *parts])}]}}}}",)
        findings.append((source, what, mend))
    for source, what, mend in findings:
        yield Finding(_empties_its_domain(config, source.domain, hopeless), what, mend, stage="select")


def _empties_its_domain(config: BuildConfig, domain: str, hopeless: set[str]) -> bool:
    """Return true when no source of a domain gives anything, and the mixture asks for some of it."""
    shares = read_target(config.mix, config.domains).ratio or config.mix.by_size or {}
    return bool(shares.get(domain)) and all(s.name in hopeless for s in config.sources if s.domain == domain)


def _about_captions(config: BuildConfig, heads: Mapping[str, Head]) -> Iterator[Finding]:
    """Rules that would drop all or most captions of a source, judged on its first rows by the rules themselves."""
    findings: list[tuple[SourceSettings, Finding]] = []
    hopeless = set()
    for source in config.sources:
        head = heads[source.name]
        num = head.rows.num_rows
        is_joined = any(captions.kind == "caption" for captions in source.captions)
        is_joined |= any(name == "caption" or name.startswith("taxon_") for name in source.joined_columns())
        if not head.has_captions or is_joined or not num:
            continue
        try:
            verdicts = _judge(head.rows, config)
        except ConfigError as error:
            mend = ("caption: {rules: [..., {preset: general}]}",)
            yield Finding(True, str(error), mend, stage="caption")
            return
        reasons = count_reasons(verdicts)
        num_dropped = num - reasons.pop("kept", 0)
        if num_dropped == num:
            hopeless.add(source.name)
        if num_dropped >= MUCH * num:
            rule, by_rule = next(iter(reasons.items()))
            example = verdicts.filter(pc.equal(verdicts["reason"], rule))["value"][0].as_py()
            text = (
                f"sources.{source.name}: {num_dropped:,} of the first {num:,} captions would be dropped, {by_rule:,} "
                f"of them by {rule} (such as {example!r:.80})"
            )
            findings.append((source, Finding(head.whole, text, _mend_of_rule(source, rule), stage="caption")))
    for source, finding in findings:
        certain = finding.is_error and _empties_its_domain(config, source.domain, hopeless)
        yield replace(finding, is_error=certain)


def _judge(rows: pa.Table, config: BuildConfig) -> pa.Table:
    """Verdicts of the caption rules, with nothing known of the pictures."""
    measured = measure_captions(rows)
    for name in ("domain", "source"):
        measured = measured.append_column(name, rows[name])
    for name, kind in BESIDES.items():
        measured = measured.append_column(name, pa.nulls(rows.num_rows, kind))
    return judge_captions(measured, config.caption)


def _mend_of_rule(source: SourceSettings, reason: str) -> tuple[str, ...]:
    rule = RULE_OF_REASON[reason]
    if rule == "not_empty":
        return source.reader.caption_cures
    if rule == "not_bare_name":
        return (f"caption: {{rules: [{{sources: [{source.name}], preset: plant}}, ...]}}",)
    return (f"caption: {{rules: [{{sources: [{source.name}], preset: general, {rule}: null}}, ...]}}",)


# ---- sizes, places, sets


def about_mixture(config: BuildConfig, counts: Mapping[str, int | None]) -> Iterator[Finding]:
    """Yield findings on a mixture that even all rows could not fill.

    `counts` holds the most rows of each source, None for unknown.
    """
    most: dict[str, dict[str, int]] = {}
    for source in config.sources:
        num = counts[source.name]
        for domain in source.domains:
            most.setdefault(domain, {})[source.name] = _UNCOUNTED if num is None else num
    try:
        plan_mixture(config.mix, read_target(config.mix, config.domains), most, config.pack.kind)
    except ConfigError as error:
        text = f"even if every row of the sources were kept, and some never are: {error}"
        yield Finding(True, text, stage="mix")


def _about_files(config: BuildConfig) -> Iterator[Finding]:
    """Remarks of the readers on their files and settings."""
    for origin in (*config.sources, *config.evaluation):
        for reader in (origin.reader, *origin.field_tables(), *origin.caption_tables()):
            for remark in ask(reader, reader.remarks):
                yield Finding(False, f"{reader.where}: {remark}")


def _about_disk(config: BuildConfig) -> Iterator[Finding]:
    """Yield a finding on a disk that is nearly full."""
    free = shutil.disk_usage(nearest_folder(config.work_dir)).free
    if free < MIN_FREE_BYTES:
        yield Finding(
            False,
            f"work_dir {config.work_dir}: only {free / 1e6:,.0f} MB are free on its disk",
            ("work_dir: A-PLACE-WITH-ROOM",),
        )


def _about_evaluation(config: BuildConfig) -> Iterator[Finding]:
    """Yield findings on evaluation sets that are also a training source."""
    places = {str(Path(source.reader.path).absolute()): source.name for source in config.sources}
    for evaluation in config.evaluation:
        set_path = Path(evaluation.reader.path).absolute()
        for path, name in places.items():
            if set_path == Path(path) or set_path in Path(path).parents:
                yield Finding(
                    False,
                    f"evaluation.{evaluation.name}: sources.{name} lies in it, so all of that source will be dropped "
                    "as eval_leak",
                    (f"evaluation: [{{name: {evaluation.name}, {evaluation.kind}: {{path: ANOTHER-PLACE}}}}]",),
                )
