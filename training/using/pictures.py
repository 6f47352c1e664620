"""Pictures to work on, a row each: of files, folders, tables of paths, webdataset shards, releases, work folders.

Shards may be given as in a training config, also those of a store.

Reads names and places first, bytes later, a batch at a time. Writes nothing. A picture that cannot be read is a row
with a fault, never an error. Gives up with ConfigError on a place that is not there or holds no picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from manifests.contract import records
from manifests.contract.release import Release, is_release
from manifests.errors import ConfigError, words_of
from manifests.masking import PIPE
from manifests.samples.endings import PICTURES, is_picture, not_read, plain_tars
from manifests.samples.tars import samples_in
from manifests.services.untrusted import BrokenTarError
from manifests.stores import stamps, storage
from manifests.stores.cache import ShardCache
from manifests.stores.ranges import read_range
from training.data import loader
from training.data.foreign import shown, stamp_of
from training.data.images import CorruptSample, View
from training.data.shard_groups import expand
from training.data.shard_index import index_shards
from training.data.shards import SamplePool
from training.evaluation.set_layouts import Item

PATH_COLUMNS = ("filepath", "path", "file", "image", "picture", "filename")
TABLES = (".csv", ".tsv", ".parquet")
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # as the output names it
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),  # null: the whole file
        ("fault", pa.string()),  # why there are no bytes to read; null: there are
    ]
)
Encoded = tuple[range, Tensor, list[str | None]]
"""A range of pictures, a row for each of the good ones, and what is wrong with each of all: None where nothing is."""
_Row = tuple[str, str | None, int, int | None, str | None]
_BLOCK_ROWS = 10_000
_HASHED_AT_A_TIME = 8


@dataclass(frozen=True)
class Listing:
    """Pictures in the order in which they are given, and where their bytes are."""

    table: pa.Table
    digest: str = ""  # of what names the pictures, and of the releases; not of paths
    files: tuple[str, ...] = ()  # all that are read, but those of releases
    places: tuple[str, ...] = ()  # as they were given
    releases: tuple[Release, ...] = ()  # that hold some of them
    notes: tuple[str, ...] = ()  # what was left out

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def names(self, rows: range) -> pa.Array:
        """Names of some rows."""
        return self.table["name"].slice(rows.start, len(rows)).combine_chunks()

    def content(self, recorded: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the identity of the pictures: `pictures`, a digest of names and bytes.

        `stamps`, which show a change.

        The files are read, unless `recorded`, which this gave before, has the same stamps.
        """
        stamps = [_stamp(path) for path in self.files]
        whole = [self.digest, *(f"{path} {stamp}" for path, stamp in zip(self.files, stamps, strict=True))]
        seen = None if None in stamps else hashlib.sha256("\n".join(whole).encode()).hexdigest()
        if seen is not None and recorded.get("stamps") == seen:
            return {"pictures": recorded["pictures"], "stamps": seen}
        with ThreadPoolExecutor(_HASHED_AT_A_TIME) as threads:
            content = [self.digest, *threads.map(_content, self.files)]
        return {"pictures": hashlib.sha256("\n".join(content).encode()).hexdigest(), "stamps": seen}

    def read(self, row: int) -> bytes:
        """Return the bytes of a picture.

        Raises: CorruptSample where there are none.
        """
        name, path, offset, length, fault = (self.table[column][row].as_py() for column in _SCHEMA.names)
        if fault is not None:
            raise CorruptSample(fault)
        try:
            if storage.is_remote(path):
                content = read_range(path, offset, length)
            else:
                content = Item(name, path, offset, length).read()
        except Exception as error:
            storage.check_passing(shown(path), error)
            if not isinstance(error, OSError):
                raise
            raise CorruptSample(f"cannot be read: {error.strerror or words_of(error)}") from None
        if length is not None and len(content) < length:
            raise CorruptSample(f"cut short: {len(content):,} of {length:,} bytes are there")
        return content


def list_pictures(places: Sequence[str]) -> Listing:
    """All pictures of some places, one place after the other.

    Raises: ConfigError for a place that is not there, or in which no picture is.
    """
    lister = _Lister()
    for path in places:
        lister.take(path)
    return lister.listing()


class _Lister:
    """Collects the rows of paths, and a digest of what names them."""

    def __init__(self) -> None:
        self._paths, self._ends = list[str](), list[int]()
        self._files, self._releases, self._notes = list[str](), list[Release](), list[str]()
        self._digest = hashlib.sha256()
        self._batches, self._waiting = list[pa.RecordBatch](), list[_Row]()

    def take(self, path: str) -> None:
        """Add the pictures at a path. Raises: ConfigError where there are none."""
        others: list[str] = []
        num_before, release = self._num_rows, _release_in(path)
        if release is not None:
            self._releases.append(release)
            self._digest.update(json.dumps(release.record["files"], sort_keys=True).encode())
        for row in map(_in_utf8, _rows_of(path, others) if release is None else _rows_of_release(release)):
            self._add(row, is_listed=release is not None)
        if self._num_rows == num_before:
            plain_tars(others)
            raise ConfigError(f"{path}: no picture here ({', '.join(PICTURES)}, or shards: .tar)")
        if left_out := not_read(others):
            self._notes.append(f"{path}: {left_out}")
        self._paths.append(path)
        self._ends.append(self._num_rows)

    @property
    def _num_rows(self) -> int:
        return len(self._batches) * _BLOCK_ROWS + len(self._waiting)

    def _add(self, row: _Row, is_listed: bool) -> None:
        """Add a row; the shards of a release are listed in it."""
        name, path, *where = row
        if not is_listed and path is not None and row[-1] is None and self._files[-1:] != [path]:
            self._files.append(path)
        self._digest.update(f"{name!r} {len(self._files)} {where}\n".encode())
        self._waiting.append(row)
        if len(self._waiting) == _BLOCK_ROWS:
            self._batches.append(_batch(self._waiting))
            self._waiting = []

    def listing(self) -> Listing:
        """Return the collected paths; equal names of several paths are told apart."""
        table = pa.Table.from_batches([*self._batches, _batch(self._waiting)], _SCHEMA).combine_chunks()
        if len(set(self._paths)) > 1 and pc.count_distinct(table["name"]).as_py() < self._num_rows:
            table = table.set_column(0, "name", _names_with_places(table["name"], self._paths, self._ends))
            self._digest.update(b"names with places\n")
        files, releases = tuple(self._files), tuple(self._releases)
        return Listing(table, self._digest.hexdigest(), files, tuple(self._paths), releases, tuple(self._notes))


def _names_with_places(names: pa.ChunkedArray, places: Sequence[str], ends: Sequence[int]) -> pa.ChunkedArray:
    """Names of several places, some of them equal, told apart by the place. A shard's name is in them already."""
    chunks = []
    for place, start, end in zip(places, [0, *ends], ends, strict=False):
        path = Path(place)
        own = names.slice(start, end - start).combine_chunks()
        if path.is_dir() or path.suffix.lower() in (".tar", *TABLES):
            prefix = path.parent if path.suffix.lower() == ".tar" else path
            own = pc.binary_join_element_wise(pa.scalar(str(prefix)), own, "/")
        chunks.append(own)
    return pa.chunked_array(chunks, pa.string())


def listing_of_pool(pool: SamplePool, rows: Sequence[int], release: Release) -> Listing:
    """Return some samples of a release."""
    offsets, lengths = (pool.offsets[name][rows] for name in ("jpg_offset", "jpg_length"))
    paths = [pool.files[number].path for number in pool.shards[rows].tolist()]
    columns = [pool.names(rows), paths, offsets, lengths, pa.nulls(len(rows), pa.string())]
    return Listing(pa.table(columns, schema=_SCHEMA), releases=(release,))


def encode_pieces(
    listing: Listing,
    pieces: Sequence[range],
    view: View,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
    num_workers: int,
) -> Iterator[Encoded]:
    """Yield the output of `encode` for the views of each range of rows, in batches that never cross two ranges.

    `encode` gets uint8 (B, 3, H, W) and gives (B, ...).

    Raises: IntegrityError for a release whose shards have other content than when it was sealed.
    """
    for release in listing.releases:
        loader.check_shards([release], *release.splits)
    batches = [
        range(start, min(start + batch_size, piece.stop)) for piece in pieces for start in piece[::batch_size]
    ]  # fmt: skip
    pictures = loader.each_batch(_Pictures(listing, view), batches, num_workers)
    ends = {piece.stop: piece for piece in pieces}
    encoded, faults = list[Tensor](), list[str | None]()
    for rows, (views, of_batch) in zip(batches, pictures, strict=True):
        if views is not None:
            encoded.append(encode(views))
        faults += of_batch
        if rows.stop in ends:
            yield ends[rows.stop], torch.cat(encoded) if encoded else torch.empty(0), faults
            encoded, faults = [], []


class _Pictures(loader.BatchDataset):
    def __init__(self, listing: Listing, view: View) -> None:
        self.listing, self.view = listing, view

    def load(self, places: Sequence[int]) -> tuple[Tensor | None, list[str | None]]:
        views, faults = [], list[str | None]()
        for row in places:
            try:
                views.append(self.view(self.listing.read(row)))
                faults.append(None)
            except CorruptSample as error:
                faults.append(str(error))
        return (torch.stack(views) if views else None), faults


def _rows_of(name: str, others: list[str]) -> Iterator[_Row]:
    """Yield the pictures at a path; into `others` go the files of a folder that are none."""
    place = Path(name)
    if storage.is_remote(name) or name.startswith(PIPE) or (re.search(r"[{*?\[]|::", name) and not place.exists()):
        yield from _rows_of_shards(name)
    elif place.is_dir():
        yield from _rows_of_folder(place, others)
    elif not place.exists():
        raise ConfigError(f"{place}: no such file or folder of pictures")
    elif place.suffix.lower() in TABLES:
        yield from _rows_of_table(place)
    elif place.suffix.lower() == ".tar":
        yield from _rows_of_shard(place, place.name)
    else:
        plain_tars([name])
        yield (str(place), *_place_of(place))


def _in_utf8(row: _Row) -> _Row:
    """Return the row, with a name that a table can hold; a file whose path is no UTF-8 has a fault."""
    name, path, offset, length, fault = row
    name = name.encode("utf-8", "backslashreplace").decode()
    if path is not None and path.encode("utf-8", "replace").decode() != path:
        return name, None, 0, None, "its name is not UTF-8; rename it"
    return name, path, offset, length, fault


def _release_in(place: str) -> Release | None:
    """Return the release that a place stands for, as every command takes one; None for pictures and shards."""
    if Path(place).is_file() or place.lower().endswith(".tar") or re.search(r"[{*?\[]|::|^" + PIPE, place):
        return None
    return Release.open(place) if is_release(place) else None


def _rows_of_folder(folder: Path, others: list[str]) -> Iterator[_Row]:
    """Pictures and shards at any depth, in the order of their names; links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root) / name
            inner = str(path.relative_to(folder))
            if path.suffix.lower() == ".tar":
                yield from _rows_of_shard(path, inner)
            elif is_picture(name):
                yield (inner, *_place_of(path))
            else:
                others.append(name)


def _rows_of_table(path: Path) -> Iterator[_Row]:
    """Paths in a column of a table (csv, tsv or Parquet), relative to the table's folder.

    Raises: ConfigError for a table that cannot be read, or without such a column.
    """
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
        else:
            options = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(PATH_COLUMNS, pa.string()))
            table = pyarrow.csv.read_csv(path, parse_options=options, convert_options=as_text)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read as a table: {words_of(error)}") from None
    column = next((name for name in PATH_COLUMNS if name in table.column_names), None)
    if column is None:
        raise ConfigError(f"{path}: needs a column {' or '.join(PATH_COLUMNS)}; it has {', '.join(table.column_names)}")
    first_row = 1 if path.suffix.lower() == ".parquet" else 2  # a header is row 1
    for number, value in enumerate(table[column].cast(pa.string()).to_pylist(), first_row):
        yield (value, *_place_of(path.parent / value)) if value else (f"row {number}", None, 0, None, "no path")


def _rows_of_shard(path: Path, name: str) -> Iterator[_Row]:
    """Yield the pictures of a tar; of a damaged one those before the damage, then a row that says so."""
    try:
        with path.open("rb") as stream:
            for sample in samples_in(stream, ()):
                if (ending := sample.picture()) is not None:
                    offset, length = sample.pictures[ending]
                    yield f"{name}/{sample.key}.{ending}", str(path), offset, length, None
                for bad, fault in sample.faults.items() if ending is None else ():
                    yield f"{name}/{sample.key}.{bad}", str(path), 0, None, fault
    except (BrokenTarError, OSError) as error:
        yield name, str(path), 0, None, f"the shard is damaged or cut short: {error}"


def _rows_of_shards(name: str) -> Iterator[_Row]:
    """Yield the pictures of shards by brace ranges, patterns and addresses; those of a store are indexed first."""
    if any(part.startswith(PIPE) for part in name.split("::")):
        raise ConfigError(f"{shown(name)}: a command is run from a training config alone; write its output into a file")
    for source in expand([name]):
        if not storage.is_remote(source):
            yield from _rows_of_shard(Path(source), source)
            continue
        cache = ShardCache()
        (index,) = index_shards([source], cache)
        if not index.shard.has_ranges:
            os.close(cache.open(index.shard))  # fetched where it is not here any more
            source = str(cache.folder / f"{index.shard.sha256}.tar")
        for key, offset, length in zip(*(index.table[c] for c in ("key", "image_offset", "image_length")), strict=True):
            if length.is_valid:
                yield f"{index.shard.path}/{key.as_py()}", source, offset.as_py(), length.as_py(), None
        if index.broken is not None:
            yield index.shard.path, source, 0, None, f"the shard is damaged or cut short: {index.broken}"


def _rows_of_release(release: Release) -> Iterator[_Row]:
    """Every picture of a release, or of the newest of a work folder: once, by its sample_id, by splits and shards."""
    for split, shard, rows in release.iter_shards(("sample_id", "copy", "jpg_offset", "jpg_length")):
        path = release.shard_path(split, shard)
        for row in rows.filter(pc.equal(rows["copy"], 0)).to_pylist():
            yield row["sample_id"], path, row["jpg_offset"], row["jpg_length"], None


def _place_of(path: Path) -> tuple[str, int, None, str | None]:
    """Return the place of a file.

    Only regular files are read, since a pipe or a device would wait; links are followed.
    """
    fault = None if path.is_file() else "is not there" if not path.exists() else "is no regular file"
    return str(path), 0, None, fault


def _stamp(path: str) -> str | None:
    """Return the stamp of a file (manifests/stores/stamps.py); None where no change would show."""
    if storage.is_remote(path):
        return stamp_of(path)[1]
    try:
        return stamps.to_keep(path)
    except OSError:
        return "is not there"


def _content(path: str) -> str:
    """Return the sha256 of a file.

    Of a shard in a store what its listing says, as hashing would fetch it a second time.
    """
    return stamp_of(path)[1] if storage.is_remote(path) else records.hash_or_unreadable(path)


def _batch(rows: list[_Row]) -> pa.RecordBatch:
    columns: list[Any] = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)
