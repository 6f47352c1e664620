"""`dalip proxies --launcher ray` for real: the table of inline runs, also after a kill; what a lost process costs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import release_writer as writer
from command_server import CommandServer
from process_tree import below, kill
from training_runs import tiny_values, write_values
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import read_proxy_runs
from manifests.errors import ConfigError, RunError
from training.cli import main
from training.config import TrainSettings
from training.proxies.on_ray import each_result_on_ray
from training.proxies.runs import ProxySettings
from training.proxies.study import run_proxies

RUNS = [
    {"run": "even", "mixture": {"plant": 0.5, "general": 0.5}, "samples_seen": 1440},
    {"run": "plants", "mixture": {"plant": 1.0, "general": 0.0}, "samples_seen": 48, "seed": 1},
]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    samples = writer.drawn_samples(83, 25, size_px=40)
    writer.write_release(tmp_path / "toy-0001", samples, shard_size=15, stratified=True)
    with Catalog.open(str(tmp_path / "work")):
        pass
    return tiny_values(
        tmp_path,
        release=str(tmp_path / "toy-0001"),
        output_dir=str(tmp_path / "study"),
        catalogue=str(tmp_path / "work"),
        runs=RUNS,
        checkpoint={"every_steps": 12},
        eval={"batch_size": 8},
    )


@pytest.mark.slow
def test_runs_on_ray_give_the_table_of_inline_ones_also_after_a_kill(
    values: dict[str, Any], commands: CommandServer, tmp_path: Path
) -> None:
    """SIGKILL to all of it amid a run; what goes on ends with the losses of runs never disturbed."""
    command = ("dalip", "proxies", write_values(tmp_path, values), "--launcher", "ray")
    process = commands.start(*command)
    checkpoints = tmp_path / "study/runs/even/checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*.pt")), process, 0.005)
    # All of it at once: what is left of Ray outlives its driver, on a busy machine long enough to end the run.
    kill([process.pid, *below(process.pid)])
    process.communicate(timeout=1500)
    assert not (tmp_path / "study/runs/even/proxy.json").exists(), "it ended before it could be killed"
    process = commands.start(*command)
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, out + err[-3000:]
    assert "0 failed" in out
    assert '"event": "resume"' in (tmp_path / "study/runs/even/log.jsonl").read_text()
    on_ray = (tmp_path / "study/runs.csv").read_text()
    assert len(read_proxy_runs(str(tmp_path / "work"))) == len(RUNS)
    inline = values | {"output_dir": str(tmp_path / "inline"), "catalogue": None}
    run_proxies(ProxySettings.model_validate(inline), lambda line: None)
    assert (tmp_path / "inline/runs.csv").read_text() == on_ray


def _work(task: dict[str, Any]) -> str:
    """What the processes do; this module goes to them by value."""
    if task["way"] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["way"] == "raises":
        raise ValueError("not foreseen")
    return str(task["way"])


@pytest.mark.slow
def test_a_process_that_is_lost_or_raises_costs_its_own_task_alone(values: dict[str, Any]) -> None:
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        settings = TrainSettings.model_validate(
            {name: value for name, value in values.items() if name not in ("runs", "catalogue")}
        )
        tasks = [{"way": way} for way in ("dies", "raises", "works", "works")]
        results = dict(each_result_on_ray(_work, tasks, settings, None))
    finally:
        ray.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert [results[2], results[3]] == ["works", "works"]
    assert isinstance(results[0], RunError)
    assert "died" in str(results[0])
    assert isinstance(results[1], RunError)
    assert "not foreseen" in str(results[1])


@pytest.mark.slow
def test_an_address_where_nothing_listens_is_said_at_once(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_values(tmp_path, values | {"decode_once": False})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["proxies", config, "--launcher", "ray", "--ray-address", address]) == ConfigError.exit_code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"dalip: error: --ray-address {address}: no Ray cluster answers")
