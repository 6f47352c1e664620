"""Every test that the fault matrix names is there."""

from __future__ import annotations

import re

from building import ROOT

TESTS = ROOT / "tests"
SHORT = {"e": "e2e", "i": "integration", "u": "unit/manifests"}
CELLS = re.findall(
    r"(?:(\w):|([\w/]+)/)(test_\w+)((?: `[\w.]+`,?)*)", (TESTS / "FAULTS.md").read_text(encoding="utf-8")
)


def test_what_the_matrix_names_is_there() -> None:
    assert len(CELLS) > 50
    for short, folder, module, names in CELLS:
        text = (TESTS / (folder or SHORT[short]) / f"{module}.py").read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert f"def test_{name.removesuffix('...')}" in text, f"{module}: {name}"
