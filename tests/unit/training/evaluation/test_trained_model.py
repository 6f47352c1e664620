"""Which model is judged: what the run was trained with counts, also a model's own folder and a start can be judged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sealed import flip_byte
from training_runs import Finished, write_values

from training.cli import main
from training.evaluation.trained_model import open_trained_model

Output = pytest.CaptureFixture[str]


def _figures(capsys: Output, tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What `dalip eval` measured, without what names the model, and what it printed."""
    capsys.readouterr()
    assert main(["eval", *arguments, "--out", str(tmp_path / "figures.json")]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "figures.json").read_text())
    measured = {key: result[key] for key in ("num_samples", "zero_shot", "retrieval", "validation_loss")}
    return measured, capsys.readouterr().out


def _assert_same(given: Any, expected: Any) -> None:
    """The same figures, but for the rounding of two evaluations."""
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for key, value in expected.items():
            _assert_same(given[key], value)
    elif isinstance(expected, list):
        for one, other in zip(given, expected, strict=True):
            _assert_same(one, other)
    else:
        assert given == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_the_run_is_judged_as_it_was_trained_whatever_the_config_says_now(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    """Another weight in the loss and another dropout would give other figures; what to measure is the config's."""
    finished(config)
    own, out = _figures(capsys, tmp_path, config["output_dir"])
    assert "note:" not in out
    changed = copy.deepcopy(config) | {"loss": {"first_order_weight": 0.9}}
    changed["model"]["second_order"]["dropout"] = 0.3
    changed["eval"]["retrieval"] = False
    given, out = _figures(capsys, tmp_path, write_values(tmp_path, changed))
    _assert_same(given["validation_loss"], own["validation_loss"])
    assert own["retrieval"]
    assert not given["retrieval"]
    line = next(line for line in out.splitlines() if line.startswith("note: "))
    assert "loss.first_order_weight: 0.9 -> 0.5" in line
    assert "model.second_order.dropout: 0.3 -> null" in line
    assert "eval" not in line.partition("its own are used")[2]


def test_weights_with_a_flipped_byte_are_neither_judged_nor_handed_on(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    finished(config)
    flip_byte(Path(config["output_dir"]) / "model.pt")  # within a tensor: torch would load it
    for command in (["eval", config["output_dir"]], ["export", config["output_dir"], str(tmp_path / "out.pt")]):
        assert main(command) == 1
        assert "model.pt: damaged" in capsys.readouterr().err


def test_a_config_stands_in_for_damaged_settings_of_its_run(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    path = write_values(tmp_path, config)
    finished(config)
    own, _ = _figures(capsys, tmp_path, config["output_dir"])
    (Path(config["output_dir"]) / "config.json").write_text("{")
    given, out = _figures(capsys, tmp_path, path)
    _assert_same(given, own)
    assert f"note: what the run was trained with cannot be read, {path} is used instead: " in out
    (Path(config["output_dir"]) / "run.json").write_text("{}")
    _assert_same(_figures(capsys, tmp_path, path)[0], own)


@pytest.mark.parametrize(
    "change", ["edited", *(pytest.param(change, marks=pytest.mark.slow) for change in ("deleted", "damaged"))]
)
def test_an_architecture_file_that_changed_since_changes_nothing(
    change: str, config: dict[str, Any], tmp_path: Path, capsys: Output
) -> None:
    """Another number of heads fits the same weights."""
    values = json.loads(Path(config["model"]["architecture"]).read_text())
    file = tmp_path / f"judged-{change}.json"
    file.write_text(json.dumps(values))
    config["model"]["architecture"] = str(file)
    assert main(["train", write_values(tmp_path, config)]) == 0
    before, _ = _figures(capsys, tmp_path, config["output_dir"])
    values["vision_cfg"]["head_width"] = 4
    values["quick_gelu"] = True
    if change == "deleted":
        file.unlink()
    else:
        file.write_text(json.dumps(values) if change == "edited" else "{")
    after, out = _figures(capsys, tmp_path, config["output_dir"])
    _assert_same(after, before)
    assert f"note: {file} is not what the run was trained with; the copy in its folder is used" in out
    assert main(["export", config["output_dir"], str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    said = json.loads((tmp_path / "hub/open_clip_config.json").read_text())["model_cfg"]
    assert (said["vision_cfg"]["head_width"], "quick_gelu" in said) == (16, False)


class _KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_model_in_a_folder_of_its_own_is_judged_and_handed_on(
    config: dict[str, Any], release_folder: Path, tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    """The figures of the run it was exported from, also after a second export."""
    config["loss"] = {"first_order_weight": 0.8}
    finished(config)
    measure = write_values(tmp_path, config["eval"], "measure")
    run, _ = _figures(capsys, tmp_path, config["output_dir"])
    source = config["output_dir"]
    for target in (tmp_path / "first", tmp_path / "second"):
        assert main(["export", source, str(target), "--format", "huggingface"]) == 0
        given, out = _figures(capsys, tmp_path, str(target), "--release", str(release_folder), "--settings", measure)
        _assert_same(given, run)
        assert f"weights: folder ({target})" in out
        source = str(target)
    assert main(["export", source, str(tmp_path / "third.pt")]) == 0
    assert main(["eval", source]) == 2
    assert "a model's folder names no release; give one with --release" in capsys.readouterr().err
    assert main(["eval", source, "--release", str(release_folder)]) == 0
    assert (Path(source) / "eval/heldout-toy-0001.json").is_file()


@pytest.mark.parametrize(
    "weights",
    ["open_clip_model.safetensors", pytest.param("open_clip_pytorch_model.bin", marks=pytest.mark.slow)],
)
def test_a_plain_open_clip_folder_is_judged_by_f(
    weights: str, config: dict[str, Any], release_folder: Path, tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    config["model"] |= {"preset": "clip", "second_order": {}}
    finished(config)
    run, _ = _figures(capsys, tmp_path, config["output_dir"])
    assert main(["export", config["output_dir"], str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    (tmp_path / "hub/dalip_config.json").unlink()
    if weights.endswith(".bin"):
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "hub/open_clip_model.safetensors"), tmp_path / "hub" / weights)
        (tmp_path / "hub/open_clip_model.safetensors").unlink()
    measure = write_values(tmp_path, config["eval"], "measure")
    hub, _ = _figures(capsys, tmp_path, str(tmp_path / "hub"), "--release", str(release_folder), "--settings", measure)
    _assert_same(hub, run)


@pytest.mark.slow
def test_the_weights_a_run_would_begin_from_can_be_judged(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    """A baseline without a step: no run is begun by it, and what is untrained in it is said."""
    config["model"] |= {"preset": "clip", "second_order": {}}
    finished(config)
    run, _ = _figures(capsys, tmp_path, config["output_dir"])
    start = copy.deepcopy(config) | {"output_dir": str(tmp_path / "start")}
    start["model"]["pretrained"] = f"{config['output_dir']}/model.pt"
    given, out = _figures(capsys, tmp_path, write_values(tmp_path, start))
    _assert_same(given, run)
    assert out.startswith(f"weights: pretrained ({config['output_dir']}/model.pt)\nnote: {tmp_path}/start has no")
    assert "untrained" not in out
    assert not (tmp_path / "start").exists()
    start["model"] |= {"preset": "dalip", "second_order": {"heads": 2, "reduced_width": 4}}
    _, out = _figures(capsys, tmp_path, write_values(tmp_path, start))
    assert "16 tensors are in no pretrained weights and untrained: image_branch." in out


def test_a_damaged_folder_of_a_model_is_named(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    finished(config)
    assert main(["export", config["output_dir"], str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    for name, content in (("dalip_config.json", "{}"), ("open_clip_config.json", "{"), ("open_clip_config.json", "[]")):
        kept = (tmp_path / "hub" / name).read_text()
        (tmp_path / "hub" / name).write_text(content)
        capsys.readouterr()
        assert main(["eval", str(tmp_path / "hub"), "--release", config["release"]]) == 2
        assert name in capsys.readouterr().err
        (tmp_path / "hub" / name).write_text(kept)
    assert open_trained_model(str(tmp_path / "hub")).weights == "folder"
