"""The first rows of a source, as candidates: enough to see what a build would meet. Reads no picture, asks no host."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import islice

import pyarrow as pa

from manifests.contract import tables
from pipeline.sources.kinds import HEAD_ROWS, FirstRows
from pipeline.sources.reading import complete
from pipeline.sources.rows import make_batch, texts_of
from pipeline.sources.settings import SourceSettings
from pipeline.stages.ingest.stage import map_rows
from pipeline.store.sql import open_scratch


@dataclass(frozen=True)
class Head:
    """The first rows of one source: `rows` are candidates, `reasons` say why the others are not.

    `whole` says that the source has no more rows. `has_captions` is false where they would cost a join or requests.
    `num_lists` captions are lists of several texts, `objects` are captions that are no text.
    """

    rows: pa.Table
    reasons: dict[str, int]
    whole: bool
    has_captions: bool
    num_lists: int = 0
    objects: tuple[str, ...] = ()


def read_head(source: SourceSettings, memory_gb: float) -> Head:
    """Return the first rows of a source. One that still waits for its data has none."""
    reader = source.reader
    with tempfile.TemporaryDirectory(prefix="plantmix-head-") as temp:
        scratch = partial(open_scratch, temp, memory_gb)
        first = FirstRows(iter(()), False, True) if reader.waits_for() else reader.first_rows(scratch)
        rest = first.batches
        if first.has_captions and not source.join:  # else `where` may ask for what is not there yet
            rest = complete(source, rest, scratch)
        batches = list(islice(rest, 1))
        mapped = [map_rows(batch, source) for batch in batches]
        rows = mapped[0] if mapped else map_rows(make_batch({}, []), source)
        whole = not first.is_part and next(rest, None) is None and rows.num_rows <= HEAD_ROWS
    rows = rows.slice(0, HEAD_ROWS)
    candidates = rows.filter(rows["reason"].is_null()).select(tables.CANDIDATES.names).cast(tables.CANDIDATES)
    captions = [text for batch in batches for text in batch.rows["caption"].slice(0, HEAD_ROWS).to_pylist() if text]
    texts = [(text, texts_of(text)) for text in captions]
    num_lists = sum(some is not None and len(some) > 1 for _, some in texts)
    objects = tuple(text for text, some in texts if some is None)
    reasons = dict(Counter(rows["reason"].drop_null().to_pylist()))
    return Head(candidates, reasons, whole, first.has_captions, num_lists, objects)
