"""`make gpu-check` on the CPU: its rows, and that a check which was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu_check


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_golden_values_and_a_check_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check/rows.jsonl"
    options = ["--only", "golden", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(gpu_check, "STEP_SECONDS", 0.0)
        assert gpu_check.main(options) == 1
    said = capsys.readouterr().out
    assert "no CUDA here: this is the twin on the CPU" in said
    assert "not measured yet: golden, fp64; golden, fp32; golden, bf16: run the same command to go on" in said
    assert gpu_check.main(options) == 0, out.with_suffix(".log").read_text()
    rows = rows_in(out)
    assert [row["row"] for row in rows] == ["fp64", "fp32", "bf16"]
    assert all(row["right"] for row in rows)
    assert rows[2]["image_error"] > 100 * rows[1]["image_error"], "bfloat16 was used"
    assert rows[0]["machine"]["commit"] != "unknown"
    # the last row was cut off, an earlier one is of another commit
    rows[0]["machine"]["commit"] = "0000000"
    out.write_text("\n".join(map(json.dumps, rows))[:-9])
    capsys.readouterr()
    assert gpu_check.main(options) == 0
    said = capsys.readouterr().out
    assert [name for name in ("fp64", "fp32", "bf16") if f"golden, {name}: measured" in said] == ["fp64", "bf16"]


@pytest.mark.slow
def test_the_twin_measures_steps_and_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden values are measured above; ViT-B-16 is measured as ViT-B-32 is."""
    monkeypatch.setattr(gpu_check, "STEP_SECONDS", 3600.0)
    monkeypatch.setattr(gpu_check, "ALL_SECONDS", 3600.0)
    out = tmp_path / "rows.jsonl"
    options = ["--only", "ViT-B-32", "run", "--out", str(out)]
    assert gpu_check.main(options) == 0, out.with_suffix(".log").read_text()[-3000:]
    rows = {(row["step"], row["row"]): row for row in rows_in(out)}
    assert list(rows) == [(step, name) for step in ("ViT-B-32", "run") for name in gpu_check.PLAN[step]]
    assert all(row["samples_per_second"] > 0 for row in rows.values())
    assert rows["run", "killed and resumed"]["equal"]
