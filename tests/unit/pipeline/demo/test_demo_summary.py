from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.release import FORMAT, Release
from pipeline.demo import summary

ORDER = ("ingest", "fetch", "dedup", "caption")


def test_the_funnel_adds_up_and_keeps_the_order_of_the_flow() -> None:
    stages: dict[str, Any] = {
        "dedup": {"in": 1597, "kept": 1527, "reasons": {"near_duplicate": 50, "exact_duplicate": 20}},
        "ingest": {"in": 1615, "kept": 1615, "reasons": {}},
        "fetch": {
            "in": 1615,
            "kept": 1597,
            "reasons": {"http_404": 12, "image_too_small": 2, "not_an_image": 2, "a": 1, "b": 1},
        },
        "caption": {"in": None, "kept": None, "reasons": {}},
    }
    assert summary.funnel_lines(stages, ORDER) == [
        "stage         in    kept   dropped, and why",
        "ingest     1,615   1,615",
        "fetch      1,615   1,597   12 http 404, 2 image too small, 2 not an image, 1 a, 1 for 1 other reasons",
        "dedup      1,597   1,527   50 near duplicate, 20 exact duplicate",
    ]


def test_the_ratio_stands_beside_the_one_asked_for() -> None:
    row = {"target_share": 0.5, "num_available": 130, "num_drawn": 120, "num_heldout": 20}
    rows = [
        {"domain": "general", "realised_share": 0.512, **row},
        {"domain": "plant", "realised_share": 0.488, **row},
    ]
    assert summary.mix_lines(rows) == [
        "mixture    general 51.2% (asked for 50.0%): 120 drawn from 130, 20 held out",
        "           plant 48.8% (asked for 50.0%): 120 drawn from 130, 20 held out",
    ]


def test_shards_are_counted_and_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "releases" / "demo-0001"
    folder.mkdir(parents=True)
    splits = {
        "train": {"num_samples": 1200, "shards": [{"shard": "a.tar"}, {"shard": "b.tar"}]},
        "heldout": {"num_samples": 80, "shards": [{"shard": "a.tar"}]},
    }
    record = {"format": FORMAT, "name": "demo", "version": "0001", "fingerprint": "0001", "files": {}}
    record["splits"] = splits
    (folder / "release.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert summary.shard_lines(Release.open(str(folder))) == [
        "shards     train: 1,200 samples in 2 tars, releases/demo-0001/shards",
        "           heldout: 80 samples in 1 tar, releases/demo-0001/heldout",
    ]


def _figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.05, "trials": 120}


def test_figures_of_both_orders_are_taken_where_there_are_and_chance_stands_beside() -> None:
    evaluation: dict[str, Any] = {
        "zero_shot": [
            {
                "field": "extra.category",
                "domain": None,
                "num_classes": 20,
                "figures": {"f": {"top1": _figure(0.2)}, "both": {"top1": _figure(0.4)}},
            }
        ],
        "retrieval": {"f": {"image_to_text_r10": _figure(0.3), "image_to_text_r5": _figure(0.25)}},
    }
    assert summary.evaluation_lines(evaluation) == [
        "held out   zero-shot accuracy, 20 classes (category): 40.0% "
        "(chance 5.0%; 95 % interval 30.0% to 50.0%, 120 trials)",
        "           image to text, right one among the first 5: 25.0% "
        "(chance 5.0%; 95 % interval 15.0% to 35.0%, 120 trials)",
        "           image to text, right one among the first 10: 30.0% "
        "(chance 5.0%; 95 % interval 20.0% to 40.0%, 120 trials)",
    ]


def test_training_loss_stands_beside_guessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = {"first_loss": 4.21, "final_loss": 1.5, "steps": 600, "epochs": 30.0, "seconds": 90.0, "chance_loss": 4.16}
    assert summary.training_lines(run, tmp_path / "runs") == [
        "training   loss 4.21 -> 1.50 in 600 steps (30 epochs, 90 s); guessing has 4.16",
        "           model in runs",
    ]
