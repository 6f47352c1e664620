"""Environments beside our own, for tests of what is not installed in it. Each is made once, in the root."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest
from building import ROOT


def environment(name: str, packages: Sequence[str], on_ours: bool = False) -> Path:
    """Python of the environment `.venv-NAME` with these packages; `on_ours` adds them to what ours has, pinned.

    The test is skipped where there is no package index.
    """
    folder = ROOT / f".venv-{name}"
    python = folder / "bin/python"
    stamp = folder / "installed.txt"
    pins = ["--constraint", str(ROOT / "constraints.txt")] if on_ours else []
    ours = [sysconfig.get_path("purelib"), Path(pins[1]).read_text(encoding="utf-8")] if on_ours else []
    wanted = "\n".join([*packages, *ours])  # another one of ours, or other pins, make it anew
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
        pytest.skip(
            f"no package index to install {' '.join(packages)} from, pip says: {done.stderr.strip().splitlines()[-1]}"
        )
    stamp.write_text(wanted, encoding="utf-8")
    return python
