"""Locked towers: what stays as it is, what goes on learning, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import final_weights, make_settings, run_once

from manifests.errors import ConfigError
from training.config import identity_values
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


@pytest.mark.parametrize("frozen", [True, False])
def test_a_locked_resnet_keeps_its_batch_statistics_unless_told(
    config: dict[str, Any], tmp_path: Path, frozen: bool
) -> None:
    architecture = json.loads(Path(config["model"]["architecture"]).read_text())
    architecture["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (tmp_path / "dalip-loop-resnet.json").write_text(json.dumps(architecture))
    config["model"] = {"preset": "clip", "architecture": str(tmp_path / "dalip-loop-resnet.json")}
    lock = {"lock_image": True, "lock_image_freeze_bn_stats": frozen}
    settings = make_settings(config, lock=lock, schedule={"steps": 2}, eval={"every_steps": 1})
    train(settings)
    torch.manual_seed(loop.mix_seed(settings.seed, 0x696E6974) >> 1)
    start = state.build_model(settings.model).state_dict()
    moved = {name for name, value in final_weights(config["output_dir"]).items() if not torch.equal(value, start[name])}
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
        run_once(config, lock={"lock_image": True, "lock_image_unlocked_groups": 1})


def test_how_a_tower_is_locked_shapes_only_a_run_that_locks_it(config: dict[str, Any]) -> None:
    values = [
        identity_values(make_settings(config, lock={"lock_image": locked, "lock_image_freeze_bn_stats": frozen}), ["a"])
        for locked in (False, True)
        for frozen in (False, True)
    ]
    assert values[0] == values[1]
    assert values[2] != values[3]


@pytest.mark.parametrize("name", ["lock_image_unlocked_groups", "lock_text_unlocked_layers"])
def test_unlocking_what_is_not_locked_is_refused(config: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 2, but lock_\w+ is false"):
        make_settings(config, lock={name: 2})


def test_a_plain_clip_with_both_towers_locked_is_refused(config: dict[str, Any]) -> None:
    config["model"] = {"preset": "clip", "architecture": config["model"]["architecture"]}
    config["lock"] = {"lock_image": True, "lock_text": True}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        run_once(config)
    assert not Path(config["output_dir"]).exists()
