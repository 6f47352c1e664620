"""`compute.compile` beside what else shapes a step. Graphs are traced as ever and run by torch, not by Triton."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import free_port
from training_runs import run_once, step_lines, with_sections, write_values
from vector_tables import random_vectors, write_vectors

OF_TORCH = (
    "ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"  # its own, while it traces
)
WITHOUT_DROPOUT = {"second_order": {"heads": 2, "reduced_width": 4, "dropout": 0.0}}  # whole texts draw other masks
TRAIN_EAGER = """
import functools, sys, torch
torch.compile = functools.partial(torch.compile, backend="eager")
from training.cli import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of each graph that ran, one item a call."""
    ran: list[int] = []
    torch._dynamo.reset()  # else its limit of compilations counts those of other tests

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        def run(*inputs: Any) -> Any:
            ran.append(len(graph.graph.nodes))
            return graph.forward(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    return ran


def assert_near(one: str, two: str) -> None:
    """Step by step the same loss and norm of the gradient."""
    for line, other in zip(step_lines(one), step_lines(two), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.filterwarnings(OF_TORCH)
@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(
            {"compute": {"accumulate": 2}, "lock": {"lock_image": True, "lock_text": True}}, marks=pytest.mark.slow
        ),
        {"adapters": {"rank": 4}, "lock": {"text_blocks": 1}},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"compute": {"accumulate": 3}, "lock": {"lock_text": True}}, marks=pytest.mark.slow),
        pytest.param({"compute": {"accumulate": 2, "grad_checkpointing": True}}, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_run_is_the_run(config: dict[str, Any], sections: dict[str, Any], calls: list[int]) -> None:
    plain = with_sections(config, model=WITHOUT_DROPOUT, schedule={"steps": 3, "warmup_steps": 2}, **sections)
    compiled = with_sections(plain, compute={"compile": True}, output_dir=config["output_dir"] + "-compiled")
    run_once(plain)
    assert not calls
    run_once(compiled)
    assert calls
    assert_near(plain["output_dir"], compiled["output_dir"])


@pytest.mark.filterwarnings(OF_TORCH)
def test_a_compiled_student_is_the_student(config: dict[str, Any], tmp_path: Path, calls: list[int]) -> None:
    """With adapters in both towers, and with captions beside the vectors."""
    table = write_vectors(tmp_path / "vectors.parquet", random_vectors(config["release"], 32))
    plain = with_sections(
        config, model=WITHOUT_DROPOUT, schedule={"steps": 3, "warmup_steps": 2}, adapters={"rank": 4},
        loss={"form": "distil", "teacher": {"vectors": str(table), "weight": 0.5}},
        data={"cache_dir": str(tmp_path / "cache")},
    )  # fmt: skip
    compiled = with_sections(plain, compute={"compile": True}, output_dir=config["output_dir"] + "-compiled")
    run_once(plain)
    run_once(compiled)
    assert calls
    assert_near(plain["output_dir"], compiled["output_dir"])


@pytest.mark.slow
def test_two_compiled_ranks_that_accumulate_are_the_run(config: dict[str, Any], tmp_path: Any) -> None:
    plain = with_sections(
        config, model=WITHOUT_DROPOUT, schedule={"steps": 3, "warmup_steps": 2}, compute={"accumulate": 2}
    )
    run_once(plain)
    compiled = with_sections(plain, compute={"compile": True}, output_dir=config["output_dir"] + "-compiled")
    path = write_values(tmp_path, compiled)
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN_EAGER, path], stderr=subprocess.PIPE, text=True,
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=600)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert_near(plain["output_dir"], compiled["output_dir"])
