"""`make gpu-check` on the CPU: its rows, and that a check which was stopped goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu_check, gpu_steps

NVIDIA_DRIVER = gpu_check.nvidia_driver


@pytest.fixture(autouse=True)
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine that has one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "nvidia_driver", lambda: None)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_golden_values_and_a_check_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check/rows.jsonl"
    options = ["--only", "golden", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(gpu_check, "STEP_SECONDS", 0.0)
        assert gpu_check.main(options) == 1
    said = capsys.readouterr().out
    assert "the twin on the CPU" in said
    assert "not measured yet: golden, fp64; golden, fp32; golden, bf16: run the same command to go on" in said
    assert gpu_check.main(options) == 0, out.with_suffix(".log").read_text()
    rows = rows_in(out)
    assert [row["row"] for row in rows] == ["fp64", "fp32", "bf16"]
    assert all(row["right"] for row in rows)
    assert all(0 < row["gradient_error"] < 0.1 for row in rows[1:])
    assert rows[2]["image_error"] > 100 * rows[1]["image_error"], "bfloat16 was used"
    assert rows[0]["machine"]["commit"] != "unknown"
    # the last row was cut off, an earlier one is of another commit
    rows[0]["machine"]["commit"] = "0000000"
    out.write_text("\n".join(map(json.dumps, rows))[:-9])
    capsys.readouterr()
    assert gpu_check.main(options) == 0
    said = capsys.readouterr().out
    assert [name for name in ("fp64", "fp32", "bf16") if f"golden, {name}: measured" in said] == ["fp64", "bf16"]


def test_a_gpu_that_torch_cannot_use_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A driver that is too old for the wheel is not "no GPU": the twin runs only when asked for."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 470.57.02\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu_check, "nvidia_driver", NVIDIA_DRIVER)
    monkeypatch.setattr(gpu_check, "ALL_SECONDS", 0.0)
    options = ["--only", "golden", "--out", str(tmp_path / "rows.jsonl")]
    assert gpu_check.main(options) == 2
    output = capsys.readouterr()
    assert f"driver 470.57.02), which this wheel cannot use (torch {torch.__version__}, built " in output.err
    assert "twin" not in output.out
    assert gpu_check.main([*options, "--twin"]) == 1
    assert "the twin on the CPU" in capsys.readouterr().out


def test_what_triton_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Python.h").touch()
    (tmp_path / "clang").touch(0o755)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_check.missing_for_triton() == []
    (tmp_path / "Python.h").unlink()
    (tmp_path / "clang").unlink()
    assert gpu_check.missing_for_triton() == ["a C compiler (gcc)", str(tmp_path / "Python.h")]


def test_a_wrong_gradient_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = gpu_steps.values_and_gradients

    def wrong(device: Any, dtype: Any, precision: str) -> Any:
        values, gradients = measured(device, dtype, precision)
        factor = 1.001 if dtype == torch.float32 else 1.0
        return values, gradients | {"text reduce.weight": gradients["text reduce.weight"] * factor}

    context = gpu_steps.Context(device=torch.device("cpu"), batch=8, twin=True, scratch=tmp_path)
    assert gpu_steps.golden(context, "fp32")["right"]
    monkeypatch.setattr(gpu_steps, "values_and_gradients", wrong)
    row = gpu_steps.golden(context, "fp32")
    assert (row["right"], row["gradient"]) == (False, "text reduce.weight")


@pytest.mark.parametrize(
    ("resumed", "undisturbed", "right"),
    [
        ((0.0, 0.0, True), (0.0, 0.0), True),
        ((0.001, 0.0, True), (0.0, 0.0), False),
        ((0.03, 0.002, True), (0.01, 0.001), True),
        ((0.05, 0.002, True), (0.01, 0.001), False),
        ((0.0, 0.0, False), (0.0, 0.0), False),
        ((float("nan"), 0.0, True), (0.01, 0.001), False),
    ],
)
def test_a_resumed_run_is_as_near_as_undisturbed_ones_are(
    resumed: tuple[float, float, bool], undisturbed: tuple[float, float], right: bool
) -> None:
    names = ("losses_apart", "weights_apart", "same_samples")
    figures = dict(zip(names, resumed, strict=True))
    assert gpu_steps.resumes_right(figures, dict(zip(names, undisturbed, strict=False))) is right


@pytest.mark.slow
def test_the_twin_measures_steps_and_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden values are measured above; ViT-B-16 is measured as ViT-B-32 is."""
    monkeypatch.setattr(gpu_check, "STEP_SECONDS", 3600.0)
    monkeypatch.setattr(gpu_check, "ALL_SECONDS", 3600.0)
    out = tmp_path / "rows.jsonl"
    options = ["--only", "run", "ViT-B-32", "--out", str(out)]
    assert gpu_check.main(options) == 0, out.with_suffix(".log").read_text()[-3000:]
    rows = {(row["step"], row["row"]): row for row in rows_in(out)}
    assert list(rows) == [(step, name) for step in ("run", "ViT-B-32") for name in gpu_check.PLAN[step]]
    assert all(row["samples_per_second"] > 0 for (_, name), row in rows.items() if name != "killed and resumed")
    resumed = rows["run", "killed and resumed"]
    assert (resumed["right"], resumed["losses_apart"], resumed["weights_apart"]) == (True, 0.0, 0.0)
