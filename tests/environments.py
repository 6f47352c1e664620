"""What a machine may lack, and environments beside our own, for tests of what is not installed in it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import re
import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from building import ROOT


def lacks(what: str) -> NoReturn:
    """Skip a test for what this machine lacks. Continuous integration must have it, so there the test fails."""
    if os.environ.get("CI"):
        pytest.fail(f"this machine lacks {what}")
    pytest.skip(f"this machine lacks {what}")


def pins() -> dict[str, str]:
    """Versions in constraints.txt by the names of packages."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in lines}


def needs_pinned(*names: str) -> None:
    """Skip a test whose outcome hangs on these packages, where their versions are not those of constraints.txt."""
    pinned = pins()
    here = {name: importlib.metadata.version(name) for name in names}
    if other := {name: version for name, version in here.items() if version != pinned[name]}:
        lacks(f"the versions of constraints.txt: here are {', '.join(map(' '.join, other.items()))}")


# What tests of other programs need, and nobody's `.venv`: by the environment that holds it.
PACKAGES = {
    "consumers": ["webdataset>=1.0,<2", "datasets>=5,<6", "mlcroissant>=1.1,<2", "pillow>=11"],
    "tools": ["gcp-storage-emulator>=2024.8", "shtab>=1.7"],
}


def environment(name: str, packages: Sequence[str] = (), on_ours: bool = False) -> Path:
    """Python of the environment `.venv-NAME` with these packages, or with those of PACKAGES.

    `on_ours` adds them to what ours has, pinned.

    Each is made once, in the root. The test is skipped where there is no package index.
    """
    folder = ROOT / f".venv-{name}"
    python = folder / "bin/python"
    packages = packages or PACKAGES[name]
    stamp = folder / "installed.txt"
    pins = ["--constraint", str(ROOT / "constraints.txt")] if on_ours else []
    ours = [sysconfig.get_path("purelib"), Path(pins[1]).read_text(encoding="utf-8")] if on_ours else []
    wanted = "\n".join([*packages, *ours])  # another one of ours, or other pins, make it anew
    root = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)  # two workers of pytest made one at once, in each other's way
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return python
        venv.create(folder, with_pip=True, clear=True)
        if on_ours:
            own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
            Path(own, "ours.pth").write_text(ours[0] + "\n", encoding="utf-8")
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *packages, *pins], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            # only a machine without an index is excused: refused, unknown, or none at all, pip finds no version
            assert "(from versions: none)" in done.stderr, done.stderr
            told = done.stderr.strip().splitlines()[-1]
            lacks(f"a package index to install {' '.join(packages)} from, pip says: {told}")
        stamp.write_text(wanted, encoding="utf-8")
        return python
    finally:
        os.close(root)
