"""Arrow without pandas, which has to be installed for these tests to mean anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

LISTS = """
import sys
import pyarrow as pa
from manifests.services.arrow import without_pandas
{first}
table = pa.Table.from_pylist([{{"name": "a", "number": None}}, {{"name": "b", "number": 2}}])
assert pa.array([1, 2]).to_pylist() == [1, 2]
print("pandas" in sys.modules)
{then}
"""
FRAMES = """
import pandas
frame = table.to_pandas()
assert isinstance(frame, pandas.DataFrame)
assert pa.Table.from_pandas(frame, preserve_index=False)["name"].to_pylist() == ["a", "b"]
assert pa.array(pandas.Series([1.0, None])).to_pylist() == [1.0, None]
"""


def said(first: str, then: str = "") -> str:
    code = LISTS.format(first=first, then=then)
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_lists_do_not_import_pandas() -> None:
    assert said("without_pandas()") == "False"
    assert said("") == "True"  # pyarrow by itself; once this fails, nobody needs the function any more


@pytest.mark.parametrize(
    "command", ["pipeline.cli import main; main(['report'", "training.cli import main; main(['export', 'm.pt'"]
)
def test_commands_do_not_import_pandas(command: str) -> None:
    assert said(f"from {command}, 'nowhere'])").splitlines()[-1] == "False"


def test_data_frames_are_still_to_be_had() -> None:
    said("without_pandas()", FRAMES)


def test_pandas_can_be_there_before() -> None:
    said("import pandas; without_pandas()", FRAMES)
