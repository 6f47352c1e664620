"""Shards that PlantMix did not build, as the loader of releases reads them: an index of samples, made once.

Each shard is read once, front to back, in bounded memory. What is known of it is committed a segment at a time into
CACHE/index/KEY/: a table of samples and, in its metadata, the hash of the segment's bytes. So an indexing that was
killed goes on behind the last segment. A shard whose size, time or version changed is read again. What gives no ranges
(a pipe, some web servers) is copied into the shard cache first. Each group of a config becomes a `ShardRelease`, which
is to the loader a release with one domain. Gives up with ConfigError on places without shards, groups without samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import ConfigError, NoRangesError, PlantMixError, RetryableError, words_of
from manifests.samples.endings import PICTURES
from manifests.samples.tars import ALL_TEXTS, Sample, compression_of, samples_in
from manifests.services.printable import ProgressLine
from manifests.services.untrusted import BrokenTarError
from manifests.stores import faults, storage
from manifests.stores.cache import ShardCache, local_folder, locked
from manifests.stores.ranges import read_range
from training.data.foreign import ForeignShard, copy, hash_of_segments, is_elsewhere, shown, stamp_of, store_of
from training.data.sealed import SUMS_FILE, SealedFiles
from training.data.shard_groups import ShardGroup, expand
from training.data.texts import has_any, member_names, text_name

SEGMENT_BYTES = 256 << 20  # at least; it ends with a sample
_FORMAT = "dalip-shard-index/2"
_FORMAT_OF_NAMES = "dalip-shard-index/1"  # in the fingerprint of a group, which runs record
_CHUNK_BYTES = 8 << 20
_WHOLE_BYTES = 32 << 20  # up to here fsspec hides that a server without ranges sent the whole file
_NUM_THREADS = 4  # shards that are indexed at the same time
_NAMED = 10  # samples that a note names
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("start", pa.int64()),  # of its first header
        ("stop", pa.int64()),  # behind its last member
        ("image_offset", pa.int64()),  # null: no picture
        ("image_length", pa.int64()),
        ("members", pa.dictionary(pa.int32(), pa.string())),  # a line each, see `texts.member_names`
    ]
)


@dataclass(frozen=True)
class ShardIndex:
    """One shard and its samples, in their order; `broken` says why it could not be read to its end."""

    shard: ForeignShard
    table: pa.Table
    broken: str | None


@dataclass(frozen=True)
class ShardRelease:
    """A group of shards, as the loader takes a release: one split, one domain."""

    path: str  # how messages name it
    name: str
    split: str
    fingerprint: str  # of domain, and of the content and order of its shards
    files: tuple[ForeignShard, ...]
    table: pa.Table  # sample_id, domain, shard, position, key and offsets, in the order of the shards
    members: tuple[str, ...]  # texts that were asked for
    notes: tuple[str, ...]  # what was left out
    endings: frozenset[str]  # names of all members that some sample has


def open_groups(groups: Sequence[ShardGroup], members: Sequence[str], cache: ShardCache) -> list[ShardRelease]:
    """Return the groups of a config, indexed where they are not yet; `members` are the texts that are asked for.

    Raises: ConfigError, RetryableError, RunError.
    """
    sources = [expand(group.shards) for group in groups]
    together = [source for of_group in sources for source in of_group]
    if twice := [source for source, num in Counter(map(_place_of, together)).items() if num > 1]:
        raise ConfigError(
            f"data.shards: {len(twice):,} shards are named twice; first: {shown(twice[0])}. Name each once; the weight "
            "of a group says how often its samples come"
        )
    indexes = iter(index_shards(together, cache))
    return [
        _release_of(group, [next(indexes) for _ in shards], members)
        for group, shards in zip(groups, sources, strict=True)
    ]


def _place_of(source: str) -> str:
    """Return the address that a shard named in two ways has in common: where it lies when links are followed."""
    return source if is_elsewhere(source) else os.path.realpath(source.removeprefix("file://"))


def index_shards(sources: Sequence[str], cache: ShardCache) -> list[ShardIndex]:
    """Return the index of each shard, kept or made now.

    Processes of a machine share them; one makes an index, others wait.

    Raises: as `open_groups`.
    """
    folder = local_folder(cache.cache_dir) / "index"
    folder.mkdir(exist_ok=True)
    stores = [store_of(source) for source in sources]
    line = ProgressLine(sys.stderr, every_seconds=30.0, last=time.monotonic())

    def show(number: int, at: int) -> None:
        line.show(f"indexing shard {number + 1:,} of {len(sources):,}, {at / 1e9:.2f} GB of it")

    def index(shard: tuple[int, str]) -> ShardIndex:
        number, source = shard
        key = source if is_elsewhere(source) else str(Path(source.removeprefix("file://")).absolute())
        cache_folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        cache_folder.mkdir(exist_ok=True)
        with locked(cache_folder / "lock"):
            return _index(source, stores[number], cache_folder, cache, partial(show, number))

    try:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            return list(threads.map(index, enumerate(sources)))
    finally:
        line.end()


def _index(
    source: str, store: tuple[Any, str] | None, folder: Path, cache: ShardCache, say: Callable[[int], None]
) -> ShardIndex:
    size, stamp = stamp_of(source, store)
    kept = _Segments(folder, stamp)
    if kept.was_changed:
        print(f"{shown(source)}: changed since it was indexed (now {stamp}); indexed anew", file=sys.stderr, flush=True)
    if kept.is_finished:
        return kept.as_index(source)
    if (own_store := store_of(source)) is not None:
        own_store[0].invalidate_cache(own_store[1])  # this thread's listing may be older than the file
    problem = partial(passing, source)
    if size is not None:
        with suppress(NoRangesError):
            faults.patiently(lambda: _read(source, source, size, kept, say), problem)
            return kept.as_index(source)
    kept.clear()
    temp = storage.temp_path(str(cache.folder / f"{folder.name}.tar"))
    try:
        faults.patiently(partial(copy, source, temp), problem)
        _read(source, temp, Path(temp).stat().st_size, kept, say)
        made = kept.as_index(source)
        cache.adopt(temp, made.shard)
        return made
    finally:
        Path(temp).unlink(missing_ok=True)


def passing(source: str, error: Exception) -> PlantMixError:
    """Return the error for a fault that may pass. Raises: ConfigError for a file of this machine, where none does."""
    if isinstance(error, OSError) and not is_elsewhere(source):
        raise ConfigError(f"{shown(source)}: cannot be read: {error.strerror or error}") from None
    return RetryableError(f"{shown(source)} cannot be read ({words_of(error)}); run the same command to go on")


class _Segments:
    """The committed part of the index of one shard."""

    def __init__(self, folder: Path, stamp: str) -> None:
        self._folder, self._stamp, self._sealed = folder, stamp, SealedFiles(folder)
        self._said: list[dict[str, Any]] = []  # of each segment: start, stop, sha256, ends, broken, has_ranges
        is_of_before = False  # in another format
        while self._sealed.is_whole(name := self._name(len(self._said))):
            content = (pq.read_schema(folder / name).metadata or {}).get(_FORMAT.encode())
            is_of_before = content is None
            notes = json.loads(content or "{}")
            if notes.get("stamp") != stamp or notes["start"] != self.stop:
                break
            self._said.append(notes)
        self.was_changed = not self._said and (folder / self._name(0)).is_file() and not is_of_before
        if not self._said:
            self.clear()

    @property
    def stop(self) -> int:
        """Return how many bytes of the shard are committed."""
        return int(self._said[-1]["stop"]) if self._said else 0

    @property
    def is_finished(self) -> bool:
        """Return whether all of the shard is."""
        return bool(self._said) and bool(self._said[-1]["ends"])

    def clear(self) -> None:
        """Begin anew."""
        for file in self._folder.glob("segment-*.parquet"):
            file.unlink()
        (self._folder / SUMS_FILE).unlink(missing_ok=True)
        self._said, self._sealed = [], SealedFiles(self._folder)

    def add(self, rows: list[dict[str, Any]], **notes: Any) -> None:
        """Commit a segment."""
        notes |= {"stamp": self._stamp, "start": self.stop}
        table = pa.Table.from_pylist(rows, _SCHEMA).replace_schema_metadata({_FORMAT: json.dumps(notes)})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        self._sealed.write(self._name(len(self._said)), stream.getvalue())
        self._said.append(notes)

    def as_index(self, source: str) -> ShardIndex:
        """All segments together."""
        tables = [pq.read_table(self._folder / self._name(i), schema=_SCHEMA) for i in range(len(self._said))]
        segments = tuple((notes["stop"] - notes["start"], str(notes["sha256"])) for notes in self._said)
        last = self._said[-1]
        shard = ForeignShard(
            *(shown(source), self.stop, hash_of_segments(segments), source, self._stamp, segments),
            *(last["has_ranges"], self._folder),
        )
        return ShardIndex(shard, pa.concat_tables(tables).unify_dictionaries(), last["broken"])

    @staticmethod
    def _name(number: int) -> str:
        return f"segment-{number:06d}.parquet"


def _read(source: str, path: str, size: int, kept: _Segments, say: Callable[[int], None]) -> None:
    """Index the rest of a shard, which is read at `path`."""
    rows, at, broken = list[dict[str, Any]](), kept.stop, None
    if storage.is_remote(path) and 2 <= size <= _WHOLE_BYTES and len(read_range(path, 1, 1)) != 1:
        raise NoRangesError
    with storage.open_unbuffered(path) as opened:
        stream = _OnePass(opened, size, at, say)
        if at == 0 and (packing := compression_of(stream.read(8))):
            cure = "unpack it, or give pipe:gunzip -c and its name"
            raise ConfigError(f"{shown(source)}: is compressed ({packing}); {cure}")
        try:
            for sample in samples_in(stream, ALL_TEXTS, start=at):
                rows.append(_row_of(sample))
                if (stop := sample.stop) is not None and stop - kept.stop >= SEGMENT_BYTES:
                    kept.add(rows, stop=stop, sha256=stream.cut(stop), ends=False, broken=None, has_ranges=True)
                    rows = []
        except BrokenTarError as error:
            broken = str(error)
        sha256 = stream.cut(size)
    kept.add(rows, stop=size, sha256=sha256, ends=True, broken=broken, has_ranges=path == source)


def _row_of(sample: Sample) -> dict[str, Any]:
    offset, length = sample.pictures[ending] if (ending := sample.picture()) else (None, None)
    return {
        "key": sample.key,
        "start": sample.begins,
        "stop": sample.ends,
        "image_offset": offset,
        "image_length": length,
        "members": "\n".join(member_names(sample)),
    }


class _OnePass:
    """A file that is read once, front to back, and hashed; `read` may go back by a chunk."""

    def __init__(self, opened: Any, size: int, start: int, say: Callable[[int], None]) -> None:
        self._opened, self._size, self._place, self._say = opened, size, start, say
        self._base, self._buffer = start, bytearray()
        self._digest, self._hashed = hashlib.sha256(), start
        try:
            opened.seek(start)
        except ValueError as error:
            raise NoRangesError from error

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (self._size if whence == os.SEEK_END else 0)
        return self._place

    def read(self, num_bytes: int) -> bytes:
        stop = min(self._place + num_bytes, self._size)
        if self._base + len(self._buffer) < stop:
            self._fetch(stop)
        content = bytes(self._buffer[self._place - self._base : max(stop - self._base, 0)])
        self._place += len(content)
        return content

    def cut(self, stop: int) -> str:
        """sha256 of what lies between the last cut and `stop`."""
        self._fetch(stop)
        self._hash(stop)
        digest, self._digest = self._digest.hexdigest(), hashlib.sha256()
        return digest

    def _fetch(self, stop: int) -> None:
        while (end := self._base + len(self._buffer)) < stop:
            try:
                chunk = self._opened.read(min(_CHUNK_BYTES, self._size - end))
            except ValueError as error:
                raise NoRangesError from error
            if not chunk:
                raise RetryableError(f"it ended at byte {end:,} of {self._size:,} while it was read")
            if (surplus := len(self._buffer) - _CHUNK_BYTES) > 0:
                self._hash(self._base + surplus)
                del self._buffer[:surplus]
                self._base += surplus
            self._buffer += chunk
            self._say(end + len(chunk))

    def _hash(self, stop: int) -> None:
        if stop > self._hashed:
            self._digest.update(self._buffer[self._hashed - self._base : stop - self._base])
            self._hashed = stop


def _release_of(group: ShardGroup, indexes: Sequence[ShardIndex], members: Sequence[str]) -> ShardRelease:
    """Return a group with the samples that have a picture and a text; the others are noted.

    Raises: ConfigError where none has.
    """
    tables, notes, endings = [], [], Counter[str]()
    without: dict[str, list[str]] = {"picture": [], f"text ({', '.join(members)})": []}
    picture, text = without
    for number, (shard, table, broken) in enumerate((index.shard, index.table, index.broken) for index in indexes):
        if broken is not None:
            notes.append(f"{shard.path}: damaged or cut short ({broken}); the {len(table):,} samples before are used")
        column = table["members"].combine_chunks()
        names = [value.split("\n") for value in column.dictionary.to_pylist()]
        has_text = [has_any(names_of_sample, members) for names_of_sample in names]
        endings.update(name for names_of_sample in names for name in names_of_sample)
        of_row = np.array([*has_text, False])[column.indices.fill_null(-1).to_numpy()]
        has_picture = table["image_offset"].is_valid().to_numpy()
        for what, rows in ((picture, ~has_picture), (text, has_picture & ~of_row)):
            without[what] += [f"{shard.path.rpartition('/')[2]}/{key}" for key in table["key"].filter(rows).to_pylist()]
        table = table.filter(pa.array(has_picture & of_row))
        tables.append(_rows_of(table, group.name, number, shard))
    for what, names in without.items():
        if names:
            first = ", ".join(names[:_NAMED])
            notes.append(f"data.shards '{group.name}': {len(names):,} samples without a {what} are left out: {first}")
    whole = pa.concat_tables(tables)
    if len(whole) == 0:
        there = ", ".join(sorted(filter(None, endings))[:20]) or "none"
        raise ConfigError(
            f"data.shards '{group.name}': no sample of {len(indexes):,} shards has a picture "
            f"({', '.join(PICTURES)}) and a text ({', '.join(members)}); their members: {there}. " + " ".join(notes[:1])
        )
    content = json.dumps([_FORMAT_OF_NAMES, group.name, [index.shard.sha256 for index in indexes]])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    return ShardRelease(
        f"data.shards '{group.name}'", f"{group.name}-{fingerprint[:12]}", group.split, fingerprint,
        tuple(index.shard for index in indexes), whole, tuple(members), tuple(notes),
        frozenset(map(text_name, endings)),
    )  # fmt: skip


def _rows_of(table: pa.Table, domain: str, number: int, shard: ForeignShard) -> pa.Table:
    """Rows as the sample table of a release has them; in place of the text stands the whole sample."""
    num = len(table)
    return pa.table(
        {
            "sample_id": pc.binary_join_element_wise(shard.sha256[:12], table["key"], "/"),
            "domain": pa.array([domain] * num, pa.string()),
            "shard": pa.array(np.full(num, number, np.int32)),
            "key": table["key"],
            "jpg_offset": table["image_offset"],
            "jpg_length": table["image_length"],
            "txt_offset": table["start"],
            "txt_length": pc.subtract(table["stop"], table["start"]),
        }
    )
