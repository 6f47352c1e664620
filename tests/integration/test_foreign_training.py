"""A run on shards that PlantMix did not build: trained, resumed, evaluated, used; no secret in what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import release_writer
from foreign_tars import img2dataset_samples, tree_of_life_samples, write_tar
from training_runs import assert_same_run, run_once, stop_at, tiny_values

from manifests.errors import ConfigError, RunError
from training.cli import main
from training.data import loader
from training.data.settings import DataSettings, ReleaseShare
from training.data.shards import open_pool
from training.evaluation.evaluate import evaluate_model
from training.evaluation.trained_model import open_trained_model
from training.record.log import read_log


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A plant group with several texts, a group out of a pipe, and a held-out one."""
    samples = img2dataset_samples(100, 130)
    for _, members in samples[:15]:
        members["jpg"] = members["jpg"][:200]
    write_tar(tmp_path / "plant/0.tar", tree_of_life_samples(0, 30))
    write_tar(tmp_path / "web.tar", samples)
    heldout = write_tar(tmp_path / "heldout.tar", img2dataset_samples(200, 216))
    groups = [
        {"name": "plant", "shards": str(tmp_path / "plant"), "weight": 2},
        {"name": "web", "shards": f"pipe:cat {tmp_path}/web.tar # --token hunter2", "weight": 1},
        {"name": "web", "shards": str(heldout), "split": "heldout"},
    ]
    text = {"use": "draw", "members": ["sci", "com", "taxon", "txt"]}
    data = {"shards": groups, "text": text, "cache_dir": str(tmp_path / "cache")}
    return tiny_values(tmp_path, data=data, eval={"batch_size": 8, "every_steps": 3})


def test_a_run_on_shards(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config | {"output_dir": str(tmp_path / "whole")}
    summary = run_once(whole)
    assert 1 <= summary["corrupt_samples"] <= 15
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(RunError, match="stopped by a signal after step 3 of 6"):
            run_once(config)
    run_once(config)
    assert_same_run(whole["output_dir"], config["output_dir"])
    assert set(read_log(tmp_path / "run/log.jsonl", "validation")[0]["losses"]) == {"all", "web"}
    broken = read_log(tmp_path / "run/log.jsonl", "corrupt_sample")
    assert len(broken) == summary["corrupt_samples"]
    assert "(pipe:cat *** web.tar/0000001" in broken[0]["sample"]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    result, _ = evaluate_model(open_trained_model(config["output_dir"]))
    assert result["num_samples"] == 16
    assert result["retrieval"]
    with pytest.raises(ConfigError, match=r"pipe:cat \*\*\* web.tar: a run's folder keeps no secrets"):
        evaluate_model(open_trained_model(config["output_dir"]), split="train")
    out = tmp_path / "vectors.parquet"
    places = [str(tmp_path / "plant/{0..0}.tar"), str(tmp_path / "heldout.tar")]
    assert main(["embed", *places, "--model", config["output_dir"], "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert len(table) == 46
    assert table["error"].null_count == 46
    (tmp_path / "labels.txt").write_text("sci 1\nsci 2\n")
    named = ["--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "answers.parquet")]
    assert main(["predict", *places, "--model", config["output_dir"], *named]) == 0
    assert pq.read_table(tmp_path / "answers.parquet")["error"].null_count == 46


def test_proxies_say_why_they_need_a_release(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(config | {"release": "r", "runs": "design.csv"}))
    assert main(["proxies", str(tmp_path / "c.yaml")]) == 2
    assert "'data': shards: proxy runs need a held-out split without near copies" in capsys.readouterr().err


def test_labels_are_the_texts_of_shards_and_no_field(config: dict[str, Any]) -> None:
    loss = {"same_label": "positive", "label_field": "text"}
    assert run_once(config, loss=loss)["steps"] == 6
    with pytest.raises(ConfigError, match=r"loss.label_field: the release has no field 'taxon_kingdom'"):
        run_once(config, loss=loss | {"label_field": "taxon"}, output_dir=config["output_dir"] + "2")


def test_a_changed_shard_is_another_run(config: dict[str, Any], tmp_path: Path) -> None:
    run_once(config, schedule={"steps": 2})
    write_tar(tmp_path / "plant/0.tar", tree_of_life_samples(1, 31))
    with pytest.raises(ConfigError, match=r"of another config or release"):
        run_once(config)
    config["data"]["shards"] = config["data"]["shards"][:2]
    with pytest.raises(ConfigError, match=r"data.shards: no group is of split 'heldout'"):
        run_once(config, output_dir=str(tmp_path / "other"))


def test_a_release_and_shards_are_drawn_from_together(config: dict[str, Any], tmp_path: Path) -> None:
    release = str(
        release_writer.write_work_folder(tmp_path / "data", release_writer.drawn_samples(30, 8), shard_size=9)
    )
    config["data"]["shards"] = [{"name": "plant", "shards": str(tmp_path / "plant")}]
    data = DataSettings(**config["data"])
    pool = open_pool(loader.open_sources(release, data, "train"), "train")
    assert len(pool) == 60
    assert pool.domains == ["general", "plant"]
    read = loader.ShardReader(pool).read(range(60), with_texts=True)
    assert {members["sci"].split()[0] for _, _, members in read[30:]} == {"sci"}
    config["data"]["shards"][0]["weight"] = 3
    with pytest.raises(ConfigError, match="some groups or releases have a weight and others not"):
        run_once(config, release=release, eval={"every_steps": None})
    shares = [{"release": release, "weight": 1}]
    run_once(config, release=shares, eval={"every_steps": None}, schedule={"steps": 5})
    order = loader.build_order(pool, DataSettings(**config["data"]), [ReleaseShare(**share) for share in shares], 0)
    assert sum(row >= 30 for row in order.rows(0, 60).tolist()) == 45
