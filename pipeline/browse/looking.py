"""Questions that the pages ask of the index: a page of images, counts beside filters, one image, its likes.

Every answer is plain rows (dicts).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from pipeline.browse.filters import Filters
from pipeline.browse.index import LARGEST, SIZES, Facet, as_id
from pipeline.browse.snapshot import Snapshot

PAGE_IMAGES = 60
FACET_VALUES = 12
NEAR_MISS_BITS = 8  # how far beyond the radius a picture is still worth a look
MAX_LIKES = 24
KEPT_SEARCHES = 4

ROW = (
    "i.sample_id::VARCHAR AS id, i.caption, i.taxon, i.value, i.threshold, i.distance, i.width_px, i.height_px, "
    "i.phash, i.other::VARCHAR AS other, i.stage, i.reason, i.outcome, i.domain, i.source, "
    "coalesce(i.pool_file, i.shard) IS NOT NULL AS stored"
)
FROM = "session.images i"
_ORDER_OF_SIZES = {name: at for at, name in enumerate([*(name for _, name in SIZES), LARGEST])}


class Looking:
    """A session's index. Safe for threads: each question has a cursor of its own."""

    def __init__(self, snapshot: Snapshot, facets: Sequence[Facet]) -> None:
        self.snapshot = snapshot
        self.facets = facets
        self._lock = threading.Lock()
        self._searches: OrderedDict[tuple[str, tuple[str, ...]], str] = OrderedDict()
        self._num_searches = 0

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a query."""
        with self.snapshot.connection.cursor() as sql:
            found = sql.execute(query, list(values))
            names = [column[0] for column in found.description]
            return [_shown(dict(zip(names, row, strict=True))) for row in found.fetchall()]

    def page(self, filters: Filters) -> tuple[list[dict[str, Any]], bool]:
        """The images of a page, by sample id, and whether more lie beyond it in the direction of reading."""
        text, values = filters.text_condition()
        condition, more = filters.facet_condition()
        backwards = bool(filters.before)
        place = as_id(filters.before or filters.after)
        where = [condition, text]  # the quick comparison first
        values = [*more, *values]
        if place is not None:
            where.append(f"sample_id {'<' if backwards else '>'} ?")
            values = [*values, str(place)]
        order = f"sample_id {'DESC' if backwards else ''} LIMIT {PAGE_IMAGES + 1}"
        chosen = f"SELECT sample_id FROM session.images WHERE {' AND '.join(where)} ORDER BY {order}"
        found = self.rows(chosen, values)
        images = self.images([row["sample_id"] for row in found[:PAGE_IMAGES]])
        return images, len(found) > PAGE_IMAGES

    def images(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of these images, by sample id."""
        if not ids:
            return []
        listed = ", ".join(f"'{as_id(one.replace('-', ''))}'" for one in ids)
        return self.rows(f"SELECT {ROW} FROM {FROM} WHERE i.sample_id IN ({listed}) ORDER BY i.sample_id")

    def counts(self, filters: Filters) -> tuple[int, list[dict[str, Any]]]:
        """How many images match; and for each facet its most frequent values, counted under all other filters."""
        condition, values = filters.facet_condition()
        with self._lock:  # no other question drops the table meanwhile
            table = self._found(filters)
            total = self.rows(f"SELECT count(*) AS num FROM {table} WHERE {condition}", values)[0]["num"]
            return total, [self._facet(table, facet, filters) for facet in self.facets]

    def _facet(self, table: str, facet: Facet, filters: Filters) -> dict[str, Any]:
        condition, values = filters.facet_condition(but=facet.name)
        rows = self.rows(
            f'SELECT "{facet.name}" AS value, count(*) AS num FROM {table} WHERE {condition} '
            f"GROUP BY 1 ORDER BY num DESC, value LIMIT {FACET_VALUES + 1}",
            values,
        )
        wanted = filters.chosen.get(facet.name, ())
        shown = rows[:FACET_VALUES]
        shown += [{"value": value, "num": 0} for value in wanted if value not in {row["value"] for row in rows}]
        if facet.name == "size":
            shown.sort(key=lambda row: _ORDER_OF_SIZES.get(row["value"], -1))
        for row in shown:
            row["chosen"] = row["value"] in wanted
        only_none = not wanted and all(row["value"] == "" for row in rows)
        return {"name": facet.name, "label": facet.label, "values": shown, "more": len(rows) > FACET_VALUES,
                "empty": only_none, "open": bool(wanted)}  # fmt: skip

    def _found(self, filters: Filters) -> str:
        """The table to count in: all images, or what words and taxon find; the last few are kept. Needs the lock."""
        condition, values = filters.text_condition()
        if condition == "true":
            return "session.images"
        key = (condition, tuple(values))
        with self.snapshot.connection.cursor() as sql:
            if key not in self._searches:
                self._num_searches += 1
                name = f"session.search_{self._num_searches}"
                facets = ", ".join(f'"{facet.name}"' for facet in self.facets)
                sql.execute(f"CREATE TABLE {name} AS SELECT {facets} FROM session.images WHERE {condition}", values)
                self._searches[key] = name
            self._searches.move_to_end(key)
            while len(self._searches) > KEPT_SEARCHES:
                _, oldest = self._searches.popitem(last=False)
                sql.execute(f"DROP TABLE {oldest}")
            return self._searches[key]

    def place(self, sample_id: str) -> dict[str, Any] | None:
        """Where the picture of an image lies."""
        wanted = as_id(sample_id)
        if wanted is None:
            return None
        found = self.rows(
            "SELECT pool_file, pool_offset, pool_length, split AS shard_split, shard, key, jpg_offset, jpg_length "
            "FROM session.images WHERE sample_id = ?",
            [str(wanted)],
        )
        return found[0] if found else None

    def neighbours(self, sample_id: str) -> tuple[str | None, str | None]:
        """The images before and after this one, by sample id."""
        found = []
        for sign, order in (("<", "DESC"), (">", "")):
            rows = self.rows(
                f"SELECT sample_id::VARCHAR AS id FROM session.images WHERE sample_id {sign} ? "
                f"ORDER BY sample_id {order} LIMIT 1",
                [str(as_id(sample_id))],
            )
            found.append(rows[0]["id"] if rows else None)
        return found[0], found[1]

    def duplicates(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """The group of an image: the one that was kept, then those dropped for it, with distances from the image."""
        head = image["other"] or image["id"]
        return self.rows(
            f"SELECT {ROW}, bit_count(xor(i.phash, {_hash(image)}::UBIGINT)) AS bits FROM {FROM} "
            f"WHERE (i.other = $1 OR i.sample_id = $1) AND i.reason <> 'eval_leak' "
            f"ORDER BY i.sample_id <> $1, bits, i.sample_id LIMIT {MAX_LIKES}",
            [str(as_id(head))],
        )

    def near_misses(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """The nearest images that the radius leaves apart, over all rows."""
        if image["phash"] is None or self.snapshot.radius is None:
            return []
        low, high = self.snapshot.radius, self.snapshot.radius + NEAR_MISS_BITS
        bits = f"bit_count(xor(phash, {_hash(image)}::UBIGINT))"
        return self.rows(
            f"WITH near AS (SELECT sample_id, {bits} AS bits FROM session.images WHERE {bits} BETWEEN {low + 1} "
            f"AND {high} ORDER BY bits, sample_id LIMIT 8) "
            f"SELECT {ROW}, n.bits FROM {FROM} JOIN near n ON n.sample_id = i.sample_id ORDER BY bits, i.sample_id"
        )


def _hash(image: dict[str, Any]) -> str:
    return "NULL" if image["phash"] is None else str(int(image["phash"]))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Ids as the rest of PlantMix writes them: 32 hex digits."""
    for name in ("id", "other", "sample_id"):
        if row.get(name) is not None:
            row[name] = str(row[name]).replace("-", "")
    return row
