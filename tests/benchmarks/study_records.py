"""The results of a study: one file, a line of JSON for each run or judgement, under its name."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


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
