"""What a build called the same picture, so that people can judge it by eye: the duplicates section of the report.

Reads the catalogue's views and the stored images of a work folder. Shows random groups, the largest ones, pairs just
inside the radius, pHashes that many images share, and leaks of evaluation sets; `plantmix browse` also searches for
pairs just outside it. The same work folder gives the same section. Writes nothing; a picture that is no longer in the
pool has no bytes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manifests.contract.reader import open_reader, sealed_version
from pipeline.sidefiles.thumbnails import read_thumbnail
from pipeline.store.pool import PoolReader

NUM_RANDOM_GROUPS = 8
NUM_LARGEST_GROUPS = 4
NUM_PAIRS = 10
MAX_MEMBERS = 5  # of a group that are shown, those farthest from the image that stays first


@dataclass
class Picture:
    """One picture of a sheet. `jpg` holds its thumbnail, None when its bytes are gone."""

    sample_id: str
    words: str
    kept: bool = False
    jpg: bytes | None = None


@dataclass(frozen=True)
class Sheet:
    """Groups of pictures that belong together."""

    title: str
    about: str
    groups: Sequence[Sequence[Picture]]


def collect_duplicates(work_dir: str) -> dict[str, Any] | None:
    """Sheets of the last build in `work_dir`; None when duplicates were not searched for yet.

    Raises: ConfigError when there is no catalogue; RunError while a build holds it.
    """
    with open_reader(work_dir) as sql:
        if (version := sealed_version(sql, "dedup")) is None:
            return None
        notes = version["notes"]
        sheets = _sheets(sql, notes)
        with PoolReader(work_dir) as pool:
            for picture in (picture for sheet in sheets for group in sheet.groups for picture in group):
                picture.jpg = read_thumbnail(sql, pool, picture.sample_id)
        return {"evaluation": notes.get("evaluation", []), "sheets": sheets}


def _sheets(sql: Any, notes: dict[str, Any]) -> list[Sheet]:
    radius = int(notes["radius"])
    return [
        Sheet("Random groups", "Framed: the image that stays.", _groups(sql, "md5(kept)", NUM_RANDOM_GROUPS)),
        Sheet("Largest groups", "Framed: the image that stays.", _groups(sql, "num DESC, kept", NUM_LARGEST_GROUPS)),
        Sheet(
            "Just inside the radius",
            f"Dropped at the largest distances up to {radius}: are these the same picture?",
            _inside(sql),
        ),
        Sheet("Copies that contradict each other", "Framed: the image that stays.", _conflicts(sql)),
        Sheet("pHashes shared by many images", "Placeholders, blanks, icons.", _shared(sql, notes["placeholders"])),
        Sheet("Leaks of evaluation sets", "Dropped: an evaluation set holds the same picture.", _leaks(sql)),
    ]


_DUPLICATES = "decisions WHERE reason IN ('exact_duplicate', 'near_duplicate')"
_WORDS = "concat_ws('; the other stays because ', value, kept_because)"


def _groups(sql: Any, order: str, num: int) -> list[list[Picture]]:
    """Groups, each as the image that stays and some of the dropped ones; `order` is over kept and num."""
    groups = []
    for kept, size in sql.execute(
        f"SELECT kept, num FROM (SELECT other_sample_id AS kept, count(*) AS num FROM {_DUPLICATES} GROUP BY 1) "
        f"ORDER BY {order} LIMIT {num}"
    ).fetchall():
        members = sql.execute(
            f"SELECT sample_id, {_WORDS} FROM {_DUPLICATES} AND other_sample_id = ? "
            f"ORDER BY distance DESC, sample_id LIMIT {MAX_MEMBERS}",
            [kept],
        ).fetchall()
        rest = f", {size - len(members):,} more" if size > len(members) else ""
        shown = [Picture(kept, f"stays for {size:,}{rest}", True)]
        groups.append(shown + [Picture(sample_id, value) for sample_id, value in members])
    return groups


def _inside(sql: Any) -> list[list[Picture]]:
    rows = sql.execute(
        f"SELECT sample_id, other_sample_id, {_WORDS} FROM {_DUPLICATES} AND distance > 0 "
        f"ORDER BY distance DESC, md5(sample_id) LIMIT {NUM_PAIRS}"
    ).fetchall()
    return [[Picture(other, "stays", True), Picture(sample_id, value)] for sample_id, other, value in rows]


def _conflicts(sql: Any) -> list[list[Picture]]:
    rows = sql.execute(
        "SELECT sample_id, about || ' ' || value, other_sample_id, matched || ', ' || other_value FROM conflicts "
        f"ORDER BY matched DESC, md5(sample_id), other_sample_id LIMIT {NUM_PAIRS}"
    ).fetchall()
    return [[Picture(kept, words, True), Picture(other, otherwise)] for kept, words, other, otherwise in rows]


def _shared(sql: Any, named: dict[str, int]) -> list[list[Picture]]:
    groups = []
    for phash, num in list(named.items())[:MAX_MEMBERS]:
        rows = sql.execute(
            "SELECT DISTINCT ON (pixels_sha256) sample_id FROM facts WHERE phash = ? AND outcome = 'ok' "
            "ORDER BY pixels_sha256, sample_id LIMIT 3",
            [int(phash, 16)],
        ).fetchall()
        groups.append([Picture(sample_id, f"{phash}: {num:,} images") for (sample_id,) in rows])
    return groups


def _leaks(sql: Any) -> list[list[Picture]]:
    rows = sql.execute(
        "SELECT sample_id, value, evaluation_set, evaluation_member FROM decisions WHERE reason = 'eval_leak' "
        f"ORDER BY distance DESC NULLS LAST, md5(sample_id) LIMIT {NUM_PAIRS}"
    ).fetchall()
    return [[Picture(sample_id, f"{value} in {name}: {member}")] for sample_id, value, name, member in rows]
