"""Which rows fetch takes up, and which result counts when an address was asked several times.

A build fetches the rows that no part has yet, and rows whose outcome came from a setting that has changed since.
A round of `plantmix retry` takes up the rows that ended with one of its outcomes. Reads parts of the table `fetched`
(manifests/tables.py). Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manifests.outcomes import Outcome
from manifests.records import FetchRound, PartRecord, fingerprint
from manifests.tables import FETCHED
from pipeline.fetching.settings import FetchSettings
from pipeline.pictures.consent import MARKS
from pipeline.pictures.settings import ImageSettings
from pipeline.runner.work import BuildContext, StageRun
from pipeline.store.files import Files, RowGroup
from pipeline.store.sql import view_table

VERSION = 4
_HAMMING = 3  # the version whose pictures were made smaller by Pillow's filter of that name

# Where the same address was asked several times, a picture counts, or else what was seen last under these settings.
COUNTS = (
    "row_number() OVER (PARTITION BY f.sample_id, f.url ORDER BY f.outcome = 'ok' DESC, f.outdated, f.round DESC, "
    "f.pool_file DESC NULLS LAST, f.outcome, f.detail) = 1"
)


# Columns of FACTS that only a stored picture has.
_OF_STORED = (
    *("stored_sha256", "pixels_sha256", "phash", "stored_width_px", "stored_height_px", "pixel_std", "colour_std"),
    *("pool_file", "offset", "length"),
)


@dataclass(frozen=True)
class FetchInputs:
    """All that fetch reads. Candidates count by their addresses alone: an edited caption fetches nothing."""

    candidates: Files
    secrets: Files
    image: ImageSettings
    deciding: tuple[tuple[str, str], ...]
    """Outcomes that settings decide, each with the values of those settings."""
    signals: tuple[str, ...]
    """What a picture may say of itself that counts (pipeline/pictures/consent.py)."""
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
    groups: dict[tuple[str, ...], list[PartRecord]] = {}
    with_limits = recipes_of(inputs.image)[-1]
    for part in sorted(parts, key=lambda part: part.key):  # an interruption changes the order, and nothing else
        image = inputs.image if part.reuse_key == with_limits else ImageSettings()
        then = part.notes.get("deciding") or dict(FetchSettings(image=image).deciding())
        outdated = tuple(outcome for outcome, values in inputs.deciding if then.get(outcome) != values)
        groups.setdefault(outdated, []).append(part)
    return tuple(FetchedFiles(run.files_of(groups[key], "fetched"), key) for key in sorted(groups))


def view_fetched(sql: Any, fetched: Sequence[FetchedFiles], where: str = "true") -> None:
    """Make the view `parts`: the table `fetched`, and in a column `outdated` whether the outcome is.

    Columns that a part of an earlier version lacks are null.
    """
    view_table(sql, "parts_none", Files(), FETCHED)
    views = ["SELECT *, false AS outdated FROM parts_none"]
    for number, group in enumerate(fetched):
        view_table(sql, f"parts_{number}", group.files, FETCHED, where, of_versions=True)
        outdated = ", ".join(f"'{Outcome(name).value}'" for name in group.outdated) or "NULL"
        views.append(f"SELECT *, coalesce(outcome IN ({outdated}), false) AS outdated FROM parts_{number}")
    sql.execute(f"CREATE VIEW parts AS {' UNION ALL BY NAME '.join(views)}")


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
    outcomes = ", ".join(f"'{Outcome(name).value}'" for name in fetch_round.outcomes)
    return (
        f"SELECT {columns} FROM candidates c WHERE {where} AND EXISTS "
        f"(SELECT 1 FROM (SELECT * FROM parts f WHERE f.round < {number} QUALIFY {COUNTS}) b "
        f"WHERE b.sample_id = c.sample_id AND b.url = c.{address} AND b.outcome IN ({outcomes})) AND NOT EXISTS "
        f"(SELECT 1 FROM parts p WHERE p.round = {number} AND p.sample_id = c.sample_id AND p.url = c.{address})"
    )


def within_limits(facts: str, image: ImageSettings, signals: Sequence[str]) -> str:
    """A query that judges the pictures of the query `facts` by the limits of `image`, in the order of a download.

    Last comes what a picture says of itself. One above a limit gets the outcome and the detail of a download that is
    refused for it, and is not stored.
    """
    size = "width_px || ' x ' || height_px || ' px, '"
    ratio = "greatest(width_px, height_px) / least(width_px, height_px)"
    said = " OR ".join(f"contains(detail, '{MARKS[name]}:')" for name in signals) or "false"
    refusal = f"""CASE WHEN outcome <> 'ok' THEN NULL
        WHEN num_bytes > {image.max_body_bytes}
        THEN ['{Outcome.BODY_TOO_LARGE}', num_bytes || ' bytes, allowed {image.max_body_bytes}']
        WHEN width_px::BIGINT * height_px > {image.max_pixels}
        THEN ['{Outcome.TOO_MANY_PIXELS}', {size} || 'allowed {image.max_pixels} pixels']
        WHEN least(width_px, height_px) < {image.min_side_px}
        THEN ['{Outcome.IMAGE_TOO_SMALL}', {size} || 'shortest side allowed {image.min_side_px}']
        WHEN {ratio} > {image.max_aspect_ratio}
        THEN ['{Outcome.ASPECT_TOO_EXTREME}', {size} || 'ratio allowed {image.max_aspect_ratio:g}']
        WHEN {said} THEN ['{Outcome.OPTED_OUT}', detail] END"""
    kept = ", ".join(f'if(refusal IS NULL, "{name}", NULL) AS "{name}"' for name in _OF_STORED)
    # too many pixels: a download is refused before it is known how they are kept and turned
    kept += "".join(
        f", if(refusal[1] = '{Outcome.TOO_MANY_PIXELS}', NULL, {name}) AS {name}"
        for name in ("mode", "exif_orientation", "has_camera")
    )
    return (
        "SELECT * REPLACE (coalesce(refusal[1], outcome) AS outcome, coalesce(refusal[2], detail) AS detail, "
        f"{kept}) FROM (SELECT *, {refusal} AS refusal FROM ({facts}))"
    )
