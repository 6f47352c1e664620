"""The release record: what a sealed dataset is, and the one way to open it.

A release is a folder. `release.json` is written last: without it there is no release. It names every other file with
its size and sha256. `Release.open` reads the record and compares sizes; `wrong_hashes` reads every byte.
A release may come from a stranger, so every name in its record is checked by `plain_name` when the record is read.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import ConfigError, IntegrityError
from manifests.names.species import species_of
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.faults import ask
from manifests.stores.storage import read_if_there

RECORD_FILE = "release.json"
LATEST_FILE = "LATEST"
SAMPLES_FILE = "samples.parquet"
CROISSANT_FILE, CITATION_FILE = "croissant.json", "CITATION.cff"  # written beside a release where it is published
_BESIDE = {RECORD_FILE, CROISSANT_FILE, CITATION_FILE, ".gitattributes"}  # the last one is the Hub's own
FORMAT = "plantmix-release/1"
WHEN_DAMAGED = "`plantmix repair WORKDIR` makes it again; outside a work folder, take a whole copy"
_BATCH_ROWS, _ID_DIGITS = 50_000, 32
_GENUS, _SPECIES = "taxon_genus", "taxon_species"
_NEEDED = {"name": str, "version": str, "fingerprint": str, "splits": dict, "files": dict}
SPLIT_FOLDERS = {"train": "shards", "heldout": "heldout"}


def plain_name(text: object) -> str:
    """Return the name of one file, release or domain.

    It leads nowhere else and means nothing to a shell, YAML or Markdown.

    Raises: ValueError for any other text.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", text):
        raise ValueError(f"{str(text)[:100]!a} is no plain name (letters, digits, _ . + -)")
    return text


@dataclass(frozen=True)
class Release:
    """An opened release: where it lies and what its record says."""

    path: str
    record: Mapping[str, Any]

    @classmethod
    def open(cls, path: str) -> Release:
        """Open a release folder, a work folder (its newest release), or WORKDIR/releases/NAME (newest of that name).

        Checks that the record is there and readable and that every file has the size it names.

        Raises: ConfigError when there is no sealed release; IntegrityError when a file is missing or of another size.
        """
        folder = _resolve(path)
        record = read_record(folder)
        release = cls(folder, record)
        wrong = list(release.wrong_sizes())
        if wrong:
            raise IntegrityError(
                f"{folder}: {len(wrong)} of {len(record['files'])} files differ from the record; first: {wrong[0]}. "
                + WHEN_DAMAGED
            )
        return release

    @property
    def name(self) -> str:
        """Folder name, NAME-VERSION."""
        return f"{self.record['name']}-{self.record['version']}"

    @property
    def fingerprint(self) -> str:
        """Identity of the content. Equal fingerprints mean equal bytes."""
        return str(self.record["fingerprint"])

    @property
    def origin(self) -> str:
        """Fingerprint of the release as it was built, before any takedown."""
        takedowns = self.record.get("takedowns") or [self.record]
        return str(takedowns[0]["fingerprint"])

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold samples."""
        return tuple(self.record["splits"])

    def num_samples(self, split: str) -> int:
        """Return samples in a split, repeats counted."""
        return int(self.record["splits"][self._known(split)]["num_samples"])

    @property
    def kind(self) -> str:
        """`mixed` (the ratio is baked in) or `stratified` (each training shard holds one domain)."""
        return str(self.record.get("kind", "mixed"))

    def shards(self, split: str, domain: str | None = None) -> list[str]:
        """File names of the shards of a split, in order. With `domain`, only the shards that hold samples of it."""
        shards = self.record["splits"][self._known(split)]["shards"]
        return [plain_name(shard["shard"]) for shard in shards if domain is None or domain in shard["domains"]]

    def num_by_domain(self) -> dict[str, int]:
        """Training samples of each domain, repeats counted."""
        counts: Counter[str] = Counter()
        for shard in self.record["splits"][self._known("train")]["shards"]:
            counts.update(shard["domains"])
        return dict(sorted(counts.items()))

    def shard_path(self, split: str, shard: str) -> str:
        """Where a shard lies."""
        return path_of_shard(self.path, self._known(split), shard)

    def file(self, name: str) -> storage.WrittenFile:
        """Return a file as the record names it.

        Raises: IntegrityError for one that it does not name.
        """
        entry = self.record["files"].get(name)
        if entry is None:
            raise IntegrityError(f"{self.path}: its record names no {name}; take a whole copy")
        return storage.WrittenFile(storage.join(self.path, name), entry["num_bytes"], entry["sha256"])

    @property
    def workdir(self) -> str | None:
        """The work folder that it lies in, by its place alone; None when it lies elsewhere."""
        path = self.path if storage.is_remote(self.path) else str(Path(self.path).absolute())
        folder, _, name = path.rstrip("/").rpartition("/")[0].rpartition("/")
        return folder if name == "releases" else None

    def samples(self, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """One row for each placed sample, in shard order: its place in a shard, and what describes it.

        Species are binomials, also where the table has the epithet alone.

        Raises: IntegrityError for a table that is not as it was sealed.
        """
        path = self.sound_samples()
        fs, inner = storage.filesystem(path)
        where = None if split is None else pc.field("split") == self._known(split)
        names = None if columns is None else list(columns)
        read = names if names is None or _SPECIES not in names else list(dict.fromkeys((*names, _GENUS)))
        table = ask(path, lambda: pq.read_table(inner, filesystem=fs, filters=where, columns=read))
        if {_GENUS, _SPECIES} <= set(table.column_names):
            place = table.column_names.index(_SPECIES)
            table = table.set_column(place, _SPECIES, species_of(table[_GENUS], table[_SPECIES]))
        return table if names is None else table.select(names)

    def iter_samples(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Stream the rows of `samples`, with those of the columns that are there: 3 M rows at once take 1.6 GB.

        Raises: as `samples`.
        """
        with storage.open_file(self.sound_samples()) as stream, pq.ParquetFile(stream) as source:
            for batch in source.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])

    def iter_shards(
        self, columns: Sequence[str] | None = None, split: str | None = None
    ) -> Iterator[tuple[str, str, pa.Table]]:
        """Stream (split, shard, rows of samples.parquet) of every shard, in the order of the table."""
        names = None if columns is None else list(dict.fromkeys(("split", "shard", *columns)))
        waiting: pa.Table | None = None
        with storage.open_file(storage.join(self.path, SAMPLES_FILE)) as stream, pq.ParquetFile(stream) as source:
            for batch in source.iter_batches(_BATCH_ROWS, columns=names):
                rows = pa.Table.from_batches([batch])
                waiting = rows if waiting is None else pa.concat_tables([waiting, rows])
                runs = _runs(waiting)
                for start, num in runs[:-1]:  # the next batch may hold more of the last shard
                    yield from _named(waiting.slice(start, num), split)
                waiting = waiting.slice(runs[-1][0]) if runs else None
        if waiting is not None and waiting.num_rows:
            yield from _named(waiting, split)

    def wrong_sizes(self) -> Iterator[str]:
        """Files whose size is not the recorded one, each as one readable line."""
        there = storage.sizes_below(self.path)
        for name, entry in self.record["files"].items():
            size = there.get(name)
            if size is None:
                yield f"{name} is missing"
            elif size != entry["num_bytes"]:
                yield f"{name} has {size:,} bytes, the record says {entry['num_bytes']:,}"

    def wrong_hashes(self, shards: bool = True) -> Iterator[str]:
        """Files whose content is not the recorded one. Reads every byte; leaves shards out unless `shards`."""
        own = {f"{SPLIT_FOLDERS[split]}/{shard}" for split in self.splits for shard in self.shards(split)}
        for name in self.record["files"]:
            file = self.file(name)
            if (shards or name not in own) and not file.is_content_of(file.path):
                yield f"{name} has other content than when it was sealed"

    def unknown_files(self) -> Iterator[str]:
        """Files in the folder that neither the record names nor `plantmix publish` puts beside it."""
        for name in storage.sizes_below(self.path):
            if name not in _BESIDE and name not in self.record["files"]:
                yield f"{name} is not part of the release"

    def sound_samples(self) -> str:
        """Path of the samples table.

        Raises: IntegrityError for one that is not as it was sealed. Arrow reads it only after that: a changed byte can
            make it wait for ever.
        """
        table = self.file(SAMPLES_FILE)
        table.require_content(table.path)
        return table.path

    def _known(self, split: str) -> str:
        if split not in self.record["splits"]:
            taken = split in SPLIT_FOLDERS and self.record.get("takedowns")
            nothing = f"no {split} samples are left" if taken else f"no split '{split}'"
            raise ConfigError(f"{self.path}: {nothing} in this release; it has {', '.join(self.splits)}")
        return split


def path_of_shard(folder: str, split: str, shard: str) -> str:
    """Where a shard of the release in `folder` lies.

    Raises: IntegrityError for a split or shard, as a foreign samples table may name it, that no release has.
    """
    try:
        return storage.join(folder, SPLIT_FOLDERS[split], plain_name(shard))
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{folder}: no shard of a release: {error}") from None


def require_output(path: str, is_own: Callable[[bytes], bool]) -> None:
    """See that what a command writes lies in no release, and replaces only what an earlier call of it wrote.

    Raises: ConfigError; RetryableError when a store does not answer.
    """
    refuse_within(path)
    content = read_if_there(path)
    if content and not is_own(content):
        raise ConfigError(f"{path}: is there, and this command did not write it; choose another name, or move it away")


def refuse_within(place: str) -> None:
    """See that a place to write to lies in no release, which would not verify any more.

    Raises: ConfigError; RetryableError when a store does not answer.
    """
    folder = place.rstrip("/") if storage.is_remote(place) else str(Path(place).absolute())
    while folder and not folder.endswith(":/"):
        with suppress(OSError):  # of a folder that is not ours to read
            if json_object(read_if_there(storage.join(folder, RECORD_FILE))).get("format") == FORMAT:
                raise ConfigError(f"{place}: lies in the sealed release {folder}; choose a place outside of it")
        folder = folder.rpartition("/")[0]


def _runs(rows: pa.Table) -> list[tuple[int, int]]:
    """Start and length of each run of rows of one shard."""
    encoded = pc.run_end_encode(pc.binary_join_element_wise(rows["split"], rows["shard"], "/").combine_chunks())
    ends = [0, *encoded.run_ends.to_pylist()]
    return [(start, end - start) for start, end in itertools.pairwise(ends)]


def _named(rows: pa.Table, split: str | None) -> Iterator[tuple[str, str, pa.Table]]:
    own = str(rows["split"][0])
    if split is None or own == split:
        yield own, str(rows["shard"][0]), rows


def samples_named(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the sample ids in names that `dalip embed` gives: alone, behind a path, or as the key in a shard."""
    return pc.utf8_slice_codeunits(pc.replace_substring_regex(names, r"^.*/", ""), 0, _ID_DIGITS)


def newest_of_several(path: str) -> str | None:
    """Return a line where a work folder holds releases of several names.

    A build of another config changes which is read.
    """
    pointers: list[str] = []
    with suppress(Exception):  # a store may show a release, and list nothing to whom it does not know
        matches = storage.find_matches(storage.join(path, "releases", f"*.{LATEST_FILE}"))
        pointers = [file.rpartition("/")[2] for file in matches]
    names = sorted(pointer.removesuffix(f".{LATEST_FILE}") for pointer in pointers)
    if len(names) < 2:
        return None
    newest = Release.open(path)
    return (
        f"{newest.name} ({newest.kind}) is the newest release of {path}, which has releases of {len(names)} names "
        f"({', '.join(names)}); write {storage.join(path, 'releases', newest.record['name'])} to stay with this one"
    )


def is_release(path: str) -> bool:
    """Return whether `path` stands for a sealed release, as `Release.open` takes it.

    Raises: IntegrityError for a pointer to a release that holds no name.
    """
    try:
        _resolve(path)
    except ConfigError:
        return False
    return True


def _resolve(path: str) -> str:
    """Return the release folder that `path` stands for."""
    if name := _pointed_at(f"{path.rstrip('/')}.{LATEST_FILE}"):  # WORKDIR/releases/NAME, without a version
        return storage.join(path.rstrip("/").rpartition("/")[0] or ".", name)
    for folder in (path, storage.join(path, "releases")):
        if read_if_there(storage.join(folder, RECORD_FILE)) is not None:
            return folder
        if name := _pointed_at(storage.join(folder, LATEST_FILE)):
            return storage.join(folder, name)
    raise ConfigError(
        f"{path}: no sealed release here (no {RECORD_FILE}); give a release folder, or a work folder "
        "in which `plantmix build` has finished"
    )


def _pointed_at(pointer: str) -> str | None:
    """Return the name of the release that a pointer file holds; None where there is none.

    Raises: IntegrityError when it holds anything else.
    """
    content = read_if_there(pointer)
    try:
        return None if content is None else plain_name(content.decode().strip())
    except ValueError as error:
        raise IntegrityError(f"{pointer}: {error}; write the name of a release folder into it") from None


def read_record(folder: str) -> dict[str, Any]:
    """Return the record of the release in a folder.

    Raises: ConfigError when there is none, or one of another format; IntegrityError when it is not whole, or holds a
        name that is not plain.
    """
    content = read_if_there(storage.join(folder, RECORD_FILE))
    if content is None:
        raise ConfigError(f"{folder}: no sealed release here (no {RECORD_FILE})")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{folder}/{RECORD_FILE}: not valid JSON: {error}. {WHEN_DAMAGED}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        stated = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"{folder}/{RECORD_FILE}: format {stated!r}, this version reads {FORMAT!r}")
    lacking = [name for name, kind in _NEEDED.items() if not isinstance(record.get(name), kind)]
    splits = [] if lacking else list(record["splits"].values())
    if not all(isinstance(split, dict) and {"num_samples", "shards"} <= split.keys() for split in splits):
        lacking = ["splits"]
    if lacking:
        raise IntegrityError(
            f"{folder}/{RECORD_FILE}: not a whole record, {', '.join(lacking)} missing or of another kind; take a "
            "whole copy"
        )
    try:
        _check_names(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(
            f"{folder}/{RECORD_FILE}: {error}; `plantmix` did not write this record, so it is not used"
        ) from None
    shards = [
        f"{SPLIT_FOLDERS[name]}/{s['shard']}" for name, split in record["splits"].items() for s in split["shards"]
    ]
    if unlisted := [path for path in shards if path not in record["files"]]:
        raise IntegrityError(
            f"{folder}/{RECORD_FILE}: not a whole record, {len(unlisted)} of {len(shards)} shards are not among its "
            f"files, first: {unlisted[0]}. {WHEN_DAMAGED}"
        )
    return record


def _check_names(record: Mapping[str, Any]) -> None:
    """Raise ValueError and the like for the first name that could lead out of the release or into a command."""
    for text in (record["name"], record["version"], record.get("kind", "mixed"), record["fingerprint"]):
        plain_name(text)
    for split, entry in record["splits"].items():
        if split not in SPLIT_FOLDERS:
            raise ValueError(f"{split!a} is no split; there are {', '.join(SPLIT_FOLDERS)}")
        for shard in entry["shards"]:
            for text in (shard["shard"], *shard.get("domains", {}).keys()):
                plain_name(text)
    for path, file in record["files"].items():
        for part in path.split("/"):
            plain_name(part)
        if not isinstance(file["num_bytes"], int) or not isinstance(file["sha256"], str):
            raise ValueError(f"{path}: its size is no whole number, or its sha256 no text")
    for text in (record.get("counts") or {}).get("domains", {}):
        plain_name(text)
