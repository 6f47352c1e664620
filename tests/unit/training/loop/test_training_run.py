"""A run, start to end, in this process: it learns, logs, resumes bit for bit, refuses, and stops with a reason."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.release import Release
from manifests.settings import parse_settings
from training import checkpoint, loop, state
from training.config import TrainSettings, identity_values, read_train_settings
from training.evaluate import domain_losses
from training.log import RunLog, cut_log, read_log
from training.loop import train
from training.shards import open_pool
from training.stopping import stop_signal
from training.subject import load_run_model

COMPARED = ("step", "epoch", "samples_seen", "loss", "first_order_loss", "second_order_loss", "lr", "logit_scale",
            "grad_norm")  # fmt: skip


def _settings(values: dict[str, Any], **sections: Any) -> TrainSettings:
    merged = dict(values)
    for name, change in sections.items():
        merged[name] = merged.get(name, {}) | change if isinstance(change, dict) else change
    return parse_settings(merged, TrainSettings, where="test")


def _run(values: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return train(_settings(values, **sections))[0]


def _lines(folder: str) -> list[dict[str, Any]]:
    return [{key: line.get(key) for key in COMPARED} for line in read_log(Path(folder) / "log.jsonl", "step")]


def _weights(folder: str) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = torch.load(Path(folder) / "model.pt", weights_only=True)["state_dict"]
    return state_dict


def _assert_same_run(one: str, two: str) -> None:
    assert _lines(one) == _lines(two)
    first, second = _weights(one), _weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM to this process in the middle of the given step."""
    gradients = loop.compute_gradients
    count = 0

    def counted(trainer: Any, chunk: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return gradients(trainer, chunk)

    monkeypatch.setattr(loop, "compute_gradients", counted)


def test_a_run_writes_what_it_promises(config: dict[str, Any]) -> None:
    summary = _run(config)
    folder = Path(config["output_dir"])
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "config.json", "log.jsonl", "model.pt", "run.json", "summary.json"
    ]  # fmt: skip
    lines = _lines(config["output_dir"])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [round(line["lr"], 6) for line in lines[:2]] == [0.001, 0.002]
    assert lines[-1]["samples_seen"] == summary["samples_seen"] == 72
    assert lines[-1]["epoch"] == pytest.approx(72 / 107)
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert [path.name for path in checkpoint.list_checkpoints(folder)] == ["step-00000004.pt", "step-00000006.pt"]
    assert summary["chance_loss"] == pytest.approx(math.log(12))


def test_a_finished_run_is_reused(config: dict[str, Any]) -> None:
    first = _run(config)
    stamp = (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns
    again, reused = train(_settings(config, eval={"batch_size": 6}, log={"every_steps": 3}))
    assert reused
    assert again == first
    assert (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns == stamp


def test_sigterm_saves_and_a_resume_is_bit_for_bit(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    config["ema_decay"] = 0.9
    whole = config | {"output_dir": str(tmp_path / "whole")}
    _run(whole)
    with monkeypatch.context() as patch:
        _stop_at(patch, 3)
        with pytest.raises(RunError, match="stopped by a signal after step 3 of 6"):
            _run(config)
    assert [path.name for path in checkpoint.list_checkpoints(Path(config["output_dir"]))][-1] == "step-00000003.pt"
    assert signal.getsignal(signal.SIGTERM) == before
    _run(config)
    _assert_same_run(whole["output_dir"], config["output_dir"])


def test_a_resume_with_workers_batch_norm_and_accumulation_is_bit_for_bit(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["model"]["preset"] = "released"
    config["compute"]["accumulate"] = 3
    whole = config | {"output_dir": str(tmp_path / "whole")}
    _run(whole)
    config["data"] = config["data"] | {"num_workers": 2}
    with monkeypatch.context() as patch:
        _stop_at(patch, 5)
        with pytest.raises(RunError):
            _run(config)
    _run(config)
    _assert_same_run(whole["output_dir"], config["output_dir"])


def test_lines_after_the_checkpoint_are_cut(config: dict[str, Any], tmp_path: Path) -> None:
    """As after SIGKILL: the log is ahead of the checkpoint, its last line cut short, a private file left over."""
    whole = config | {"output_dir": str(tmp_path / "whole")}
    _run(whole)
    folder = Path(config["output_dir"])
    shutil.copytree(whole["output_dir"], folder)
    for name in ("summary.json", "model.pt", "checkpoints/step-00000006.pt"):
        (folder / name).unlink()
    (folder / "checkpoints" / ".step-00000006.pt.tmp-0123456789ab").write_bytes(b"half")
    with (folder / "log.jsonl").open("a") as stream:
        stream.write('{"event": "step", "st')
    _run(config)
    _assert_same_run(whole["output_dir"], config["output_dir"])
    assert not list(folder.rglob(".step*"))


def test_another_config_is_refused_until_told(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _stop_at(patch, 2)
        with pytest.raises(RunError):
            _run(config)
    changed = _settings(config, optimiser={"lr": 0.001})
    with pytest.raises(ConfigError, match=r"checkpoints of another config.*optimiser\.lr: 0\.002 -> 0\.001.*--allow"):
        train(changed)
    summary, _ = train(changed, allow_changed=True)
    assert summary["steps"] == 6
    with pytest.raises(ConfigError, match=r"a finished run of another config.*--no-resume"):
        train(_settings(config, seed=1), allow_changed=True)
    assert train(_settings(config, seed=1), resume=False)[0]["steps"] == 6


def test_training_anew_leaves_nothing_of_the_old_run_but_what_others_put_there(config: dict[str, Any]) -> None:
    _run(config)
    folder = Path(config["output_dir"])
    old = [folder / "eval" / "heldout-toy-0001.json", folder / "eval" / "heldout-toy-0001.png",
           folder / "not-finite-step-00000002-rank-0.json"]  # fmt: skip
    (folder / "eval").mkdir()
    for path in (*old, folder / "notes.txt"):
        path.write_text("{}")
    train(_settings(config, seed=1), resume=False)
    assert not any(path.exists() for path in old)
    assert not (folder / "eval").exists()
    assert (folder / "notes.txt").exists()


def test_another_release_is_refused(config: dict[str, Any], writer: ModuleType, tmp_path: Path) -> None:
    _run(config)
    other = writer.write_release(tmp_path / "other", writer.drawn_samples(60, 0))
    with pytest.raises(ConfigError, match=r"releases\.fingerprints"):
        _run(config, release=str(other))
    moved = tmp_path / "moved"
    shutil.copytree(config["release"], moved)
    assert train(_settings(config, release=str(moved)))[1], "the same content elsewhere is the same release"


def test_two_trainings_in_one_folder_are_refused(config: dict[str, Any]) -> None:
    with (
        checkpoint.hold_folder(Path(config["output_dir"])),
        pytest.raises(ConfigError, match="another training is writing here"),
    ):
        _run(config)


def _spoil_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["byte", "cut"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    whole = config | {"output_dir": str(tmp_path / "whole")}
    _run(whole)
    folder = Path(config["output_dir"])
    shutil.copytree(whole["output_dir"], folder)
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "step-00000006.pt"
    if how == "byte":
        _spoil_byte(newest)
    else:
        newest.write_bytes(newest.read_bytes()[:-1000])
    capsys.readouterr()
    _run(config)
    said = capsys.readouterr().err
    assert "step-00000006.pt: damaged, its bytes are not those that were written; removed" in said
    assert "going on after step 4" in said
    assert read_log(folder / "log.jsonl", "resume")[0]["damaged"] == ["step-00000006.pt"]
    _assert_same_run(whole["output_dir"], config["output_dir"])


def test_a_run_without_a_whole_checkpoint_stops(config: dict[str, Any]) -> None:
    _run(config)
    folder = Path(config["output_dir"])
    (folder / "summary.json").unlink()
    for path in checkpoint.list_checkpoints(folder):
        _spoil_byte(path)
    with pytest.raises(IntegrityError, match=r"step-00000006\.pt: damaged, as every checkpoint of the run \(2\)"):
        _run(config)
    assert len(checkpoint.list_checkpoints(folder)) == 2, "nothing is removed"


def test_a_checkpoint_that_lacks_something_is_named(config: dict[str, Any]) -> None:
    _run(config)
    folder = Path(config["output_dir"])
    (folder / "summary.json").unlink()
    path = folder / "checkpoints" / "step-00000006.pt"
    content = torch.load(path, weights_only=True)
    del content["average"]
    torch.save(content, path)
    with pytest.raises(IntegrityError, match=r"step-00000006\.pt: has no average"):
        _run(config)


def test_a_run_that_another_process_finishes_meanwhile_is_reused(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was new when this process looked first: the other's model must not be wiped."""
    build, stamps = loop.build_trainer, []

    def build_late(*arguments: Any, **options: Any) -> Any:
        if not stamps:
            stamps.append(0)
            _run(config)
            stamps[0] = (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns
        return build(*arguments, **options)

    monkeypatch.setattr(loop, "build_trainer", build_late)
    summary, reused = train(_settings(config))
    assert reused
    assert summary["steps"] == 6
    assert (Path(config["output_dir"]) / "model.pt").stat().st_mtime_ns == stamps[0]


def test_a_loss_that_is_not_finite_names_its_batch(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = loop.compute_gradients

    def spoiled(trainer: Any, chunk: Any) -> dict[str, float]:
        losses = gradients(trainer, chunk)
        return losses | {"loss": math.nan} if trainer.optimiser.param_groups[0]["lr"] == 0.002 else losses

    monkeypatch.setattr(loop, "compute_gradients", spoiled)
    with pytest.raises(RunError, match=r"loss of step 2 is not finite; its 12 samples are listed in"):
        _run(config)
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
        _run(config, optimiser={"lr": 0.002, "clip_norm": clip_norm}, checkpoint={"every_steps": 1})
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


def test_fp16_leaves_out_a_few_steps_but_not_for_ever(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"precision": "fp16"}
    with monkeypatch.context() as patch:
        _spoil_gradients(patch, lambda number: number <= 15)
        assert _run(config, compute=half, schedule={"steps": 18})["steps"] == 18
    shutil.rmtree(config["output_dir"])
    _spoil_gradients(monkeypatch, lambda number: number > 4)
    with pytest.raises(RunError, match=r"gradient of step 24 is not finite, as those of the 19 steps before; its 12 s"):
        _run(config, compute=half, schedule={"steps": 200})
    report = json.loads((Path(config["output_dir"]) / "not-finite-step-00000024-rank-0.json").read_text())
    assert len(report["samples"]) == 12


def test_fp16_whose_scale_sinks_to_nothing_stops(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second gradient lost: never many in a row, but the scale only falls."""
    _spoil_gradients(monkeypatch, lambda number: number % 2 == 0)
    with pytest.raises(RunError, match=r"gradient of step \d+ is not finite; its 12 samples"):
        _run(config, compute={"precision": "fp16"}, schedule={"steps": 200})


def test_a_huge_learning_rate_stops_the_run_for_real(config: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="is not finite"):
        _run(config, optimiser={"lr": 1e30, "clip_norm": None}, loss={"logit_scale_max": None}, schedule={"steps": 20})


def test_broken_samples_are_logged_and_limited(config: dict[str, Any], writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(40, 0)
    samples[3].jpg = b"no picture"
    release = writer.write_release(tmp_path / "broken", samples)
    summary = _run(config, release=str(release))
    assert summary["corrupt_samples"] == 1
    events = read_log(Path(config["output_dir"]) / "log.jsonl", "corrupt_sample")
    assert [event["sample"][:32] for event in events] == [writer.sample_id("toy", "3")]
    with pytest.raises(RunError, match=r"1 broken samples, more than data\.max_corrupt_samples = 0"):
        train(_settings(config, release=str(release), data={"max_corrupt_samples": 0}), resume=False)


def test_accumulation_equals_the_large_batch(config: dict[str, Any], tmp_path: Path) -> None:
    """Without dropout and batch statistics the micro-batches give the large batch's losses and weights."""
    config["model"]["second_order"] |= {"dropout": 0.0}
    large = config | {"output_dir": str(tmp_path / "large")}
    _run(large)
    _run(config, compute={"accumulate": 4})
    for one, four in zip(_lines(large["output_dir"]), _lines(config["output_dir"]), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], abs=2e-5)
        assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close(config: dict[str, Any], tmp_path: Path, precision: str) -> None:
    config["model"]["second_order"] |= {"dropout": 0.0}
    whole = config | {"output_dir": str(tmp_path / "whole")}
    _run(whole)
    _run(config, compute={"precision": precision})
    exact, reduced = _lines(whole["output_dir"]), _lines(config["output_dir"])
    assert reduced[0]["loss"] == pytest.approx(exact[0]["loss"], abs=0.02)
    assert reduced[0]["loss"] != exact[0]["loss"]
    assert reduced[-1]["loss"] < reduced[0]["loss"]
    # the gradient scaler of fp16 skips its first steps while it looks for its scale
    skipped = [line["step"] for line in reduced if line["grad_norm"] is None]
    assert len(skipped) <= (2 if precision == "fp16" else 0)


def test_locked_towers_do_not_move_and_the_branches_do(config: dict[str, Any]) -> None:
    settings = _settings(config, lock={"lock_image": True, "lock_text": True})
    train(settings)
    torch.manual_seed(loop.mix_seed(settings.seed, 0x696E6974) >> 1)
    start = state.build_model(settings.model).state_dict()
    moved = {name for name, value in _weights(config["output_dir"]).items() if not torch.equal(value, start[name])}
    assert not {name for name in moved if name.startswith(("clip.visual.", "clip.transformer."))}
    assert any(name.startswith("image_branch.") for name in moved)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_locked_resnet_keeps_its_batch_statistics_unless_told(
    config: dict[str, Any], tmp_path: Path, frozen: bool
) -> None:
    architecture = json.loads(Path(config["model"]["architecture"]).read_text())
    architecture["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (tmp_path / "dalip-loop-resnet.json").write_text(json.dumps(architecture))
    config["model"] = {"preset": "clip", "architecture": str(tmp_path / "dalip-loop-resnet.json")}
    settings = _settings(config, lock={"lock_image": True, "lock_image_freeze_bn_stats": frozen}, schedule={"steps": 2},
                         eval={"every_steps": 1})  # fmt: skip
    train(settings)
    torch.manual_seed(loop.mix_seed(settings.seed, 0x696E6974) >> 1)
    start = state.build_model(settings.model).state_dict()
    moved = {name for name, value in _weights(config["output_dir"]).items() if not torch.equal(value, start[name])}
    in_tower = {name for name in moved if name.startswith("clip.visual.")}
    assert bool(in_tower) is not frozen
    assert all("running_" in name or "num_batches" in name for name in in_tower)
    assert moved - in_tower


def test_a_resnet_that_cannot_be_locked_in_part_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    architecture = json.loads(Path(config["model"]["architecture"]).read_text())
    architecture["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (tmp_path / "dalip-loop-part.json").write_text(json.dumps(architecture))
    config["model"] = {"preset": "clip", "architecture": str(tmp_path / "dalip-loop-part.json")}
    with pytest.raises(ConfigError, match="lock: open_clip cannot lock this architecture so: partial locking"):
        _run(config, lock={"lock_image": True, "lock_image_unlocked_groups": 1})


def test_how_a_tower_is_locked_shapes_only_a_run_that_locks_it(config: dict[str, Any]) -> None:
    values = [
        identity_values(_settings(config, lock={"lock_image": locked, "lock_image_freeze_bn_stats": frozen}), ["a"])
        for locked in (False, True)
        for frozen in (False, True)
    ]
    assert values[0] == values[1]
    assert values[2] != values[3]


@pytest.mark.parametrize("name", ["lock_image_unlocked_groups", "lock_text_unlocked_layers"])
def test_unlocking_what_is_not_locked_is_refused(config: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 2, but lock_\w+ is false"):
        _settings(config, lock={name: 2})


def test_a_warmup_longer_than_the_run_is_said(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _run(config, schedule={"steps": 1, "warmup_steps": 4})
    assert "schedule.warmup_steps 4 is longer than the run of 1 steps: the learning rate ends at 0.25 of" in (
        capsys.readouterr().err
    )


def test_a_plain_clip_with_both_towers_locked_is_refused(config: dict[str, Any]) -> None:
    config["model"] = {"preset": "clip", "architecture": config["model"]["architecture"]}
    config["lock"] = {"lock_image": True, "lock_text": True}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        _run(config)
    assert not Path(config["output_dir"]).exists()


def test_validation_loss_is_logged_without_touching_the_run(config: dict[str, Any], tmp_path: Path) -> None:
    plain = config | {"output_dir": str(tmp_path / "plain")}
    _run(plain)
    _run(config, eval={"every_steps": 2})
    _assert_same_run(plain["output_dir"], config["output_dir"])
    events = read_log(Path(config["output_dir"]) / "log.jsonl", "validation")
    assert [event["step"] for event in events] == [2, 4, 6]
    assert set(events[0]["losses"]) == {"all", "general", "plant"}


def test_a_validation_split_that_is_not_there_is_said_before_the_first_step(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no split 'nowhere'"):
        _run(config, eval={"split": "nowhere", "every_steps": 100})
    assert not Path(config["output_dir"]).exists()


def test_a_text_member_written_wrong_is_said(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _run(config, data={"text": {"use": "draw", "members": ["sci", "comon"]}}, schedule={"steps": 1})
    assert "data.text: no sample looked at has comon; there are: com, sci" in capsys.readouterr().err


def test_a_stratified_release_without_a_mixture_is_said(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = writer.write_release(tmp_path / "release", writer.drawn_samples(60, 0), stratified=True)
    _run(config, release=str(release), schedule={"steps": 1})
    assert (
        "without data.mixture: drawn in proportion to the sizes (general 0.500, plant 0.500)" in capsys.readouterr().err
    )


def test_domain_losses_say_what_a_run_knows_of_each_domain(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path
) -> None:
    """Trained on one domain alone, the model knows that one better; batches of one domain, mode untouched."""
    config["model"]["second_order"] |= {"dropout": 0.0}
    release = writer.write_release(tmp_path / "release", writer.drawn_samples(60, 40), stratified=True)
    settings = _settings(config, release=str(release), schedule={"steps": 120},
                         data={"mixture": {"plant": 1.0}, "pool_samples": {"plant": 28}})  # fmt: skip
    train(settings)
    pool = open_pool([Release.open(str(release))], "heldout")
    cpu = torch.device("cpu")
    trained = load_run_model(settings, Path(config["output_dir"]) / "model.pt").train()
    after = domain_losses(trained, pool, settings, cpu)
    assert trained.training
    before = domain_losses(state.build_model(settings.model), pool, settings, cpu)
    assert list(after) == ["all", "general", "plant"]
    assert after["plant"]["trials"] == 12
    assert after["plant"]["low"] <= after["plant"]["value"] <= after["plant"]["high"]
    assert all(abs(before[domain]["value"] - before[domain]["chance"]) < 0.4 for domain in before)
    assert after["plant"]["value"] < after["general"]["value"] - 0.5


def test_epochs_decide_the_number_of_steps(config: dict[str, Any]) -> None:
    settings = _settings(config | {"schedule": {"epochs": 1.5}})
    assert state.count_steps(settings, 107) == math.ceil(1.5 * 107 / 12)


def test_a_batch_that_does_not_divide_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 12 is not divisible by compute\.accumulate 5"):
        _settings(config, compute={"accumulate": 5})


def test_the_log_reads_whole_lines_and_can_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, 1.0)
    for step in range(5):
        log.event("step", step=step, loss=0.1 + 0.2)
    log.close()
    with path.open("a") as stream:
        stream.write('{"event": "st')
    assert len(read_log(path)) == 5
    before = path.read_text().splitlines()[:3]
    cut_log(path, 2)
    assert path.read_text().splitlines() == before


def test_a_bad_line_of_the_log_is_named_unless_a_resume_cuts_it_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"event": "step", "step": step}) + "\n" for step in range(1, 5)]
    for spoiled in ("\0\0\0\n", "3\n", '{"event": "st\n', '{"step": 3}\n'):
        path.write_text("".join(lines[:3]) + spoiled + lines[3])
        with pytest.raises(IntegrityError, match=r"log\.jsonl: line 4 is no event of a run"):
            read_log(path)
        with pytest.raises(IntegrityError, match=r"log\.jsonl: line 4 is no event of a run"):
            cut_log(path, 4)
        cut_log(path, 3)
        assert path.read_text() == "".join(lines[:3])


@pytest.mark.parametrize("content", ["{}", "[]", "{", ""])
def test_a_damaged_record_of_the_run_is_named(config: dict[str, Any], content: str) -> None:
    _run(config)
    (Path(config["output_dir"]) / "run.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"run\.json: .*--no-resume"):
        _run(config)


def test_damaged_settings_of_a_run_are_named(config: dict[str, Any]) -> None:
    _run(config)
    (Path(config["output_dir"]) / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read: .*give the YAML config"):
        read_train_settings(config["output_dir"])


def test_a_full_disk_is_said_and_leaves_nothing_half_written(config: dict[str, Any]) -> None:
    """The system refuses the checkpoint in the middle: the run says so, and goes on once there is room."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(RunError, match=r"step-00000002\.pt: cannot be written \(.*GB are free there.*make room"):
            _run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((Path(config["output_dir"]) / "checkpoints").iterdir())
    assert _run(config)["steps"] == 6


def test_a_log_that_cannot_be_written_is_said(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunLog, "event", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\); make room"):
        _run(config)


def test_a_killed_loader_process_is_said(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = loop.compute_gradients

    def kill_loader(trainer: Any, chunk: Any) -> dict[str, float]:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return gradients(trainer, chunk)

    monkeypatch.setattr(loop, "compute_gradients", kill_loader)
    with pytest.raises(RunError, match=r"a loader process is gone: DataLoader worker \(pid.*data\.num_workers"):
        _run(config, data={"num_workers": 1, "prefetch_batches": 1}, schedule={"steps": 50})


def test_a_terminal_gets_one_living_line(tmp_path: Path) -> None:
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
    log.say("done")
    log.close()
    assert terminal.text == "\rstep 1 long\rstep 2     \ndone\n"


def test_a_second_interrupt_does_not_wait() -> None:
    with stop_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5
        while not stop.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            _interrupt_and_wait()


def _interrupt_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(5)
