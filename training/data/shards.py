"""Samples of releases and groups of shards: which rows there are, how they are divided, their bytes out of the shards.

Reads the sample tables and shards of one or several releases: local ones by offset, others out of a cache of whole
shards (`manifests.stores.cache`) or, for a few samples and for shards too large for it, by fsspec in ranges. A group
of shards that PlantMix did not build (`training.data.shard_index`) counts as a release. Writes nothing else. Gives up
with IntegrityError on a shard that is gone or shorter than its table says, with RunError or RetryableError on storage
that does not answer, and with ConfigError on a split or domain that is not there.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.contract.release import SPLIT_FOLDERS, Release
from manifests.errors import ConfigError, IntegrityError, RetryableError, RunError
from manifests.samples.tars import only_sample_in
from manifests.services.untrusted import BrokenTarError, tar_members
from manifests.stores.cache import SHARE_AHEAD, ShardCache
from manifests.stores.ranges import read_ranges
from manifests.stores.storage import WrittenFile, is_remote
from training.data.foreign import ForeignShard, is_elsewhere, shown
from training.data.sampling import Stratum
from training.data.shard_index import ShardRelease
from training.data.texts import NO_TEXT, texts_of_sample

_BLOCK_BYTES = 512  # of the tar format
_TEXT_TAIL_BYTES = 64 << 10  # read after the `txt` of the last sample of a shard, for its further text members
_MAX_OPEN_SHARDS = 256
_TABLE_COLUMNS = ("sample_id", "domain", "shard", "position", "key")
OFFSETS = ("jpg_offset", "jpg_length", "txt_offset", "txt_length")


@dataclass(frozen=True)
class SamplePool:
    """All samples of a split of one or several releases, a row each, in the order of shard and position."""

    table: pa.Table  # sample_id, domain, key
    files: tuple[WrittenFile, ...]  # the shards, as the records of their releases name them
    shards: NDArray[np.int32]  # (N,) index into files
    releases: NDArray[np.int16]  # (N,) number of the release
    offsets: dict[str, NDArray[np.int64]]  # jpg_offset, jpg_length, txt_offset, txt_length; (N,) bytes
    fingerprints: tuple[str, ...]  # of the releases
    paths: tuple[str, ...]  # of the releases
    stratified: tuple[bool, ...]  # of each release: its shards hold one domain each
    split: str
    members: tuple[tuple[str, ...] | None, ...]  # of each group of shards: the texts asked for; None for a release
    notes: tuple[str, ...]  # what was left out

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def domains(self) -> list[str]:
        """Names of the domains that have samples, sorted."""
        return _distinct(self.table["domain"])

    def names(self, rows: Sequence[int]) -> list[str]:
        """`sample_id (SHARD/KEY)` of some rows, for messages."""
        chosen = self.table.take(pa.array(rows, pa.int64()))
        return [
            f"{sample} ({self.files[self.shards[row]].path.rpartition('/')[2]}/{key})"
            for row, sample, key in zip(rows, chosen["sample_id"].to_pylist(), chosen["key"].to_pylist(), strict=True)
        ]

    def cure_of(self, rows: Sequence[int]) -> str:
        """Return the cure for broken samples."""
        numbers = self.releases[np.asarray(rows, np.int64)].tolist()
        if any(self.members[number] is not None for number in numbers):
            return "mend or leave out these samples of data.shards"
        return "run `plantmix verify --deep` on the release"

    def remote_shards(self, rows: Sequence[int]) -> list[WrittenFile]:
        """Return the shards of some rows that do not lie on this machine, in the order of their first row."""
        numbers = dict.fromkeys(self.shards[np.asarray(rows, np.int64)].tolist())
        return [self.files[number] for number in numbers if is_elsewhere(source_of(self.files[number]))]


def source_of(file: WrittenFile) -> str:
    """Return the address that is opened to read a shard."""
    return file.source if isinstance(file, ForeignShard) else file.path


def is_read_in_ranges(file: WrittenFile, cache: ShardCache | None) -> bool:
    """Return whether a shard is never copied to this machine as a whole."""
    if not is_remote(source_of(file)):
        return False
    too_large = cache is not None and file.num_bytes > cache.max_bytes // SHARE_AHEAD
    return cache is None or (too_large and isinstance(file, ForeignShard) and file.has_ranges)


def open_pool(releases: Sequence[Release | ShardRelease], split: str) -> SamplePool:
    """Return the samples of `split` of verified releases, and of the groups of shards that are of this split.

    Raises: ConfigError when a release has no such split or no sample in it; IntegrityError for an unrecorded shard.
    """
    tables: list[pa.Table] = []
    files: list[WrittenFile] = []
    shards, numbers = [], []
    groups = [release for release in releases if isinstance(release, ShardRelease)]
    for number, release in enumerate(releases):
        if isinstance(release, ShardRelease):
            if release.split != split:
                continue
            table, codes = release.table, release.table["shard"].to_numpy()
            shards.append(codes.astype(np.int32) + len(files))
            files += release.files
        else:
            table = _split_table(release, split)
            names, codes = _codes(table["shard"])
            shards.append(codes.astype(np.int32) + len(files))
            files += [release.file(f"{SPLIT_FOLDERS[split]}/{name}") for name in names]
        numbers.append(np.full(len(table), number, np.int16))
        tables.append(table.select(["sample_id", "domain", "key", *OFFSETS]))
    if not tables:
        raise ConfigError(f"data.shards: no group is of split '{split}'; give one, or take a split that there is")
    table = pa.concat_tables(tables, promote_options="permissive")
    offsets = {name: table[name].to_numpy().astype(np.int64) for name in OFFSETS}
    return SamplePool(
        table.select(["sample_id", "domain", "key"]).combine_chunks(),
        tuple(files),
        np.concatenate(shards),
        np.concatenate(numbers),
        offsets,
        tuple(release.fingerprint for release in releases),
        tuple(str(release.path) for release in releases),
        tuple(isinstance(release, ShardRelease) or release.kind == "stratified" for release in releases),
        split,
        tuple(release.members if isinstance(release, ShardRelease) else None for release in releases),
        tuple(note for group in groups if group.split == split for note in group.notes),
    )


def strata_of(
    pool: SamplePool,
    release_weights: Sequence[float] | None,
    mixture: Mapping[str, float] | None,
    pool_samples: Mapping[str, int] | None = None,
) -> tuple[Stratum, ...]:
    """Divide the pool into strata: rows that are drawn together.

    Without any argument all rows are one stratum. `release_weights` gives each release its share, and `mixture` each
    domain its share: within its release when both are given. A domain that the mixture does not name is left out.
    Without a mixture the domains of a stratified release are drawn in proportion to their sizes; in the order of its
    shards a batch would hold one domain. `pool_samples` first cuts domains to that many samples (`cut_pools`).

    Raises: ConfigError for a domain that no release has, or that has fewer samples than it is cut to, and for a
    release with a share and none of the mixture's domains.
    """
    _check_domains(pool, "mixture", mixture)
    _check_domains(pool, "pool_samples", pool_samples)
    rows = np.arange(len(pool), dtype=np.int64) if pool_samples is None else cut_pools(pool, pool_samples)
    if release_weights is None and mixture is None and not any(pool.stratified):
        return (Stratum("all", rows, pool.shards[rows], 1.0),)
    groups = _groups(pool, rows, mixture)
    strata = []
    for number, members in groups.items():
        within = sum(weight for _, weight, _ in members)
        # Without weights each release counts once under a mixture, and each sample once under none.
        share = release_weights[number] if release_weights is not None else within if mixture is None else 1.0
        if not members:
            domains = _distinct(pool.table["domain"].filter(pa.array(pool.releases == number)))
            wanted = sorted(name for name, share in (mixture or {}).items() if share > 0)
            raise ConfigError(
                f"{pool.paths[number]}: has no sample of the mixture's domains ({', '.join(wanted)}), so its weight "
                f"has no effect; take the release out or name one of its domains in data.mixture ({', '.join(domains)})"
            )
        for name, weight, rows in members:
            strata.append(Stratum(f"{number}:{name}", rows, pool.shards[rows], share * weight / within))
    return tuple(part for part in strata if part.weight > 0)


def cut_pools(pool: SamplePool, num_samples: Mapping[str, int]) -> NDArray[np.int64]:
    """Row numbers left when each named domain is cut to so many samples; a domain not named stays whole.

    Which samples stay follows from their ids alone, and a smaller cut is part of a larger one. So a run a tenth as
    long, over pools a tenth as large, repeats its samples as often as the long run will.

    Raises: ConfigError for a domain with fewer samples.
    """
    names, codes = _codes(pool.table["domain"])
    kept = np.ones(len(pool), bool)
    for domain, num in num_samples.items():
        rows = np.flatnonzero(codes == names.index(domain)) if domain in names else np.empty(0, np.int64)
        if len(rows) < num:
            raise ConfigError(
                f"pool_samples cuts domain '{domain}' to {num:,} samples, but it has {len(rows):,}; "
                "lower the number or leave the domain out of pool_samples"
            )
        ids = pool.table["sample_id"].take(pa.array(rows)).to_pylist()
        drawn = np.array([hashlib.blake2b(value.encode(), digest_size=8, person=b"pool").digest() for value in ids])
        kept[rows[np.argsort(drawn, kind="stable")[num:]]] = False
    return np.flatnonzero(kept)


class ShardReader:
    """Reads members by row. Shards stay open as long as the reader lives, and each process opens its own.

    Those of remote releases come out of the cache; without one they are read in ranges, one request a sample.
    """

    def __init__(self, pool: SamplePool, cache: ShardCache | None = None) -> None:
        self.pool, self._cache = pool, cache
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_descriptors": {}}  # a copy opens its own

    def __del__(self) -> None:
        if self._owner == os.getpid():  # after a fork the open files are the parent's
            for descriptor in self._descriptors.values():
                os.close(descriptor)

    def read(self, rows: Sequence[int], with_texts: bool) -> list[tuple[bytes, bytes, dict[str, str]]]:
        """Image bytes and text bytes of each row and, with `with_texts`, the further text members by name.

        Raises: IntegrityError when a shard ends before a sample does.
        """
        spans = [self._span(row, with_texts) for row in rows]
        pieces = self._fetch(rows, spans)
        return [self._cut(row, start, piece, with_texts) for row, (start, _), piece in
                zip(rows, spans, pieces, strict=True)]  # fmt: skip

    def _members(self, row: int) -> tuple[str, ...] | None:
        return self.pool.members[int(self.pool.releases[row])]

    def _span(self, row: int, with_texts: bool) -> tuple[int, int]:
        at = self.pool.offsets
        start = int(min(at["jpg_offset"][row], at["txt_offset"][row]))
        stop = int(max(at["jpg_offset"][row] + at["jpg_length"][row], at["txt_offset"][row] + at["txt_length"][row]))
        if with_texts and self._members(row) is None:
            follower = row + 1
            same = follower < len(self.pool) and self.pool.shards[follower] == self.pool.shards[row]
            next_start = int(at["jpg_offset"][follower]) - _BLOCK_BYTES if same else stop + _TEXT_TAIL_BYTES
            stop = max(stop, next_start)
        return start, stop

    def _fetch(self, rows: Sequence[int], spans: list[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each span; those of stores side by side.

        Raises: IntegrityError for a shard that is gone; RunError when its disk or store does not give it.
        """
        self._close_removed(rows)
        pieces: list[bytes] = [b""] * len(rows)
        of_stores: dict[int, tuple[str, int, int]] = {}
        for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
            file = self.pool.files[self.pool.shards[row]]
            if is_read_in_ranges(file, self._cache):
                of_stores[index] = (source_of(file), *span)
            else:
                pieces[index] = self._read_local(int(self.pool.shards[row]), *span)
        try:
            contents = read_ranges(list(of_stores.values()))
        except RetryableError as error:
            raise RunError(f"{error}; run the same command to go on") from None
        for (index, (source, _, _)), content in zip(of_stores.items(), contents, strict=True):
            if content is None:
                raise IntegrityError(
                    f"{shown(source)}: the shard is not there any more; copy or build the release anew"
                )
            pieces[index] = content
        return pieces

    def _read_local(self, shard: int, start: int, stop: int) -> bytes:
        try:
            return os.pread(self._descriptor(shard), stop - start, start)
        except OSError as error:
            path = self.pool.files[shard].path
            raise RunError(f"{path}: cannot be read ({error.strerror}); run the same command to go on") from None

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # after a fork the open files are the parent's
            self._descriptors, self._owner = {}, os.getpid()
        if shard not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_SHARDS:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            file = self.pool.files[shard]
            if is_elsewhere(source_of(file)):
                self._descriptors[shard] = (self._cache or ShardCache()).open(file)
                return self._descriptors[shard]
            try:
                self._descriptors[shard] = os.open(source_of(file), os.O_RDONLY)
            except OSError as error:
                raise IntegrityError(f"{file.path}: the shard cannot be read: {error.strerror}") from None
            if isinstance(file, ForeignShard):
                file.require_unchanged(os.fstat(self._descriptors[shard]))
        return self._descriptors[shard]

    def _close_removed(self, rows: Sequence[int]) -> None:
        """Tell the cache which shards are in use, and close those that it has removed: their bytes are still taken."""
        if self._cache is None or self._owner != os.getpid():
            return
        for shard in self.pool.remote_shards(rows):
            self._cache.has(shard)
        for number in [number for number, at in self._descriptors.items() if not os.fstat(at).st_nlink]:
            os.close(self._descriptors.pop(number))

    def _cut(self, row: int, start: int, piece: bytes, with_texts: bool) -> tuple[bytes, bytes, dict[str, str]]:
        at = {name: int(values[row]) for name, values in self.pool.offsets.items()}
        image = piece[at["jpg_offset"] - start :][: at["jpg_length"]]
        text = piece[at["txt_offset"] - start :][: at["txt_length"]]
        if len(image) < at["jpg_length"] or len(text) < at["txt_length"]:
            raise IntegrityError(
                f"{self.pool.names([row])[0]}: the shard ends before the sample does; run the same command again if "
                "the release is in a store (its shard is fetched anew), else `plantmix verify` on it"
            )
        texts: dict[str, str] = {}
        if (members := self._members(row)) is not None:
            texts = texts_of_sample(only_sample_in(text), members)
            text = texts.pop("txt", "").encode() if NO_TEXT not in texts else b""
        elif with_texts:
            tail = at["txt_offset"] - start + -(-at["txt_length"] // _BLOCK_BYTES) * _BLOCK_BYTES
            texts = text_members(piece[tail:], str(self.pool.table["key"][row].as_py()))
        return image, text, texts


def text_members(block: bytes, key: str) -> dict[str, str]:
    """Text members `KEY.NAME.txt` in a part of a tar that starts at a member header: name -> text. Empty is none."""
    texts: dict[str, str] = {}
    with suppress(BrokenTarError):  # the part ends within a member, or with other bytes
        for member in tar_members(io.BytesIO(block)):
            name = member.name.rpartition("/")[2]
            if member.fault is not None or not name.startswith(f"{key}."):
                break
            content = block[member.offset : member.offset + member.num_bytes]
            if name.endswith(".txt") and content.strip():
                texts[name[len(key) + 1 : -4]] = content.decode("utf-8", "replace")
    return texts


def _split_table(release: Release, split: str) -> pa.Table:
    if split not in release.splits:
        raise ConfigError(f"{release.path}: the release has no split '{split}' (it has: {', '.join(release.splits)})")
    table = release.samples(split, [*_TABLE_COLUMNS, *OFFSETS])
    if len(table) == 0:
        raise ConfigError(f"{release.path}: the split '{split}' holds no samples")
    return table.sort_by([("shard", "ascending"), ("position", "ascending")])


def _groups(
    pool: SamplePool, rows: NDArray[np.int64], mixture: Mapping[str, float] | None
) -> dict[int, list[tuple[str, float, NDArray[np.int64]]]]:
    """For each release: name, weight and rows of its strata; without a mixture the weight is the number of rows."""
    names, codes = _codes(pool.table["domain"])
    groups: dict[int, list[tuple[str, float, NDArray[np.int64]]]] = {}
    for number in np.unique(pool.releases).tolist():
        here = rows[pool.releases[rows] == number]
        if mixture is None and not pool.stratified[number]:
            groups[number] = [("all", float(len(here)), here)]
            continue
        # Sorted by name: the order in which a config lists its domains must not change what is drawn.
        kept = sorted(names if mixture is None else mixture)
        parts = [(name, here[codes[here] == names.index(name)]) for name in kept]
        weighed = [(name, float(len(rows)) if mixture is None else mixture[name], rows) for name, rows in parts]
        groups[number] = [member for member in weighed if len(member[2]) and member[1] > 0]
    return groups


def _check_domains(pool: SamplePool, what: str, values: Mapping[str, Any] | None) -> None:
    if unknown := sorted(set(values or {}) - set(pool.domains)):
        raise ConfigError(
            f"the {what} names {', '.join(map(repr, unknown))}, but the release has the domains "
            f"{', '.join(pool.domains)}"
        )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct strings of a column, sorted, and each row's index among them."""
    names = _distinct(column)
    codes = pc.fill_null(pc.index_in(column, value_set=pa.array(names, pa.string())), -1)
    return names, codes.to_numpy().astype(np.int64)


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return sorted(value for value in pc.unique(column).to_pylist() if value is not None)
