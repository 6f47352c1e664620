"""ingest: turn the rows of every source into candidates with an identity. Other rows end here with a reason.

Reads the sources through their readers, and tars of a store once for fetch too (tars.py). Writes `candidates`
(sorted by sample_id) and `rejects`, one part a source. A source is read again only when its bytes, its settings or the
tables whose fields are joined to its rows change. Then it joins the texts of other tables to candidates (`joined`, one
part an entry of `captions`): before any picture is fetched, a join that fits nothing shows.

This is the one place where secrets in addresses (passwords, tokens, signatures) are taken out. Every text of a row is
written without them. The whole address of such a row stands in `secrets`, which only fetch reads.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.reader import literals
from manifests.contract.records import Funnel
from manifests.errors import ConfigError, RunError
from manifests.stores import storage
from pipeline.engine.inputs import identity_of
from pipeline.engine.work import BuildContext, Execution, PartResult, Stage, StageRun, Step
from pipeline.judging.vocabulary.backbone import BackboneSettings, backbone_files
from pipeline.judging.vocabulary.openings import view_opening_names
from pipeline.sources.reading import ask, content_of, digest_inputs, none_usable, read_ahead
from pipeline.sources.rows import MAX_VALUE_CHARS, Batch, binomials, first_texts, hold_objects, without_secrets
from pipeline.sources.settings import OtherDomain, SourceSettings
from pipeline.sources.tables.captions import JOINED, JoinedCaptions, join_captions
from pipeline.sources.tables.joining import staging
from pipeline.sources.tables.keyed import JoinedTable, describe_join, fault_of
from pipeline.sources.tars.samples import SAMPLES, kept_samples
from pipeline.stages.ingest import tars as ingest_tars
from pipeline.store.files import Files
from pipeline.store.sql import copy_sorted, empty_columns, facet, view_parquet

log = logging.getLogger("plantmix.ingest")

URL_PATTERN = r"(?i)^https?://[^\s/?#]+"
_ADDRESSES = {"url", "reference_url", "licence_url"}
_OF_OPENINGS = {"taxon_scientific_name", "taxon_kingdom"}  # columns that the opening of a caption may fill
_STAGED = pa.schema([*tables.CANDIDATES, *((name, pa.string()) for name in ("reason", "value", "asked_url"))])


ADDRESS = "if(asked_url IS NULL, url, url || '#' || left(sha256(asked_url), 8))"
"""SQL: what names the address of a row, without a secret of it."""


def map_rows(batch: Batch, source: SourceSettings) -> pa.Table:
    """Turn a reader's batch into candidate rows with `reason` and `value`. A null reason means the row is a candidate.

    `asked_url` is the whole address where `url` hides a secret of it, and null elsewhere. Duplicate records are found
    later, over the whole source.
    """
    rows = source.defaults.fill(batch.rows)
    num_rows = rows.num_rows
    mapped: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    mapped["caption"] = first_texts(mapped["caption"])
    mapped["url"] = pc.utf8_trim_whitespace(rows["url"])
    mapped["record_key"] = pc.utf8_trim_whitespace(rows["record_key"])
    group = pc.utf8_trim_whitespace(rows["group_id"])
    mapped["group_id"] = pc.if_else(pc.equal(group, ""), None, group)
    keys, whole = mapped["record_key"], mapped["url"]
    addresses = _ADDRESSES | ({"record_key"} if keys.equals(whole) else set())
    mapped |= {
        name: without_secrets(mapped[name], name in addresses) for name in rows.column_names if name != "locator"
    }
    mapped["taxon_species"] = binomials(mapped)
    mapped["reason"], mapped["value"] = _judge(keys, mapped["url"], rows["locator"], mapped["caption"])
    hidden = pc.and_(pc.is_null(rows["locator"]), pc.not_equal(whole, mapped["url"]))
    mapped |= {
        "asked_url": pc.if_else(hidden, whole, None),
        "sample_id": source.ids_of(keys),
        "source": pa.repeat(source.name, num_rows),
        "domain": pa.repeat(source.domain, num_rows),
        "row_number": pa.array(batch.numbers, pa.int64()),
    }
    table = pa.table([mapped[name] for name in _STAGED.names], _STAGED.names).cast(_STAGED)
    return pa.concat_tables([table, _lost_rows(batch.lost, source)]) if batch.lost.num_rows else table


def _judge(
    key: pa.ChunkedArray, url: pa.ChunkedArray, locator: pa.ChunkedArray, caption: pa.ChunkedArray
) -> tuple[Any, Any]:
    """Return the first reason why a row is not a candidate, and the value at fault; null for candidates.

    A row with a locator needs no URL: its URL is recorded as provenance and never requested. A caption that is an
    object is no text.
    """
    on_web = pc.is_null(locator)
    no_url = pc.and_(on_web, pc.equal(pc.fill_null(url, ""), ""))
    bad_url = pc.and_(on_web, pc.invert(pc.fill_null(pc.match_substring_regex(url, URL_PATTERN), False)))
    no_key = pc.equal(pc.fill_null(key, ""), "")
    no_text = hold_objects(caption)
    conditions = pc.make_struct(
        no_url, bad_url, no_key, no_text, field_names=["no_url", "bad_url", "no_key", "no_text"]
    )
    reason = pc.case_when(conditions, "missing_url", "invalid_url", "missing_key", "malformed_row")
    at_fault = pc.if_else(no_text, caption, url)
    shown = pc.is_in(reason, pa.array(["invalid_url", "malformed_row"]))
    return reason, pc.if_else(shown, pc.utf8_slice_codeunits(at_fault, 0, MAX_VALUE_CHARS), None)


def _lost_rows(lost: pa.Table, source: SourceSettings) -> pa.Table:
    """Rows that ended in the reader, as rows with a reason."""
    texts = ("record_key", "url", "value")
    columns = {
        name: without_secrets(lost[name], name in _ADDRESSES) if name in texts else lost[name]
        for name in lost.column_names
    } | {
        "source": pa.repeat(source.name, lost.num_rows),
        "domain": pa.repeat(source.domain, lost.num_rows),
    }
    return pa.table(
        [columns.get(name, pa.nulls(lost.num_rows, pa.string())) for name in _STAGED.names], _STAGED.names
    ).cast(_STAGED)


@dataclass(frozen=True)
class SourceInputs:
    """One source: its settings, which name no path in a fingerprint, and hashes of all that its rows depend on.

    Where there are, what was kept of the samples of its tars, and a backbone that parts its domains.
    """

    source: SourceSettings
    content: tuple[str, ...]
    samples: Files = field(default_factory=Files)
    backbone: BackboneSettings | None = None
    backbone_content: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """All of it; where nothing more is there, as before there could be."""
        held = fields(self) if self.samples or self.backbone else fields(self)[:2]
        return {declared.name: identity_of(getattr(self, declared.name)) for declared in held}


@dataclass(frozen=True)
class JoinInputs:
    """An entry of `captions`: of which source, its number there, and hashes of the table's files.

    The candidates of the source stand here once they are read, and the other rows where their keys tell which names of
    samples several tars have.
    """

    source: str
    entry: int
    captions: JoinedCaptions
    content: tuple[str, ...]
    candidates: Files
    rejects: Files = field(default_factory=Files)


@dataclass(frozen=True)
class IngestInputs:
    """All that ingest reads."""

    sources: tuple[SourceInputs, ...]
    captions: tuple[JoinInputs, ...]


def read_source(inputs: SourceInputs, run: Execution[None]) -> PartResult:
    """Stream one source into a staging file, then settle duplicates and order in SQL."""
    source, of_tars = inputs.source, None
    if inputs.samples and (tars := source.reader.tars()):
        of_tars = kept_samples(inputs.samples.paths, tars)
    stem = f"{source.name}-{run.stem}"
    staged = run.writer("staged", f"{stem}-staged")
    joins: list[dict[str, Any]] = []
    for batch in read_ahead(source, run.scratch, of_tars, joins.append):
        staged.write(map_rows(batch, source))
    temp = staged.close().temp
    with run.scratch() as sql:
        view_parquet(sql, "staged", [temp])
        if inputs.backbone and source.other_domain:
            _part_domains(sql, source, inputs.backbone, source.other_domain, run)
        sql.execute(
            "CREATE TABLE firsts AS SELECT sample_id, min(row_number) AS row_number "  # of the few ids that repeat
            "FROM staged WHERE reason IS NULL GROUP BY sample_id HAVING count(*) > 1"
        )
        sql.execute(
            "CREATE VIEW judged AS SELECT * REPLACE (if(again, 'duplicate_record', reason) AS reason, "
            "if(again, 'row ' || (first + 1), value) AS value) FROM "
            "(SELECT s.*, f.row_number AS first, s.reason IS NULL AND f.row_number < s.row_number AS again "
            "FROM staged s LEFT JOIN firsts f USING (sample_id))"
        )
        kept = copy_sorted(
            sql,
            "SELECT * FROM judged WHERE reason IS NULL",
            "sample_id",
            run.writer("candidates", f"{stem}-candidates"),
            empty=set(empty_columns(sql, [temp])) - (_OF_OPENINGS if source.other_domain else set()),
        )
        rejected = copy_sorted(
            sql,
            "SELECT * FROM judged WHERE reason IS NOT NULL",
            "row_number, reason, record_key, value",
            run.writer("rejects", f"{stem}-rejects"),
        )
        secrets = copy_sorted(
            sql,
            f"SELECT sample_id, asked_url AS url, {ADDRESS} AS address FROM judged "
            "WHERE reason IS NULL AND asked_url IS NOT NULL",
            "sample_id",
            run.writer("secrets", f"{stem}-secrets"),
        )
        Path(secrets.temp).chmod(0o600)
        reasons = dict(
            sql.execute("SELECT reason, count(*) FROM judged WHERE reason IS NOT NULL GROUP BY 1").fetchall()
        )
        kept_rows = "SELECT domain, count(*) FROM judged WHERE reason IS NULL GROUP BY 1 ORDER BY 1"
        domains = dict(sql.execute(kept_rows).fetchall())
        addresses = facet(sql, ("sample_id", "coalesce(asked_url, url)", "locator"), "judged WHERE reason IS NULL")
    storage.remove(temp)
    num_kept = kept.num_rows
    funnel = Funnel(num_kept + rejected.num_rows, num_kept, reasons)
    notes = {"source": source.name, "domains": domains, "addresses": addresses} | ({"join": joins} if joins else {})
    return PartResult((kept, rejected, secrets), funnel, notes)


def _part_domains(
    sql: Any, source: SourceSettings, backbone: BackboneSettings, other: OtherDomain, run: Execution[None]
) -> None:
    """Give rows of the view `staged` the other domain, unless their caption begins with a name: that is their taxon."""
    scratch = storage.join(run.workdir, "scratch")
    storage.make_folder(scratch)
    name = view_opening_names(sql, "staged", "caption", other.kingdoms, backbone, scratch, run.memory_gb)
    sql.execute(
        "ALTER VIEW staged RENAME TO undivided; CREATE VIEW staged AS SELECT u.* REPLACE ("
        f"if(n.accepted_name IS NULL, {literals([other.name])}, domain) AS domain, "
        "if(taxon_scientific_name IS NULL, n.kingdom, taxon_kingdom) AS taxon_kingdom, "
        "coalesce(taxon_scientific_name, n.accepted_name) AS taxon_scientific_name) "
        f"FROM undivided u LEFT JOIN opening_names n ON n.name = {name}"
    )


def join(inputs: JoinInputs, run: Execution[None]) -> PartResult:
    """Join one table of texts to the candidates of a source."""
    of_entry = inputs.source, inputs.entry, inputs.captions
    with staging(run.scratch) as (sql, folder):
        query, counts = join_captions(sql, folder, inputs.candidates.paths, *of_entry, inputs.rejects)
        joined = run.save(sql, "joined", query, "sample_id, row_number")
    return PartResult((joined,), None, counts)


def _inputs(context: BuildContext) -> IngestInputs:
    catalog, sources, backbone = context.catalog, context.config.sources, context.config.caption.backbone
    inputs = [_look_at(source, catalog, ingest_tars.hashes_of_tars(source, context)) for source in sources]
    hashes = tuple(catalog.input_sha256(file) for file in backbone_files(backbone)) if backbone else ()
    captions = []
    for source in sources:
        for number, table in enumerate(source.caption_tables(), 1):
            content = tuple(ask(table, partial(table.digest, catalog.input_sha256)))
            captions.append(JoinInputs(source.name, number, source.captions[number - 1], content, Files()))
    read = [
        replace(held, backbone=backbone, backbone_content=hashes) if held.source.other_domain else held
        for held in inputs
    ]
    return IngestInputs(tuple(read), tuple(captions))


def _look_at(source: SourceSettings, catalog: Catalog, of_tars: Mapping[str, str]) -> SourceInputs:
    def hash_file(path: str) -> str:
        return of_tars[path] if path in of_tars else catalog.input_sha256(path)

    return SourceInputs(
        source, (*digest_inputs(source, hash_file), *content_of(source, catalog.stamps, pictures=False))
    )


def _sources(inputs: IngestInputs) -> list[SourceSettings]:
    return [held.source for held in inputs.sources]


def _learn(inputs: IngestInputs, run: StageRun[Any]) -> IngestInputs:
    """Return the same inputs, with the content of tars that were read for the first time."""
    learnt = [(held, ingest_tars.learn(held.source, run)) for held in inputs.sources]
    return IngestInputs(
        tuple(
            replace(held, content=_look_at(held.source, run.catalog, of_tars).content) if of_tars else held
            for held, of_tars in learnt
        ),
        inputs.captions,
    )


def _plan(inputs: IngestInputs, run: StageRun[None]) -> Sequence[SourceInputs]:
    return [replace(held, samples=ingest_tars.samples_of(held.source, run)) for held in inputs.sources]


def _plan_join(inputs: IngestInputs, run: StageRun[None]) -> Sequence[JoinInputs]:
    parts = {part.notes["source"]: [part] for part in run.parts("read")}
    shards = {held.source.name: parts[held.source.name] for held in inputs.sources if held.source.reader.in_shards}
    return [
        replace(
            table,
            candidates=run.files_of(parts[table.source], "candidates"),
            rejects=run.files_of(shards.get(table.source, []), "rejects"),
        )
        for table in inputs.captions
    ]


def _conclude(inputs: IngestInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    parts, funnel = run.parts("read"), run.funnel("read")
    settings = {source.name: source for source in _sources(inputs)}
    fields = [dict(counts) for part in parts for counts in part.notes.get("join", ())]
    for counts in fields:
        _tell_of_join(settings[counts["source"]].join[counts["entry"] - 1], counts)
    if not funnel.num_kept:
        raise RunError(f"ingest: {none_usable(funnel.num_in, funnel.reasons)}")
    joins = [dict(part.notes) for part in run.parts("join")]
    for table, counts in zip(inputs.captions, joins, strict=True):
        _tell_of_join(table.captions, counts)
    by_domain: Counter[str] = Counter()
    for part in parts:
        assert part.funnel is not None
        by_domain.update(part.notes.get("domains", {part.notes.get("domain"): part.funnel.num_kept}))
    notes = {"addresses": [part.notes["addresses"] for part in parts], "domains": dict(by_domain)}
    return funnel, notes | ({"join": fields} if fields else {}) | ({"captions": joins} if joins else {})


def _tell_of_join(joined: JoinedTable, counts: dict[str, Any]) -> None:
    """Log what a join found. Raises: ConfigError where its counts make no sense."""
    if fault := fault_of(joined, counts):
        raise ConfigError(fault)
    log.info("ingest: %s", describe_join(counts))


STAGE = Stage(
    name="ingest",
    about="read the sources' tables, give every row an identity",
    inputs=_inputs,
    tables={
        "samples": SAMPLES,
        "staged": _STAGED,  # gone when its part is done
        "secrets": tables.SECRETS,
        "joined": JOINED,
    },
    steps=(
        Step(
            "tars",
            ingest_tars.read,
            gives=("fetched", "samples"),
            plan=lambda inputs, run: ingest_tars.plan(_sources(inputs), run),
            how=ingest_tars.how_to_read,
            unit="MB",
            committed=lambda inputs, run: ingest_tars.pieces_of(_sources(inputs), run),
            learns=_learn,
        ),
        # 6: a header counts as a row, lists are no captions; 7: `where` reads whole licences beside their addresses,
        # those of joined rows stand in a line each, and a default contradicts none; 8: a name of an
        # owner counts only where its place says that it is one
        Step(
            "read",
            read_source,
            version=8,
            gives=("staged", "candidates", "rejects", "secrets"),
            plan=_plan,
            unit="sources",
        ),
        Step("join", join, version=2, gives=("joined",), plan=_plan_join, unit="tables"),
    ),
    conclude=_conclude,
)
