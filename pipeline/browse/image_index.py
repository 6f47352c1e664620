"""Questions that the pages ask of the index: a page of images, counts beside filters, one image, its likes.

Every answer is plain rows (dicts).
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.browse.codes import Codes, Mask
from pipeline.browse.filters import Filters
from pipeline.browse.index import LARGEST, LINEAGE, SIZES, Facet, as_id
from pipeline.browse.model_search import Hits
from pipeline.browse.snapshot import FACETS_FILE, Snapshot

PAGE_IMAGES = 60
FACET_VALUES = 12
NEAR_MISS_BITS = 8  # how far beyond the radius a picture is still worth a look
MAX_LIKES = 24
KEPT_SEARCHES = 8

ROW = (
    "i.sample_id::VARCHAR AS id, i.caption, i.taxon, i.value, i.threshold, i.distance, i.width_px, i.height_px, "
    "i.phash, i.other::VARCHAR AS other, i.stage, i.reason, i.outcome, i.domain, i.source, "
    "coalesce(i.pool_file, i.shard) IS NOT NULL AS stored"
)
FROM = "session.images i"
# reasons that name another image which was not kept instead
NOT_INSTEAD = "('eval_leak', 'takedown', 'conflicting_licence', 'conflicting_label')"
_ORDER_OF_SIZES = {name: at for at, name in enumerate([*(name for _, name in SIZES), LARGEST])}


class ImageIndex:
    """An index, attached as `session`. Safe for threads: each question has a cursor of its own."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.codes = Codes(snapshot.index / FACETS_FILE)
        self.facets = [facet for facet in self.codes.facets if facet != LINEAGE]
        self._found = functools.lru_cache(maxsize=KEPT_SEARCHES)(self._search)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with self.snapshot.connection.cursor() as sql:
            result = sql.execute(query, list(values))
            names = [column[0] for column in result.description]
            return [_shown(dict(zip(names, row, strict=True))) for row in result.fetchall()]

    def page(self, filters: Filters) -> tuple[list[dict[str, Any]], bool]:
        """Return the images of a page, by sample id, and whether more lie beyond it in the direction of reading."""
        backwards = bool(filters.before)
        sought = as_id(filters.before or filters.after)
        start = 0 if sought is None else self._first_place(sought, beyond=not backwards)
        searched = self._found(filters.searched_words, filters.taxon.lower())
        places = self.codes.page(filters.chosen, searched, start, backwards, PAGE_IMAGES + 1)
        shown = places[-PAGE_IMAGES:] if backwards else places[:PAGE_IMAGES]
        return self.at(shown), len(places) > PAGE_IMAGES

    def at(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """Return the images at these places, in their order."""
        if not places:
            return []
        listed = ", ".join(map(str, places))
        return self.rows(f"SELECT {ROW} FROM {FROM} WHERE i.place IN ({listed}) ORDER BY i.place")

    def _first_place(self, sample_id: uuid.UUID, beyond: bool) -> int:
        """Return how many images come before this id, itself counted with `beyond`."""
        sign = "<=" if beyond else "<"
        query = f"SELECT max(place) AS place FROM session.images WHERE sample_id {sign} ?"
        last = self.rows(query, [str(sample_id)])[0]["place"]
        return 0 if last is None else int(last) + 1

    def images(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of these images, by sample id."""
        if not ids:
            return []
        listed = ", ".join(f"'{as_id(one.replace('-', ''))}'" for one in ids)
        return self.rows(f"SELECT {ROW} FROM {FROM} WHERE i.sample_id IN ({listed}) ORDER BY i.sample_id")

    def nearest(self, filters: Filters, hits: Hits) -> tuple[list[dict[str, Any]], int, Mask]:
        """Those of a search's hits that match, the nearest first, with their scores.

        Also how many hits are images of this folder, and the images that they are.
        """
        named = [(as_id(name), score) for name, score in reversed(hits)]  # reversed, so that the first of a name wins
        scores = {sample_id: score for sample_id, score in named if sample_id}
        listed = ", ".join(f"'{one}'" for one in scores) or "NULL"
        indexed = self.rows(f"SELECT place, sample_id::VARCHAR AS id FROM {FROM} WHERE i.sample_id IN ({listed})")
        score_at = {row["place"]: scores[uuid.UUID(row["id"])] for row in indexed}
        among = np.zeros(self.codes.num_images, np.bool_)
        among[list(score_at)] = True
        searched = self._found(filters.searched_words, filters.taxon.lower())
        matching = self.codes.mask(filters.chosen, among if searched is None else among & searched)
        places = [position for position in score_at if matching is None or matching[position]]
        places = sorted(places, key=lambda position: (-score_at[position], position))[:PAGE_IMAGES]
        images = dict(zip(sorted(places), self.at(places), strict=True))
        return [images[position] | {"score": score_at[position]} for position in places], len(indexed), among

    def counts(self, filters: Filters, among: Mask | None = None) -> tuple[int, list[dict[str, Any]]]:
        """Return how many images match.

        For each facet its most frequent values, counted under all other filters.
        """
        searched = self._found(filters.searched_words, filters.taxon.lower())
        if among is not None:
            searched = among if searched is None else among & searched
        matching = self.codes.mask(filters.chosen, searched)
        return self.codes.num(matching), [self._facet(facet, filters, searched, matching) for facet in self.facets]

    def _facet(self, facet: Facet, filters: Filters, searched: Mask | None, matching: Mask | None) -> dict[str, Any]:
        chosen = filters.chosen.get(facet.name, ())
        mask = self.codes.mask(filters.chosen, searched, but=facet.name) if chosen else matching
        counted = self.codes.counts(facet.name, mask)
        nums = dict(counted)
        shown = counted[:FACET_VALUES]
        listed = {value for value, _ in shown}
        shown += [(value, nums.get(value, 0)) for value in chosen if value not in listed]
        if facet.name == "size":
            shown.sort(key=lambda row: _ORDER_OF_SIZES.get(row[0], -1))
        values = [{"value": value, "num": num, "chosen": value in chosen} for value, num in shown]
        only_none = not chosen and not any(nums.keys())
        return {"name": facet.name, "label": facet.label, "values": values, "more": len(counted) > FACET_VALUES,
                "empty": only_none, "open": bool(chosen)}  # fmt: skip

    def _search(self, words: tuple[str, ...], taxon: str) -> Mask | None:
        """Return the images whose captions hold all words and whose lineage holds the text.

        None where nothing is sought.
        """
        mask = self.codes.holding(LINEAGE.name, taxon) if taxon else None
        if words:
            condition = " AND ".join(["contains(words, ?)"] * len(words))
            matching = np.zeros(self.codes.num_images, np.bool_)
            with self.snapshot.connection.cursor() as sql:
                query = f"SELECT place FROM session.images WHERE {condition}"
                for batch in sql.sql(query, params=list(words)).to_arrow_reader(1 << 17):
                    matching[batch["place"].to_numpy()] = True
            mask = matching if mask is None else mask & matching
        return mask

    def locate(self, sample_id: str) -> dict[str, Any] | None:
        """Where the picture of an image lies."""
        parsed = as_id(sample_id)
        if parsed is None:
            return None
        rows = self.rows(
            "SELECT pool_file, pool_offset, pool_length, split AS shard_split, shard, key, jpg_offset, jpg_length "
            "FROM session.images WHERE sample_id = ?",
            [str(parsed)],
        )
        return rows[0] if rows else None

    def neighbours(self, sample_id: str) -> tuple[str | None, str | None]:
        """Return the images before and after this one, by sample id."""
        position = self._first_place(as_id(sample_id) or uuid.UUID(int=0), beyond=False)
        query = "SELECT place, sample_id::VARCHAR AS id FROM session.images WHERE place IN (?, ?)"
        ids = {row["place"]: row["id"] for row in self.rows(query, [position - 1, position + 1])}
        return ids.get(position - 1), ids.get(position + 1)

    def duplicates(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the group of an image.

        The one that was kept, then those dropped for it, with distances from the image.

        Mirrored ones have no distance, for the index holds no hashes of mirror images.
        """
        head = image["other"] or image["id"]
        is_mirrored = (image["value"] or "").startswith("mirrored")
        mirrored = f"starts_with(coalesce(i.value, ''), 'mirrored') <> {is_mirrored}"
        bits = f"bit_count(xor(i.phash, {_hash(image)}::UBIGINT))"
        return self.rows(
            f"SELECT {ROW}, CASE WHEN NOT ({mirrored}) THEN {bits} END AS bits FROM {FROM} "
            f"WHERE (i.other = $1 OR i.sample_id = $1) AND i.reason NOT IN {NOT_INSTEAD} "
            f"ORDER BY i.sample_id <> $1, bits, i.sample_id LIMIT {MAX_LIKES}",
            [str(as_id(head))],
        )

    def near_misses(self, image: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the nearest images that the radius leaves apart, over all rows."""
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
