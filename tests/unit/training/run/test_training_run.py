"""A run, start to end, in this process: it learns, logs, resumes bit for bit, refuses, and stops with a reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from training_runs import Finished, assert_same_run, make_settings, run_once, step_lines, stop_at
from waiting import wait_until

from manifests.contract.release import Release
from manifests.errors import ConfigError, RunError
from manifests.services.printable import WIPE
from manifests.services.scheduling import STOP_SIGNALS
from training.data.shards import open_pool
from training.evaluation.evaluate import domain_losses
from training.evaluation.trained_model import load_run_model
from training.model.dalip import DalipModel
from training.record import checkpoint, run_files
from training.record.log import RunLog, read_log
from training.run import loop, state
from training.run.loop import train
from training.run.stopping import stop_event


def test_a_run_writes_what_it_promises(config: dict[str, Any]) -> None:
    summary = run_once(config)
    folder = Path(config["output_dir"])
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.json", "log.jsonl", "model.pt", "run.json", "summary.json"
    ]  # fmt: skip
    lines = step_lines(config["output_dir"])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [round(line["lr"], 6) for line in lines[:2]] == [0.001, 0.002]
    assert lines[-1]["samples_seen"] == summary["samples_seen"] == 72
    assert lines[-1]["epoch"] == pytest.approx(72 / 107)
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert [path.name for path in run_files.list_checkpoints(folder)] == ["step-00000004.pt", "step-00000006.pt"]
    assert summary["chance_loss"] == pytest.approx(math.log(12))


def test_a_finished_run_is_reused(config: dict[str, Any], finished: Finished) -> None:
    folder = finished(config)
    first = json.loads((folder / "summary.json").read_text())
    stamp = (folder / "model.pt").stat().st_mtime_ns
    again, reused = train(make_settings(config, eval={"batch_size": 6}, log={"every_steps": 3}))
    assert reused
    assert again == first
    assert (folder / "model.pt").stat().st_mtime_ns == stamp


def test_sigterm_saves_and_a_resume_is_bit_for_bit(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers, batch norm and accumulation; test_training_walk.py stops and resumes without them."""
    before = signal.getsignal(signal.SIGTERM)
    config["model"]["preset"] = "released"
    config["compute"]["accumulate"] = 3
    whole = config | {"output_dir": str(tmp_path / "whole")}
    run_once(whole)
    config["data"] = config["data"] | {"num_workers": 2}
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(RunError, match="stopped by a signal after step 3 of 6"):
            run_once(config)
    assert [path.name for path in run_files.list_checkpoints(Path(config["output_dir"]))][-1] == "step-00000003.pt"
    assert signal.getsignal(signal.SIGTERM) == before
    run_once(config)
    assert_same_run(whole["output_dir"], config["output_dir"])


def test_lines_after_the_checkpoint_are_cut(config: dict[str, Any], tmp_path: Path, finished: Finished) -> None:
    """As after SIGKILL: the log is ahead of the checkpoint, its last line cut short, a private file left over."""
    whole = finished(config, output_dir=str(tmp_path / "whole"))
    folder = finished(config)
    for name in ("summary.json", "model.pt", "checkpoints/step-00000006.pt"):
        (folder / name).unlink()
    (folder / "checkpoints" / ".step-00000006.pt.tmp-0123456789ab").write_bytes(b"half")
    with (folder / "log.jsonl").open("a") as stream:
        stream.write('{"event": "step", "st')
    run_once(config)
    assert_same_run(str(whole), str(folder))
    assert not list(folder.rglob(".step*"))


def test_another_config_is_refused_until_told(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(RunError):
            run_once(config)
    changed = make_settings(config, optimiser={"lr": 0.001})
    with pytest.raises(ConfigError, match=r"checkpoints of another config.*optimiser\.lr: 0\.002 -> 0\.001.*--allow"):
        train(changed)
    summary, _ = train(changed, allow_changed=True)
    assert summary["steps"] == 6
    with pytest.raises(ConfigError, match=r"a finished run of another config.*--no-resume"):
        train(make_settings(config, seed=1), allow_changed=True)
    assert train(make_settings(config, seed=1), resume=False)[0]["steps"] == 6


def test_another_release_is_refused(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path, finished: Finished
) -> None:
    finished(config)
    other = writer.write_release(tmp_path / "other", writer.drawn_samples(60, 0))
    with pytest.raises(ConfigError, match=r"releases\.fingerprints"):
        run_once(config, release=str(other))
    moved = tmp_path / "moved"
    shutil.copytree(config["release"], moved)
    assert train(make_settings(config, release=str(moved)))[1], "the same content elsewhere is the same release"


def test_two_trainings_in_one_folder_are_refused(config: dict[str, Any]) -> None:
    with (
        checkpoint.lock_folder(Path(config["output_dir"])),
        pytest.raises(ConfigError, match="another command is writing here"),
    ):
        run_once(config)


def test_a_folder_is_free_when_its_process_is_gone_though_a_fork_of_it_lives(tmp_path: Path) -> None:
    """Loader processes see some seconds late that a run was killed."""
    reads, writes = os.pipe()
    with checkpoint.lock_folder(tmp_path):
        pid = os.fork()
        if pid == 0:
            os.write(writes, b".")
            signal.pause()
        assert os.read(reads, 1)
    try:
        with checkpoint.lock_folder(tmp_path):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reads)
        os.close(writes)


def test_a_run_that_another_process_finishes_meanwhile_is_reused(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was new when this process looked first: the other's model must not be wiped."""
    build, stamps = loop.build_trainer, []

    def build_late(*arguments: Any, **options: Any) -> Any:
        if not stamps:
            stamps.append(0)
            run_once(config)
            stamps[0] = (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns
        return build(*arguments, **options)

    monkeypatch.setattr(loop, "build_trainer", build_late)
    summary, reused = train(make_settings(config))
    assert reused
    assert summary["steps"] == 6
    assert (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns == stamps[0]


def test_accumulation_equals_the_large_batch(config: dict[str, Any], tmp_path: Path, finished: Finished) -> None:
    """Without dropout and batch statistics the micro-batches give the large batch's losses and weights."""
    config["model"]["second_order"] |= {"dropout": 0.0}
    large = finished(config, output_dir=str(tmp_path / "large"))
    run_once(config, compute={"accumulate": 4})
    whole, parts = step_lines(str(large)), step_lines(config["output_dir"])
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-6)
    assert parts[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-5)
    for one, four in zip(whole, parts, strict=True):  # AdamW makes full steps of gradients that are all but rounding
        assert four["loss"] == pytest.approx(one["loss"], abs=1e-3)
        assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("preset", ["clip", "dalip"])
def test_cut_texts_train_as_whole_ones(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    long = {**writer.TINY_ARCHITECTURE, "text_cfg": writer.TINY_ARCHITECTURE["text_cfg"] | {"context_length": 40}}
    path = tmp_path / f"dalip-long-context-{preset}.json"
    path.write_text(json.dumps(long), encoding="utf-8")
    second = config["model"]["second_order"] | {"dropout": 0.0}
    config["model"] = {"preset": preset, "architecture": str(path)}
    if preset == "dalip":
        config["model"]["second_order"] = second
    lengths, really = set(), DalipModel.cut_texts

    def noted(model: DalipModel, tokens: Any) -> Any:
        cut = really(model, tokens)
        lengths.add(cut.shape[1])
        return cut

    monkeypatch.setattr(DalipModel, "cut_texts", noted)
    run_once(config)
    monkeypatch.setattr(DalipModel, "cut_texts", lambda model, tokens: tokens)
    whole = config | {"output_dir": str(tmp_path / "whole")}
    run_once(whole)
    assert max(lengths) < 40
    for cut, full in zip(step_lines(config["output_dir"]), step_lines(whole["output_dir"]), strict=True):
        assert cut["loss"] == pytest.approx(full["loss"], abs=1e-3)
        assert cut["grad_norm"] == pytest.approx(full["grad_norm"], rel=1e-2)
    assert cut["step"] == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close(
    config: dict[str, Any], tmp_path: Path, precision: str, finished: Finished
) -> None:
    config["model"]["second_order"] |= {"dropout": 0.0}
    whole = finished(config, output_dir=str(tmp_path / "whole"))
    run_once(config, compute={"precision": precision})
    exact, reduced = step_lines(str(whole)), step_lines(config["output_dir"])
    assert reduced[0]["loss"] == pytest.approx(exact[0]["loss"], abs=0.02)
    assert reduced[0]["loss"] != exact[0]["loss"]
    assert reduced[-1]["loss"] < reduced[0]["loss"]
    # the gradient scaler of fp16 skips its first steps while it looks for its scale
    skipped = [line["step"] for line in reduced if line["grad_norm"] is None]
    assert len(skipped) <= (2 if precision == "fp16" else 0)


def test_a_warmup_longer_than_the_run_is_said(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_once(config, schedule={"steps": 1, "warmup_steps": 4})
    said = capsys.readouterr().err
    assert "schedule.warmup_steps 4 is longer than the run of 1 steps: the learning rate ends at 0.25 of" in said
    assert "is above the" not in said


def test_a_batch_larger_than_the_data_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size 108 is above the 107 samples of .*set it to 107 or less"):
        run_once(config, data={"batch_size": 108})
    assert not Path(config["output_dir"]).exists()


def test_a_batch_size_that_cannot_change_is_not_said_to_be_allowed(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 2)
    with pytest.raises(RunError):
        run_once(config)
    with pytest.raises(ConfigError, match=r"data\.batch_size: 12 -> 24") as refusal:
        run_once(config, data={"batch_size": 24})
    assert "--allow-changed" not in str(refusal.value)


def test_a_length_without_an_end_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.epochs.*finite number"):
        make_settings(config | {"schedule": {"epochs": math.inf}})


def test_validation_loss_is_logged_without_touching_the_run(
    config: dict[str, Any], tmp_path: Path, finished: Finished
) -> None:
    plain = finished(config, output_dir=str(tmp_path / "plain"))
    run_once(config, eval={"every_steps": 2})
    assert_same_run(str(plain), config["output_dir"])
    events = read_log(Path(config["output_dir"]) / "log.jsonl", "validation")
    assert [event["step"] for event in events] == [2, 4, 6]
    assert set(events[0]["losses"]) == {"all", "general", "plant"}


def test_a_validation_split_that_is_not_there_is_said_before_the_first_step(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no split 'nowhere'"):
        run_once(config, eval={"split": "nowhere", "every_steps": 100})
    assert not Path(config["output_dir"]).exists()


def test_a_text_member_written_wrong_is_said(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_once(config, data={"text": {"use": "draw", "members": ["sci", "comon"]}}, schedule={"steps": 1})
    assert "data.text: no sample looked at has comon; they have: com, sci" in capsys.readouterr().err


def test_a_stratified_release_without_a_mixture_is_said(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = writer.write_release(tmp_path / "release", writer.drawn_samples(60, 0), stratified=True)
    run_once(config, release=str(release), schedule={"steps": 1})
    assert (
        "without data.mixture: drawn in proportion to the sizes (general 0.500, plant 0.500)" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_domain_losses_say_what_a_run_knows_of_each_domain(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path
) -> None:
    """Trained on one domain alone, the model knows that one better; batches of one domain, mode untouched."""
    config["model"]["second_order"] |= {"dropout": 0.0}
    release = writer.write_release(tmp_path / "release", writer.drawn_samples(60, 40), stratified=True)
    settings = make_settings(config, release=str(release), schedule={"steps": 120},
                         data={"mixture": {"plant": 1.0}, "pool_samples": {"plant": 28}})  # fmt: skip
    train(settings)
    pool = open_pool([Release.open(str(release))], "heldout")
    trained = load_run_model(settings, Path(config["output_dir"])).model.train()
    after = domain_losses(trained, pool, settings)
    assert trained.training
    before = domain_losses(state.build_model(settings.model), pool, settings)
    assert list(after) == ["all", "general", "plant"]
    assert after["plant"]["trials"] == 12
    assert after["plant"]["low"] <= after["plant"]["value"] <= after["plant"]["high"]
    assert all(abs(before[domain]["value"] - before[domain]["chance"]) < 0.4 for domain in before)
    assert after["plant"]["value"] < after["general"]["value"] - 0.5


def test_epochs_decide_the_number_of_steps(config: dict[str, Any]) -> None:
    settings = make_settings(config | {"schedule": {"epochs": 1.5}})
    assert state.count_steps(settings, 107) == math.ceil(1.5 * 107 / 12)


def test_a_terminal_gets_one_living_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None:
            pass

    terminal = Terminal()
    log = RunLog(tmp_path / "log.jsonl", 1000.0, terminal)
    log.progress("step 1 long")
    log.progress("step 2")
    log.print_line("done")
    log.close()
    assert terminal.text == f"{WIPE}step 1 long{WIPE}step 2\ndone\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_of_a_scheduler_is_heard_as_often_as_it_comes(number: int) -> None:
    with stop_event() as stop:
        os.kill(os.getpid(), number)
        wait_until(stop.is_set)
        os.kill(os.getpid(), number)


def test_a_second_interrupt_does_not_wait() -> None:
    with stop_event() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(stop.is_set)
        with pytest.raises(KeyboardInterrupt):
            _interrupt_and_wait()


def _interrupt_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(600)
