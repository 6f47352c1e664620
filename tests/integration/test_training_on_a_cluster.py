"""`dalip train --launcher ray` on a cluster of two machines: one that shares no folder, one that is missing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import release_writer as writer
from command_server import Command, CommandServer
from ray_nodes import ENVIRONMENT, Cluster
from training_runs import tiny_values, write_values
from waiting import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as nodes:
        nodes.start(num_cpus=1)
        yield nodes


def _config(folder: Path, run: Path) -> str:
    """A config of two steps; its release lies in `folder`."""
    writer.write_work_folder(folder / "data", writer.drawn_samples(40, 0), shard_size=20)
    places = {"release": str(folder / "data"), "output_dir": str(run)}
    model, schedule = {"preset": "clip"}, {"steps": 2, "warmup_steps": 0}
    return write_values(folder, tiny_values(folder, model=model, data={"batch_size": 8}, schedule=schedule, **places))


def _train(commands: CommandServer, config: str, cluster: Cluster, num_workers: int) -> Command:
    on_ray = ("--launcher", "ray", "--num-workers", str(num_workers), "--ray-address", cluster.address)
    return commands.start("dalip", "train", config, *on_ray, **ENVIRONMENT, GLOO_SOCKET_IFNAME="lo")


def _end(process: Command) -> str:
    """The last line of the command, which is to fail."""
    _, err = process.communicate(timeout=500)
    assert process.wait(0) > 0, err[-3000:]
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_machines_that_are_not_there(
    cluster: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    waits = "\ndalip: 9 processes need 9 cores, and Ray has 1; waiting for more machines (Ctrl-C ends it)\n"
    process = _train(commands, _config(tmp_path, tmp_path / "run"), cluster, num_workers=9)
    wait_until(lambda: waits in "\n" + process.said()[1], process)
    process.send_signal(signal.SIGTERM)
    last = _end(process)
    assert last == "dalip: error: stopped by a signal before training went on: 9 processes need 9 cores, and Ray has 1"
    assert not (tmp_path / "run" / "stop-asked").exists()


@pytest.mark.slow
def test_a_machine_that_does_not_share_the_runs_folder_is_named_before_the_first_step(
    cluster: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    """Ray starts the first process where it likes: it trained to the end into a folder that nobody else saw."""
    run = tmp_path / "run"
    run.mkdir()
    cluster.start(num_cpus=1, hidden=[run])
    last = _end(_train(commands, _config(tmp_path, run), cluster, num_workers=2))
    assert last.startswith("dalip: error: on machine ")
    assert f": {run} is not the folder of the machine that started the run: let --output lie on a disk that" in last
    assert not (run / "log.jsonl").exists()
