"""Do a part of a work folder that lies in a store: its inputs are brought to this machine, what it writes is sent.

On the driver's machine the local folder of the store serves as it would without a store. Elsewhere a part gets a
private folder that goes with it. There of a row group only its own bytes are read: the driver, which has the file,
says where they lie.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests import storage
from manifests.catalog_file import CATALOG_FILE
from manifests.errors import DamageError, IntegrityError
from manifests.remote.folder import note, publish_into, stands_for
from pipeline.runner.work import Execution, PartResult
from pipeline.store.files import Files, RowGroup


@dataclass(frozen=True)
class Spans:
    """Where row groups lie in a Parquet file: its size, where its footer begins, and (start, stop) by number."""

    num_bytes: int
    footer: int
    groups: Mapping[int, tuple[int, int]]


@contextlib.contextmanager
def brought_here(
    inputs: Any, run: Execution[Any]
) -> Iterator[tuple[Any, Execution[Any], Callable[[PartResult], PartResult]]]:
    """The inputs of a part and its execution as they are on this machine, and what publishes its results.

    Raises: DamageError when a file of the inputs is gone or not as recorded; an error of the store.
    """
    if not run.store:
        yield inputs, run, lambda result: result
        return
    home = Path(stands_for(run.store))
    is_home = str(home) == run.workdir and (home / CATALOG_FILE).exists()
    if is_home:
        yield inputs, run, lambda result: _send(result, run.workdir)
        return
    _sweep(home / "parts")
    folder = home / "parts" / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
    try:
        note(str(folder), run.store)
        bringing = _Bringing(run, str(folder))
        inputs = bringing.moved(inputs)
        pieces = tuple(bringing.whole(path) for path in run.pieces)
        here = replace(run, workdir=str(folder), pieces=pieces)
        yield inputs, here, lambda result: _send(result, str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spans_in(inputs: Any, workdir: str) -> dict[str, Spans]:
    """Where the row groups lie that the inputs of a part name, by path."""
    groups: dict[str, list[int]] = {}
    for group in _groups_within(inputs):
        if group.path.startswith(f"{workdir}/"):
            groups.setdefault(group.path, []).append(group.number)
    return {path: _spans(path, numbers) for path, numbers in groups.items()}


def _spans(path: str, numbers: list[int]) -> Spans:
    num_bytes = Path(path).stat().st_size
    metadata = _metadata(path, Path(path).stat().st_mtime_ns)
    footer = num_bytes - 8 - int.from_bytes(storage.read_range(path, num_bytes - 8, 4), "little")
    groups = {}
    for number in numbers:
        columns = [metadata.row_group(number).column(place) for place in range(metadata.num_columns)]
        starts = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
        stops = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
        groups[number] = (min(starts, default=4), max(stops, default=4))
    return Spans(num_bytes, footer, groups)


@functools.lru_cache(4)  # thousands of parts may each read one row group of the same file
def _metadata(path: str, mtime_ns: int) -> Any:
    return pq.read_metadata(path)


def _groups_within(value: Any) -> Iterator[RowGroup]:
    if isinstance(value, RowGroup):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _groups_within(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, Files):
        for field in dataclasses.fields(value):
            yield from _groups_within(getattr(value, field.name))


class _Bringing:
    """Brings files of the driver's folder to a private one."""

    def __init__(self, run: Execution[Any], folder: str) -> None:
        self._run, self._folder = run, folder

    def moved(self, value: Any) -> Any:
        """The same inputs, with files that lie here."""
        if isinstance(value, Files):
            pairs = zip(value.paths, value.sha256, strict=True)
            return replace(value, paths=tuple(self.whole(path, sha256) for path, sha256 in pairs))
        if isinstance(value, RowGroup):
            return replace(value, path=self._group(value.path))
        if isinstance(value, list | tuple):
            return type(value)(self.moved(each) for each in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            moved = {name: self.moved(each) for name, each in fields.items()}
            changed = {name: each for name, each in moved.items() if each is not fields[name]}
            return replace(value, **changed) if changed else value
        return value

    def whole(self, path: str, sha256: str | None = None) -> str:
        """A file, whole."""
        name = self._name_of(path)
        if name is None:
            return path
        local = storage.join(self._folder, name)
        if not Path(local).exists():
            try:
                storage.download(storage.join(self._run.store, name), local, sha256)
            except (FileNotFoundError, IntegrityError):
                raise DamageError(self._run.workdir, [name]) from None
        return local

    def _group(self, path: str) -> str:
        """A file of which only the wanted row groups and the footer are there; the rest is a hole."""
        name = self._name_of(path)
        if name is None:
            return path
        local = storage.join(self._folder, "groups", name)
        if Path(local).exists():
            return local
        storage.make_parent(local)
        spans = self._run.spans[path]
        with Path(local).open("wb") as stream:
            stream.write(b"PAR1")
            for start, stop in _joined([*spans.groups.values(), (spans.footer, spans.num_bytes)]):
                try:
                    content = storage.read_range(storage.join(self._run.store, name), start, stop - start)
                except FileNotFoundError:
                    raise DamageError(self._run.workdir, [name]) from None
                if len(content) < stop - start:
                    raise DamageError(self._run.workdir, [name])
                stream.seek(start)
                stream.write(content)
        return local

    def _name_of(self, path: str) -> str | None:
        """Its path within the work folder; None when it lies elsewhere, as evaluation sets do."""
        folder = f"{self._run.workdir}/"
        return path.removeprefix(folder) if path.startswith(folder) else None


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    ordered = sorted(spans)
    start, stop = ordered[0]
    for next_start, next_stop in ordered[1:]:
        if next_start > stop:
            yield start, stop
            start = next_start
        stop = max(stop, next_stop)
    yield start, stop


def _send(result: PartResult, workdir: str) -> PartResult:
    """Publish the files of a result, in their order; the driver then has nothing to publish."""
    for file in result.files:
        publish_into(workdir, file.temp, file.path)
    return replace(result, files=tuple(replace(file, temp="") for file in result.files))


def _sweep(folder: Path) -> None:
    """Remove the folders of parts whose process was killed."""
    for path in folder.glob("*-*"):
        if not Path("/proc", path.name.partition("-")[0]).exists():
            shutil.rmtree(path, ignore_errors=True)
