"""One door to all readers: check a source, know its content, read its rows, find its pictures.

Picks the reader by the origin that the source names; every reader is one module with the same functions.
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
        """Raises: ConfigError when the source cannot be read as it is described; reads heads only."""

    def digest_inputs(self, source: Origin, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of everything that the rows depend on; equal content, equal hashes, wherever it lies."""

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


def reader_of(source: Origin) -> Reader:
    """The reader of a source."""
    return cast(Reader, _READERS[source.kind])


def check_source(source: Origin) -> None:
    """See that a source is there and what the config says of it holds.

    Raises: ConfigError that names the source, what is wrong, and what there is.
    """
    reader_of(source).check_source(source)


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of everything that the rows of a source depend on."""
    return reader_of(source).digest_inputs(source, hash_file)


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of a source, in a fixed order."""
    return reader_of(source).read_rows(source, scratch)


def root_of(source: Origin) -> str | None:
    """The folder that locators of a source are relative to; None when its pictures lie on the web."""
    reader = _IN_PLACE.get(source.kind)
    return reader.root_of(source) if reader is not None else None
