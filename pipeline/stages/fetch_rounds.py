"""Which rows fetch takes up, and which result counts when an address was asked several times.

A build fetches the rows that no part has yet, and rows whose outcome came from a setting that has changed since.
A round of `plantmix retry` takes up the rows that ended with one of its outcomes. Reads parts of the table `fetched`
(manifests/tables.py). Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from manifests.outcomes import Outcome
from manifests.reader import literals
from manifests.records import FetchRound, PartRecord, fingerprint
from manifests.tables import FETCHED
from pipeline.fetching import consent as places
from pipeline.fetching.consent import Consent
from pipeline.fetching.settings import FetchSettings
from pipeline.pictures.image import Original
from pipeline.pictures.settings import ImageSettings
from pipeline.runner.work import BuildContext, StageRun
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import view_table

VERSION = 4
_HAMMING = 3  # the version whose pictures were made smaller by Pillow's filter of that name

# Where the same address was asked several times, a picture counts, or else what was seen last under these settings.
COUNTS = (
    "row_number() OVER (PARTITION BY f.sample_id, f.url ORDER BY (f.outcome = 'ok' AND NOT f.outdated) DESC, "
    "f.outdated, f.round DESC, f.pool_file DESC NULLS LAST, f.outcome, f.detail) = 1"
)
# Of a row that must be asked again, what is known: its picture, or else what was seen last.
_KNOWN = (
    "row_number() OVER (PARTITION BY f.sample_id, f.url ORDER BY f.pool_file DESC NULLS LAST, f.round DESC, "
    "f.outcome, f.detail) = 1"
)
RULES, HEADERS, PICTURE = "rules", "headers", "picture"
"""What a row is asked again for: only robots.txt and tdmrep.json of its hosts, headers by HEAD, or all of it."""

# Columns of FACTS that only a stored picture has.
_OF_STORED = (
    *("stored_sha256", "pixels_sha256", "phash", "phash_mirrored", "stored_width_px", "stored_height_px"),
    *("pixel_std", "colour_std", "pool_file", "offset", "length"),
)
_OF_HEAD = ("num_bytes", "image_id", "width_px", "height_px", "format")  # what is known before a picture is decoded
_OF_DECODED = tuple(field.name for field in fields(Original) if field.name not in _OF_HEAD)


@dataclass(frozen=True)
class FetchInputs:
    """All that fetch reads. Candidates count by their addresses alone: an edited caption fetches nothing."""

    candidates: Files
    secrets: Files
    local: RowGroup | None
    """Ids and addresses of the candidates with a locator (fetch_local.py)."""
    image: ImageSettings
    deciding: tuple[tuple[str, str], ...]
    """Outcomes that settings decide, each with the values of those settings."""
    consent: Consent
    round: int


@dataclass(frozen=True)
class PicturesInputs:
    """The rows of one part, what becomes of their pictures, the settings that refuse some, and the round that asks."""

    rows: RowGroup
    image: ImageSettings
    deciding: tuple[tuple[str, str], ...]
    round: int


@dataclass(frozen=True)
class FetchedFiles:
    """Files of the table `fetched` whose parts ran under the same settings."""

    files: Files
    outdated: tuple[str, ...]
    """Outcomes that were decided by settings which have changed since: they do not count any more."""
    unread: tuple[str, ...] = ()
    """Places (pipeline/fetching/consent.py) that must be looked at now, and did not count then."""


def recipes_of(image: ImageSettings) -> tuple[str, ...]:
    """Names of what decides how a downloaded picture is stored, in catalogues of all versions; the newest first.

    The first one names the rounds of `plantmix retry`. Downloads that are kept under any of them are used as they are.
    Limits are no part of it, because a picture that passes them is stored in the same way. They differ by the filter
    that makes pictures smaller, and the last one, of 0.1.0, holds the limits too.
    """
    stored = image.without_limits()
    named = ((4, stored), (_HAMMING, stored), (_HAMMING, image))
    names = (fingerprint({"version": version, "image": each.model_dump(mode="json")}) for version, each in named)
    return tuple(dict.fromkeys(names))


def downloads_of(image: ImageSettings, run: StageRun[Any], up_to_round: int) -> list[PartRecord]:
    """Committed downloads of any build whose pictures are stored as `image` says, up to a round."""
    parts = [part for name in recipes_of(image) for part in run.catalog.parts_like("fetch", "download", name)]
    parts += run.made_of("download", image.without_limits())
    return [part for part in parts if part.notes["round"] <= up_to_round]


def last_round(context: BuildContext) -> int:
    """The round that is being run, or else the last one that was finished."""
    if context.fetch_round is not None:
        return context.fetch_round.number
    return max(context.catalog.rounds.last_closed(recipe) for recipe in recipes_of(context.config.fetch.image))


def ids_of(part: PartRecord) -> tuple[str, str] | None:
    """The first and the last sample id of what a part fetched; earlier versions did not note them."""
    ids = part.notes.get("ids")
    return (ids[0], ids[1]) if ids else None


def by_settings(run: StageRun[Any], parts: Sequence[PartRecord], inputs: FetchInputs) -> tuple[FetchedFiles, ...]:
    """What parts fetched, grouped by which of their outcomes are outdated.

    Parts of 0.1.0 do not say their settings. The limits of pictures are in their recipe; their other settings count
    as the defaults.
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[PartRecord]] = {}
    with_limits, now = recipes_of(inputs.image)[-1], dict(inputs.deciding)
    for part in sorted(parts, key=lambda part: part.key):  # an interruption changes the order, and nothing else
        image = inputs.image if part.reuse_key == with_limits else ImageSettings()
        then = dict(part.notes.get("deciding") or FetchSettings(image=image).deciding())
        outdated = tuple(outcome for outcome in now if _values(then.get(outcome, "[]")) != _values(now[outcome]))
        unread = inputs.consent.unread(consent_of(then))
        groups.setdefault((outdated, unread), []).append(part)
    return tuple(FetchedFiles(run.files_of(groups[key], "fetched"), *key) for key in sorted(groups))


def _values(deciding: str) -> list[Any]:
    """Values of settings; the order in a list decides nothing."""
    return [sorted(value) if isinstance(value, list) else value for value in json.loads(deciding)]


def consent_of(deciding: Mapping[str, str]) -> Consent:
    """What counted when parts were fetched that noted these settings."""
    robots_txt, agent_token = _values(deciding[Outcome.ROBOTS_DISALLOWED])
    directives, signals, _ = _values(deciding[Outcome.OPTED_OUT])
    return Consent(agent_token, robots_txt, tuple(directives), tuple(signals))


_NONE = Consent("", False, (), ())  # nothing refuses a picture


def view_fetched(sql: Any, fetched: Sequence[FetchedFiles], consent: Consent = _NONE, where: str = "true") -> None:
    """Make the view `parts`: the table `fetched` with what was said of each row, whether it is `outdated`, and if so
    what it `lacks`: RULES, HEADERS or PICTURE; null where its outcome is outdated.

    What one request heard counts for every row of the same address. Rows that were asked again for consent alone serve
    no other purpose. Columns that a part of an earlier version lacks are null.
    """
    view_table(sql, "parts_none", Files(), FETCHED)
    views = ["SELECT *, false AS was_decided, []::VARCHAR[] AS unread FROM parts_none"]
    for number, group in enumerate(fetched):
        view_table(sql, f"parts_{number}", group.files, FETCHED, where, of_versions=True)
        outdated = literals(Outcome(name).value for name in group.outdated) or "NULL"
        views.append(
            f"SELECT *, coalesce(outcome IN ({outdated}), false) AS was_decided, "
            f"[{literals(group.unread)}]::VARCHAR[] AS unread FROM parts_{number}"
        )
    columns = {name: literals([place]) for name, place in _columns(consent).items()}
    heard = ", ".join(f"signals[{place}] AS {name}" for name, place in columns.items())
    if any(group.unread for group in fetched):
        heard = ", ".join(
            f"coalesce(signals[{place}], max(signals[{place}]) OVER (PARTITION BY sample_id, url)) AS {name}"
            for name, place in columns.items()
        )
    unread = {name: f"(list_contains(unread, {place}) AND {name} IS NULL)" for name, place in columns.items()}
    sql.execute(
        f"""CREATE VIEW parts AS SELECT *, lacks IS NOT NULL OR (was_decided AND NOT is_refused) AS outdated FROM
        (SELECT *, CASE WHEN is_refused OR host IS NULL THEN NULL
            WHEN {unread["in_c2pa"]} AND pool_file IS NOT NULL THEN '{PICTURE}'
            WHEN {unread["in_headers"]} AND (outcome = 'ok' OR http_status IN (200, 203)) THEN '{HEADERS}'
            WHEN {unread["in_robots"]} OR {unread["in_tdmrep"]} THEN '{RULES}' END AS lacks
        FROM (SELECT *, {refusal(consent)} IS NOT NULL OR {_is_marked(consent)} AS is_refused
        FROM (SELECT * EXCLUDE (in_picture), coalesce(in_picture, if(signals IS NULL, string_split(detail, '; '), NULL))
            AS in_picture FROM (SELECT *, {heard} FROM ({" UNION ALL BY NAME ".join(views)})))))
        WHERE outcome <> '{Outcome.NOT_REFUSED}'"""
    )


def _columns(consent: Consent) -> dict[str, str]:
    """Columns of `parts` that hold what was said, each with its place."""
    return {
        "in_robots": places.robots_of(consent.agent_token),
        "in_tdmrep": places.TDMREP,
        "in_headers": places.HEADERS,
        "in_picture": places.PICTURE,
        "in_c2pa": places.C2PA,
    }


def refusal(consent: Consent) -> str:
    """SQL: outcome and detail of a row of `parts` by what its hosts said; null where nothing of it counts."""
    columns = {place: name for name, place in _columns(consent).items()}
    cases = " ".join(
        f"WHEN list_contains({columns[place]}, {literals([words])}) THEN [{literals([outcome.value, words])}]"
        for place, words, outcome in consent.counting
    )
    return f"(CASE {cases} END)" if cases else "NULL::VARCHAR[]"


_MARKED = "list_concat(in_picture, in_c2pa)"  # what a picture says itself


def _is_marked(consent: Consent) -> str:
    """SQL: whether a picture of `parts` says itself what refuses it."""
    marked = (
        f"len(list_filter({_MARKED}, lambda words: starts_with(words, {literals([mark])}))) > 0"
        for mark in consent.marks
    )
    return f"coalesce({' OR '.join(marked) or 'false'}, false)"


def rows_to_fetch(fetch_round: FetchRound | None, columns: str, address: str, where: str) -> str:
    """A query for the rows to take up, over the views `candidates` and `parts`.

    `address` is the column that identifies what is fetched (url or locator). `where` picks the rows that have one.
    """
    if fetch_round is None:
        return (
            f"SELECT {columns} FROM candidates c WHERE {where} AND NOT EXISTS "
            f"(SELECT 1 FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.{address} AND NOT p.outdated)"
        )
    number = fetch_round.number
    outcomes = literals(Outcome(name).value for name in fetch_round.outcomes)
    return (
        f"SELECT {columns} FROM candidates c WHERE {where} AND EXISTS "
        f"(SELECT 1 FROM (SELECT * FROM parts f WHERE f.round < {number} QUALIFY {COUNTS}) b "
        f"WHERE b.sample_id = c.sample_id AND b.url = c.{address} AND b.outcome IN ({outcomes})) AND NOT EXISTS "
        f"(SELECT 1 FROM parts p WHERE p.round = {number} AND p.sample_id = c.sample_id AND p.url = c.{address})"
    )


def addresses_to_fetch(fetch_round: FetchRound | None) -> str:
    """A query for the addresses on the web to take up, each with the rows (`sample_ids`) that have it.

    `asks` says what is asked for: RULES, HEADERS or PICTURE; `way` where redirects led when it was asked first.
    """
    todo = rows_to_fetch(fetch_round, "sample_id, asked, address", "address", "locator IS NULL")
    known = f"(SELECT * FROM parts f QUALIFY {_KNOWN})"
    return f"""SELECT min(sample_id) AS sample_id, list(sample_id ORDER BY sample_id) AS sample_ids, asked AS url,
        address, asks, way FROM (SELECT t.*, coalesce(k.lacks, '{PICTURE}') AS asks,
            if(asks = '{RULES}' AND len(k.redirects) > 0, list_append(k.redirects[2:], k.final_url), []) AS way
        FROM ({todo}) t LEFT JOIN {known} k ON k.sample_id = t.sample_id AND k.url = t.address)
        GROUP BY asked, address, asks, way"""


def judged(facts: str, image: ImageSettings, consent: Consent) -> str:
    """A query that judges the rows of the query `facts` over `parts`, in the order of a download.

    First comes what the hosts said, then the limits of `image`, then what a picture says of itself. A row that is
    refused gets the outcome and the detail of a download that is refused for it, and is not stored.
    """
    size = "width_px || ' x ' || height_px || ' px, '"
    ratio = "greatest(width_px, height_px) / least(width_px, height_px)"
    of_host = refusal(consent)
    refused = f"""CASE WHEN {of_host} IS NOT NULL THEN {of_host} WHEN outcome <> 'ok' THEN NULL
        WHEN num_bytes > {image.max_body_bytes}
        THEN ['{Outcome.BODY_TOO_LARGE}', num_bytes || ' bytes, allowed {image.max_body_bytes}']
        WHEN width_px::BIGINT * height_px > {image.max_pixels}
        THEN ['{Outcome.TOO_MANY_PIXELS}', {size} || 'allowed {image.max_pixels} pixels']
        WHEN least(width_px, height_px) < {image.min_side_px}
        THEN ['{Outcome.IMAGE_TOO_SMALL}', {size} || 'shortest side allowed {image.min_side_px}']
        WHEN {ratio} > {image.max_aspect_ratio}
        THEN ['{Outcome.ASPECT_TOO_EXTREME}', {size} || 'ratio allowed {image.max_aspect_ratio:g}']
        WHEN {_is_marked(consent)} THEN ['{Outcome.OPTED_OUT}', array_to_string({_MARKED}, '; ')] END"""
    kept = [f'if(refused IS NULL, "{name}", NULL) AS "{name}"' for name in _OF_STORED]
    kept += [f'if(by_host, NULL, "{name}") AS "{name}"' for name in _OF_HEAD]
    # too many pixels: a download is refused before it is known how they are kept and turned
    kept += [
        f"if(by_host OR refused[1] IS NOT DISTINCT FROM '{Outcome.TOO_MANY_PIXELS}', NULL, {name}) AS {name}"
        for name in _OF_DECODED
    ]
    return (
        "SELECT * REPLACE (coalesce(refused[1], outcome) AS outcome, coalesce(refused[2], detail) AS detail, "
        f"{', '.join(kept)}) FROM (SELECT *, {refused} AS refused, {of_host} IS NOT NULL AS by_host FROM ({facts}))"
    )
