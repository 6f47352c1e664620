"""The results of a study: one file, a line of JSON for each run or judgement, under its name; and where it was made."""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Records:
    """The file of a study. Several processes may add to it. A half-written line, of a killed process, is ignored."""

    path: Path

    def names(self) -> set[str]:
        return set(self._read())

    def of(self, pattern: str) -> list[dict[str, Any]]:
        """The records whose name matches, in the order of their names."""
        records = self._read()
        return [records[name] for name in sorted(records) if fnmatchcase(name, pattern)]

    def one(self, name: str) -> dict[str, Any]:
        return self._read()[name]

    def add(self, name: str, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps({"name": name, "record": record}).encode() + b"\n")

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        entries = (json.loads(line) for line in lines if line.endswith("\n"))
        return {entry["name"]: entry["record"] for entry in entries}


def commit() -> str:
    """Return the newest commit that changed more than records.

    Raises: SystemExit where a file of it was changed.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    changed = [line[3:] for line in git("status", "--porcelain", "--untracked-files=no").splitlines()]
    if lost := [name for name in changed if not name.endswith(".jsonl")]:
        raise SystemExit(f"a run is that of a commit; these files differ from it: {', '.join(lost)}")
    return git("log", "-1", "--format=%H", "--", ".", ":(exclude)*.jsonl").strip()


def compare(name: str, made: Mapping[str, Any], kept: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Print which of the keys differ between a run that was made again and its record, and exit: 0 where none does."""
    differ = [key for key in keys if json.dumps(made.get(key)) != json.dumps(kept.get(key))]
    print(f"{name}: {'differs in ' + ', '.join(differ) if differ else 'the same to the last digit'}")
    raise SystemExit(bool(differ))


def machine() -> str:
    import torch

    info = Path("/proc/cpuinfo")
    models = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = f"{models[0] if models else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{processor}, Python {platform.python_version()}, torch {torch.__version__}"
