"""The rule that says which members of a tar make a sample, for all readers of both packages.

- Members that follow one another and have the same key are a sample. The key is the path up to the first dot of the
  file name; what follows is the ending, in lower case. Members without either, and `__NAME__`, belong to no sample.
- A member that comes again under the same key begins another sample.
- Of several pictures the first in the order of `endings.PICTURES` counts. A sample without one is told, not used.
- A text that is empty or blank is no text.
- A text of more than 1 MiB, a link, and the like are faults of their sample alone.
- Where a tar breaks off, the sample at the break is lost with all behind it.
- Tars behind one another in one file are read as one.

Reads a tar front to back, in the memory of one sample. Gives up with BrokenTarError.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE
from typing import Any

from manifests.samples.endings import PICTURES
from manifests.services.untrusted import BrokenTarError, Member, tar_members

MAX_TEXT_BYTES = 1 << 20
"""Of one text member of a tar, and of a text file beside a picture."""
_END_OF_TAR = bytes(2 * BLOCKSIZE)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class Sample:
    """The members of one key, by ending: texts, where its pictures lie, and why others are not read."""

    key: str
    texts: dict[str, bytes] = field(default_factory=dict)
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and number of bytes."""
    faults: dict[str, str] = field(default_factory=dict)
    begins: int = 0
    """Where its first header lies."""
    ends: int = 0
    """The byte behind its last member."""
    stop: int | None = None
    """Where the next sample begins; None: nothing follows."""
    endings: set[str] = field(default_factory=set)
    """Of all of its members."""

    def picture(self, endings: Sequence[str] = PICTURES) -> str | None:
        """Return the ending of the picture that counts; None: there is none."""
        return next((ending for ending in endings if ending in self.pictures), None)


class _AllTexts(Container[str]):
    """All endings but those of pictures: any member may hold a text that somebody asks for."""

    def __contains__(self, ending: object) -> bool:
        return ending not in PICTURES


ALL_TEXTS = _AllTexts()


def samples_in(
    stream: Any,
    texts: Container[str],
    pictures: Sequence[str] = PICTURES,
    start: int = 0,
    look: Callable[[Member, str], None] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of a tar, in its order, from the header at `start` on.

    Members with an ending among `texts` are read. `look` sees every member and its ending.

    Raises: BrokenTarError. The last sample is lost with what lies behind the break, unless another one begins there.
    """
    sample: Sample | None = None
    try:
        for member in tar_members(stream, start):
            key, ending = split_name(member.name)
            if key and (sample is None or key != sample.key or ending in sample.endings):
                if sample is not None:
                    sample.stop = member.begins
                    yield sample
                sample = Sample(key, begins=member.begins)
            if look is not None:
                look(member, ending)
            if key and sample is not None:
                sample.endings.add(ending)
                sample.ends = member.offset + -(-member.num_bytes // BLOCKSIZE) * BLOCKSIZE
                if (is_picture := ending in pictures) or ending in texts:
                    _take(member, ending, is_picture, sample, stream)
    except BrokenTarError as error:
        where = sample.key if sample else "the first sample"
        if sample is not None and (error.behind_end or (error.member and _begins_another(sample, error.member))):
            yield sample
        raise BrokenTarError(f"{error}, in or behind {where}") from None
    if sample is not None:
        yield sample


def only_sample_in(block: bytes) -> Sample:
    """Return the sample in a part of a tar that holds one, with all of its texts.

    An empty one where the bytes are others.
    """
    with suppress(BrokenTarError):
        return next(samples_in(io.BytesIO(block + _END_OF_TAR), ALL_TEXTS), Sample(""))
    return Sample("")


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member, both "" for one that belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or not ending or (base.startswith("__") and base.endswith("__")):
        return "", ""
    return f"{folder}{slash}{stem}".removeprefix("./"), ending.lower()


def has_text(content: bytes) -> bool:
    """Return whether a text is more than blanks."""
    if content.isascii():
        return bool(content.strip())
    return bool(content.decode("utf-8-sig", "replace").strip())


def compression_of(head: bytes) -> str | None:
    """Return how a tar is compressed, by its first bytes: it cannot be read in place. None: it is not."""
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def _begins_another(sample: Sample, name: str) -> bool:
    key, ending = split_name(name)
    return bool(key) and (key != sample.key or ending in sample.endings)


def _take(member: Member, ending: str, is_picture: bool, sample: Sample, stream: Any) -> None:
    """Note where a picture lies, read a text, or note why neither can be done."""
    fault = member.fault
    if not is_picture and member.num_bytes > MAX_TEXT_BYTES:
        fault = f"has {member.num_bytes:,} bytes, more than {MAX_TEXT_BYTES:,}"
    if fault is not None:
        sample.faults[ending] = fault
    elif is_picture:
        sample.pictures[ending] = (member.offset, member.num_bytes)
    else:
        stream.seek(member.offset)
        sample.texts[ending] = stream.read(member.num_bytes)
