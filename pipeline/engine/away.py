"""Do a part of a work folder that lies in a store: its inputs are brought to this machine, what it writes is sent.

On the driver's machine the local folder of the store serves as it would without a store. Elsewhere a part gets a
private folder that goes with it. Row groups are read out of the store, and of their files nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.contract.catalog_file import CATALOG_FILE
from manifests.errors import DamageError, IntegrityError
from manifests.stores import storage
from manifests.stores.folder import note, publish_into, stands_for
from manifests.stores.lease import this_host
from pipeline.engine.inputs import within
from pipeline.engine.work import Execution, PartResult
from pipeline.store.files import Files, RowGroup


@contextlib.contextmanager
def brought_here(
    inputs: Any, run: Execution[Any]
) -> Iterator[tuple[Any, Execution[Any], Callable[[PartResult], PartResult]]]:
    """Copy the inputs of a part to this machine, and publish its results when the context ends.

    Raises: DamageError when a file of the inputs is gone or not as recorded; an error of the store.
    """
    if not run.store:
        yield inputs, run, lambda result: result
        return
    home = Path(stands_for(run.store))
    is_home = str(home) == run.workdir and (home / CATALOG_FILE).exists()
    if is_home:
        pieces = tuple(_whole(run, run.workdir, path) for path in run.pieces)  # another machine may have made them
        yield inputs, replace(run, pieces=pieces), lambda result: _send(result, run.workdir)
        return
    host = hashlib.sha256(this_host().encode()).hexdigest()[:8]  # machines may share a cache folder
    for path in (home / "parts").glob(f"{host}-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():  # its process was killed
            shutil.rmtree(path, ignore_errors=True)
    folder = home / "parts" / f"{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    try:
        note(str(folder), run.store)
        pieces = tuple(_whole(run, str(folder), path) for path in run.pieces)
        here = replace(run, workdir=str(folder), pieces=pieces)
        yield _moved(inputs, run, str(folder)), here, lambda result: _send(result, str(folder))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        groups = [(name, group) for group in within(inputs, RowGroup) if (name := _name_of(run, group.path))]
        lost = [name for name, group in groups if name in str(error) or _is_damaged(group, run.store, name)]
        if not lost:
            raise
        raise DamageError(run.workdir, sorted(set(lost))) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_damaged(group: RowGroup, store: str, name: str) -> bool:
    try:
        replace(group, path=storage.join(store, name)).read()
    except (FileNotFoundError, pa.ArrowInvalid):
        return True
    return False


def _moved(value: Any, run: Execution[Any], folder: str) -> Any:
    """Return the same inputs, with files that lie here, and row groups that are read out of the store."""
    if isinstance(value, Files):
        pairs = zip(value.paths, value.sha256, strict=True)
        return replace(value, paths=tuple(_whole(run, folder, path, sha256) for path, sha256 in pairs))
    if isinstance(value, RowGroup):
        name = _name_of(run, value.path)
        return replace(value, path=storage.join(run.store, name)) if name else value
    if isinstance(value, dict):
        return {key: _moved(inner, run, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(inner, run, folder) for inner in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        moved = {name: _moved(inner, run, folder) for name, inner in fields.items()}
        changed = {name: inner for name, inner in moved.items() if inner is not fields[name]}
        return replace(value, **changed) if changed else value
    return value


def _whole(run: Execution[Any], folder: str, path: str, sha256: str | None = None) -> str:
    """Return a file of the driver's folder, brought to a folder of this machine unless it lies there."""
    name = _name_of(run, path)
    if name is None:
        return path
    local = storage.join(folder, name)
    if not Path(local).exists():
        try:
            storage.download(storage.join(run.store, name), local, sha256)
        except (FileNotFoundError, IntegrityError):
            raise DamageError(run.workdir, [name]) from None
    return local


def _name_of(run: Execution[Any], path: str) -> str | None:
    """Its path within the work folder; None when it lies elsewhere, as evaluation sets do."""
    folder = f"{run.workdir}/"
    return path.removeprefix(folder) if path.startswith(folder) else None


def _send(result: PartResult, workdir: str) -> PartResult:
    """Publish the files of a result, in their order; the driver then has nothing to publish."""
    for file in result.files:
        publish_into(workdir, file.temp, file.path)
    return replace(result, files=tuple(replace(file, temp="") for file in result.files))
