"""Samples of tars: members that lie side by side and share a key, one picture and the texts around it.

`samples_in` gives them as they lie. `pass_samples` reads a tar of a store once, front to back: it hashes every member
and hands on the bytes of the picture that counts, so that nothing must be read again. What it learnt of the samples is
kept as rows of SAMPLES. Memory: one sample. An odd member costs its sample alone. Raises BrokenTarError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.services.untrusted import BrokenTarError, Member, tar_members
from pipeline.sources.files import make_locator, split_locator
from pipeline.sources.limits import MAX_TEXT_BYTES

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


@dataclass
class Sample:
    """The members of one key by extension: texts, where its pictures lie, and why others are not read."""

    key: str
    texts: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    stop: int | None = None
    """Where the next sample begins; None: nothing follows."""

    def ending(self, suffixes: Sequence[str]) -> str | None:
        """The extension of the picture that counts: the first there is."""
        return next((suffix for suffix in suffixes if suffix in self.pictures), None)


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


@dataclass(frozen=True)
class PassedSample:
    """A sample of a tar that goes by: a digest of it all, and its picture's hash and bytes (None: too many)."""

    sample: Sample
    digest: bytes
    sha256: str | None
    body: bytes | None


def samples_in(
    stream: Any,
    texts: Collection[str],
    suffixes: Sequence[str],
    start: int = 0,
    look: Callable[[Member, str], None] | None = None,
) -> Iterator[Sample]:
    """The samples of a tar, in its order, from the header at `start` on; `look` sees every member and its extension.

    Raises: BrokenTarError. The last sample is lost with what lies behind the break, unless another one begins there.
    """
    here: Sample | None = None
    try:
        for member in tar_members(stream, start):
            key, extension = _key_of(member.name)
            if key and (here is None or key != here.key):
                if here is not None:
                    here.stop = member.begins
                    yield here
                here = Sample(key)
            if look is not None:
                look(member, extension)
            if key and here is not None and (extension in suffixes or extension in texts):
                _take(member, extension, extension in suffixes, here, stream)
    except BrokenTarError as error:
        place = here.key if here else "the first sample"
        if here is not None and error.member and _key_of(error.member)[0] not in ("", here.key):
            yield here
        raise BrokenTarError(f"{error}, in or behind {place}") from None
    if here is not None:
        yield here


def pass_samples(stream: Any, start: int, tars: StoredTars, max_body_bytes: int) -> Iterator[PassedSample]:
    """The samples of a tar from the header at `start` on, while all of its bytes go by once. Raises: BrokenTarError."""
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
        """What went by since the last cut, as this sample."""
        sha256, body = self._pictures.get(sample.ending(self._suffixes) or "", (None, None))
        passed = PassedSample(sample, self._digest.digest(), sha256, body)
        self._begin()
        return passed


def _is_plain_text(extension: str) -> bool:
    return extension in ("txt", "json") or extension.endswith(".txt")


def _take(member: Member, extension: str, is_picture: bool, sample: Sample, stream: Any) -> None:
    """Note where a picture lies, read a text, or note why neither can be done."""
    fault = member.fault
    if not is_picture and member.num_bytes > MAX_TEXT_BYTES:
        fault = f"has {member.num_bytes:,} bytes, more than {MAX_TEXT_BYTES:,}"
    if fault is not None:
        sample.faults[extension] = fault
    elif is_picture:
        sample.pictures[extension] = (member.offset, member.num_bytes)
    else:
        stream.seek(member.offset)
        sample.texts[extension] = stream.read(member.num_bytes)


def _key_of(name: str) -> tuple[str, str]:
    """Key and lower-case extension, cut at the first dot of the base name, as webdataset does; no key for __name__."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or (base.startswith("__") and base.endswith("__")):
        return "", ""
    return f"{folder}{slash}{stem}".removeprefix("./"), extension.lower()


# ---- samples that are kept


def row_of(source: str, tar: str, passed: PassedSample, suffixes: Sequence[str]) -> dict[str, Any]:
    """A sample as a row of SAMPLES."""
    sample = passed.sample
    ending = sample.ending(suffixes)
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
    """The samples in files of SAMPLES; the files of a tar follow one another."""
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
                place = {row["ending"]: split_locator(row["locator"])[1:]} if row["ending"] else {}
                yield Sample(row["key"], texts, place, faults)


def content_of(paths: Iterable[str]) -> str:
    """What a tar holds, by the files of its samples: names, places and bytes of all members, and where it breaks."""
    digest = hashlib.sha256()
    for path in paths:
        for row in pq.read_table(path, columns=["digest", "broken"]).to_pylist():
            digest.update(row["digest"] or row["broken"].encode())
    return digest.hexdigest()
