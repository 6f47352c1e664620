"""The first rows of a source, as candidates: enough to see what a build would meet. Reads no picture, asks no host."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from pipeline.sources import dwca, eol, inaturalist, table
from pipeline.sources.files import walk_files
from pipeline.sources.gbif import reader as gbif
from pipeline.sources.gbif.asking import is_waiting
from pipeline.sources.reading import read_rows
from pipeline.sources.rows import make_batch
from pipeline.sources.settings import Origin, SourceSettings
from pipeline.stages.ingest import map_rows
from pipeline.store.sql import open_scratch

HEAD_ROWS = 1000
MAX_COUNTED_BYTES = 200_000_000  # larger texts are not read through only to count their lines
_SIDE_FILES = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml", ".md", ".html", ".log", ".yaml", ".yml"}
_JOINED = {
    "dwca": dwca.first_media,
    "gbif": gbif.first_media,
    "eol": eol.first_media,
    "inaturalist": inaturalist.first_photos,
}


@dataclass(frozen=True)
class Head:
    """Rows of one source: `rows` those that are candidates, `reasons` why others are none.

    `whole` says that the source has no more rows. `has_captions` is false where a join would give them, or a request
    for each text in an object store.
    """

    rows: pa.Table
    reasons: dict[str, int]
    whole: bool
    has_captions: bool


def read_head(source: SourceSettings, memory_gb: float) -> Head:
    """The first rows of a source. Of sources that are joined or read texts of an object store, all but the captions.

    A download that GBIF has not made yet has none.
    """
    if is_waiting(source):
        return _judged(map_rows(make_batch({}, []), source), whole=False, has_captions=False)
    if source.kind in _JOINED:
        found = _JOINED[source.kind](source)
        columns = {name: pa.array(values[:HEAD_ROWS], pa.string()) for name, values in found.items() if values}
        num = len(next(iter(columns.values()), []))
        batch = make_batch(columns | {"record_key": columns.get("url", pa.nulls(num, pa.string()))}, range(num))
        return _judged(map_rows(batch, source), whole=False, has_captions=False)
    folder = source.folder
    costs_requests = folder is not None and folder.captions == "text_file" and storage.is_remote(folder.path)
    if folder is not None and costs_requests:
        source = source.model_copy(update={"folder": folder.model_copy(update={"captions": "none"})})
    with tempfile.TemporaryDirectory(prefix="plantmix-head-") as temp:
        batches = read_rows(source, partial(open_scratch, temp, memory_gb))
        mapped = [map_rows(batch, source) for batch in islice(batches, 1)]
        rows = mapped[0] if mapped else map_rows(make_batch({}, []), source)
        whole = next(batches, None) is None
    whole = whole and rows.num_rows <= HEAD_ROWS
    return _judged(rows.slice(0, HEAD_ROWS), whole=whole, has_captions=not costs_requests)


def _judged(rows: pa.Table, whole: bool, has_captions: bool) -> Head:
    reasons: dict[str, int] = {}
    for reason in rows["reason"].drop_null().to_pylist():
        reasons[reason] = reasons.get(reason, 0) + 1
    candidates = rows.filter(rows["reason"].is_null()).select(tables.CANDIDATES.names).cast(tables.CANDIDATES)
    return Head(candidates, reasons, whole, has_captions)


def other_files(source: Origin) -> dict[str, int]:
    """Endings of the files in a folder of pictures that are not read, with their counts; usual side files left out."""
    if source.folder is None:
        return {}
    endings = tuple(f".{suffix.lower().lstrip('.')}" for suffix in source.folder.suffixes)
    found: dict[str, int] = {}
    for name, _ in walk_files(source.folder.path):
        ending = PurePosixPath(name.lower()).suffix
        if not name.lower().endswith(endings) and ending and ending not in _SIDE_FILES:
            found[ending] = found.get(ending, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def most_rows(source: SourceSettings) -> int | None:
    """The most pictures that a source can give, where that is cheap to know: Parquet, small texts, folders.

    A text of several lines in quotes is counted by its lines, so the count may be too high and never too low.
    """
    if source.folder is not None and source.folder.table is None:
        endings = tuple(f".{suffix.lower().lstrip('.')}" for suffix in source.folder.suffixes)
        return sum(name.lower().endswith(endings) for name, _ in walk_files(source.folder.path))
    if source.kind != "table":
        return None
    total = 0
    for file in table.list_files(source):
        fs, inner = storage.filesystem(file)
        if file.lower().endswith((".parquet", ".pq")):
            with fs.open(inner, "rb") as stream:
                total += pq.ParquetFile(stream).metadata.num_rows
        elif file.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson")) and fs.size(inner) <= MAX_COUNTED_BYTES:
            with fs.open(inner, "rb") as stream:
                total += sum(1 for line in stream if line.strip())
        else:
            return None
    return total


def place_of(source: Origin) -> str:
    """The path that a source names."""
    return source.path
