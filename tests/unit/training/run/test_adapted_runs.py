"""Runs that train adapters or the last blocks: what moves, how they go on, and that all read the merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from release_writer import TINY_ARCHITECTURE
from training_runs import (
    Finished,
    assert_same_run,
    final_weights,
    make_settings,
    run_once,
    step_lines,
    stop_at,
    with_sections,
)

from manifests.errors import ConfigError
from training.cli import main
from training.evaluation.encoder import Encoder
from training.model.adapters import merged
from training.record.checkpoint import load_checkpoint
from training.record.log import read_log
from training.run.loop import train
from training.run.stopping import StoppedError

ADAPTERS = {"rank": 4}
ANCHOR = "clip.visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.fixture
def start(config: dict[str, Any], finished: Finished) -> str:
    """A finished run of a plain CLIP."""
    return str(
        finished(config, model={"preset": "clip", "second_order": {}}, output_dir=config["output_dir"] + "-start")
    )


@pytest.fixture
def adapted(config: dict[str, Any], start: str) -> dict[str, Any]:
    """A config that adapts the plain CLIP, with second-order branches and projections that begin anew."""
    model = {"pretrained": start, "projectors": ["plant", "general"]}
    return with_sections(config, adapters=ADAPTERS, model=model, loss={"same_label": "positive"})


def test_adapters_and_heads_learn_and_the_weights_below_stay(adapted: dict[str, Any], start: str) -> None:
    run_once(adapted)
    began, end = final_weights(start), final_weights(adapted["output_dir"])
    folder = Path(adapted["output_dir"])
    raw = load_checkpoint(max((folder / "checkpoints").iterdir()))["state_dict"]
    moved = {name for name, tensor in began.items() if not torch.equal(tensor, end[name])}
    matrices = [f"{name}.weight" for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")] + ["attn.in_proj_weight"]
    blocks = [f"clip.{tower}transformer.resblocks.0." for tower in ("visual.", "")]
    assert moved == {block + matrix for block in blocks for matrix in matrices} | {"clip.logit_scale"}
    for name in moved - {"clip.logit_scale"}:
        owner, _, attribute = name.rpartition(".")
        assert torch.equal(raw[f"{owner}.parametrizations.{attribute}.original"], began[name]), (
            "the weight itself stays"
        )
        assert torch.linalg.matrix_rank(end[name] - began[name], rtol=1e-4) <= 4
    assert not torch.equal(end["projectors.general"], torch.eye(32))
    assert all(torch.equal(tensor, end[name]) for name, tensor in merged(raw).items())
    assert not [name for name in end if "parametrizations" in name]


def test_the_log_says_before_the_first_step_what_trains_and_the_memory(
    adapted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(adapted, schedule={"steps": 1, "warmup_steps": 0})
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    (trained,) = [number for number, line in enumerate(lines) if "trained: " in line]
    assert "memory of a device by arithmetic: parameters " in lines[trained + 1]
    assert "an estimate, not measured on a card" in lines[trained + 1]
    assert trained < next(number for number, line in enumerate(lines) if "step 1/1" in line)
    (event,) = read_log(Path(adapted["output_dir"]) / "log.jsonl", "start")
    assert event["memory"]["optimiser_bytes"] == 8 * sum(event["memory"]["trained"].values())


@pytest.mark.parametrize("sections", [{}, {"adapters": None, "lock": {"text_blocks": 1, "lock_image": True}}])
def test_a_stopped_run_goes_on_to_the_same_bits(
    adapted: dict[str, Any], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = with_sections(adapted, **sections, output_dir=adapted["output_dir"] + "-stopped")
    run_once(adapted, **sections)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(StoppedError):
            run_once(stopped)
    run_once(stopped)
    assert_same_run(adapted["output_dir"], stopped["output_dir"])


def test_eval_predict_blend_and_export_read_the_merged_weights(
    adapted: dict[str, Any], start: str, tmp_path: Path
) -> None:
    """Of the run, and of a checkpoint of it, which holds weights and adapters apart."""
    adapted["model"] |= {"preset": "clip", "second_order": {}, "projectors": []}
    run_once(adapted)
    folder = Path(adapted["output_dir"])
    newest = max((folder / "checkpoints").iterdir())
    assert main(["export", str(folder), str(tmp_path / "exported"), "--format", "huggingface"]) == 0
    assert main(["export", str(folder), str(tmp_path / "exported.pt"), "--format", "open_clip"]) == 0
    encoders = [Encoder.open(str(path)) for path in (folder, newest, tmp_path / "exported", tmp_path / "exported.pt")]
    assert len({encoder.fingerprint for encoder in encoders}) == 1
    assert Encoder.open(start).fingerprint != encoders[0].fingerprint
    assert main(["eval", str(folder), "--out", str(tmp_path / "run.json")]) == 0
    assert (
        main(["eval", str(tmp_path / "exported"), "--release", adapted["release"], "--out", str(tmp_path / "x.json")])
        == 0
    )
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "x.json"))
    assert one["retrieval"] == two["retrieval"]
    groups = ["--expert", "plant", "--general", "general", "--release", adapted["release"]]
    assert main(["blend", start, str(folder), "--alpha", "0,1", "--out", str(tmp_path / "blended"), *groups]) == 0
    (folder / "model.pt").unlink()
    (folder / "summary.json").unlink()
    assert Encoder.open(str(folder)).fingerprint == encoders[0].fingerprint, "of the newest checkpoint"


@pytest.mark.parametrize(
    "compute",
    [
        {"precision": "bf16"},
        {"accumulate": 2},
        {"accumulate": 2, "grad_checkpointing": True},
    ],
)
def test_steps_in_other_ways_are_the_same_steps(adapted: dict[str, Any], compute: dict[str, Any]) -> None:
    near = 2e-2 if "precision" in compute else 1e-5
    other = with_sections(adapted, compute=compute, output_dir=adapted["output_dir"] + "-other")
    for values in (adapted, other):
        run_once(values, schedule={"steps": 3, "warmup_steps": 2})
    for line, second in zip(*map(step_lines, (adapted["output_dir"], other["output_dir"])), strict=True):
        assert line["loss"] == pytest.approx(second["loss"], rel=near)


def test_only_the_last_blocks_move(config: dict[str, Any], tmp_path: Path, finished: Finished) -> None:
    architecture = json.loads(json.dumps(TINY_ARCHITECTURE))
    architecture["vision_cfg"]["layers"] = architecture["text_cfg"]["layers"] = 3
    (tmp_path / "dalip-three-blocks.json").write_text(json.dumps(architecture))
    model = {"architecture": str(tmp_path / "dalip-three-blocks.json")}
    began = final_weights(str(finished(config, model=model, output_dir=str(tmp_path / "began"))))
    run_once(config, model=model | {"pretrained": str(tmp_path / "began")}, lock={"image_blocks": 2, "text_blocks": 1})
    moved = {
        name for name, tensor in final_weights(config["output_dir"]).items() if not torch.equal(tensor, began[name])
    }
    blocks = {".".join(name.split(".")[1:-2]).partition(".resblocks.")[::2] for name in moved if ".resblocks." in name}
    assert {(tower, inner.partition(".")[0]) for tower, inner in blocks} == {
        ("visual.transformer", "1"), ("visual.transformer", "2"), ("transformer", "2"),
    }  # fmt: skip
    assert {"clip.visual.proj", "clip.visual.ln_post.weight", "clip.text_projection", "clip.ln_final.weight"} <= moved
    assert not {"clip.visual.conv1.weight", "clip.token_embedding.weight", "clip.positional_embedding"} & moved


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"adapters": {"rank": 0}}, "rank"),
        ({"adapters": {"layers": []}}, "layers"),
        ({"adapters": {"rank": 32}}, "adapters.rank is 32, the image tower has matrices of 96 x 32: a rank below 32"),
        ({"adapters": {}, "lock": {"lock_text": True, "image_blocks": 1}}, "it names both: leave out one"),
        ({"lock": {"lock_text": True, "text_blocks": 1}}, "leave out either it or text_blocks"),
        ({"lock": {"text_blocks": 2}}, "lock.text_blocks is 2, the text tower has 1 blocks"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_once(config, **sections)
    assert not Path(config["output_dir"]).exists()


def test_a_resume_cannot_change_the_adapters(adapted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 3)
    with pytest.raises(StoppedError):
        run_once(adapted)
    for changed in ({"rank": 2}, None):
        with pytest.raises(ConfigError, match="cannot change adapters"):
            train(make_settings(adapted | {"adapters": changed}), allow_changed=True)


def test_a_run_that_was_recorded_before_there_were_any_is_the_same_run(
    config: dict[str, Any], finished: Finished
) -> None:
    record = finished(config) / "run.json"
    recorded = json.loads(record.read_text())
    del recorded["identity"]["adapters"]
    recorded["identity"]["lock"] = {"lock_image": False, "lock_text": False}
    record.write_text(json.dumps(recorded))
    assert train(make_settings(config))[1], "it is finished, and reused"
    with pytest.raises(ConfigError, match=r"of another config or release \(adapters: null -> "):
        train(make_settings(config, adapters={}))
