"""Locked towers: what stays as it is, what goes on learning, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import final_weights, make_settings, run_once

from manifests.errors import ConfigError
from training.record.log import read_log
from training.run import loop, state
from training.run.loop import train


def test_locked_towers_do_not_move_and_the_branches_do(config: dict[str, Any]) -> None:
    settings = make_settings(config, lock={"lock_image": True, "lock_text": True})
    train(settings)
    torch.manual_seed(loop.mix_seed(settings.seed, 0x696E6974) >> 1)
    start = state.build_model(settings.model).state_dict()
    moved = {name for name, value in final_weights(config["output_dir"]).items() if not torch.equal(value, start[name])}
    assert not {name for name in moved if name.startswith(("clip.visual.", "clip.transformer."))}
    assert any(name.startswith("image_branch.") for name in moved)


def test_a_locked_resnet_keeps_its_batch_statistics(config: dict[str, Any], tmp_path: Path) -> None:
    architecture = json.loads(Path(config["model"]["architecture"]).read_text())
    architecture["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (tmp_path / "dalip-loop-resnet.json").write_text(json.dumps(architecture))
    config["model"] = {"preset": "clip", "architecture": str(tmp_path / "dalip-loop-resnet.json")}
    settings = make_settings(config, lock={"lock_image": True}, schedule={"steps": 2}, eval={"every_steps": 1})
    train(settings)
    torch.manual_seed(loop.mix_seed(settings.seed, 0x696E6974) >> 1)
    start = state.build_model(settings.model).state_dict()
    moved = {name for name, value in final_weights(config["output_dir"]).items() if not torch.equal(value, start[name])}
    assert moved
    assert not any(name.startswith("clip.visual.") for name in moved)


def test_a_plain_clip_with_both_towers_locked_is_refused(config: dict[str, Any]) -> None:
    config["model"] = {"preset": "clip", "architecture": config["model"]["architecture"]}
    config["lock"] = {"lock_image": True, "lock_text": True}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        run_once(config)
    assert not Path(config["output_dir"]).exists()


def test_a_locked_tower_keeps_the_weights_it_starts_with_and_its_projections_learn(config: dict[str, Any]) -> None:
    general = config | {"output_dir": config["output_dir"] + "-general"}
    general["model"] = {"preset": "clip", "architecture": config["model"]["architecture"]}
    run_once(general, schedule={"steps": 2})
    config["model"] |= {"pretrained": general["output_dir"], "projectors": ["plant", "general"]}
    run_once(config, lock={"lock_image": True})
    start, end = final_weights(general["output_dir"]), final_weights(config["output_dir"])
    assert all(torch.equal(end[name], tensor) for name, tensor in start.items() if name.startswith("clip.visual."))
    assert not torch.equal(end["projectors.general"], torch.eye(32))
    assert any(not torch.equal(end[name], start[name]) for name in start if name.startswith("clip.transformer."))
    (event,) = read_log(Path(config["output_dir"]) / "log.jsonl", "start")
    assert all(name.startswith(("projectors.", "image_branch.", "text_branch.")) for name in event["new_parameters"])
    assert event["unused_tensors"] == []
