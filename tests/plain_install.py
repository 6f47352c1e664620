"""Commands where only the packages of a plain install can be imported: what pyproject.toml names, and what those need.

Run as a program, it takes a list of command lines as JSON, and prints how each ended.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def _plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages_of_plain_install() -> set[str]:
    """Normalised names of the distributions that an install without extras brings."""
    from packaging.requirements import Requirement

    waiting = list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
    found = set[str]()
    while waiting:
        needed = Requirement(waiting.pop())
        name = _plain_name(needed.name)
        if name in found or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        with contextlib.suppress(PackageNotFoundError):  # of another platform
            waiting += requires(name) or []
    return found


class _OnlyPlain:
    """Finds no module of a package that a plain install lacks."""

    def __init__(self) -> None:
        plain = packages_of_plain_install()
        brings = packages_distributions()
        self.missing = {
            module for module, names in brings.items() if not plain & {_plain_name(name) for name in names}
        } - {"pipeline", "training", "manifests"}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _run(program: str, *arguments: str) -> tuple[int, str]:
    if program == "plantmix":
        from pipeline.cli import main
    else:
        from training.cli import main
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as error:  # of the parser
            code = int(error.code or 0)
    return code, said.getvalue()


if __name__ == "__main__":
    only_plain = _OnlyPlain()
    sys.meta_path.insert(0, only_plain)
    assert "torch" in only_plain.missing
    assert find_spec("duckdb")
    print(json.dumps([_run(*line) for line in json.loads(sys.argv[1])]))
