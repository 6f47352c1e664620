"""Training as separate processes: killed without warning, two ranks, under torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import release_writer as writer
import torch
from command_server import Command, CommandServer
from process_tree import below, is_running, kill
from ray_nodes import free_port
from sealed import flip_byte
from training_runs import assert_same_run, make_settings, step_lines, tiny_values, with_sections, write_values
from vector_tables import random_vectors, write_vectors
from waiting import look_again, wait_until

from manifests.contract.release import Release
from training.cli import main
from training.data.loader import open_sources
from training.data.shards import open_pool
from training.evaluation.evaluate import domain_losses
from training.evaluation.trained_model import load_run_model
from training.record.log import read_log

NUM_STEPS = 24
_VARIABLES = {"GLOO_SOCKET_IFNAME": "lo"}
Start = Callable[..., list[Command]]


@pytest.fixture(scope="module")
def start(commands: CommandServer) -> Start:
    """Starts `dalip train`, as one process or as the ranks of one run."""

    def begin(values: dict[str, Any], place: Path, *options: str, num_ranks: int = 1) -> list[Command]:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
        ranks = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
        config = ("dalip", "train", _config(values, place), *options)
        return [commands.start(*config, **_VARIABLES, **(rank if num_ranks > 1 else {})) for rank in ranks]

    return begin


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processes")
    writer.write_work_folder(folder / "data", writer.drawn_samples(107, 0), shard_size=19)
    return tiny_values(
        folder,
        release=str(folder / "data"),
        data={"num_workers": 1},
        schedule={"steps": NUM_STEPS},
        checkpoint={"every_steps": 3},
    )


@pytest.fixture(scope="module")
def undropped(values: dict[str, Any]) -> dict[str, Any]:
    """Without dropout: two ranks draw other masks than one."""
    return values | {"model": values["model"] | {"second_order": {"heads": 2, "reduced_width": 4, "dropout": 0.0}}}


@pytest.fixture(scope="module")
def alone(undropped: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing disturbed."""
    place = tmp_path_factory.mktemp("alone")
    _train_here(undropped, place)
    return place


@pytest.fixture(scope="module")
def undisturbed(undropped: dict[str, Any], start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    _finish(start(undropped, place, num_ranks=2))
    return place


def _config(values: dict[str, Any], place: Path) -> str:
    return write_values(place, values | {"output_dir": str(place / "run")})


def _train_here(values: dict[str, Any], place: Path) -> None:
    """The real command in this process, which has loaded what it needs."""
    assert main(["train", _config(values, place)]) == 0


def _finish(ranks: list[Command]) -> str:
    """What the first process said."""
    said = [rank.communicate(timeout=900) for rank in ranks]
    for rank, (_, err) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, err[-3000:]
    return said[0][0]


def _lines(place: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):  # a run that goes on cuts its log anew: for a moment there is none
        return step_lines(str(place / "run"))
    return []


def _last_step(place: Path) -> int:
    """Of the log; 0 where it holds none, as at the start of a run that goes on from nothing."""
    return max((line["step"] for line in _lines(place)), default=0)


def _wait_for(step: int, place: Path, process: Command) -> None:
    """Until the log holds `step`."""
    wait_until(lambda: _last_step(place) >= step, process, 0.002)


def _kill_after(step: int, place: Path, ranks: list[Command]) -> None:
    """SIGKILL to all processes of a run once the log holds `step`."""
    _wait_for(step, place, ranks[0])
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none may end by itself since another one is gone
        for rank in ranks:
            os.killpg(rank.pid, number)
    assert {rank.wait(500) for rank in ranks} == {-signal.SIGKILL}
    assert not (place / "run" / "summary.json").exists()


def _assert_same(one: Path, two: Path) -> None:
    assert_same_run(str(one / "run"), str(two / "run"))
    assert [line["step"] for line in _lines(one)] == list(range(1, NUM_STEPS + 1))


def _places(tmp_path: Path, *names: str) -> list[Path]:
    places = [tmp_path / name for name in names]
    for place in places:
        place.mkdir()
    return places


@pytest.mark.slow
def test_sigkill_at_a_random_step_changes_nothing(
    values: dict[str, Any], start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed without warning, a worker at hand: the loss lines and weights of the uninterrupted run."""
    whole, killed = _places(tmp_path, "whole", "killed")
    _train_here(values, whole)
    step = random.SystemRandom().randrange(1, NUM_STEPS // 2)
    print(f"killed after step {step}")
    _kill_after(step, killed, start(values, killed))
    capsys.readouterr()
    _train_here(values, killed)
    assert capsys.readouterr().out.startswith("finished: 24 steps")
    _assert_same(whole, killed)
    _train_here(values, killed)
    assert capsys.readouterr().out.startswith("finished before, reused")


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_and_exits_1(values: dict[str, Any], start: Start, tmp_path: Path) -> None:
    """As a scheduler does it: the loader's workers get the signal too and must not take the trainer down."""
    (place,) = _places(tmp_path, "place")
    (process,) = start(values | {"checkpoint": {"every_steps": 1000}, "schedule": {"steps": 5000}}, place)
    _wait_for(1, place, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 1
    last = _last_step(place)
    assert f"dalip: error: stopped by a signal after step {last} of 5000" in err
    assert "Traceback" not in err
    assert [path.name for path in (place / "run" / "checkpoints").glob("step-*")] == [f"step-{last:08d}.pt"]


@pytest.mark.slow
def test_two_ranks_see_one_ranks_batches_and_resume_bit_for_bit(
    undropped: dict[str, Any], start: Start, alone: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Two gloo processes: the loss curve of one process at the same batch size; killed and resumed, the same bits."""
    (killed,) = _places(tmp_path, "killed")
    for single, shared in zip(_lines(alone), _lines(undisturbed), strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], abs=2e-3)
    assert _lines(undisturbed)[0]["loss"] == pytest.approx(_lines(alone)[0]["loss"], rel=1e-6)
    step = random.SystemRandom().randrange(2, NUM_STEPS // 2)
    _kill_after(step, killed, start(undropped, killed, num_ranks=2))
    assert _finish(start(undropped, killed, num_ranks=2)).startswith("finished: 24 steps")
    _assert_same(undisturbed, killed)


@pytest.mark.slow
def test_two_ranks_learn_from_a_teacher_as_one_does(values: dict[str, Any], start: Start, tmp_path: Path) -> None:
    """Both need the sorted copy of the vectors, which one of them makes; killed and resumed, the same bits."""
    one, two, killed = _places(tmp_path, "one", "two", "killed")
    known = dict(list(random_vectors(values["release"], 32).items())[:90])
    teacher = {"vectors": str(write_vectors(tmp_path / "vectors.parquet", known)), "weight": 0.5}
    distil = values | {"loss": {"form": "distil", "teacher": teacher}}
    of_one = distil | {"data": values["data"] | {"cache_dir": str(tmp_path / "one/cache")}}
    of_two = distil | {"data": values["data"] | {"cache_dir": str(tmp_path / "two/cache")}}
    _train_here(of_one, one)
    _finish(start(of_two, two, num_ranks=2))
    losses = [[line["loss"] for line in _lines(place)] for place in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-6)
    assert any(line["without_vector"] > 0 for line in read_log(two / "run/log.jsonl", "step"))
    _kill_after(3, killed, start(of_two, killed, num_ranks=2))
    _finish(start(of_two, killed, num_ranks=2))
    _assert_same(two, killed)


def _back_to(source: Path, target: Path, step: int) -> None:
    """A copy of a finished run as it stood after the checkpoint of `step`."""
    shutil.copytree(source / "run", target / "run")
    for name in ("summary.json", "model.pt"):
        (target / "run" / name).unlink()
    for path in (target / "run" / "checkpoints").glob("step-*"):
        if path.name != f"step-{step:08d}.pt":
            path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("part", [{}, {"adapters": {"rank": 4}, "lock": {"text_blocks": 1}}], ids=["whole", "adapted"])
def test_ranks_that_accumulate_see_one_ranks_losses_and_resume(
    part: dict[str, Any], undropped: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    """Two gloo processes with accumulation, clipping and validation: as one, with which a run goes on."""
    one, two, again, alone = _places(tmp_path, "one", "two", "again", "alone")
    values = (
        undropped
        | part
        | {
            "compute": undropped["compute"] | {"accumulate": 2},
            "optimiser": {"lr": 0.002, "clip_norm": 0.5},
            "checkpoint": {"every_steps": 12, "keep": 9},
            "eval": {"split": "train", "every_steps": 8},
        }
    )
    _train_here(values, one)
    _finish(start(values, two, num_ranks=2))
    assert _lines(two)[0]["loss"] == pytest.approx(_lines(one)[0]["loss"], rel=1e-6)
    assert _lines(two)[0]["grad_norm"] == pytest.approx(_lines(one)[0]["grad_norm"], rel=1e-5)
    for single, shared in zip(_lines(one), _lines(two), strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], abs=2e-3)
    validated = [read_log(place / "run" / "log.jsonl", "validation") for place in (one, two)]
    assert [event["step"] for event in validated[1]] == [8, 16, 24]
    assert validated[1][2]["losses"] == pytest.approx(validated[0][2]["losses"], abs=5e-3)
    _back_to(two, again, 12)
    _finish(start(values, again, num_ranks=2))
    _assert_same(two, again)
    _back_to(two, alone, 12)
    _train_here(values, alone)
    assert [line["loss"] for line in _lines(alone)] == pytest.approx([x["loss"] for x in _lines(two)], abs=2e-3)


@pytest.mark.slow
def test_two_ranks_stop_together(values: dict[str, Any], start: Start, tmp_path: Path) -> None:
    """SIGTERM to one of them: both agree on the step, save once and leave; the run goes on from there."""
    (place,) = _places(tmp_path, "place")
    ranks = start(values | {"schedule": {"steps": 5000}}, place, num_ranks=2)
    _wait_for(1, place, ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    said = [rank.communicate(timeout=500)[1] for rank in ranks]
    last = _last_step(place)
    assert all(f"stopped by a signal after step {last} of 5000" in err for err in said)
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert (place / "run" / "checkpoints" / f"step-{last:08d}.pt").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimiser": {"lr": 0.003}}, "optimiser.lr: 0.002 -> 0.003"),
        pytest.param({"loss": {"first_order_weight": 0.3}}, "loss.first_order_weight: ", marks=pytest.mark.slow),
        pytest.param({"seed": 1}, "seed: 0 -> 1", marks=pytest.mark.slow),
        pytest.param({"checkpoint": {"every_steps": 2}}, "checkpoint.every_steps: 3 -> 2", marks=pytest.mark.slow),
        pytest.param({"release": "other"}, "releases.fingerprints: ", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_of_unlike_runs_do_not_train(
    values: dict[str, Any], change: dict[str, Any], words: str, commands: CommandServer, tmp_path: Path
) -> None:
    """Both say what differs, and nothing is written."""
    if "release" in change:
        other = writer.write_release(tmp_path / "other", writer.drawn_samples(107, 0, size_px=80))
        change = {"release": str(other)}
    values = values | {"output_dir": str(tmp_path / "run")}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"} | _VARIABLES
    ranks = []
    for rank, changed in enumerate((values, with_sections(values, **change))):
        config = write_values(tmp_path, changed, f"rank-{rank}")
        ranks.append(commands.start("dalip", "train", config, **meeting, RANK=str(rank), LOCAL_RANK=str(rank)))
    for command in ranks:
        said = command.communicate()[1]
        assert command.poll() == 2
        assert f"rank 1 would train another run than rank 0 ({words}" in said
        assert "the same config and the same release" in said
    assert not (tmp_path / "run").exists()


def test_ranks_validate_as_one_process_does(undropped: dict[str, Any], start: Start, tmp_path: Path) -> None:
    """Each of two encodes some of the batches: to the bit the figures of one process, of the weights that are saved."""
    values = undropped | {
        "output_dir": str(tmp_path / "run"),
        "model": undropped["model"] | {"preset": "released"},  # its running statistics are of each rank's own pairs
        "schedule": {"steps": 2},
        "eval": {"split": "train", "every_steps": 2, "batch_size": 10},
    }
    _finish(start(values, tmp_path, num_ranks=2))
    settings = make_settings(values)
    pool = open_pool(open_sources(settings.release, settings.data, "train"), "train")
    figures = domain_losses(load_run_model(settings, tmp_path / "run").model, pool, settings)
    (validated,) = read_log(tmp_path / "run" / "log.jsonl", "validation")
    assert validated["losses"] == {name: figure["value"] for name, figure in figures.items()}


def test_a_damaged_shard_of_one_ranks_share_ends_all(values: dict[str, Any], start: Start, tmp_path: Path) -> None:
    """Each of two looks at its share of the files; both name the damage, and nothing is written."""
    release = writer.write_release(tmp_path / "release", writer.drawn_samples(40, 0), shard_size=10)
    names = Release.open(str(release)).shards("train")
    for name in names[:2]:  # of both shares
        shutil.copy(release / "shards" / name, tmp_path / name)
        flip_byte(release / "shards" / name, 600)
        for rank in start(values | {"release": str(release)}, tmp_path, num_ranks=2):
            said = rank.communicate(timeout=500)[1]
            assert f"{name} has other content than when the release was sealed" in said
            assert rank.returncode == 1
        shutil.copy(tmp_path / name, release / "shards" / name)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_broken_samples_of_every_rank_are_named_counted_and_limited(
    values: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    """Whoever meets them: all are in the log and the checkpoint, and the limit is on their number over all ranks."""
    samples = writer.drawn_samples(40, 0)
    broken = (3, 9, 17, 30)
    for number in broken:
        samples[number].jpg = b"no picture"
    place, limited = _places(tmp_path, "place", "limited")
    release = writer.write_release(tmp_path / "release", samples)
    values = values | {"release": str(release), "schedule": {"steps": 4}, "data": values["data"] | {"batch_size": 10}}
    _finish(start(values, place, num_ranks=2))
    events = read_log(place / "run" / "log.jsonl", "corrupt_sample")
    assert sorted(event["sample"][:32] for event in events) == sorted(writer.sample_id("toy", str(n)) for n in broken)
    assert json.loads((place / "run" / "summary.json").read_text())["corrupt_samples"] == 4
    saved = torch.load(place / "run" / "checkpoints" / "step-00000004.pt", weights_only=True)
    assert len(saved["corrupt"]) == 4
    for rank in start(values | {"data": values["data"] | {"max_corrupt_samples": 3}}, limited, num_ranks=2):
        _, err = rank.communicate(timeout=500)
        assert rank.returncode == 1
        assert "4 broken samples, more than data.max_corrupt_samples = 3" in err, "both ranks stop, with one count"


@pytest.mark.slow
def test_torchrun_starts_again_after_a_killed_worker(
    undropped: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    """With --max-restarts: one rank is killed, and the run ends with the bits of an undisturbed one."""
    (killed,) = _places(tmp_path, "killed")
    launcher = ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", f"--master-port={free_port()}"]
    launcher += ["--master-addr=127.0.0.1", "-m", "training.cli", "train", _config(undropped, killed)]
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | _VARIABLES | {"MASTER_ADDR": "127.0.0.1"},
    )  # fmt: skip
    try:
        before, behind = _kill_rank(process, killed, rank=1, step=7)
        out, err = process.communicate(timeout=900)
    finally:
        kill([*below(process.pid), process.pid])
    assert process.returncode == 0, err[-3000:]
    assert out.startswith("finished: 24 steps")
    (step,) = re.findall(r"going on after step (\d+) from", err)  # once: the next try finds all processes
    assert int(step) in range((before - 1) // 3 * 3, behind // 3 * 3 + 4, 3), "the last checkpoint when it was gone"
    _assert_same(undisturbed, killed)


def _kill_rank(process: subprocess.Popen[str] | Command, place: Path, rank: int, step: int) -> tuple[int, int]:
    """SIGKILL to the process of rank 0 or 1 of two, once the log holds `step`; rank 0 is the one that writes it. Gives
    the log's last step before and after.

    Who that is takes long to find on a busy machine, and is known by then.
    """
    deadline = time.monotonic() + 600
    victims: list[int] = []
    while not victims or (before := _last_step(place)) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        if not victims or not is_running(victims[0]):  # of the try before
            victims = _processes_of(process, place, rank)
        look_again(0.002)
    kill(victims)
    wait_until(lambda: not is_running(victims[0]))
    return before, _last_step(place)


def _processes_of(process: subprocess.Popen[str], place: Path, rank: int) -> list[int]:
    """The process of a rank; none while there are not two that train, of which one writes the log."""
    training = [pid for pid in below(process.pid) if _trains(pid)]
    ranks = [pid for pid in training if not any(pid in below(other) for other in training)]  # not loader processes
    writes = {pid: _writes(pid, place / "run" / "log.jsonl") for pid in ranks}
    return [pid for pid in ranks if writes[pid] == (rank == 0)] if sorted(writes.values()) == [False, True] else []


def _trains(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        return b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _writes(pid: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return any(Path(file).resolve() == path for file in Path(f"/proc/{pid}/fd").iterdir())
    return False
