"""Benchmarks that replace parts of a build run to their end: their tables must be those of today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from building import ROOT

from pipeline.flow import FLOW


@pytest.mark.slow
def test_the_benchmark_of_metadata_goes_through_the_whole_flow(tmp_path: Path) -> None:
    command = [sys.executable, "tests/benchmarks/bench_metadata.py", "--quick", "--millions", "0.004"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "found-4000.jsonl").read_text().splitlines()]
    steps = [f"{stage.name} {step.name}" for stage in FLOW for step in stage.steps]
    assert [row["step"] for row in rows] == [*steps, "all", "all but replaced"]
    (look,) = [row for row in rows if row["step"] == "dedup look"]
    assert look["parts"] == 0, "the facts that are made up lack nothing that a fetch measures"
