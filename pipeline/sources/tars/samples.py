"""Samples of tars (what a sample is: `manifests/samples/tars.py`) that are read once, front to back.

Rows of Parquet that hold pictures (picture_rows.py) are read, kept and known in the same way: what is said here of a
tar holds for such a file too.

`pass_samples` hashes every member and hands on the bytes of the picture that counts, so that nothing must be read
again. What it learnt of the samples is kept as rows of SAMPLES. Memory: one sample. Raises BrokenTarError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.samples.tars import Sample, samples_in
from manifests.samples.unpacking import Unpacked, packing_of
from manifests.services.untrusted import BrokenTarError, Member
from pipeline.sources.files import make_locator, split_locator
from pipeline.sources.tars.front_to_back import FrontToBack, Ranges

_CHUNK_BYTES = 1 << 20
_TEXT = pa.map_(pa.string(), pa.binary())
SAMPLES = pa.schema(
    [
        ("source", pa.string()),
        ("tar", pa.string()),  # its name below the root of the source
        ("key", pa.string()),  # null: not a sample, but the place where the tar breaks off
        ("texts", _TEXT),  # by extension
        ("faults", pa.map_(pa.string(), pa.string())),  # why members cannot be read, by extension
        ("ending", pa.string()),  # extension of the picture; null: there is none
        ("locator", pa.string()),
        ("sha256", pa.string()),  # of the picture
        ("digest", pa.binary(32)),  # of names, places and bytes of all members
        ("stop", pa.int64()),  # where the next sample begins
        ("broken", pa.string()),
    ]
)


KeptSamples = Callable[[str], Iterator[Sample] | None]
"""The samples of a tar by its name, where it was read before."""


@dataclass(frozen=True)
class StoredTars:
    """Tars of a source that lie in a store, and which members of their samples count.

    `key_of` gives the source's own key of a sample, by the name of its tar.
    """

    root: str
    names: tuple[str, ...]
    suffixes: tuple[str, ...]
    texts: tuple[str, ...]
    key_of: Callable[[str, Sample], str | None]

    @property
    def members(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Pictures and texts that are kept, but for the texts that always are."""
        return self.suffixes, tuple(text for text in self.texts if not _is_plain_text(text))

    @contextmanager
    def passing(
        self, path: str, stamp: str | None, num_bytes: int, start: int, max_body_bytes: int
    ) -> Iterator[tuple[Ranges, Iterator[PassedSample]]]:
        """Yield the file at `path` and its samples from a position on."""
        packing = packing_of(path)
        with FrontToBack(path, stamp, num_bytes, 0 if packing else start) as file:
            yield file, pass_samples(Unpacked(file, packing) if packing else file, start, self, max_body_bytes)

    def end_of(self, offset: int, length: int) -> int:
        """Return the byte behind a picture, by its locator."""
        return offset + length


@dataclass(frozen=True)
class PassedSample:
    """A sample of a tar that goes by: a digest of it all, and its picture's hash and bytes (None: too many)."""

    sample: Sample
    digest: bytes
    sha256: str | None
    body: bytes | None


def pass_samples(stream: Any, start: int, tars: StoredTars, max_body_bytes: int) -> Iterator[PassedSample]:
    """Yield the samples of a tar from the header at `start` on, while all of its bytes go by once.

    Raises: BrokenTarError.
    """
    passing = _Passing(stream, tars.suffixes, max_body_bytes)
    for sample in samples_in(stream, _Texts(tars.texts), tars.suffixes, start, passing.look):
        yield passing.cut(sample)


class _Texts(frozenset[str]):
    """The extensions that a source names, and all plain texts: a config may name them later."""

    def __contains__(self, extension: object) -> bool:
        return super().__contains__(extension) or _is_plain_text(str(extension))


class _Passing:
    """Hashes every member, and holds the picture that counts until its sample ends."""

    def __init__(self, stream: Any, suffixes: Sequence[str], max_body_bytes: int) -> None:
        self._stream, self._suffixes, self._max_body_bytes = stream, suffixes, max_body_bytes
        self._begin()

    def _begin(self) -> None:
        self._digest = hashlib.sha256()
        self._pictures: dict[str, tuple[str, bytes | None]] = {}

    def look(self, member: Member, extension: str) -> None:
        """Read a member."""
        is_picture = extension in self._suffixes and member.fault is None
        better = self._suffixes[: self._suffixes.index(extension)] if is_picture else ()
        is_first = is_picture and not self._pictures.keys() & set(better)
        body = bytearray() if is_first and member.num_bytes <= self._max_body_bytes else None
        digest = hashlib.sha256()
        self._stream.seek(member.offset)
        left = member.num_bytes
        while left and (chunk := self._stream.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
            if body is not None:
                body += chunk
        of_member = f"{member.name}\0{member.offset}\0{member.num_bytes}\0{digest.hexdigest()}\n"
        self._digest.update(of_member.encode())
        if is_picture:
            self._pictures[extension] = (digest.hexdigest(), None if body is None else bytes(body))

    def cut(self, sample: Sample) -> PassedSample:
        """Cut off the members since the last cut, as this sample."""
        sha256, body = self._pictures.get(sample.picture(self._suffixes) or "", (None, None))
        passed = PassedSample(sample, self._digest.digest(), sha256, body)
        self._begin()
        return passed


def _is_plain_text(extension: str) -> bool:
    return extension in ("txt", "json") or extension.endswith(".txt")


# ---- samples that are kept


def row_of(source: str, tar: str, passed: PassedSample, suffixes: Sequence[str]) -> dict[str, Any]:
    """Return a sample as a row of SAMPLES."""
    sample = passed.sample
    ending = sample.picture(suffixes)
    return {
        "source": source,
        "tar": tar,
        "key": sample.key,
        "texts": list(sample.texts.items()),
        "faults": list(sample.faults.items()),
        "ending": ending,
        "locator": make_locator(tar, *sample.pictures[ending]) if ending else None,
        "sha256": passed.sha256,
        "digest": passed.digest,
        "stop": sample.stop,
    }


def kept_samples(paths: Iterable[str], tars: StoredTars) -> KeptSamples:
    """Return the samples in files of SAMPLES; the files of a tar follow one another."""
    named = [(pq.read_table(path, columns=["tar"])["tar"], path) for path in paths]
    by_tar = {
        name: [path for _, path in some]
        for name, some in groupby(((tar[0].as_py(), path) for tar, path in named if len(tar)), lambda pair: pair[0])
    }
    return lambda name: _read_kept(by_tar[name], tars) if name in by_tar else None


def _read_kept(paths: Sequence[str], tars: StoredTars) -> Iterator[Sample]:
    members = {*tars.texts, *tars.suffixes}
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                if row["key"] is None:
                    raise BrokenTarError(row["broken"])
                texts, faults = (
                    {name: value for name, value in row[part] if name in members} for part in ("texts", "faults")
                )
                pictures = {row["ending"]: split_locator(row["locator"])[1:]} if row["ending"] else {}
                yield Sample(row["key"], texts, pictures, faults)


def content_of(paths: Iterable[str]) -> str:
    """Return a digest of a tar by the files of its samples.

    Names, places and bytes of all members, and where it breaks.
    """
    digest = hashlib.sha256()
    for path in paths:
        for row in pq.read_table(path, columns=["digest", "broken"]).to_pylist():
            digest.update(row["digest"] or row["broken"].encode())
    return digest.hexdigest()
