"""What was called the same picture, to be judged by eye: the report's contact sheets of duplicates and leaks.

Reads the catalogue's views and stored images of a work folder; gives one HTML fragment that needs nothing else: the
thumbnails stand in it as data. Shows random groups, the largest ones, pairs just inside the radius and just outside
(searched a little wider, for some images against all), pHashes shared by many images, and leaks of evaluation sets. The
same work folder and seed give the same fragment. Writes nothing; a picture that left the pool is an empty frame.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests.errors import IntegrityError
from manifests.reader import open_reader
from pipeline.matching import cross_pairs
from pipeline.matching.pairs import distinct_of
from pipeline.store.pool import PoolReader

THUMBNAIL_PX = 112
MAX_MEMBERS = 5  # of a group that are shown, the farthest from its representative first
WIDER_BITS = 2  # how far outside the radius pairs are looked for
MAX_ASKED = 20_000  # images whose neighbours outside the radius are looked for

_STYLE = """
<style>
.dup-sheet{display:flex;flex-wrap:wrap;gap:10px;margin:0 0 14px}
.dup-group{display:flex;gap:6px;padding:6px;border:1px solid #8886;border-radius:6px;align-items:flex-start}
.dup-group figure{margin:0;width:112px}
.dup-group img,.dup-group .dup-gone{width:112px;height:112px;object-fit:contain;background:#8881;display:block}
.dup-group figcaption{font-size:11px;line-height:1.25;margin-top:4px;overflow-wrap:anywhere}
.dup-kept img{outline:3px solid #2a7}
</style>
"""


@dataclass(frozen=True)
class Shown:
    """One picture of a sheet."""

    sample_id: str
    words: str
    kept: bool = False


def duplicates_section(
    work_dir: str, *, num_random: int = 8, num_largest: int = 4, num_pairs: int = 10, seed: int = 0
) -> str:
    """The HTML fragment on duplicates of the last build in `work_dir`.

    Raises: ConfigError when there is no catalogue; RunError while a build holds it.
    """
    with open_reader(work_dir) as sql:
        notes = _notes_of_dedup(sql)
        if notes is None:
            return "<section><h2>Duplicates</h2><p>Not searched for yet.</p></section>"
        radius = int(notes["radius"])
        sheets = [
            ("Random groups", "Framed: the image that stays.", _groups(sql, f"md5('{seed} ' || kept)", num_random)),
            ("Largest groups", "", _groups(sql, "num DESC, kept", num_largest)),
            (
                "Just inside the radius",
                f"Dropped at the largest distances up to {radius}: are these the same picture?",
                _inside(sql, num_pairs, seed),
            ),
            (
                "Just outside the radius",
                f"Kept both, {radius + 1} to {radius + WIDER_BITS} bits apart: are these different pictures?",
                _outside(sql, radius, num_pairs, seed),
            ),
            (
                "pHashes shared by many images",
                "Placeholders, blanks, icons.",
                _placeholders(sql, notes["placeholders"]),
            ),
            ("Leaks of evaluation sets", "", _leaks(sql, num_pairs, seed)),
        ]
        with PoolReader(work_dir) as pool:
            thumbnails = _Thumbnails(sql, pool)
            body = "".join(_sheet(title, about, groups, thumbnails) for title, about, groups in sheets if groups)
        head = _summary(sql, notes)
    return f"<section>{_STYLE}<h2>Duplicates</h2>{head}{body}</section>"


# ---- what is shown


def _notes_of_dedup(sql: Any) -> dict[str, Any] | None:
    rows = sql.execute(
        "SELECT notes FROM stages s JOIN current_stages c USING (fingerprint) "
        "WHERE c.stage = 'dedup' AND sealed_at IS NOT NULL"
    ).fetchall()
    return dict(json.loads(rows[0][0])) if rows else None


def _summary(sql: Any, notes: dict[str, Any]) -> str:
    counts = sql.execute(
        "SELECT reason, count(*), count(DISTINCT other_sample_id) FROM decisions WHERE reason IN "
        "('exact_duplicate', 'near_duplicate', 'eval_leak') GROUP BY reason ORDER BY reason"
    ).fetchall()
    radius, num_pairs = notes["radius"], notes["num_hash_pairs"]
    lines = [f"{notes['num_hashes']:,} different pHashes, {num_pairs:,} pairs of them within {radius} bits."]
    for reason, num, others in counts:
        beside = f" in favour of {others:,} images" if others and reason != "eval_leak" else ""
        lines.append(f"{num:,} images dropped as {reason}{beside}.")
    lines += [
        f"Evaluation set {html.escape(said['name'])}: {said['num_measured']:,} images, radius {said['radius']}, "
        f"{said['num_leaks']:,} images of the sources show one of them."
        for said in notes.get("evaluation", [])
    ]
    return "".join(f"<p>{line}</p>" for line in lines)


_DUPLICATES = "decisions WHERE reason IN ('exact_duplicate', 'near_duplicate')"


def _groups(sql: Any, order: str, num: int) -> list[list[Shown]]:
    """Groups as kept image and some of the dropped ones; `order` over kept and num."""
    found = []
    for kept, size in sql.execute(
        f"SELECT kept, num FROM (SELECT other_sample_id AS kept, count(*) AS num FROM {_DUPLICATES} GROUP BY 1) "
        f"ORDER BY {order} LIMIT {num}"
    ).fetchall():
        members = sql.execute(
            f"SELECT sample_id, value FROM {_DUPLICATES} AND other_sample_id = ? "
            f"ORDER BY distance DESC, sample_id LIMIT {MAX_MEMBERS}",
            [kept],
        ).fetchall()
        rest = f", {size - len(members):,} more" if size > len(members) else ""
        shown = [Shown(kept, f"stays for {size:,}{rest}", True)]
        found.append(shown + [Shown(sample_id, value) for sample_id, value in members])
    return found


def _inside(sql: Any, num: int, seed: int) -> list[list[Shown]]:
    rows = sql.execute(
        f"SELECT sample_id, other_sample_id, value FROM {_DUPLICATES} AND distance > 0 "
        f"ORDER BY distance DESC, md5('{seed} ' || sample_id) LIMIT {num}"
    ).fetchall()
    return [[Shown(other, "stays", True), Shown(sample_id, value)] for sample_id, other, value in rows]


def _outside(sql: Any, radius: int, num: int, seed: int) -> list[list[Shown]]:
    """Pairs of kept images a little beyond the radius, of some images with all."""
    sql.execute(
        "CREATE OR REPLACE TEMP TABLE staying AS SELECT phash, min(sample_id) AS sample_id FROM facts "
        "JOIN decisions USING (sample_id) WHERE keep GROUP BY phash"
    )
    hashes = _column(sql, "SELECT phash FROM staying")
    asked = _column(sql, f"SELECT phash FROM staying ORDER BY md5('{seed} ' || sample_id) LIMIT {MAX_ASKED}")
    found = cross_pairs(distinct_of(hashes), asked, min(64, radius + WIDER_BITS))
    apart = found["distance"].to_numpy()
    near = np.flatnonzero(apart > radius)
    order = near[np.lexsort((found["query"].to_numpy()[near], apart[near]))]
    pairs: dict[tuple[int, int], int] = {}
    left, right = distinct_of(hashes)[found["row"].to_numpy()[order]], asked[found["query"].to_numpy()[order]]
    for one, other, distance in zip(left.tolist(), right.tolist(), apart[order].tolist(), strict=True):
        pairs.setdefault((min(one, other), max(one, other)), distance)
        if len(pairs) == num:
            break
    names = dict(
        sql.execute(
            "SELECT phash, sample_id FROM staying WHERE phash IN (SELECT unnest(?::UBIGINT[]))",
            [[value for pair in pairs for value in pair]],
        ).fetchall()
    )
    return [
        [Shown(names[one], "stays", True), Shown(names[other], f"stays, pHash distance {distance}", True)]
        for (one, other), distance in pairs.items()
    ]


def _column(sql: Any, query: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
    values: np.ndarray[Any, np.dtype[np.uint64]] = sql.sql(query).to_arrow_table()["phash"].to_numpy().astype(np.uint64)
    return values


def _placeholders(sql: Any, named: dict[str, int]) -> list[list[Shown]]:
    found = []
    for phash, num in list(named.items())[:MAX_MEMBERS]:
        rows = sql.execute(
            "SELECT DISTINCT ON (pixels_sha256) sample_id FROM facts WHERE phash = ? AND outcome = 'ok' "
            "ORDER BY pixels_sha256, sample_id LIMIT 3",
            [int(phash, 16)],
        ).fetchall()
        found.append([Shown(sample_id, f"{phash}: {num:,} images") for (sample_id,) in rows])
    return found


def _leaks(sql: Any, num: int, seed: int) -> list[list[Shown]]:
    rows = sql.execute(
        "SELECT sample_id, value, evaluation_set, evaluation_member FROM decisions WHERE reason = 'eval_leak' "
        f"ORDER BY distance DESC NULLS LAST, md5('{seed} ' || sample_id) LIMIT {num}"
    ).fetchall()
    return [[Shown(sample_id, f"{value} in {where}: {member}")] for sample_id, value, where, member in rows]


# ---- how it is shown


class _Thumbnails:
    """Stored images made small, as data addresses."""

    def __init__(self, sql: Any, pool: PoolReader) -> None:
        self._sql, self._pool = sql, pool

    def of(self, sample_id: str) -> str | None:
        """An address that holds the picture; None when its bytes are gone."""
        from PIL import Image

        rows = self._sql.execute(
            "SELECT pool_file, \"offset\", length FROM facts WHERE sample_id = ? AND outcome = 'ok'", [sample_id]
        ).fetchall()
        if not rows:
            return None
        try:
            content = self._pool.read(*rows[0])
        except IntegrityError:
            return None
        with Image.open(io.BytesIO(content)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=75)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _sheet(title: str, about: str, groups: Sequence[Iterable[Shown]], thumbnails: _Thumbnails) -> str:
    drawn = "".join(
        f'<div class="dup-group">{"".join(_figure(shown, thumbnails) for shown in group)}</div>' for group in groups
    )
    said = f"<p>{html.escape(about)}</p>" if about else ""
    return f'<h3>{html.escape(title)}</h3>{said}<div class="dup-sheet">{drawn}</div>'


def _figure(shown: Shown, thumbnails: _Thumbnails) -> str:
    address = thumbnails.of(shown.sample_id)
    picture = f'<img src="{address}" alt="{shown.sample_id}">' if address else '<div class="dup-gone"></div>'
    mark = ' class="dup-kept"' if shown.kept else ""
    return (
        f"<figure{mark}>{picture}<figcaption>{html.escape(shown.words)}<br><small>{shown.sample_id[:12]}</small>"
        "</figcaption></figure>"
    )
