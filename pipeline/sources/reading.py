"""Requests of the stages to a source: is it there, its content, its rows, its pictures.

Its kind answers (kinds.py). Where a source lies in a store, a question is asked again after a passing fault.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from manifests.contract.records import LOOKED, Stamps
from manifests.errors import ConfigError
from manifests.stores import storage
from manifests.stores.folder import patiently
from manifests.stores.storage import is_remote
from pipeline.sources.files import LocalReader, look_at
from pipeline.sources.kinds import Reader
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import Origin, SourceSettings
from pipeline.sources.table import TableReader
from pipeline.sources.tables.fields import join_fields
from pipeline.sources.tables.formats import bytes_in
from pipeline.sources.tables.joining import where_rows
from pipeline.sources.tars.samples import KeptSamples

T = TypeVar("T")
Tell = Callable[[dict[str, Any]], None]

_BATCHES_AHEAD = 2  # the first batch of a row group of Parquet takes longer than those after it


def ask(source: Origin | Reader[Any], question: Callable[[], T]) -> T:
    """Ask a source what the driver wants to know; again after a passing fault where it lies in a store.

    Raises: RunError when the store stays away.
    """
    reader = source.reader if isinstance(source, Origin) else source
    return patiently(reader.where, question) if is_remote(reader.path) else question()


def prepare(origins: Sequence[Origin], user_agent: str, environment: Mapping[str, str]) -> bool:
    """Bring the data that sources wait for, kind by kind; True when some did.

    Raises: ConfigError for what is refused; RunError where it does not come.
    """
    waiting: dict[type[Reader[Any]], list[Reader[Any]]] = {}
    for reader in (origin.reader for origin in origins):
        if reader.waits_for():
            waiting.setdefault(type(reader), []).append(reader)
    for kind, readers in waiting.items():
        kind.prepare(readers, user_agent, environment)
    return bool(waiting)


def check_source(source: Origin) -> None:
    """Check that a source and the tables that are joined to it are there, and are what the config says, by their heads.

    Raises: ConfigError that names the source, what is wrong, and what is there; RunError when its store stays away.
    """
    for reader in (source.reader, *source.field_tables(), *source.caption_tables()):
        ask(reader, reader.check)


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hashes of everything that the rows of a source depend on; the same for the same content in any folder.

    Raises: as `check_source`.
    """
    hashes = ask(source, partial(source.reader.digest, hash_file))
    for number, table in enumerate(source.field_tables(), 1):
        hashes += [f"join {number}: {sha256}" for sha256 in ask(table, partial(table.digest, hash_file))]
    return hashes


def read_rows(
    source: Origin, scratch: Scratch, kept: KeptSamples | None = None, tell: Tell = lambda counts: None
) -> Iterator[Batch]:
    """Every row of a source in a fixed order, in batches of bounded size; `kept` holds samples of tars read before.

    `tell` gets the counts of each table of fields that is joined.
    """
    reader = source.reader
    reader.kept_samples = kept
    return complete(source, reader.rows(scratch), scratch, tell)


def complete(
    origin: Origin, batches: Iterator[Batch], scratch: Scratch, tell: Tell = lambda counts: None
) -> Iterator[Batch]:
    """Rows of a source with the fields of other tables; those that its `where` leaves out are lost."""
    if isinstance(origin, SourceSettings) and origin.join:
        batches = join_fields(batches, origin.name, origin.join, origin.kind == "webdataset", scratch, tell)
    if isinstance(origin, SourceSettings) and origin.where:
        filled = (replace(batch, rows=origin.defaults.fill(batch.rows)) for batch in batches)
        batches = where_rows(filled, origin.where, origin.where_columns(), scratch, origin.licences)
    return batches


def none_usable(num_rows: int, reasons: Mapping[str, int]) -> str:
    """Words on rows of which none can be used: why, and what to do."""
    dropped = ", ".join(f"{num:,} {reason}" for reason, num in sorted(reasons.items()))
    cure = "check what each source says of its columns"
    if reasons and all(reason.startswith("where_") for reason in reasons):
        cure = "`where` leaves all of them out; name other values there"
    return f"none of {num_rows:,} rows can be used ({dropped or 'the tables are empty'}); {cure}"


def read_ahead(
    source: Origin, scratch: Scratch, kept: KeptSamples | None = None, tell: Tell = lambda counts: None
) -> Iterator[Batch]:
    """Yield the batches of `read_rows` while a thread reads the next ones: one source keeps two cores busy."""
    batches = read_rows(source, scratch, kept, tell)
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch


def root_of(source: Origin) -> str | None:
    """Return the folder that locators of a source are relative to; None when its pictures lie on the web."""
    return ask(source, source.reader.root) if source.reader.on_disk else None


def pictures_of(source: Origin) -> LocalReader | None:
    """Return the reader of a source's pictures by locator, or None when its pictures lie on the web."""
    return ask(source, source.reader.pictures) if source.reader.on_disk else None


def content_of(origin: Origin, stamps: Stamps, pictures: bool) -> list[str]:
    """Return a digest of the texts that `digest_inputs` leaves out, and of pictures that lie in files of their own.

    Those whose stamp has changed are hashed.
    """
    reader = origin.reader
    names = sorted({*ask(origin, reader.text_files), *(ask(origin, reader.picture_files) if pictures else ())})
    if not names:
        return []
    hashed = ask(origin, lambda: stamps.sha256_of_all(looked_at(origin, names)))
    by_place = dict(zip(hashed["place"].to_pylist(), hashed["sha256"].to_pylist(), strict=True))
    digest = hashlib.sha256()
    for address in sorted(by_place):
        digest.update(f"{address}\0{by_place[address]}\n".encode("utf-8", "surrogateescape"))
    return [digest.hexdigest()]


def places_of(origin: Origin, names: Sequence[str]) -> pa.Array:
    """Return the keys of `stamps` for files of these names: they stay when the folder is moved."""
    return pa.array([f"{origin.config_key}/{name}" for name in names], pa.string())


def looked_at(origin: Origin, names: Sequence[str]) -> pa.Table:
    """Rows of LOOKED for the files of these names.

    Raises: ConfigError when their folder is not there.
    """
    root = root_of(origin) or ""
    if names and not is_remote(root) and not Path(root).is_dir():
        raise ConfigError(f"{origin.config_key}: {root}: no such folder")
    stamps = ask(origin, lambda: look_at(root, names))
    paths = [storage.join(root, name) for name in names]
    return pa.table([places_of(origin, names), paths, stamps], schema=LOOKED)


# ---- tables that no source names


def files_of_table(path: str, where: str, takes: Callable[[str], bool] = bool) -> list[TableReader]:
    """Return readers of the files at a path, each with the columns of text in it that `takes` wants.

    Raises: ConfigError that begins with `where`.
    """
    whole, tables = TableReader.of(where, path, [""]), []
    for file in whole.files():
        others = {"", *bytes_in(file)}
        if names := [name for name in whole.columns_of(file) if name not in others and takes(name)]:
            tables.append(TableReader.of(where, file, names))
    return tables
