"""Weights are a model wherever one is named: a file of anybody, of a run or an export, a repository of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from evaluation_sets import write_folders
from huggingface_hub import constants
from tiny_clip import tiny
from torch import Tensor
from training_runs import Finished

from manifests.errors import ConfigError
from training.api import encode_texts, load
from training.cli import main
from training.evaluation.trained_model import open_trained_model
from training.model import exports
from training.model.build import build_model
from training.model.presets import ModelSettings
from training.model.weights import CONFIG_FILE

TEXTS = ["a leaf", "an oak"]


def vectors(path: Path | str, **options: Any) -> Tensor:
    return torch.from_numpy(encode_texts(load(path, device="cpu", **options), TEXTS))


def open_clip_vectors(name: str, **options: Any) -> Tensor:
    model = open_clip.create_model(name, **options).eval()
    with torch.no_grad():
        return model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ""])
def test_a_file_of_open_clip_with_its_architecture(tmp_path: Path, ending: str) -> None:
    path = tiny(tmp_path, f"anybodys{ending[1:]}")
    source = build_model(ModelSettings(preset="clip", architecture=path)).clip
    file = tmp_path / f"weights{ending}"
    if ending != ".safetensors":
        torch.save({"epoch": 1, "state_dict": source.state_dict()}, file)
    else:
        safetensors.torch.save_file(source.state_dict(), file)
    given = vectors(file, architecture=path)
    assert same(given, open_clip_vectors(Path(path).stem, pretrained=str(file)))
    with pytest.raises(ConfigError, match=r"does not say of which architecture .* give --architecture NAME"):
        load(file)
    with pytest.raises(ConfigError, match="does not fit ViT-B-32"):
        load(file, architecture="ViT-B-32")
    with pytest.raises(ConfigError, match=r"no such file of weights"):
        load(tmp_path / "gone.pt")
    with pytest.raises(ConfigError, match="--architecture is for a file of weights"):
        load(tmp_path, architecture="ViT-B-32")
    shutil.copy(path, file.with_suffix(".json"))  # as `dalip export` leaves it
    assert same(vectors(file), given)


@pytest.mark.parametrize("content", [b"", b"\x80\x02 not a checkpoint"])
def test_a_file_that_holds_no_weights_is_one_line(tmp_path: Path, content: bytes, capsys: Any) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert main(["eval", str(tmp_path / "x.pt"), "--architecture", "RN50", "--out", str(tmp_path / "o.json")]) == 2
    assert "x.pt: cannot be read as a checkpoint" in capsys.readouterr().err


def test_files_of_a_run_and_a_copy_of_them(
    config: dict[str, Any], tmp_path: Path, finished: Finished, capsys: Any
) -> None:
    run = finished(config)
    whole = vectors(run)
    assert same(vectors(run / "model.pt"), whole)
    assert open_trained_model(str(run / "model.pt")).settings.release == config["release"]
    newest = max((run / "checkpoints").iterdir())
    assert vectors(newest).shape == whole.shape
    shutil.copy(run / "model.pt", tmp_path / "copy.pt")
    architecture = config["model"]["architecture"]
    assert same(vectors(tmp_path / "copy.pt", architecture=architecture), whole)
    assert (
        "how f and z are weighed" in open_trained_model(str(tmp_path / "copy.pt"), architecture=architecture).notes[-1]
    )
    words = [str(tmp_path / "copy.pt"), "--architecture", architecture, "--release", config["release"]]
    assert main(["eval", *words]) == 2
    assert "name a file with --out" in capsys.readouterr().err
    assert main(["eval", *words, "--out", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["num_samples"] == 36


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on this machine; the hub itself does not answer."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "cache"


def put_on_hub(hub: Path, name: str, folder: Path) -> None:
    """As the hub's client leaves a repository that it downloaded."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("a1b2")
    shutil.copytree(folder, repository / "snapshots/a1b2")


@pytest.mark.parametrize("preset", ["clip", "dalip"])
def test_a_model_of_the_hub(hub: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny(tmp_path, f"hub-{preset}")
    exports.export_hugging_face(build_model(ModelSettings(preset=preset, architecture=path)), tmp_path / "made")
    put_on_hub(hub, "someone/tiny", tmp_path / "made")
    trained = open_trained_model("hf-hub:someone/tiny")
    assert (trained.source, trained.model.second_order is not None) == ("hf-hub:someone/tiny", preset == "dalip")
    assert same(vectors("hf-hub:someone/tiny"), vectors(tmp_path / "made"))
    begun = build_model(
        ModelSettings(preset=preset, architecture="hf-hub:someone/tiny", pretrained="hf-hub:someone/tiny")
    )
    assert begun.new_parameters == ()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    first = encode_texts(load("hf-hub:someone/tiny", device="cpu"), TEXTS, features="f")
    assert same(torch.from_numpy(first), open_clip_vectors("hf-hub:someone/tiny"))
    assert same(torch.from_numpy(first), open_clip_vectors(f"local-dir:{tmp_path / 'made'}"))


def test_a_name_that_is_not_there_is_one_line(hub: Path, capsys: Any) -> None:
    assert main(["eval", "hf-hub:someone/nothing", "--out", "x.json"]) == 2
    said = capsys.readouterr().err
    assert "hf-hub:someone/nothing: is not on this machine and cannot be downloaded" in said
    assert "does not answer" in said
    assert len(said.splitlines()) == 1


def test_every_command_takes_a_file(tmp_path: Path, release_folder: Path, hub: Path, capsys: Any) -> None:
    path = tiny(tmp_path, "commands")
    model = build_model(ModelSettings(preset="clip", architecture=path))
    torch.save(model.clip.state_dict(), tmp_path / "a.pt")
    exports.export_hugging_face(model, tmp_path / "made")
    put_on_hub(hub, "someone/tiny", tmp_path / "made")
    file, out, release = str(tmp_path / "a.pt"), tmp_path / "out", str(release_folder)
    (tmp_path / "labels.txt").write_text("a red circle\na blue star\n")
    photos = str(Path(__file__).parents[3] / "photos")
    (tmp_path / "sets.yaml").write_text("zero_shot: []\n")
    for words in (
        ["embed", photos, "--model", file, "--out", f"{out}.parquet"],
        ["predict", photos, "--model", file, "--labels", str(tmp_path / "labels.txt"), "--out", f"{out}.csv"],
        ["search", f"{out}.parquet", "--text", "a leaf"],
        ["export", file, f"{out}.safetensors"],
        ["publish", file, "--to", "hf:someone/tiny", "--dry-run"],
        [
            *("blend", file, "hf-hub:someone/tiny", "--alpha", "0:1:1", "--release", release, "--out", f"{out}-blend"),
            *("--settings", str(tmp_path / "sets.yaml"), "--expert", "plant", "--general", "general"),
        ],
    ):
        assert main([*words, "--architecture", path]) == 0, (words[0], capsys.readouterr().err)
    assert (tmp_path / f"{out}.safetensors").stat().st_mode & 0o777 == 0o644
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "made").iterdir()} == {0o644}
    assert (tmp_path / "made" / CONFIG_FILE).is_file()


def test_a_set_that_is_not_there_is_left_out_and_said(tmp_path: Path, writer: ModuleType, capsys: Any) -> None:
    path = tiny(tmp_path, "sets")
    exports.export_hugging_face(build_model(ModelSettings(preset="clip", architecture=path)), tmp_path / "made")
    write_folders(tmp_path / "shapes", writer.drawn_samples(12, 0))
    sets = [{"name": name, "path": str(tmp_path / name)} for name in ("gone", "shapes")]
    (tmp_path / "sets.yaml").write_text(json.dumps({"split": None, "few_shot": None, "sets": sets}))
    words = ["eval", str(tmp_path / "made"), "--settings", str(tmp_path / "sets.yaml"), "--out"]
    assert main([*words, str(tmp_path / "figures.json")]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "figures.json").read_text())
    assert [measured["name"] for measured in result["sets"]] == ["shapes"]
    said = f"eval.sets 'gone': {tmp_path / 'gone'} is not there, so it is left out"
    assert said in result["notes"]
    assert said in capsys.readouterr().out
    (tmp_path / "sets.yaml").write_text(json.dumps({"split": None, "sets": sets[:1]}))
    assert main([*words, str(tmp_path / "none.json")]) == 2
    assert "no such folder of an evaluation set" in capsys.readouterr().err
