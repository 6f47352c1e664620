"""The local folder that stands for a work folder in an object store, and the files that go to and fro.

`plantmix-store.json` in a local folder names the store behind it; such a folder may be given wherever its address may.
Pool and releases lie in the store alone. Tables lie in both: they are brought here when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from manifests.errors import ConfigError, IntegrityError, RunError, words_of
from manifests.stores import faults, storage
from manifests.stores.ranges import read_range

STORE_FILE = "plantmix-store.json"
PLACE_VARIABLE = "PLANTMIX_LOCAL_DIR"

_BESIDE_THE_STORE = "tables/"  # what stays in the local folder too

T = TypeVar("T")


def stands_for(address: str) -> str:
    """Return the local folder of an address on this machine, below PLANTMIX_LOCAL_DIR or the user's cache folder."""
    address = address.rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "plantmix")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", address)[-80:].strip("-")
    return str(
        Path(os.environ.get(PLACE_VARIABLE) or cache, f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}")
    )


def local_place(workdir: str) -> str:
    """Return the folder on this disk where a work folder's own files lie: itself, or the one that stands for it."""
    return stands_for(workdir) if storage.is_remote(workdir) else workdir


def notes_of(folder: str) -> dict[str, Any]:
    """Read STORE_FILE; empty where there is no store behind the folder."""
    try:
        return dict(json.loads(Path(folder, STORE_FILE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def store_of(folder: str) -> str | None:
    """Address of the store behind a local folder, or None; an address is its own."""
    return folder.rstrip("/") if storage.is_remote(folder) else notes_of(folder).get("address")


def note(folder: str, address: str, **notes: Any) -> None:
    """Write STORE_FILE."""
    storage.make_folder(folder)
    storage.publish_json(Path(folder, STORE_FILE), {"address": address.rstrip("/"), **notes})


def place_of(folder: str, path: str = "") -> str:
    """Where a file of a work folder lies for all machines: in the store behind it, or else in the folder."""
    names = [path] if path else []
    return storage.join(store_of(folder) or folder, *names)


def bring(folder: str, path: str) -> str:
    """Download a file of a work folder to its place in the local folder, unless it is there.

    Raises: FileNotFoundError; an error of the store.
    """
    local = storage.join(folder, path)
    address = store_of(folder)
    if address and not Path(local).exists():
        storage.download(storage.join(address, path), local)
    return local


def bring_missing(paths: Iterable[str]) -> None:
    """Bring those files of work folders in stores that are not here yet; `paths` say where they belong on this disk.

    Raises: IntegrityError when one is gone; RunError when the store cannot be reached.
    """
    for path in paths:
        if storage.is_remote(path) or Path(path).exists():
            continue
        folder = next((str(parent) for parent in Path(path).parents if (parent / STORE_FILE).exists()), None)
        if folder is None:
            continue
        name = path.removeprefix(f"{folder}/")
        address = place_of(folder, name)
        try:
            patiently(address, partial(bring, folder, name))
        except FileNotFoundError:
            raise IntegrityError(f"{address}: a recorded file is gone; run `plantmix build` again") from None


def publish_into(folder: str, temp: str, path: str) -> None:
    """Publish a private local file as `path` of a work folder, for all machines.

    Raises: IntegrityError when the private file is gone; an error of the store.
    """
    address = store_of(folder)
    if address:
        storage.upload(temp, storage.join(address, path))
    if address and not path.startswith(_BESIDE_THE_STORE):
        Path(temp).unlink()
    else:
        storage.publish(temp, storage.join(folder, path))


def publish_bytes_into(folder: str, path: str, content: bytes) -> None:
    """Write a small file of a work folder, for all machines."""
    address = place_of(folder, path)
    write = partial(storage.publish_bytes, address, content)
    if storage.is_remote(address):
        patiently(address, write)
    else:
        write()


def remove_from(folder: str, path: str) -> None:
    """Delete a file of a work folder, unless it is gone already."""
    for address in {place_of(folder, path), storage.join(folder, path)}:
        storage.remove_if_there(address)


def sizes_below(folder: str) -> dict[str, int] | None:
    """Paths and sizes of the files of tables, pool and releases in the store behind a folder; None without a store.

    One request for each thousand files.

    Raises: RunError when the store cannot be reached.
    """
    address = store_of(folder)
    if address is None:
        return None

    def find() -> dict[str, int]:
        return {
            f"{name}/{path}": size
            for name in ("tables", "pool", "releases")
            for path, size in storage.sizes_below(storage.join(address, name)).items()
        }

    return patiently(address, find)


def check_store(address: str) -> None:
    """Ask a store for a file that need not be there.

    Raises: ConfigError when its package is not installed, or its bucket is not there; RunError when it does not answer.
    """
    if not address.partition("://")[2].strip("/").partition("/")[2]:
        raise ConfigError(
            f"work_dir {address}: name a folder in the bucket, for instance {address.rstrip('/')}/my-build"
        )
    with contextlib.suppress(FileNotFoundError):
        patiently(address, lambda: read_range(storage.join(address, "catalog", "snapshot"), 0, 1))


def patiently(address: str, action: Callable[[], T]) -> T:
    """Do what the driver needs of a store, again after a passing fault.

    Raises: RunError when the store stays away; FileNotFoundError and FileExistsError at once.
    """

    def problem(error: Exception) -> RunError:
        return RunError(
            f"{address}: the store cannot be used now ({words_of(error)}). What is committed stays; check "
            "credentials and network, and run the same command again"
        )

    return faults.patiently(action, problem)
