"""The facets of all images as small numbers in memory: which images match, and how many of each value.

One array a facet, one number an image, in the order of the pages. At 13 million images they take about 300 MB, and a
count is a walk over an array. Reads the index once; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.browse.index import Facet

CHUNK = 1 << 20  # images that are looked at in one step, so that a page is found without walking to the end

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """One facet: its values in their own order, and for each image the number of its value."""

    values: Sequence[str]
    codes: npt.NDArray[Any]

    def chosen(self, wanted: Sequence[str], rows: slice) -> Mask:
        """Which images have one of these values."""
        names = set(wanted)
        return self.where(np.array([value in names for value in self.values]), rows)

    def where(self, is_wanted: Mask, rows: slice) -> Mask:
        """Which images have a value that is wanted; `is_wanted` has one entry a value."""
        found: Mask = is_wanted[self.codes[rows]]
        return found

    def counts(self, mask: Mask | None) -> npt.NDArray[np.int64]:
        """How many images have each value, of those in the mask."""
        total = np.zeros(len(self.values), np.int64)
        for start in range(0, len(self.codes), CHUNK):
            part = self.codes[start : start + CHUNK]
            part = part if mask is None else part[mask[start : start + CHUNK]]
            total += np.bincount(part, minlength=len(self.values))
        return total


class Codes:
    """All facets. `sql` has the table session.images, whose column `place` counts from 0."""

    def __init__(self, sql: Any, facets: Sequence[Facet]) -> None:
        ((self.num_images,),) = sql.execute("SELECT count(*) FROM session.images").fetchall()
        names = [facet.name for facet in facets]
        self._columns: dict[str, Column] = {}
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            values = [
                row[0] for row in sql.execute(f"SELECT unnest(enum_range(NULL::session.{name}_values))").fetchall()
            ]
            kind = np.uint8 if len(values) <= 256 else np.uint16 if len(values) <= 65_536 else np.uint32
            arrays[name] = np.zeros(self.num_images, kind)
            self._columns[name] = Column(values, arrays[name])
        listed = ", ".join(f'enum_code("{name}")::UINTEGER AS "{name}"' for name in names)
        for batch in sql.sql(f"SELECT place, {listed} FROM session.images").to_arrow_reader(CHUNK):
            places = batch["place"].to_numpy()
            for name in names:
                arrays[name][places] = batch[name].to_numpy()
        self._all = {name: column.counts(None) for name, column in self._columns.items()}

    def mask(self, chosen: Mapping[str, Sequence[str]], found: Mask | None, but: str = "") -> Mask | None:
        """The images that have the chosen values and are among `found`; None for all images."""
        mask = found
        for name, wanted in chosen.items():
            if name != but:
                own = self._columns[name].chosen(wanted, slice(None))
                mask = own if mask is None else mask & own
        return mask

    def counts(self, name: str, mask: Mask | None) -> list[tuple[str, int]]:
        """The values of a facet with their counts, those without any image left out, the most frequent first."""
        column = self._columns[name]
        total = self._all[name] if mask is None else column.counts(mask)
        order = np.lexsort((np.arange(len(total)), -total))
        return [(column.values[at], int(total[at])) for at in order.tolist() if total[at]]

    def holding(self, name: str, text: str) -> Mask:
        """The images in whose value the text stands somewhere."""
        column = self._columns[name]
        return column.where(np.array([text in value for value in column.values]), slice(None))

    def first(self, chosen: Mapping[str, Sequence[str]], most: int) -> list[int]:
        """The places of the first images with these values."""
        return self.page(chosen, None, 0, False, most)

    def num(self, mask: Mask | None) -> int:
        """How many images are in a mask."""
        return self.num_images if mask is None else int(np.count_nonzero(mask))

    def page(
        self, chosen: Mapping[str, Sequence[str]], found: Mask | None, start: int, backwards: bool, most: int
    ) -> list[int]:
        """The places of the first `most` matching images from `start` on, or of the last ones before it."""
        places: list[int] = []
        while len(places) < most and (start if backwards else self.num_images - start) > 0:
            rows = slice(max(0, start - CHUNK), start) if backwards else slice(start, start + CHUNK)
            match = np.ones(len(range(*rows.indices(self.num_images))), np.bool_)
            if found is not None:
                match &= found[rows]
            for name, wanted in chosen.items():
                match &= self._columns[name].chosen(wanted, rows)
            hits = (np.flatnonzero(match) + rows.start).tolist()
            places += hits[::-1] if backwards else hits
            start = rows.start if backwards else rows.start + CHUNK
        return sorted(places[:most])
