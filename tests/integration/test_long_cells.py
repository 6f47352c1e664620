"""A table with a cell that Python's csv reader refuses is named with its line, whatever reads it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manifests.errors import ConfigError
from pipeline.planning.runs.tables import read_csv
from training.evaluation.set_layouts import open_eval_set
from training.proxies.runs import read_runs
from training.using.labels import read_labels


def runs_of_proxies(path: Path) -> Any:
    settings: Any = SimpleNamespace(runs=str(path))
    return read_runs(settings)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_labels(str(path), "species"),
        lambda path: open_eval_set(str(path.parent), "test"),
        read_csv,
        runs_of_proxies,
    ],
)
def test_a_cell_that_is_too_long_is_named_with_its_line(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(f"filepath,class\na.jpg,rose\nb.jpg,{'x' * 131_073}\n")
    with pytest.raises(ConfigError, match=r"metadata\.csv: cannot be read as csv: .*limit.* \(line 3\)"):
        read(path)
