"""Every test that the fault matrix names is there."""

from __future__ import annotations

import re

import pytest
from building import ROOT

TESTS = ROOT / "tests"
SHORT = {"e": "e2e", "i": "integration", "u": "unit/manifests"}
CELLS = re.findall(
    r"(?:(\w):|([\w/]+)/)(test_\w+)((?: `[\w.]+`,?)*)", (TESTS / "FAULTS.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("short", "folder", "module", "names"), CELLS)
def test_what_the_matrix_names_is_there(short: str, folder: str, module: str, names: str) -> None:
    path = TESTS / (folder or SHORT[short]) / f"{module}.py"
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+)`", names):
        assert f"def test_{name.removesuffix('...')}" in text, name
