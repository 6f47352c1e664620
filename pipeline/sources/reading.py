"""The entry to all readers: check a source, hash its content, read its rows, find its pictures.

The origin that a source names picks the reader. Every reader is one module with these functions, `root_of` only where
its pictures lie on the disk.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pyarrow as pa

from manifests import storage
from manifests.records import LOOKED, Stamps
from manifests.remote.folder import patiently
from manifests.storage import is_remote
from pipeline.sources import dwca, eol, folder, inaturalist, table, webdataset
from pipeline.sources.files import look_at
from pipeline.sources.gbif import reader as gbif
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import Origin

T = TypeVar("T")

_BATCHES_AHEAD = 2  # the first batch of a row group of Parquet takes longer than those after it

_READERS = {
    "table": table,
    "dwca": dwca,
    "gbif": gbif,
    "eol": eol,
    "inaturalist": inaturalist,
    "webdataset": webdataset,
    "folder": folder,
}


def ask(source: Origin, question: Callable[[], T]) -> T:
    """What the driver wants to know of a source; asked again after a passing fault where it lies in a store.

    Raises: RunError when the store stays away.
    """
    return patiently(source.where, question) if is_remote(source.path) else question()


def check_source(source: Origin) -> None:
    """Check that a source is there, and is what the config says of it, by the heads of its files.

    Raises: ConfigError that names the source, what is wrong, and what is there; RunError when its store stays away.
    """
    ask(source, partial(_READERS[source.kind].check_source, source))


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of everything that the rows of a source depend on; the same for the same content in any folder.

    Raises: as `check_source`.
    """
    digests: list[str] = ask(source, partial(_READERS[source.kind].digest_inputs, source, hash_file))
    return digests


def names_of_pictures(source: Origin) -> list[str]:
    """Names, below its root, of the pictures of a source that lie in files of their own.

    Raises: as `check_source`.
    """
    return ask(source, partial(folder.names_of_pictures, source)) if source.kind == "folder" else []


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every row of a source in a fixed order, in batches of bounded size."""
    batches: Iterator[Batch] = _READERS[source.kind].read_rows(source, scratch)
    return batches


def read_ahead(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """The same, while a thread reads the next batches: a source that is ingested alone keeps two cores busy."""
    batches = read_rows(source, scratch)
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch


def root_of(source: Origin) -> str | None:
    """The folder that locators of a source are relative to; None when its pictures lie on the web."""
    reader = _READERS[source.kind]
    return str(ask(source, partial(reader.root_of, source))) if hasattr(reader, "root_of") else None


def content_of_pictures(origin: Origin, stamps: Stamps) -> list[str]:
    """A digest of the pictures that lie in files of their own; those whose stamp has changed are hashed."""
    names = sorted(set(names_of_pictures(origin)))
    hashed = stamps.sha256_of_all(looked_at(origin, names))
    by_place = dict(zip(hashed["place"].to_pylist(), hashed["sha256"].to_pylist(), strict=True))
    digest = hashlib.sha256()
    for place in sorted(by_place):
        digest.update(f"{place}\0{by_place[place]}\n".encode("utf-8", "surrogateescape"))
    return [digest.hexdigest()] if names else []


def places_of(origin: Origin, names: Sequence[str]) -> pa.Array:
    """The keys of `stamps` for files of these names: they stay when the folder is moved."""
    return pa.array([f"{origin.where}/{name}" for name in names], pa.string())


def looked_at(origin: Origin, names: Sequence[str]) -> pa.Table:
    """Rows of LOOKED for the files of these names."""
    root = root_of(origin) or ""
    stamps = ask(origin, lambda: look_at(root, names))
    paths = [storage.join(root, name) for name in names]
    return pa.table([places_of(origin, names), paths, stamps], schema=LOOKED)
