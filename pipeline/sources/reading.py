"""The entry to all readers: check a source, hash its content, read its rows, find its pictures.

The origin that a source names picks the reader. Every reader is one module with these functions, `root_of` only where
its pictures lie on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.sources import dwca, eol, folder, inaturalist, table, webdataset
from pipeline.sources.gbif import reader as gbif
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import Origin

_READERS = {
    "table": table,
    "dwca": dwca,
    "gbif": gbif,
    "eol": eol,
    "inaturalist": inaturalist,
    "webdataset": webdataset,
    "folder": folder,
}


def check_source(source: Origin) -> None:
    """Check that a source is there, and is what the config says of it, by the heads of its files.

    Raises: ConfigError that names the source, what is wrong, and what is there.
    """
    _READERS[source.kind].check_source(source)


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of everything that the rows of a source depend on; the same for the same content in any folder."""
    digests: list[str] = _READERS[source.kind].digest_inputs(source, hash_file)
    return digests


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of a source in a fixed order, in batches of bounded size."""
    batches: Iterator[Batch] = _READERS[source.kind].read_rows(source, scratch)
    return batches


def root_of(source: Origin) -> str | None:
    """The folder that locators of a source are relative to; None when its pictures lie on the web."""
    reader = _READERS[source.kind]
    return str(reader.root_of(source)) if hasattr(reader, "root_of") else None
