"""`python -m pipeline.planning`: design, fit and choose on csv files, with NumPy and SciPy alone.

`plantmix plan` does the same, and also reads Parquet, work folders and stores, filters by SQL, and draws. Exits 0, 1
when a step failed, 2 for bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from manifests.errors import ConfigError, PlantMixError
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.runs.tables import is_csv, read_csv
from pipeline.planning.steps import Access, add_steps

_PROGRAM = "python -m pipeline.planning"
_FULL = "`plantmix plan` of the full install"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description="Plan a mixture, from csv files of proxy runs.")
    add_steps(parser.add_subparsers(required=True, metavar="COMMAND"), _add, _PLAIN, _PROGRAM)
    args = parser.parse_args(argv)
    try:
        return int(args.func(args))
    except PlantMixError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"plan: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _add(steps: Any, name: str, about: str, example: str, *, reads: str, writes: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = steps.add_parser(
        name,
        help=about,
        description=f"{about}. reads: {reads}; writes: {writes}",
        epilog=f"example: {example.partition(' --where')[0]}",
    )
    return parser


def _read_runs(path: str, where: str | None) -> RunsTable:
    if where:
        raise ConfigError(f"--where is SQL, which needs {_FULL}; give a csv of the runs to keep")
    if not is_csv(Path(path)):
        raise ConfigError(f"{path}: only csv can be read here; for Parquet and work folders use {_FULL}")
    columns, sha256 = read_csv(Path(path))
    return build_runs(list(columns), columns, Path(path).name, sha256)


def _write(path: str, content: bytes, is_own: Callable[[bytes], bool]) -> None:
    file = Path(path)
    if file.is_file() and not is_own(file.read_bytes()):
        raise ConfigError(f"{path}: is there, and this command did not write it; choose another name, or move it away")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _no_plot(path: str) -> NoReturn:
    raise ConfigError(f"--plot {path}: drawing needs {_FULL}")


_PLAIN = Access(_read_runs, _write, _no_plot)

if __name__ == "__main__":
    sys.exit(main())
