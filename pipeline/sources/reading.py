"""The entry to all readers: check a source, hash its content, read its rows, find its pictures.

The origin that a source names picks the reader. Every reader is one module with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, cast

from pipeline.sources import dwca, eol, folder, inaturalist, table, webdataset
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import Origin


class Reader(Protocol):
    """What a reader's module offers."""

    def check_source(self, source: Origin) -> None:
        """Read the heads of its files. Raises: ConfigError when the source is not what the config says."""

    def digest_inputs(self, source: Origin, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of everything that the rows depend on; the same for the same content in any folder."""

    def read_rows(self, source: Origin, scratch: Scratch) -> Iterator[Batch]:
        """Every row in a fixed order, in batches of bounded size."""


_READERS = {
    "table": table,
    "dwca": dwca,
    "eol": eol,
    "inaturalist": inaturalist,
    "webdataset": webdataset,
    "folder": folder,
}
_IN_PLACE = {"webdataset": webdataset, "folder": folder}


def _reader_of(source: Origin) -> Reader:
    return cast(Reader, _READERS[source.kind])


def check_source(source: Origin) -> None:
    """Check that a source is there, and is what the config says of it.

    Raises: ConfigError that names the source, what is wrong, and what is there.
    """
    _reader_of(source).check_source(source)


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of everything that the rows of a source depend on."""
    return _reader_of(source).digest_inputs(source, hash_file)


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of a source, in a fixed order."""
    return _reader_of(source).read_rows(source, scratch)


def root_of(source: Origin) -> str | None:
    """The folder that locators of a source are relative to; None when its pictures lie on the web."""
    reader = _IN_PLACE.get(source.kind)
    return reader.root_of(source) if reader is not None else None
