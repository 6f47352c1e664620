"""Samples of webdataset tars, as they lie: img2dataset's (with its Parquet), TreeOfLife's, plain jpg + txt.

Reads tar headers and text members, and the Parquet file beside a shard where there is one; pictures are read once, in
fetch, by the offset in their locator. Memory: one shard's Parquet rows. A shard that breaks off costs what lies behind
the break, as one row `broken_shard`. Gives up with ConfigError for tars that are not there, none, or compressed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from pipeline.sources.files import Found, find_files, make_locator
from pipeline.sources.rows import BATCH_ROWS, PLAIN, Batch, Lost, Scratch, make_batch
from pipeline.sources.settings import Origin, ShardFields, WebdatasetSettings

MAX_TEXT_BYTES = 1 << 20
_PARQUET_ALWAYS = ("key", "url", "status", "error_message")  # img2dataset's own columns


@dataclass
class _Sample:
    """Members of one key: texts by extension, and where the picture lies."""

    key: str
    texts: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    largest_text: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class _Wanted:
    """What the config asks of each sample, worked out once a source."""

    settings: WebdatasetSettings
    fields: ShardFields
    by_default: bool
    names: tuple[str, ...]

    def texts(self) -> set[str]:
        """Extensions of the text members that are read."""
        plain = {name for name in self.names if "." not in name or not name.startswith(("json.", "parquet."))}
        return (plain - {"__key__"}) | ({"json"} if any(name.startswith("json.") for name in self.names) else set())

    def columns(self) -> list[str]:
        """Columns of a shard's Parquet file that are read."""
        return [name.removeprefix("parquet.") for name in self.names if name.startswith("parquet.")]


def check_source(source: Origin) -> None:
    """See that the tars are there, that the first can be read, and that Parquet columns asked for exist.

    Raises: ConfigError.
    """
    wanted, found = _wanted(source), _shards(source)
    first = found.path(found.names[0])
    fs, inner = storage.filesystem(first)
    with fs.open(inner, "rb") as stream:
        head = stream.read(512)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:4] == b"\x28\xb5\x2f\xfd":
        raise ConfigError(f"{source.where}: {first} is compressed; unpack it, pictures are read in place by offset")
    if head.strip(b"\0") and head[257:262] != b"ustar" and not _checksum_fits(head):
        raise ConfigError(f"{source.where}: {first} is no tar file")
    if wanted.columns():
        names = _parquet_columns(first)
        missing = [name for name in ["key", *wanted.columns()] if name not in (names or [])]
        if names is None or missing:
            lacks = (
                "there is no Parquet file beside it" if names is None else f"its Parquet has no {', '.join(missing)}"
            )
            raise ConfigError(f"{source.where}: {first}: {lacks}, and `fields` asks for parquet.{wanted.columns()[0]}")


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of the tars and of the Parquet files beside them."""
    found = _shards(source)
    digests: list[str] = []
    for name in found.names:
        shard = found.path(name)
        digests.append(f"{name}:{hash_file(shard)}")
        if _exists(_parquet_of(shard)):
            digests.append(hash_file(_parquet_of(shard)))
    return digests


def root_of(source: Origin) -> str:
    """The folder that locators are relative to."""
    return _shards(source).root


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every sample of every shard, in order; what img2dataset could not download ends as `no_image`."""
    wanted, found = _wanted(source), _shards(source)
    batch = _Growing()
    for name in found.names:
        shard = found.path(name)
        listed = _parquet_rows(shard, wanted.columns())
        for sample in _samples(shard, wanted):
            if isinstance(sample, str):
                batch.lose("broken_shard", f"{name}: {sample}")
            else:
                _add(batch, name, sample, wanted, listed.pop(sample.key, {}))
            if len(batch) >= BATCH_ROWS:
                yield batch.take()
        for key, row in listed.items():
            said = ": ".join(str(row[part]) for part in ("status", "error_message") if row.get(part))
            batch.lose("no_image", said or None, f"{_stem(name)}/{key}", row.get("url"))
            if len(batch) >= BATCH_ROWS:
                yield batch.take()
    if len(batch):
        yield batch.take()


class _Growing:
    """A batch in the making."""

    def __init__(self) -> None:
        self._next = 0
        self._rows: list[dict[str, str | None]] = []
        self._numbers: list[int] = []
        self._lost: list[Lost] = []

    def __len__(self) -> int:
        return len(self._rows) + len(self._lost)

    def add(self, row: dict[str, str | None]) -> None:
        self._rows.append(row)
        self._numbers.append(self._next)
        self._next += 1

    def lose(self, reason: str, value: str | None, key: str | None = None, url: str | None = None) -> None:
        self._lost.append(Lost(self._next, reason, value, key, url))
        self._next += 1

    def take(self) -> Batch:
        columns = {name: [row[name] for row in self._rows] for name in (self._rows[0] if self._rows else {})}
        batch = make_batch(columns, self._numbers, self._lost)
        self._rows, self._numbers, self._lost = [], [], []
        return batch


def _add(batch: _Growing, shard: str, sample: _Sample, wanted: _Wanted, listed: dict[str, Any]) -> None:
    """One sample as a row, or the reason why it is none."""
    place = f"{_stem(shard)}/{sample.key}"
    at = next((sample.pictures[suffix] for suffix in wanted.settings.suffixes if suffix in sample.pictures), None)
    if at is None:
        there = ", ".join(sorted([*sample.texts, *sample.pictures])) or "no member that is read"
        batch.lose("no_image", f"{place} has {there}", place)
        return
    try:
        values = _values(sample, wanted, listed)
    except ValueError as error:
        batch.lose("malformed_row", f"{place}: {error}", place)
        return
    batch.add(_row(values, wanted, place) | {"locator": make_locator(shard, *at)})


def _values(sample: _Sample, wanted: _Wanted, listed: dict[str, Any]) -> dict[str, str | None]:
    """Every field that is asked for.

    Raises: ValueError for a text that is no UTF-8 or no json, or too long.
    """
    if sample.largest_text[1] > MAX_TEXT_BYTES:
        raise ValueError(f"{sample.largest_text[0]} has {sample.largest_text[1]:,} bytes, more than {MAX_TEXT_BYTES:,}")
    texts = {name: content.decode("utf-8-sig") for name, content in sample.texts.items()}
    record: dict[str, Any] = {}
    if "json" in texts:
        record = json.loads(texts["json"])
        if not isinstance(record, dict):
            raise ValueError("the json member is no object")
    values: dict[str, str | None] = {"__key__": sample.key}
    for name in wanted.names:
        kind, _, rest = name.partition(".")
        if kind == "json" and rest:
            values[name] = _text(record.get(rest))
        elif kind == "parquet" and rest:
            values[name] = _text(listed.get(rest))
        elif name != "__key__":
            values[name] = texts.get(name)
    "".join(value for value in values.values() if value).encode()
    return values


def _row(values: dict[str, str | None], wanted: _Wanted, place: str) -> dict[str, str | None]:
    fields = wanted.fields
    row = {name: values[mapped] for name in (*PLAIN, "url") if (mapped := getattr(fields, name)) is not None}
    row["record_key"] = values[fields.record_key] if fields.record_key else place
    captions = [fields.caption] if isinstance(fields.caption, str) else fields.caption or []
    texts = [text for name in captions if (text := values[name])]
    row["caption"] = next(iter(texts), None) if wanted.by_default else (" ".join(texts) if texts else None)
    if fields.extra:
        row["extra"] = json.dumps({name: values[name] for name in fields.extra}, sort_keys=True, ensure_ascii=False)
    return row


def _samples(shard: str, wanted: _Wanted) -> Iterator[_Sample | str]:
    """Samples of a shard in its order; a text where it breaks off."""
    texts, suffixes = wanted.texts(), set(wanted.settings.suffixes)
    fs, inner = storage.filesystem(shard)
    here: _Sample | None = None
    with fs.open(inner, "rb") as stream:
        for member in _members(stream):
            if isinstance(member, str):  # the last member is cut off with the rest
                yield f"{member}, in or behind {here.key if here else 'the first sample'}"
                return
            key, extension = _key_of(member.name)
            if not member.isreg() or not key:
                continue
            if here is None or key != here.key:
                if here is not None:
                    yield here
                here = _Sample(key)
            if extension in suffixes:
                here.pictures[extension] = (member.offset_data, member.size)
            elif extension in texts:
                if member.size > max(MAX_TEXT_BYTES, here.largest_text[1]):
                    here.largest_text = (extension, member.size)
                stream.seek(member.offset_data)
                here.texts[extension] = stream.read(min(member.size, MAX_TEXT_BYTES))
    if here is not None:
        yield here


def _members(stream: Any) -> Iterator[tarfile.TarInfo | str]:
    """Members of a tar, none kept; a text when it ends without its end mark."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as opened:
            tar: Any = opened  # the stubs do not know `members`, which would hold every header
            while (member := tar.next()) is not None:
                yield member
                tar.members.clear()
            end = tar.offset
    except tarfile.TarError as error:
        yield f"breaks off ({error})"
        return
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        yield f"no tar member and no end mark at byte {end:,}"


def _key_of(name: str) -> tuple[str, str]:
    """Key and lower-case extension, cut at the first dot of the base name, as webdataset does; no key for __name__."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or (base.startswith("__") and base.endswith("__")):
        return "", ""
    return f"{folder}{slash}{stem}".removeprefix("./"), extension.lower()


def _parquet_rows(shard: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Rows of the Parquet file beside a shard by key; none where there is no such file, or it has no key."""
    names = _parquet_columns(shard)
    if not names or "key" not in names:
        return {}
    fs, inner = storage.filesystem(_parquet_of(shard))
    with fs.open(inner, "rb") as stream:
        picked = [name for name in dict.fromkeys([*_PARQUET_ALWAYS, *columns]) if name in names]
        rows = pq.ParquetFile(stream).read(picked).to_pylist()
    return {str(row["key"]): row for row in rows}


def _parquet_columns(shard: str) -> list[str] | None:
    path = _parquet_of(shard)
    if not _exists(path):
        return None
    fs, inner = storage.filesystem(path)
    with fs.open(inner, "rb") as stream:
        return list(pq.read_schema(stream).names)


def _parquet_of(shard: str) -> str:
    return shard.removesuffix(".tar") + ".parquet"


def _exists(path: str) -> bool:
    fs, inner = storage.filesystem(path)
    return bool(fs.exists(inner))


def _stem(name: str) -> str:
    return name.removesuffix(".tar")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _checksum_fits(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _wanted(source: Origin) -> _Wanted:
    settings = _settings(source)
    if settings.fields is not None:
        return _Wanted(settings, settings.fields, False, tuple(settings.fields.names()))
    usual = ShardFields(url="json.url", caption=["txt", "json.caption"])
    return _Wanted(settings, usual, True, tuple(usual.names()))


def _shards(source: Origin) -> Found:
    return find_files(_settings(source).path, source.where, ".tar")


def _settings(source: Origin) -> WebdatasetSettings:
    assert source.webdataset is not None
    return source.webdataset
