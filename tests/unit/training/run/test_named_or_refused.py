"""What would make a figure or a run other than it looks is named, or refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import evaluation_sets
import pytest
from foreign_tars import img2dataset_samples, write_tar
from release_writer import drawn_samples, write_release
from training_runs import Finished, content_of, make_settings, run_once, stop_at, with_sections, write_values

from manifests.contract.settings import parse_settings
from manifests.contract.tables import sample_id
from manifests.errors import ConfigError, RunError
from training.cli import main
from training.config import TrainSettings
from training.model.build import build_model
from training.model.presets import ModelSettings
from training.record.log import read_log
from training.run.loop import train

Output = pytest.CaptureFixture[str]


def test_a_run_cannot_end_before_its_checkpoint(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError):
            run_once(config)
    before = content_of(Path(config["output_dir"]))
    with pytest.raises(
        ConfigError, match=r"checkpoint is of step 4, and the schedule ends at step 3: .* 4 steps or more"
    ):
        train(make_settings(config, schedule={"steps": 3}), allow_changed=True)
    assert content_of(Path(config["output_dir"])) == before
    assert train(make_settings(config, schedule={"steps": 5}), allow_changed=True)[0]["steps"] == 5


def test_pairs_that_fill_no_batch_of_the_validation_are_counted(config: dict[str, Any], capsys: Output) -> None:
    """36 are held out, 18 of each domain."""
    config = with_sections(config, eval={"batch_size": 16, "every_steps": 6})
    run_once(config)
    logged = read_log(Path(config["output_dir"]) / "log.jsonl", "validation")[0]
    assert logged["left_out"] == {"all": 4, "general": 2, "plant": 2}
    assert " (4 left out)" in capsys.readouterr().err
    assert main(["eval", config["output_dir"]]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("validation loss all"))
    assert line.endswith("(4 of 36 pairs left out: they fill no batch)")
    assert main(["eval", str(config["output_dir"]), "--settings", _settings(config, eval_batch=18)]) == 0
    assert "left out" not in capsys.readouterr().out


def _settings(config: dict[str, Any], eval_batch: int) -> str:
    return write_values(Path(config["output_dir"]).parent, {"batch_size": eval_batch, "retrieval": False}, "measured")


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_set_of_pictures_of_the_training_says_so(
    config: dict[str, Any], downloaded: bool, tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    """By the bytes of the shard, or by those of the download; 2 of the 12 were held out."""
    samples = drawn_samples(107, 36)[97:109]
    evaluation_sets.write_folders(tmp_path / "set", samples)
    if downloaded:
        for path in (tmp_path / "set").rglob("*.jpg"):
            path.write_bytes(path.read_bytes() + b"as downloaded")
    run = finished(config, release=_with_downloads(tmp_path / "release") if downloaded else config["release"])
    measured = {"split": None, "sets": [{"name": "mine", "path": str(tmp_path / "set")}]}
    path = write_values(tmp_path, measured, "measured")
    assert main(["eval", str(run), "--settings", path, "--out", str(tmp_path / "figures.json")]) == 0
    note = "mine: 10 of its 12 pictures were in the training: its figures flatter"
    assert f"note: {note}" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["seen_in_training"] == [note]


def _with_downloads(folder: Path) -> str:
    """A release of pictures that had some bytes more when they were downloaded."""
    samples = drawn_samples(107, 36)
    downloads = {sample.record_key: hashlib.sha256(sample.jpg + b"as downloaded").hexdigest() for sample in samples}
    more = {sample_id("toy", key): {"image_id": image_id} for key, image_id in downloads.items()}
    return str(write_release(folder, samples, more=more))


def test_an_evaluation_without_a_check_of_the_shards_says_so(
    config: dict[str, Any], capsys: Output, finished: Finished
) -> None:
    finished(config, data={"check_shards": False})
    assert main(["eval", config["output_dir"]]) == 0
    assert "note: the shards were not compared with their record (data.check_shards: false)" in capsys.readouterr().out


def test_the_newest_of_several_releases_is_named(config: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """A build of another config into the same work folder changes what `release: WORKDIR` is."""
    work = shutil.copytree(config["release"], tmp_path / "work")
    (work / "releases/toy.LATEST").write_text("toy-0001\n")
    path = write_values(tmp_path, config | {"release": str(work), "schedule": {"steps": 1}})
    assert main(["train", path]) == 0
    assert "newest release" not in capsys.readouterr().err
    write_release(work / "releases/other-0001", drawn_samples(30, 12), name="other", stratified=True)
    for pointer in ("LATEST", "other.LATEST"):
        (work / "releases" / pointer).write_text("other-0001\n")
    said = (
        f"other-0001 (stratified) is the newest release of {work}, which has releases of 2 names (other, toy); "
        f"write {work}/releases/other to stay with this one"
    )
    assert main(["train", path, "--output", str(tmp_path / "again")]) == 0
    assert said in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "again")]) == 0
    assert f"note: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data", [{"mixture": {"plant": 1.0}}, {"mixture": {"plant": 0.5, "general": 0.5}, "batches": "one_domain"}]
)
def test_masking_that_leaves_no_negatives_is_refused(config: dict[str, Any], data: dict[str, Any]) -> None:
    loss = {"same_label": "masked", "label_field": "domain"}
    with pytest.raises(ConfigError, match=r"masked: all pairs of a batch share one label of 'domain', so no negatives"):
        train(make_settings(config, loss=loss, data=data))
    assert not Path(config["output_dir"], "run.json").exists()
    train(make_settings(config, loss=loss, schedule={"steps": 1, "warmup_steps": 0}))


@pytest.mark.parametrize("apart", [True, False])
def test_a_shard_that_is_named_twice_is_refused(config: dict[str, Any], apart: bool, tmp_path: Path) -> None:
    tar = str(write_tar(tmp_path / "lab.tar", img2dataset_samples(0, 12)))
    groups = [{"name": "lab", "shards": tar}, {"name": "web", "shards": str(tmp_path)}]
    shards = groups if apart else [tar, tar]
    changes = {"release": None, "eval": {"split": None, "zero_shot": []}}
    data = {"shards": shards, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match=r"1 shards are named twice; first: \S*lab\.tar\. Name each once; the weight"):
        train(make_settings(config, **changes, data=data))


def test_a_log_that_lost_its_first_lines_is_said(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError):
            run_once(config)
    log = Path(config["output_dir"]) / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[2:]))
    run_once(config)
    said = f"{log}: its first lines are lost, it begins at step 2: curves and the first loss are of what came later"
    assert said in capsys.readouterr().err


def test_stored_tokens_of_frozen_towers_are_refused_with_the_cure(config: dict[str, Any], tmp_path: Path) -> None:
    """In a config, in what a run kept of it, and in an architecture that came with them."""
    old = config | {"data": config["data"] | {"tokens": "tokens"}}
    for is_kept in (False, True):
        with pytest.raises(ConfigError, match=r"tokens: stored tokens .*lock the towers"):
            parse_settings(old, TrainSettings, where="x", is_kept=is_kept)
        same = config | {"data": config["data"] | {"tokens": None}}
        if is_kept:
            parse_settings(same, TrainSettings, where="x", is_kept=True)
    path = tmp_path / "stored-tokens.json"
    part = {"frozen_tower": "timm:x", "tower_width": 8, "width": 8, "num_tokens": 4}
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": part, "text_cfg": part}))
    with pytest.raises(ConfigError, match=r"is of `dalip tokens`.*lock the towers"):
        build_model(ModelSettings(architecture=str(path)))
