"""A training replaces, removes and takes up what a run wrote, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from release_writer import TINY_ARCHITECTURE
from training_runs import (
    Finished,
    assert_same_run,
    content_of,
    final_weights,
    make_settings,
    run_once,
    write_values,
)

from manifests.errors import ConfigError, IntegrityError
from training.cli import main
from training.model.build import build_model
from training.model.presets import ModelSettings
from training.record import checkpoint, run_files
from training.run.loop import train

FOREIGN = ("checkpoints/epoch_5.pt", "checkpoints/step-backup.pt", "wandb/run-1/files/x", "tensorboard/mine.txt",
           "tensorboard/events.out.tfevents.1", "model.pt", "config.json", "log.jsonl", "run.json", "summary.json",
           "checkpoints/step-00000002.pt")  # fmt: skip


def _put(folder: Path, *names: str) -> dict[Path, bytes]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of someone else")
    return content_of(folder)


@pytest.fixture
def folder(config: dict[str, Any]) -> Path:
    return Path(config["output_dir"])


@pytest.fixture
def run(config: dict[str, Any], finished: Finished) -> Path:
    return finished(config)


@pytest.fixture
def undisturbed(config: dict[str, Any], finished: Finished, tmp_path: Path) -> str:
    """The run that a test does not touch."""
    return str(finished(config, output_dir=str(tmp_path / "undisturbed")))


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_holds_what_a_run_would_write_over_is_refused(
    config: dict[str, Any], folder: Path, name: str, resume: bool
) -> None:
    before = _put(folder, name, "README.md", "src/main.py")
    with pytest.raises((ConfigError, IntegrityError), match=r"choose another --output"):
        train(make_settings(config), resume=resume)
    assert content_of(folder) == before


def test_a_run_in_the_midst_of_a_project_leaves_it_as_it_is(
    config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`output_dir: .`, also when trained anew; private files of others lie below."""
    before = _put(folder, "README.md", "src/main.py", "src/.part.tmp-0123456789ab", "eval/mine.png")
    monkeypatch.chdir(folder)
    for resume in (True, False):
        train(make_settings(config, output_dir=".", schedule={"steps": 1}), resume=resume)
    assert before.items() <= content_of(folder).items()


def test_training_anew_removes_its_own_files_alone(config: dict[str, Any], run: Path) -> None:
    strange = [*FOREIGN[:4], "eval/heldout-toy.json", "eval/heldout-toy.png"]
    before = {path: content for path, content in _put(run, *strange).items() if "someone else" in str(content)}
    assert len(before) == len(strange) > 5
    own = [run / "tensorboard/events.out.tfevents.1", run / "not-finite-step-00000002-rank-0.json"]
    for path in own:
        path.write_text("of the run")
    run_once_anew = train(make_settings(config, schedule={"steps": 1, "warmup_steps": 0}), resume=False)[0]
    assert run_once_anew["steps"] == 1
    assert before.items() <= content_of(run).items()
    assert not any(path.exists() for path in own)
    assert [path.name for path in run_files.list_checkpoints(run)] == ["step-00000001.pt"]


@pytest.mark.parametrize("out", [None, "eval/before.json"])
def test_figures_measured_before_the_training_are_kept(
    config: dict[str, Any], folder: Path, out: str | None, tmp_path: Path, finished: Finished
) -> None:
    """Of the weights that a config names: only they say what the training was good for. Also where it runs anew."""
    start = finished(config, output_dir=str(tmp_path / "start"))
    path = write_values(tmp_path, config | {"model": config["model"] | {"pretrained": str(start)}})
    named = [] if out is None else ["--out", str(folder / out)]
    assert main(["eval", path, *named]) == 0
    before = content_of(folder)
    assert {path.suffix for path in before} == {".json", ".png"}
    for more in ([], ["--no-resume"]):
        assert main(["train", path, *more]) == 0
        assert before.items() <= content_of(folder).items()


def test_a_copy_of_a_checkpoint_under_another_name_is_no_checkpoint(config: dict[str, Any], run: Path) -> None:
    """Neither the newest nor counted among those that are kept."""
    for name in ("model.pt", "summary.json", "checkpoints/step-00000006.pt"):
        (run / name).unlink()
    shutil.copy(run / "checkpoints/step-00000004.pt", run / "checkpoints/step-backup.pt")
    run_once(config, checkpoint={"every_steps": 1, "keep": 1})
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == ["step-00000006.pt", "step-backup.pt"]


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    _put(tmp_path, "checkpoints/step-100000000.pt", "checkpoints/step-99999999.pt", "checkpoints/step-1.pt.bak")
    assert [run_files.step_of(path) for path in run_files.list_checkpoints(tmp_path)] == [99999999, 100000000]


def test_a_finished_run_whose_weights_are_gone_makes_them_again(
    config: dict[str, Any], run: Path, undisturbed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "model.pt").unlink()
    assert not train(make_settings(config))[1]
    assert_same_run(undisturbed, str(run))
    whole = (run / "model.pt").read_bytes()
    for content in (whole[:-7], b"an export of something else"):
        (run / "model.pt").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"model\.pt: damaged or replaced.*move it away"):
            train(make_settings(config))
        assert main(["eval", str(run)]) == 1
        assert "model.pt: damaged or replaced" in capsys.readouterr().err
        assert (run / "model.pt").read_bytes() == content
    (run / "model.pt").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(IntegrityError, match=r"model\.pt and every checkpoint are gone; --no-resume"):
        train(make_settings(config))


def test_a_finished_run_that_kept_its_last_checkpoint_alone_is_finished_again(
    config: dict[str, Any], run: Path, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("summary.json", "model.pt", "log.jsonl"):
        (run / name).unlink()
    assert main(["train", write_values(tmp_path, config)]) == 0
    assert "training loss: not known, the log of its steps is lost (chance " in capsys.readouterr().out
    assert checkpoint.read_summary(run)["steps"] == 6
    ours, theirs = final_weights(str(run)), final_weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_another_run_are_handed_on_by_no_command_when_the_summary_is_gone(
    config: dict[str, Any], run: Path, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else says which bytes `model.pt` has: the newest checkpoint counts, and without one all is refused."""
    own = final_weights(str(run))
    other = finished(config, output_dir=str(tmp_path / "other"), seed=1)
    shutil.copy(other / "model.pt", run)
    (run / "summary.json").unlink()
    assert main(["export", str(run), str(tmp_path / "out.pt")]) == 0
    assert "step-00000006.pt" in capsys.readouterr().out
    exported = torch.load(tmp_path / "out.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(exported[name], own[f"clip.{name}"]) for name in exported)
    with pytest.raises(ConfigError, match="is not finished"):
        checkpoint.begin_with(ModelSettings.model_validate(config["model"] | {"pretrained": str(run)}))
    shutil.rmtree(run / "checkpoints")
    for command in (
        ["export", str(run), str(tmp_path / "again.pt")],
        ["publish", str(run), "--to", "hf:lab/plants", "--dry-run"],
    ):
        assert main(command) == 2
        assert "no trained model here (no summary.json says which bytes its model.pt has)" in capsys.readouterr().err
    assert not (tmp_path / "again.pt").exists()
    foreign = (run / "model.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"holds model\.pt but neither summary\.json nor a checkpoint"):
        train(make_settings(config))
    assert (run / "model.pt").read_bytes() == foreign, "weights that nobody knows are not trained over"


def test_a_checkpoint_of_another_run_is_refused(
    config: dict[str, Any],
    run: Path,
    undisturbed: str,
    finished: Finished,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of another seed: it has the same shapes, and nothing else would tell."""
    for name in ("model.pt", "summary.json", "checkpoints/step-00000006.pt"):
        (run / name).unlink()
    other = finished(config, output_dir=str(tmp_path / "other"), seed=1)
    shutil.copy(other / "checkpoints/step-00000006.pt", run / "checkpoints")
    with pytest.raises(IntegrityError, match=r"step-00000006\.pt: is of another run than run\.json.*move it away"):
        run_once(config)
    assert main(["eval", str(run)]) == 1
    assert "is of another run" in capsys.readouterr().err
    (run / "checkpoints/step-00000006.pt").unlink()
    run_once(config)
    assert_same_run(undisturbed, str(run))


def test_a_run_of_an_earlier_version_goes_on(config: dict[str, Any], run: Path, undisturbed: str) -> None:
    """Its run.json has no id, and its summary no sha256."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({"identity": record["identity"]}))
    summary = json.loads((run / "summary.json").read_text())
    del summary["model_sha256"]
    (run / "summary.json").write_text(json.dumps(summary))
    assert train(make_settings(config))[1]
    for name in ("model.pt", "summary.json", "checkpoints/step-00000006.pt"):
        (run / name).unlink()
    run_once(config)
    assert_same_run(undisturbed, str(run))


@pytest.mark.parametrize("content", ["{}", "[1]", "{", ""])
def test_a_damaged_summary_is_one_line(
    config: dict[str, Any], run: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"summary\.json: .*the run's folder is damaged"):
        train(make_settings(config))


def test_a_lock_that_cannot_be_opened_is_one_line(config: dict[str, Any], folder: Path) -> None:
    (folder / ".lock").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"\.lock: cannot be opened .*choose another place"):
        run_once(config)


def test_nothing_is_trained_into_a_release(config: dict[str, Any], writer: ModuleType, tmp_path: Path) -> None:
    release = writer.write_release(tmp_path / "toy", writer.drawn_samples(20, 0))
    before = content_of(release)
    for place in (release, release / "runs/one"):
        with pytest.raises(ConfigError, match=r"lies in the sealed release .*toy; choose a place outside"):
            run_once(config, output_dir=str(place))
    assert content_of(release) == before


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (None, {"quick_gelu": True}, "quick_gelu: false -> true"),
        ("vision_cfg", {"head_width": 8}, "vision_cfg.head_width: 16 -> 8"),
        ("text_cfg", {"heads": 4}, "text_cfg.heads: 2 -> 4"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type: .tok. -> .avg."),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type: .argmax. -> .last."),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs"),
        ("text_cfg", {"context_length": 24}, r"context_length: 16 -> 24|positional_embedding is \[16, 32\], "),
    ],
)
@pytest.mark.parametrize("source", ["run", "run/model.pt", "run/checkpoints/step-00000006.pt", "moved.pt", "earlier"])
def test_weights_of_a_run_in_another_architecture_are_refused_by_name(
    config: dict[str, Any], run: Path, source: str, part: str | None, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """All tensors have the same shapes (but the last), so the weights would load, and compute something else."""
    shutil.copy(run / "model.pt", tmp_path / "moved.pt")
    if source == "earlier":  # a version before wrote the architecture in run.json alone
        content = torch.load(run / "model.pt", weights_only=True)
        del content["architecture"]
        torch.save(content, run / "model.pt")
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "model_sha256": None}))
        source = "run"
    given = config["model"] | {"pretrained": str(tmp_path / source)}
    assert not build_model(checkpoint.begin_with(ModelSettings.model_validate(given))).new_parameters
    architecture = json.loads(json.dumps(TINY_ARCHITECTURE))
    (architecture[part] if part else architecture).update(change)
    other = tmp_path / "other-architecture.json"
    other.write_text(json.dumps(architecture))
    given |= {"preset": "clip", "second_order": {}}
    with pytest.raises(ConfigError, match=words):
        build_model(checkpoint.begin_with(ModelSettings.model_validate(given | {"architecture": str(other)})))
