"""Which rows fetch takes up, and which result counts when an address was asked several times.

A build fetches the rows that no part has yet, rows whose outcome came from a setting that has changed since, and rows
that lack a signal of consent which the settings name now.
A round of `plantmix retry` takes up the rows that ended with one of its outcomes. Reads parts of the table `fetched`
(manifests/contract/tables.py). Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from manifests.contract.outcomes import Outcome
from manifests.contract.reader import literals
from manifests.contract.records import FetchRound, PartRecord, fingerprint
from manifests.contract.tables import FETCHED
from manifests.contract.takedowns import Picture
from manifests.names.sql import identifier
from pipeline.engine.work import BuildContext, StageRun
from pipeline.fetching.consent import statements as places
from pipeline.fetching.consent.statements import Consent
from pipeline.fetching.pictures.image import Original, StoredImage
from pipeline.fetching.pictures.limits import LIMITS, RATIO, SIDE
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import view_table

VERSION = 4

# Where the same address was asked several times, a picture that stands counts, or else the newest answer that stands.
COUNTS = (
    "row_number() OVER (PARTITION BY sample_id, url ORDER BY (outcome = 'ok' AND stands) DESC, stands DESC, "
    "round DESC, len(unread), pool_file DESC NULLS LAST, outcome, detail) = 1"
)

# Columns of FACTS that only a stored picture has.
_OF_STORED = (
    *(field.name for field in fields(StoredImage) if field.name not in ("original", "body", "detail")),
    *("pool_file", "offset", "length"),
)
# Columns of Original, by how many of LIMITS a download has passed when it learns them; all others come after the last.
_LEARNT_AFTER = {
    1: ("num_bytes", "image_id", "width_px", "height_px", "format"),
    2: ("mode", "exif_orientation", "has_camera"),
}

_LOOKED_AT_SIDES = "AND exif_orientation IS NOT NULL"  # what a download reads right before it looks at them


@dataclass(frozen=True)
class FetchInputs:
    """All that fetch reads. Candidates count by their addresses alone: an edited caption fetches nothing."""

    candidates: Files
    secrets: Files
    local: RowGroup | None
    """Ids and addresses of the candidates with a locator (local.py)."""
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
    """Places (pipeline/fetching/consent/statements.py) whose signals count now, and did not count then."""


def recipe_of(image: ImageSettings) -> str:
    """Return the name of what decides how a downloaded picture is stored; rounds of `plantmix retry` are kept under it.

    Limits are no part of it, because a picture that passes them is stored the same way.
    """
    return fingerprint({"version": VERSION, "image": image.without_limits().identity()})


def downloads_of(image: ImageSettings, run: StageRun[Any], up_to_round: int) -> list[PartRecord]:
    """Return the committed downloads of any build whose pictures are stored as `image` says, up to a round."""
    return [part for part in run.made_of("download", image.without_limits()) if part.notes["round"] <= up_to_round]


def last_round(context: BuildContext) -> int:
    """Return the round that is being run, or else the last one that was finished."""
    if context.fetch_round is not None:
        return context.fetch_round.number
    return context.catalog.rounds.last_closed(recipe_of(context.config.fetch.image))


def ids_of(part: PartRecord) -> tuple[str, str] | None:
    """Return the first and the last sample id of what a part fetched; None where it has no rows."""
    ids = part.notes.get("ids")
    return (ids[0], ids[1]) if ids else None


def by_settings(run: StageRun[Any], parts: Sequence[PartRecord], inputs: FetchInputs) -> tuple[FetchedFiles, ...]:
    """Return the files that parts fetched, grouped by which of their outcomes are outdated."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[PartRecord]] = {}
    now = dict(inputs.deciding)
    for part in sorted(parts, key=lambda part: part.key):  # an interruption changes the order, and nothing else
        then = dict(part.notes["deciding"])
        outdated = tuple(outcome for outcome in now if _values(then.get(outcome, "[]")) != _values(now[outcome]))
        unread = inputs.consent.unread(consent_of(then))
        groups.setdefault((outdated, unread), []).append(part)
    return tuple(FetchedFiles(run.files_of(groups[key], "fetched"), *key) for key in sorted(groups))


def _values(deciding: str) -> list[Any]:
    """Values of settings; the order in a list decides nothing."""
    return [sorted(value) if isinstance(value, list) else value for value in json.loads(deciding)]


def consent_of(deciding: Mapping[str, str]) -> Consent:
    """Return the consent that counted when parts were fetched that noted these settings."""
    robots_txt, agent_token = _values(deciding[Outcome.ROBOTS_DISALLOWED])
    directives, signals, _ = _values(deciding[Outcome.OPTED_OUT])
    return Consent(agent_token, robots_txt, tuple(directives), tuple(signals))


_NONE = Consent("", False, (), ())  # nothing refuses a picture

# What one request heard counts for every row of the same address. Pictures of a folder have no signals: what such a
# picture says of itself lies in `detail`.
_PARTS = """
    CREATE VIEW parts_heard AS SELECT * REPLACE (
        coalesce(in_picture, if(signals IS NULL, string_split(detail, '; '), NULL)) AS in_picture)
        FROM (SELECT *, {heard} FROM parts_read);
    CREATE VIEW parts_judged AS SELECT *, {refusal} IS NOT NULL OR {is_marked} OR NOT (was_decided OR (
        host IS NOT NULL AND (
            {lacks[in_robots]} OR {lacks[in_tdmrep]} OR {lacks[in_rsl]}
            OR ({lacks[in_headers]} AND (outcome = 'ok' OR coalesce(http_status IN (200, 203), false)))
        ))) AS holds FROM parts_heard;
    CREATE VIEW parts AS SELECT *, {stands} AS stands FROM parts_judged
"""
# A failure does not stand where a later round met what does not hold now: the failure is not what the address answers.
_STANDS = """holds AND (outcome = 'ok'
    OR coalesce(max(round) FILTER (NOT holds) OVER (PARTITION BY sample_id, url) <= round, true))"""


def view_fetched(sql: Any, fetched: Sequence[FetchedFiles], consent: Consent = _NONE, where: str = "true") -> None:
    """Make the view `parts`: the table `fetched` with what was said of each row, and whether the row `stands`.

    A row stands when these settings would end it the same way, or a stored statement refuses it. It does not stand when
    a setting that decided its outcome has changed, or when it lacks a signal that the settings name. Its address is
    then asked once more: the request that fetches the picture hears all signals.
    """
    view_table(sql, "parts_none", Files(), FETCHED)
    views = ["SELECT *, false AS was_decided, []::VARCHAR[] AS unread FROM parts_none"]
    unasked = "".join(f" OR starts_with(detail, {literals([words])})" for words in consent.unasked)
    for number, group in enumerate(fetched):
        view_table(sql, f"parts_{number}", group.files, FETCHED, where)
        outdated = literals(Outcome(name).value for name in group.outdated) or "NULL"
        views.append(
            f"SELECT *, coalesce(outcome IN ({outdated}){unasked}, false) AS was_decided, "
            f"[{literals(group.unread)}]::VARCHAR[] AS unread FROM parts_{number}"
        )
    sql.execute(f"CREATE VIEW parts_read AS {' UNION ALL BY NAME '.join(views)}")
    columns = {name: literals([signal]) for name, signal in _columns(consent).items()}
    heard = "signals[{0}]"
    if any(group.unread for group in fetched):
        heard = "coalesce(signals[{0}], max(signals[{0}]) OVER (PARTITION BY sample_id, url))"
    sql.execute(
        _PARTS.format(
            heard=", ".join(f"{heard.format(signal)} AS {name}" for name, signal in columns.items()),
            refusal=refusal(consent),
            is_marked=_is_marked(consent),
            lacks={name: f"(list_contains(unread, {signal}) AND {name} IS NULL)" for name, signal in columns.items()},
            stands=_STANDS if any(group.outdated or group.unread for group in fetched) else "true",
        )
    )


def _columns(consent: Consent) -> dict[str, str]:
    """Columns of `parts` that hold what was said, each with its place."""
    return {
        "in_robots": places.robots_of(consent.agent_token),
        "in_tdmrep": places.TDMREP,
        "in_rsl": places.rsl_of(consent.agent_token),
        "in_headers": places.HEADERS,
        "in_picture": places.PICTURE,
    }


def refusal(consent: Consent) -> str:
    """Return SQL for outcome and detail of a row of `parts` by what its hosts said; null where nothing of it counts."""
    columns = {signal: name for name, signal in _columns(consent).items()}
    cases = " ".join(
        f"WHEN list_contains({columns[signal]}, {literals([words])}) THEN [{literals([outcome.value, words])}]"
        for signal, words, outcome in consent.counting
    )
    return f"(CASE {cases} END)" if cases else "NULL::VARCHAR[]"


def _is_marked(consent: Consent) -> str:
    """Return SQL that tells whether a picture of `parts` says itself what refuses it."""
    marked = (
        f"len(list_filter(in_picture, lambda words: starts_with(words, {literals([mark])}))) > 0"
        for mark in consent.marks
    )
    return f"coalesce({' OR '.join(marked) or 'false'}, false)"


def rows_to_fetch(fetch_round: FetchRound | None, columns: str, where: str) -> str:
    """Return a query for the rows to take up, over the views `candidates`, with their `address`, and `parts`.

    A build takes up rows of which nothing stands. A round takes up rows that count with one of its outcomes, once each.
    """
    done, failed = "p.stands", "true"
    if fetch_round is not None:
        done = f"p.round = {fetch_round.number}"
        outcomes = literals(Outcome(name).value for name in fetch_round.outcomes)
        before = f"SELECT * FROM parts WHERE round < {fetch_round.number} QUALIFY {COUNTS}"
        failed = f"(sample_id, address) IN (SELECT (sample_id, url) FROM ({before}) WHERE outcome IN ({outcomes}))"
    return f"""SELECT {columns} FROM candidates c WHERE {where} AND {failed} AND NOT EXISTS
        (SELECT 1 FROM parts p WHERE p.sample_id = c.sample_id AND p.url = c.address AND {done})"""


def not_listed(sql: Any, pictures: Sequence[Picture]) -> str:
    """Return SQL: whether an `address` is none of those from which a picture of the takedown list came."""
    addresses = [address for picture in pictures for address in picture.addresses]
    sql.register("listed", pa.table({"address": pa.array(addresses, pa.string())}))
    return "address NOT IN (SELECT address FROM listed)"


def addresses_to_fetch(fetch_round: FetchRound | None, where: str = "true") -> str:
    """Return a query for the addresses on the web to take up, each with the rows (`sample_ids`) that have it.

    `is_stored` is true where a picture of the address is stored, which lacks a signal.
    """
    on_web = rows_to_fetch(fetch_round, "sample_id, asked, address", f"locator IS NULL AND {where}")
    lacking = "SELECT url FROM parts WHERE pool_file IS NOT NULL AND NOT stands"
    return f"""SELECT min(sample_id) AS sample_id, list(sample_id ORDER BY sample_id) AS sample_ids,
        asked AS url, address, address IN ({lacking}) AS is_stored FROM ({on_web}) GROUP BY asked, address"""


def judged(facts: str, image: ImageSettings, consent: Consent) -> str:
    """Return a query that judges the rows of the query `facts` over `parts`, in the order of a download.

    First comes what the hosts said, then the limits of `image`, then what a picture says of itself. A row that is
    refused gets the outcome of a download that is refused for it, keeps what that download knows, and is not stored. A
    picture that is broken or refused itself meets the limits too, as far as its download came.
    """
    of_host = refusal(consent)
    of_limits = " ".join(
        f"WHEN {limit.is_broken(image)} {_LOOKED_AT_SIDES if limit in (SIDE, RATIO) else ''} "
        f"THEN ['{limit.outcome}', {limit.detail_sql(image)}]"
        for limit in LIMITS
    )
    kept = [f"if(refused IS NULL, {identifier(name)}, NULL) AS {identifier(name)}" for name in _OF_STORED]
    num_passed = {name: num for num, names in _LEARNT_AFTER.items() for name in names}
    for field in fields(Original):
        before = literals(limit.outcome.value for limit in LIMITS[: num_passed.get(field.name)])
        kept.append(f"if(by_host OR coalesce(refused[1] IN ({before}), false), NULL, {field.name}) AS {field.name}")
    return f"""SELECT * REPLACE (coalesce(refused[1], outcome) AS outcome, coalesce(refused[2], detail) AS detail,
            {", ".join(kept)})
        FROM (SELECT *, {of_host} IS NOT NULL AS by_host, CASE WHEN by_host THEN {of_host}
            {of_limits}
            WHEN outcome = 'ok' AND {_is_marked(consent)}
            THEN ['{Outcome.OPTED_OUT}', array_to_string(in_picture, '; ')] END AS refused FROM ({facts}))"""
