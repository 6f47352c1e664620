"""fetch: download every candidate's picture, measure it in one decode, store it; one outcome for every URL.

Reads candidates. Those with a locator lie on this machine already: local.py reads them, and they take the
same measurement; they are known by their content. Writes pool tars, the facts of each part, and
`facts` (one row a candidate, sorted by sample_id).

No build downloads a picture twice under the same image settings: an edited caption downloads nothing, a new URL
downloads one picture. A build asks again for a row when a setting that decided its outcome has changed since, such as
`allow_private_addresses`. `plantmix retry` asks again, in a round of its own, for rows whose failure may pass.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.outcomes import Outcome
from manifests.contract.records import Funnel, PartRecord
from manifests.contract.takedowns import find_named, standing_list, with_rows_of_secrets
from manifests.stores import storage
from pipeline.config import BuildConfig
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.fetching.consent.statements import Consent
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import FetchSettings
from pipeline.stages.fetch import local as fetch_local
from pipeline.stages.fetch.rounds import (
    COUNTS,
    VERSION,
    FetchedFiles,
    FetchInputs,
    PicturesInputs,
    addresses_to_fetch,
    by_settings,
    downloads_of,
    ids_of,
    judged,
    last_round,
    not_listed,
    view_fetched,
)
from pipeline.store.buckets import WHOLE, Bucket, join_facets, spread
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import cut_rows, view_parquet, view_table

log = logging.getLogger("plantmix.fetch")

# What later stages may depend on: what an image shows, not where it came from or where it lies.
_CONTENT = (
    *("sample_id", "outcome", "image_id", "stored_sha256", "pixels_sha256", "phash", "width_px", "height_px"),
    *("has_camera", "colour_std", "file_creator", "file_rights"),
)


_NOT_ASKED = (
    f"SELECT sample_id, '{Outcome.TAKEDOWN}' AS outcome, 'the takedown list has its hashes' AS detail, 0 AS attempts "
    "FROM candidates c WHERE NOT EXISTS (FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.address)"
)
"""SQL: a fact for each candidate that no part has: all others were asked or read."""


@dataclass(frozen=True)
class DownloadHow:
    """Execution of downloads, and how often results are committed."""

    fetch: FetchSettings
    piece_seconds: float


@dataclass(frozen=True)
class CollectInputs:
    """All that was fetched, and the candidates of a bucket that get a fact out of it."""

    candidates: Files
    secrets: Files
    local: RowGroup | None
    fetched: tuple[FetchedFiles, ...]
    image: ImageSettings
    consent: Consent
    bucket: Bucket = WHOLE


def download(inputs: PicturesInputs, run: Execution[DownloadHow]) -> Iterator[PartResult]:
    """Fetch the rows of one part into pool tars and tables of facts, in pieces when it takes long."""
    from pipeline.fetching.engine import fetch_in_pieces

    todo = inputs.rows.read()
    urls, addresses = dict[str, str](), dict[str, str]()
    for row in todo.to_pylist():
        for sample_id in row["sample_ids"]:
            urls[sample_id], addresses[sample_id] = row["url"], row["address"]
    for path in run.pieces:
        for sample_id in pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist():
            del urls[sample_id]
    settings = run.how.fetch.model_copy(update={"image": inputs.image})
    pieces = fetch_in_pieces(
        list(urls.items()),
        settings,
        run.shared,
        lambda: fetch_local.new_pool_file(run),
        run.how.piece_seconds,
        run.stem,
        scratch=storage.join(run.workdir, "scratch"),  # a build empties it when it starts
    )
    notes = {"round": inputs.round, "deciding": dict(inputs.deciding)}
    for number, piece in enumerate(pieces, len(run.pieces)):
        is_piece = bool(run.pieces) or not piece.is_whole
        name = f"{run.stem}-{number}" if is_piece else run.stem
        of_hosts = {"hosts": run.shared.progress().given}  # for the report of a work folder
        yield fetch_local.finish(piece.facts, addresses, notes | of_hosts, piece.pool_path, name, run, is_piece)


def collect(inputs: CollectInputs, run: Execution[None]) -> PartResult:
    """One fact a candidate out of all fetched parts: a picture where any round got one, else the newest failure.

    A picture that was fetched under other limits, or when other signals counted, is judged by what is known of it.
    """
    with run.scratch() as sql:
        _view_candidates(sql, inputs.candidates, inputs.secrets, inputs.local, inputs.bucket)
        view_fetched(sql, inputs.fetched, inputs.consent, inputs.bucket.where)
        counting = "SELECT f.* FROM candidates c JOIN parts f ON f.sample_id = c.sample_id AND f.url = c.address"
        again = "SELECT 1 FROM parts GROUP BY sample_id HAVING count(*) > 1 LIMIT 1"
        if sql.execute(again).fetchall():  # else all rows count; ranking them takes a fifth of the CPU
            counting = f"FROM ({counting}) QUALIFY {COUNTS}"
        query = f"{judged(counting, inputs.image, inputs.consent)} UNION ALL BY NAME {_NOT_ASKED}"
        facts, content = run.save_digested(sql, "facts", query, "sample_id", _CONTENT)
        outcomes = dict(sql.execute("SELECT outcome, count(*) FROM facts GROUP BY 1").fetchall())
        num_in = sql.execute("SELECT count(*) FROM candidates").fetchall()[0][0]
    num_ok = outcomes.pop("ok", 0)
    return PartResult((facts,), Funnel(num_in, num_ok, outcomes), {"content": content})


def _inputs(context: BuildContext) -> FetchInputs:
    candidates = context.files("ingest", "candidates")
    addresses = tuple(context.sealed["ingest"].notes["addresses"])
    secrets = context.files("ingest", "secrets")  # the digests of addresses cover these too
    fetch = context.config.fetch
    return FetchInputs(
        candidates.digested(*addresses),
        secrets.digested(*addresses),
        fetch_local.look_at_candidates(context),
        fetch.image,
        fetch.deciding(),
        fetch.network.consent,
        last_round(context),
    )


def _plan_downloads(inputs: FetchInputs, run: StageRun[DownloadHow]) -> Sequence[Part[PicturesInputs]]:
    """Return the rows to download, by their sample ids, cut into parts of equal length.

    Ids are hashes, so hosts mix, and what a part fetched lies in a bucket or two. The order is fixed and committed rows
    are left out, so a killed build goes on with the same parts.
    """
    with run.scratch() as sql:
        _view_candidates(sql, inputs.candidates, inputs.secrets, None)
        view_fetched(sql, by_settings(run, _fetched(inputs, run), inputs), inputs.consent)
        # a build has to see a picture that was taken down once, to know its copies; a round asks for none of them
        taken = standing_list(run.catalog.workdir, run.catalog.ask)
        entries = with_rows_of_secrets(taken.entries if run.fetch_round else [], inputs.secrets.paths)
        sql.execute("CREATE VIEW facts AS FROM parts")
        find_named(sql, entries)
        where = f"sample_id NOT IN (SELECT sample_id FROM named) AND {not_listed(sql, taken.pictures)}"
        groups = cut_rows(
            sql,
            addresses_to_fetch(run.fetch_round, where),
            "len(sample_ids) > 1, sample_id",  # what several rows share lies in parts of its own, read by all buckets
            "concat_ws(chr(31), array_to_string(sample_ids, ' '), url)",
            todo := run.scratch_file("fetch-todo.parquet"),
            run.settings.fetch_part_size,
        )
        view_parquet(sql, "todo", [todo])
        _announce(sql, inputs, run)
        network = run.how.fetch.network
        if network.contact is None:
            for batch in sql.sql("SELECT url FROM todo").to_arrow_reader(100_000):
                network.require_contact(batch["url"].to_pylist())
    stored = inputs.image.without_limits()
    return [
        Part(PicturesInputs(rows, inputs.image, inputs.deciding, inputs.round), stored, num_rows)
        for rows, num_rows in groups
    ]


def _announce(sql: Any, inputs: FetchInputs, run: StageRun[DownloadHow]) -> None:
    """Say before any request which pictures that are stored are asked for again, and which setting is the reason."""
    ((num_rows, num_stored),) = sql.execute("SELECT count(*), count(*) FILTER (is_stored) FROM todo").fetchall()
    if num_rows and run.how.fetch.engine == "img2dataset":
        log.info(
            "fetch: engine img2dataset stores no signal of owners: when the config names another one, its pictures "
            "are downloaded once more"
        )
    if num_stored:
        log.info(
            "fetch: signals of consent count now that nobody listened to when %s pictures were fetched: they are "
            "downloaded once more",
            f"{num_stored:,}",
        )
    sealed = "FROM stages WHERE stage = 'fetch' AND sealed_at IS NOT NULL ORDER BY sealed_at DESC LIMIT 1"
    for fingerprint, identity in run.catalog.ask(f"SELECT fingerprint, identity {sealed}"):
        was = ImageSettings.of_record(json.loads(identity)["image"]).without_limits()
        now = inputs.image.without_limits()
        changes = [
            f"fetch.image.{name} is {value}, was {getattr(was, name)}"
            for name, value in now
            if value != getattr(was, name)
        ]
        files = run.files_of(run.catalog.parts_of(fingerprint, "download"), "fetched") if changes else Files()
        view_table(sql, "before", files, tables.FETCHED, "outcome = 'ok'")
        ((num,),) = sql.execute("SELECT count(*) FROM todo t SEMI JOIN before b ON b.url = t.address").fetchall()
        if num:
            log.info("fetch: %s pictures are downloaded again: %s", f"{num:,}", "; ".join(changes))


def fetched_before(config: BuildConfig, catalog: Catalog) -> Sequence[FetchedFiles]:
    """Return the downloads in a work folder that a build with this configuration would take up."""
    fetch = config.fetch
    inputs = FetchInputs(Files(), Files(), None, fetch.image, fetch.deciding(), fetch.network.consent, sys.maxsize)
    run = StageRun[None](STAGE, "", catalog, config.run, None)
    return by_settings(run, _fetched(inputs, run), inputs)


def _view_candidates(
    sql: Any, candidates: Files, secrets: Files, local: RowGroup | None, bucket: Bucket = WHOLE
) -> None:
    """View the candidates with the address to ask, secrets included, and the `address` by which a download is known."""
    view_parquet(sql, "rows", candidates.paths, bucket.where)
    view_table(sql, "secrets", secrets, tables.SECRETS, bucket.where)
    sql.register("local", local.read() if local else fetch_local.ADDRESSES.empty_table())
    sql.execute(
        "CREATE VIEW candidates AS SELECT r.*, coalesce(s.url, r.url) AS asked, "
        "coalesce(l.address, s.address, r.url) AS address "
        "FROM rows r LEFT JOIN secrets s USING (sample_id) LEFT JOIN local l USING (sample_id)"
    )


def _fetched(inputs: FetchInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    return downloads_of(inputs.image, run, inputs.round)


def _plan_collect(inputs: FetchInputs, run: StageRun[None]) -> Sequence[CollectInputs]:
    buckets = run.buckets(inputs.candidates)
    downloaded = spread(((part, ids_of(part)) for part in run.parts("download")), buckets)
    by_key = sorted(run.parts("local"), key=lambda part: part.key)
    local = FetchedFiles(run.files_of(by_key, "fetched"), ())
    addresses = fetch_local.cut_addresses(inputs, run, buckets)
    return [
        CollectInputs(
            inputs.candidates,
            inputs.secrets,
            of_local,
            (*by_settings(run, urls, inputs), local),
            inputs.image,
            inputs.consent,
            bucket,
        )
        for bucket, urls, of_local in zip(buckets, downloaded, addresses, strict=True)
    ]


def _conclude(inputs: FetchInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    parts = run.parts("collect")
    return run.funnel("collect"), {"content": join_facets([part.notes["content"] for part in parts])}


STAGE = Stage(
    name="fetch",
    about="download, decode once, measure, store",
    inputs=_inputs,
    tables={"stamps": fetch_local.NOTED},
    steps=(
        Step(
            "download",
            download,
            version=VERSION,
            gives=("fetched",),
            plan=_plan_downloads,
            how=lambda context: DownloadHow(context.config.fetch, context.config.run.fetch_part_seconds),
            unit="images",
            committed=_fetched,
            shared=lambda context: partial(HostGate, context.config.fetch.network),
            reports=True,
            from_outside=True,
        ),
        fetch_local.STEP,
        Step("collect", collect, version=4, gives=("facts",), plan=_plan_collect),
    ),
    conclude=_conclude,
)
