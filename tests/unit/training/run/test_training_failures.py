"""What goes wrong in a run: damaged files, numbers that are not finite, broken samples, a full disk, lost processes."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sealed import flip_byte
from torch.multiprocessing.reductions import rebuild_storage_fd
from training_runs import Finished, assert_same_run, make_settings, run_once

from manifests.errors import IntegrityError, PlantMixError, RetryableError, RunError
from training.record import checkpoint, run_files
from training.record.log import RunLog, cut_log, read_log
from training.run import failures, loop
from training.run.distributed import GROUP_TIMEOUT, this_rank
from training.run.loop import train


@pytest.mark.parametrize("how", ["byte", "cut"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, finished: Finished
) -> None:
    whole = finished(config, output_dir=str(tmp_path / "whole"))
    folder = finished(config)
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "step-00000006.pt"
    if how == "byte":
        flip_byte(newest)
    else:
        newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    run_once(config)
    said = capsys.readouterr().err
    assert "step-00000006.pt: damaged, its bytes are not those that were written; removed" in said
    assert "going on after step 4" in said
    assert read_log(folder / "log.jsonl", "resume")[0]["damaged"] == ["step-00000006.pt"]
    assert_same_run(str(whole), str(folder))


def test_only_damaged_bytes_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any byte may be the changed one and any length the cut; a lack of memory says nothing about the file."""
    path = tmp_path / "step.pt"
    torch.save({"step": 3, "state_dict": {"a": torch.arange(20.0)}}, path)
    content = path.read_bytes()
    assert checkpoint.is_whole(path)
    tensor = content.index(torch.arange(20.0).numpy().tobytes())
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        whole = checkpoint.is_whole(path)
        assert not (whole and tensor <= place < tensor + 80)
        path.write_bytes(content[:place])
        assert not checkpoint.is_whole(path)
    path.write_bytes(content)

    def starved(_: zipfile.ZipFile) -> None:
        raise MemoryError

    monkeypatch.setattr(zipfile.ZipFile, "testzip", starved)
    with pytest.raises(MemoryError):
        checkpoint.is_whole(path)


def test_a_run_without_a_whole_checkpoint_stops(config: dict[str, Any], finished: Finished) -> None:
    folder = finished(config)
    (folder / "summary.json").unlink()
    for path in run_files.list_checkpoints(folder):
        flip_byte(path)
    with pytest.raises(IntegrityError, match=r"step-00000006\.pt: damaged, as every checkpoint of the run \(2\)"):
        run_once(config)
    assert len(run_files.list_checkpoints(folder)) == 2, "nothing is removed"


def test_a_checkpoint_that_lacks_something_is_named(config: dict[str, Any], finished: Finished) -> None:
    folder = finished(config)
    (folder / "summary.json").unlink()
    path = folder / "checkpoints" / "step-00000006.pt"
    content = torch.load(path, weights_only=True)
    del content["optimiser"]
    torch.save(content, path)
    with pytest.raises(IntegrityError, match=r"step-00000006\.pt: has no optimiser"):
        run_once(config)


def test_a_loss_that_is_not_finite_names_its_batch(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = loop.compute_gradients

    def spoiled(trainer: Any, chunk: Any) -> dict[str, float]:
        losses = gradients(trainer, chunk)
        return losses | {"loss": math.nan} if trainer.optimiser.param_groups[0]["lr"] == 0.002 else losses

    monkeypatch.setattr(loop, "compute_gradients", spoiled)
    with pytest.raises(RunError, match=r"loss of step 2 is not finite; its 12 samples are listed in"):
        run_once(config)
    report = json.loads((Path(config["output_dir"]) / "not-finite-step-00000002-rank-0.json").read_text())
    assert len(report["samples"]) == 12
    assert all("toy-0000" in name for name in report["samples"])
    assert report["losses"]["loss"] == "nan"


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_its_own_step(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, clip_norm: float | None
) -> None:
    """Its batch is named, not the next one's, and no checkpoint is written with what it made of the weights."""
    gradients = loop.compute_gradients

    def spoiled(trainer: Any, chunk: Any) -> dict[str, float]:
        losses = gradients(trainer, chunk)
        if trainer.optimiser.param_groups[0]["lr"] == 0.002:
            next(trainer.model.parameters()).grad.view(-1)[0] = math.inf
        return losses

    monkeypatch.setattr(loop, "compute_gradients", spoiled)
    with pytest.raises(RunError, match=r"gradient of step 2 is not finite; its 12 samples are listed in"):
        run_once(config, optimiser={"lr": 0.002, "clip_norm": clip_norm}, checkpoint={"every_steps": 1})
    folder = Path(config["output_dir"])
    assert json.loads((folder / "not-finite-step-00000002-rank-0.json").read_text())["not_finite"] == "gradient"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001.pt"]


def _spoil_gradients(monkeypatch: pytest.MonkeyPatch, spoils: Any) -> None:
    """A gradient that is not a number in the steps for which `spoils(number)` holds, counted from 1."""
    gradients = loop.compute_gradients
    count = 0

    def spoiled(trainer: Any, chunk: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        losses = gradients(trainer, chunk)
        if spoils(count):
            next(trainer.model.parameters()).grad.view(-1)[0] = math.nan
        return losses

    monkeypatch.setattr(loop, "compute_gradients", spoiled)


@pytest.mark.slow
def test_fp16_leaves_out_a_few_steps_but_not_for_ever(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"precision": "fp16"}
    with monkeypatch.context() as patch:
        _spoil_gradients(patch, lambda number: number <= 15)
        assert run_once(config, compute=half, schedule={"steps": 18})["steps"] == 18
    shutil.rmtree(config["output_dir"])
    _spoil_gradients(monkeypatch, lambda number: number > 4)
    with pytest.raises(RunError, match=r"gradient of step 24 is not finite, as those of the 19 steps before; its 12 s"):
        run_once(config, compute=half, schedule={"steps": 200})
    report = json.loads((Path(config["output_dir"]) / "not-finite-step-00000024-rank-0.json").read_text())
    assert len(report["samples"]) == 12


@pytest.mark.slow
def test_fp16_whose_scale_sinks_to_nothing_stops(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second gradient lost: never many in a row, but the scale only falls."""
    _spoil_gradients(monkeypatch, lambda number: number % 2 == 0)
    with pytest.raises(RunError, match=r"gradient of step \d+ is not finite; its 12 samples"):
        run_once(config, compute={"precision": "fp16"}, schedule={"steps": 200})


def test_a_huge_learning_rate_stops_the_run_for_real(config: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="is not finite"):
        run_once(
            config, optimiser={"lr": 1e30, "clip_norm": None}, loss={"logit_scale_max": None}, schedule={"steps": 20}
        )


def test_broken_samples_are_logged_and_limited(config: dict[str, Any], writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(40, 0)
    samples[3].jpg = b"no picture"
    release = writer.write_release(tmp_path / "broken", samples)
    summary = run_once(config, release=str(release))
    assert summary["corrupt_samples"] == 1
    events = read_log(Path(config["output_dir"]) / "log.jsonl", "corrupt_sample")
    assert [event["sample"][:32] for event in events] == [writer.sample_id("toy", "3")]
    with pytest.raises(RunError, match=r"1 broken samples, more than data\.max_corrupt_samples = 0; first: .*toy-0000"):
        train(make_settings(config, release=str(release), data={"max_corrupt_samples": 0}), resume=False)


def test_a_bad_line_of_the_log_is_named_unless_a_resume_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, 1.0)
    for step in range(1, 5):
        log.event("step", step=step, loss=0.1 + 0.2)
    log.close()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + '{"event": "st')  # cut short: no line yet
    assert len(read_log(path)) == 4
    for spoiled in ("\0\0\0\n", "3\n", '{"event": "st\n', '{"step": 3}\n'):
        path.write_text("".join(lines[:3]) + spoiled + lines[3])
        with pytest.raises(IntegrityError, match=r"log\.jsonl: line 4 is no event of a run"):
            read_log(path)
        with pytest.raises(IntegrityError, match=r"log\.jsonl: line 4 is no event of a run"):
            cut_log(path, 4)
        cut_log(path, 3)
        assert path.read_text() == "".join(lines[:3])


@pytest.mark.parametrize("content", ["{}", "[]", "{", ""])
def test_a_damaged_record_of_the_run_is_named(config: dict[str, Any], content: str, finished: Finished) -> None:
    (finished(config) / "run.json").write_text(content)
    with pytest.raises(
        IntegrityError, match=r"run\.json: is damaged, or not the record of a training; move the folder away"
    ):
        run_once(config)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(config: dict[str, Any]) -> None:
    """The system refuses the checkpoint in the middle: the run says so, and goes on once there is room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(RunError, match=r"step-00000002\.pt: cannot be written \(.*GB are free there.*make room"):
            run_once(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((Path(config["output_dir"]) / "checkpoints").iterdir())
    assert run_once(config)["steps"] == 6


def test_a_log_that_cannot_be_written_is_said(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLog, "event", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\); make room"):
        run_once(config)


def test_a_killed_loader_process_is_said(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = loop.compute_gradients

    def kill_loader(trainer: Any, chunk: Any) -> dict[str, float]:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return gradients(trainer, chunk)

    monkeypatch.setattr(loop, "compute_gradients", kill_loader)
    with pytest.raises(RetryableError, match=r"a loader process is gone: .*data\.num_workers"):
        run_once(config, data={"num_workers": 1}, schedule={"steps": 50})


def test_a_batch_whose_loader_process_is_gone_is_said(tmp_path: Path) -> None:
    class Gone:  # what a batch brings along: the address where its process hands the memory over
        def detach(self) -> int:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    def error_of(ask: Callable[[], Any]) -> PlantMixError | None:
        try:
            ask()
        except ConnectionResetError as error:
            return failures.explain(error, tmp_path)
        raise AssertionError

    def hear(*_: Any) -> None:  # as torch's handler of SIGCHLD
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    explained = error_of(lambda: rebuild_storage_fd(torch.UntypedStorage, Gone(), 8))
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0.0, 0.0), "it answered before the end was told"
    signal.signal(signal.SIGALRM, before)
    assert "a loader process is gone: it ended before its batch was taken (ConnectionResetError)." in str(explained)
    assert isinstance(explained, RetryableError)
    assert error_of(Gone().detach) is None  # of anything else, a store for one


def test_shards_are_checked_before_processes_wait_for_each_other(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them may take hours; a group gives up a process that is awaited for longer than its timeout."""
    order: list[Any] = []
    monkeypatch.setattr(loop.loader, "check_shards", lambda *_, share: order.append(share))

    def join(backend: str, *, timeout: timedelta) -> None:
        order.append(timeout)
        raise RunError("joined")

    monkeypatch.setattr("torch.distributed.init_process_group", join)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match="joined"):
        run_once(config)
    assert order == [(1, 4), (1, 4), GROUP_TIMEOUT], "each machine has files of its own"
    assert timedelta(minutes=10) < GROUP_TIMEOUT
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert this_rank("cpu").share == (5, 8)
