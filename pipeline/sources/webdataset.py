"""The kind `webdataset`, samples of tars as they lie: img2dataset's (with its Parquet), TreeOfLife's, plain jpg + txt.

Reads tar headers and text members, and the Parquet file beside a shard where there is one. Pictures are read once, in
fetch, by the offset in their locator; a tar in a store, or one that is compressed, is read once, front to back
(tars/samples.py). Memory: the Parquet rows of one shard. An odd member costs its sample alone. A shard that breaks off
loses what lies behind the break, and gets one row `broken_shard`; so does one whose Parquet file is damaged. Raises
ConfigError for tars that are missing, no tar, compressed in a way that is not read, or links that lead elsewhere.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from manifests.contract.settings import ConfigPath, Settings
from manifests.errors import ConfigError
from manifests.names.equal import plain
from manifests.pictures.authors import holder_in, tidy
from manifests.samples.endings import COMPRESSED_TARS, PICTURES, TARS, stem_of_tar
from manifests.samples.tars import Sample, compression_of, samples_in
from manifests.samples.unpacking import packing_of, unpacked
from manifests.services.untrusted import UNREADABLE, BrokenTarError, parse_json
from manifests.stores import storage
from pipeline.sources.files import (
    Shards,
    check_store,
    find_files,
    make_locator,
    reading,
)
from pipeline.sources.kinds import HEAD_ROWS, FirstRows, Listing, Place, Reader
from pipeline.sources.rows import (
    PLAIN_COLUMNS,
    Batch,
    Lost,
    RowColumns,
    Scratch,
    extra_json,
    first_text,
    in_batches,
    make_batch,
)
from pipeline.sources.tars.beside import first_columns, parquet_of, parquet_rows
from pipeline.sources.tars.fields import values_of
from pipeline.sources.tars.samples import KeptSamples, StoredTars

_WITH_TAR = "leave `record_key` out, and tables join by record_key, whose values are TAR/KEY"
_LOOKED_AT = 20  # samples, by init
_OF_EXIF = {"creator": "json.exif.Image Artist", "rights_holder": "json.exif.Image Copyright"}
"""Where img2dataset leaves what the file said that it read; its tars hold the pictures without."""
_NAMES_OF_SAMPLES = {"__key__", "json.key", "parquet.key"}


class ShardFields(RowColumns):
    """Fields of a webdataset sample.

    A text member goes by its extension (`txt`, `scientific_name.txt`), a key of the json member by `json.KEY`, one
    within that by `json.KEY.KEY`, a column of the shard's own Parquet file by `parquet.COLUMN`, and `__key__` is the
    webdataset key.
    """

    url: str | None = None
    """Where the picture came from; it is never requested."""

    def texts(self) -> set[str]:
        """Extensions of the text members that are read."""
        names = self.names()
        members = {name for name in names if not name.startswith(("json.", "parquet.")) and name != "__key__"}
        return members | ({"json"} if any(name.startswith("json.") for name in names) else set())

    def columns(self) -> list[str]:
        """Columns of a shard's Parquet file that are read."""
        return [name.removeprefix("parquet.") for name in self.names() if name.startswith("parquet.")]


_USUAL_FIELDS = ShardFields(url="json.url", caption=["txt", "json.caption"])  # the first caption that is there


class WebdatasetSettings(Settings):
    """Tars of an existing dataset.

    Members that follow one another and have one key, the name up to its first dot, are a sample. A member that comes
    again begins another sample, which ends as `duplicate_record`. The first of `suffixes` counts where a sample has
    several pictures; a sample without one ends as `no_image`. A blank text is none. A compressed tar is read once,
    front to back: a build that goes on unpacks it again up to where it was, and measures nothing of that again.
    """

    path: ConfigPath
    """A tar (.tar, .tar.gz, .tgz, .tar.zst), a folder of them, a glob, braces such as {00000..00012}.tar, or several of
    these with `::` between."""
    suffixes: tuple[str, ...] = PICTURES
    """Members that are the picture; the first there is."""
    fields: ShardFields | None = None
    """absent: caption from txt, else json.caption; url from json.url; key SHARD/KEY."""

    @property
    def read_fields(self) -> ShardFields:
        """The fields, or the usual ones."""
        return self.fields or _USUAL_FIELDS

    def own_names(self) -> set[str]:
        """Return the fields that the user names, and that some sample must have."""
        names = self.fields.names() if self.fields else []
        return {name for name in names if name != "__key__" and not name.startswith("parquet.")}


class WebdatasetReader(Reader[WebdatasetSettings]):
    """Tars of samples."""

    settings_type = WebdatasetSettings
    on_disk = in_shards = True
    takes_folders = False
    init_order = 3

    def mapping(self) -> ShardFields:
        """Return the fields."""
        return self.settings.read_fields

    def fills(self) -> set[str]:
        """Those of the fields, and what img2dataset left of the files."""
        return super().fills() | set(_OF_EXIF)

    def check(self) -> None:
        """Check that the tars are there, that the first can be read, and that Parquet columns asked for exist."""
        columns, shards = self.settings.read_fields.columns(), self._shards()
        first = shards.path(shards.names[0])
        fs, inner = storage.filesystem(first)
        with fs.open(inner, "rb") as stream:
            head = stream.read(tarfile.BLOCKSIZE)
            if fault := _misnamed(first, head):
                raise ConfigError(f"{self.where}: {first} {fault}")
            if head and packing_of(first):
                stream.seek(0)
                try:
                    head = unpacked(stream, first).read(tarfile.BLOCKSIZE)
                except BrokenTarError as error:
                    cure = "unpack it yourself (zstd with a large window: `zstd -d --long=31`), or download it again"
                    raise ConfigError(f"{self.where}: {first}: {error}; {cure}") from None
        if head.strip(b"\0") and head[257:262] != b"ustar":
            try:
                tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                raise ConfigError(f"{self.where}: {first} is no tar file ({error})") from None
        if columns:
            there = first_columns(shards)
            missing = [name for name in ["key", *columns] if name not in (there or ())]
            if missing:
                no_columns = f"its Parquet has no {', '.join(missing)}"
                lacks = "there is no Parquet file beside it" if there is None else no_columns
                raise ConfigError(f"{self.where}: {first}: {lacks}, and `fields` asks for parquet.{columns[0]}")

    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of the tars and of the Parquet files beside them."""
        shards = self._shards()
        digests: list[str] = []
        for name in shards.names:
            shard = shards.path(name)
            digests.append(f"{name}:{hash_file(shard)}")
            if parquet := parquet_of(shard):
                digests.append(hash_file(parquet))
        return digests

    def root(self) -> str:
        """Return the folder of the tars."""
        return self._shards().root

    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every sample of every shard, in order; what img2dataset could not download ends as `no_image`."""
        return self._batches(_rows(self.where, self.settings, self._shards(), self.kept_samples))

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Return the first thousand rows of tars that are read once: `rows` would read on to the end of a batch."""
        if self.tars() is None:
            return super().first_rows(scratch)
        rows = list(islice(_rows(self.where, self.settings, self._shards(), None), HEAD_ROWS + 1))
        return FirstRows(self._batches(iter(rows[:HEAD_ROWS])), is_part=len(rows) > HEAD_ROWS)

    def tars(self) -> StoredTars | None:
        """Tars of a store are read once, and those among which is a compressed one."""
        shards, texts = self._shards(), self.settings.read_fields.texts()
        if not storage.is_remote(self.path) and not any(map(packing_of, shards.names)):
            return None
        return StoredTars(shards.root, tuple(shards.names), self.settings.suffixes, tuple(sorted(texts)), self._key_of)

    def _key_of(self, tar: str, sample: Sample) -> str | None:
        fields, key = self.settings.read_fields, f"{stem_of_tar(tar)}/{sample.key}"
        if fields.record_key is None:
            return key
        with suppress(ValueError):
            return values_of(sample, [fields.record_key], {})[fields.record_key]
        return None

    def _batches(self, rows: Iterator[dict[str, str | None] | Lost]) -> Iterator[Batch]:
        for some in in_batches(enumerate(rows)):
            good = [(number, row) for number, row in some if not isinstance(row, Lost)]
            lost = [replace(row, row_number=number) for number, row in some if isinstance(row, Lost)]
            columns = {name: [row[name] for _, row in good] for name in (good[0][1] if good else {})}
            yield make_batch(columns, [number for number, _ in good], lost)

    def remarks(self) -> list[str]:
        """Return remarks on tars of this machine.

        Fields that no sample at their starts has, and names that several tars use.
        """
        if storage.is_remote(self.path):
            return []
        fields, shards, unseen = self.settings.read_fields, self._shards(), self.settings.own_names()
        num_tars: Counter[str] = Counter()  # by key
        for index in {0, len(shards.names) // 2, len(shards.names) - 1}:
            with suppress(BrokenTarError):  # a build says what it loses
                some = list(islice(_samples(shards.path(shards.names[index]), self.settings), _LOOKED_AT))
                num_tars.update({sample.key for sample in some})
                for sample in some:
                    with suppress(ValueError):
                        values_of(sample, fields.names(), {}, unseen)
        doubts = [f"none of the first samples has {_cure(unseen, shards)}"] if unseen else []
        shared = min((key for key, num in num_tars.items() if num > 1), default=None)
        if shared and (names := sorted(_NAMES_OF_SAMPLES.intersection([*fields.extra, fields.record_key]))):
            doubts.append(f"{', '.join(names)}: samples of several tars have the same, such as {shared!r}; {_WITH_TAR}")
        return doubts

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Tars, by their first samples."""
        return _guess(listing) if listing.form != "zip" and listing.ends(*TARS) else None

    def _shards(self) -> Shards:
        return find_files(self.path, self.where, *TARS)


def _rows(
    where: str, settings: WebdatasetSettings, shards: Shards, kept: KeptSamples | None
) -> Iterator[dict[str, str | None] | Lost]:
    """Yield a row or a lost one for each sample, without its number yet; `kept` gives samples of tars read before.

    Raises: ConfigError at the end, when no sample has a field that the settings name.
    """
    columns, unseen, num_rows = settings.read_fields.columns(), settings.own_names(), 0
    for name in shards.names:
        shard, stem = shards.path(name), stem_of_tar(name)
        listed: dict[str, dict[str, Any]] = {}
        unlisted = broken = None
        try:
            listed = parquet_rows(shards, shard, columns)
        except UNREADABLE as error:
            check_store(shard, error)
            side = f"{stem}.parquet cannot be read: {' '.join(str(error).split())[:100]}"
            unlisted = side if columns else None
            yield Lost(-1, "broken_shard", side)
        try:
            for sample in (kept and kept(name)) or _samples(shard, settings):
                record_key = f"{stem}/{sample.key}"
                row = _row(name, record_key, sample, settings, listed.pop(sample.key, {}), unseen)
                num_rows += not isinstance(row, Lost)
                lacks_columns = unlisted is not None and not isinstance(row, Lost)
                yield Lost(-1, "malformed_row", f"{record_key}: {unlisted}", record_key) if lacks_columns else row
        except BrokenTarError as error:
            broken = f"{name}: {error}"
            yield Lost(-1, "broken_shard", broken)
        for key, row in listed.items():
            seen = ": ".join(str(row[part]) for part in ("status", "error_message") if row.get(part))
            reason, why = ("broken_shard", broken) if broken and seen == "success" else ("no_image", seen or None)
            yield Lost(-1, reason, why, f"{stem}/{key}", row.get("url"))
    if unseen and num_rows:
        raise ConfigError(f"{where}: none of {num_rows:,} samples has {_cure(unseen, shards)}")


def _cure(unseen: set[str], shards: Shards) -> str:
    """Fields that are not there, and those that the first samples have."""
    endings, keys = _first_samples(shards.path(shards.names[0]))
    there = sorted([*endings, *(f"json.{key}" for key in keys)])
    return f"{', '.join(sorted(unseen))}, and `fields` asks for it; they have {', '.join(there) or 'no texts'}"


def _row(
    shard: str, record_key: str, sample: Sample, settings: WebdatasetSettings, listed: dict[str, Any], unseen: set[str]
) -> dict[str, str | None] | Lost:
    """One sample as a row, or the reason why it is none."""
    ending = sample.picture(settings.suffixes)
    if ending is None:
        faults = [f"{extension}, which {fault}" for extension, fault in sample.faults.items()]
        there = ", ".join(sorted([*sample.texts, *sample.pictures, *faults])) or "no member that is read"
        return Lost(-1, "no_image", f"{record_key} has {there}", record_key)
    fields = settings.read_fields
    try:
        values = values_of(sample, [*fields.names(), *_OF_EXIF.values()], listed, unseen)
    except ValueError as error:
        return Lost(-1, "malformed_row", f"{record_key}: {error}", record_key)
    row = {name: values[mapped] for name in (*PLAIN_COLUMNS, "url") if (mapped := getattr(fields, name)) is not None}
    for name, field in _OF_EXIF.items():
        row[name] = row.get(name) or holder_in(tidy(values[field] or "")) or None
    row["locator"] = make_locator(shard, *sample.pictures[ending])
    row["group_id"] = values[fields.group] if fields.group else None
    row["record_key"] = values[fields.record_key] if fields.record_key else record_key
    names = [fields.caption] if isinstance(fields.caption, str) else fields.caption or []
    captions = [text for name in names if (text := values[name]) and text.strip()]
    captions = captions if len(captions) < 2 else [first_text(text) for text in captions]
    row["caption"] = " ".join(captions[:1] if fields is _USUAL_FIELDS else captions) or None
    if fields.extra:
        row["extra"] = extra_json({name: values[name] for name in fields.extra})
    return row


def _samples(shard: str, settings: WebdatasetSettings) -> Iterator[Sample]:
    """Yield the samples of a shard, in its order. Raises: BrokenTarError."""
    fs, inner = storage.filesystem(shard)
    with fs.open(inner, "rb") as stream:
        yield from samples_in(unpacked(stream, shard), settings.read_fields.texts(), settings.suffixes)


def _misnamed(name: str, head: bytes) -> str | None:
    """Why a tar is not packed as its name says, by its first bytes, and the cure; None where it is."""
    named, there = packing_of(name), compression_of(head)
    if named == there or not head:
        return None
    if there is not None:
        endings = [ending for ending, packing in COMPRESSED_TARS.items() if packing == there]
        return f"is compressed ({there}); {f'name it {endings[0]}' if endings else 'unpack it'}"
    if head[257:262] == b"ustar":
        return f"is a tar that is not compressed ({named}), in spite of its name; name it .tar"
    return f"is not compressed ({named}) as its name says; it begins with {head[:20]!r}: download it again"


# ---- what init sees


def _guess(listing: Listing) -> Place:
    path = listing.path
    files = find_files(path, path, *TARS)
    endings, keys = _first_samples(files.path(files.names[0]))
    few = {files.names[len(files.names) // 2], files.names[-1]}
    for name in few if storage.is_remote(path) else files.names[1:]:
        with suppress(ConfigError):  # that one breaks off, as a build will say
            more_endings, more_keys = _first_samples(files.path(name), _LOOKED_AT if name in few else 1)
            endings, keys = endings | more_endings, keys | more_keys
    columns = first_columns(files) or []
    guess = Place({"path": path}, f"webdataset tars, {len(files.names):,} of them", mapping="fields")
    made = " with img2dataset's Parquet beside them" if {"key", "status", "url"} <= set(columns) else ""
    guess.words += f"{made} (sure: the first one was opened)"
    fields = guess.fields
    if "url" in keys:
        fields["url"] = "json.url"
    for caption in [name for name, there in (("txt", "txt" in endings), ("json.caption", "caption" in keys)) if there]:
        fields.setdefault("caption", caption)
    licence = _licence_field(keys, columns)
    if "caption" not in fields:
        guess.missing.append(f"captions of {path}: its samples have neither a .txt nor a json key `caption`")
    if licence:
        fields["licence"] = licence
        guess.comments["licence"] = "likely, from its name"
    if licence and "caption" in fields:
        guess.settings["fields"] = fields
    guess.states_licence = licence is not None
    guess.could_keep = ["__key__", *(f"json.{key}" for key in sorted(keys)), *(f"parquet.{name}" for name in columns)]
    keyed = WebdatasetSettings(path=path, fields=ShardFields(extra=["__key__"]))
    if doubts := WebdatasetReader(keyed, path).remarks():
        guess.missing += [f"{path}: {doubt}" for doubt in doubts]
        guess.could_keep = [name for name in guess.could_keep if name not in _NAMES_OF_SAMPLES]
    return guess


def _first_samples(shard: str, num_samples: int = _LOOKED_AT) -> tuple[set[str], set[str]]:
    """Extensions of the texts of the first samples, and keys of the first json among them."""
    endings: set[str] = set()
    keys: set[str] = set()
    with reading(shard, shard, "as a tar"):
        try:
            for sample in islice(_samples(shard, WebdatasetSettings(path=shard)), num_samples):
                endings |= set(sample.texts)
                if "json" in sample.texts and not keys:
                    keys = set(parse_json(sample.texts["json"]))
        except BrokenTarError as error:
            raise ConfigError(f"{shard} cannot be read as a tar: {error}") from None
    return endings, keys


def _licence_field(keys: set[str], columns: Sequence[str]) -> str | None:
    spellings = ("licence", "license", "licensename", "rights")
    for prefix, names in (("json", sorted(keys)), ("parquet", columns)):
        for name in names:
            if plain(name) in spellings:
                return f"{prefix}.{name}"
    return None
