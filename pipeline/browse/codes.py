"""The facets of all images as small numbers in memory: which images match, and how many of each value.

One array a facet, one number an image, in the order of the pages. At 13 million images they take about 300 MB, and a
count is a walk over an array. Writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.browse.index import Facet

CHUNK = 1 << 20  # images that are looked at in one step, so that a page is found without walking to the end

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """One facet: its values in their own order, and for each image the number of its value."""

    values: Sequence[str]
    codes: npt.NDArray[Any]

    def chosen(self, values: Sequence[str], rows: slice) -> Mask:
        """Which images have one of these values."""
        names = set(values)
        return self.where(np.array([value in names for value in self.values]), rows)

    def where(self, is_chosen: Mask, rows: slice) -> Mask:
        """Which images have a chosen value; `is_chosen` has one entry a value."""
        mask: Mask = is_chosen[self.codes[rows]]
        return mask

    def counts(self, mask: Mask | None) -> npt.NDArray[np.int64]:
        """Return how many images have each value, of those in the mask."""
        total = np.zeros(len(self.values), np.int64)
        for start in range(0, len(self.codes), CHUNK):
            part = self.codes[start : start + CHUNK]
            part = part if mask is None else part[mask[start : start + CHUNK]]
            total += np.bincount(part, minlength=len(self.values))
        return total


class Codes:
    """All facets of an index, as `make_index` wrote them. They stay on the disk, mapped into memory."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
        self.num_images = batch.num_rows
        self.facets: list[Facet] = []
        self._columns: dict[str, Column] = {}
        self._all: dict[str, npt.NDArray[np.int64]] = {}
        for field, column in zip(batch.schema, batch.columns, strict=True):
            self.facets.append(Facet(field.name, field.metadata[b"label"].decode()))
            self._columns[field.name] = Column(column.dictionary.to_pylist(), column.indices.to_numpy())
            self._all[field.name] = np.array(json.loads(field.metadata[b"counts"]), np.int64)

    def mask(self, chosen: Mapping[str, Sequence[str]], among: Mask | None, but: str = "") -> Mask | None:
        """Return the images that have the chosen values and are among `among`; None for all images."""
        mask = among
        for name, values in chosen.items():
            if name != but:
                of_filter = self._columns[name].chosen(values, slice(None))
                mask = of_filter if mask is None else mask & of_filter
        return mask

    def counts(self, name: str, mask: Mask | None) -> list[tuple[str, int]]:
        """Return the values of a facet with their counts, those without any image left out, the most frequent first."""
        column = self._columns[name]
        total = self._all[name] if mask is None else column.counts(mask)
        order = np.lexsort((np.arange(len(total)), -total))
        return [(column.values[at], int(total[at])) for at in order.tolist() if total[at]]

    def holding(self, name: str, text: str) -> Mask:
        """Return the images in whose value the text stands somewhere."""
        column = self._columns[name]
        return column.where(np.array([text in value for value in column.values]), slice(None))

    def num(self, mask: Mask | None) -> int:
        """Return how many images are in a mask."""
        return self.num_images if mask is None else int(np.count_nonzero(mask))

    def page(
        self, chosen: Mapping[str, Sequence[str]], among: Mask | None, start: int, backwards: bool, most: int
    ) -> list[int]:
        """Return the places of the first `most` matching images from `start` on, or of the last ones before it."""
        places: list[int] = []
        while len(places) < most and (start if backwards else self.num_images - start) > 0:
            rows = slice(max(0, start - CHUNK), start) if backwards else slice(start, start + CHUNK)
            match = np.ones(len(range(*rows.indices(self.num_images))), np.bool_)
            if among is not None:
                match &= among[rows]
            for name, values in chosen.items():
                match &= self._columns[name].chosen(values, rows)
            hits = (np.flatnonzero(match) + rows.start).tolist()
            places += hits[::-1] if backwards else hits
            start = rows.start if backwards else rows.start + CHUNK
        return sorted(places[:most])
