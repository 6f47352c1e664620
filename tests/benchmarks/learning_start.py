"""Before the first step: how alike the features are, how hard f and z pull, and what the anchor's weights change.

One batch of the learning benchmark and the weights of one seed, without dropout; seconds of work. Writes start.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from learning_pictures import Data

BATCH = 64
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "released": ("released", {}),
    "dalip": ("dalip", {}),
    "dalip, batch norm": ("dalip", {"image_norm": "batch"}),
    "dalip, padding kept": ("dalip", {"text_padding": "keep"}),
}


def look(work: Path, data: Data, architecture: str, reduced_width: int) -> None:
    import torch

    from training.data.images import normalise
    from training.model.build import build_model
    from training.model.presets import ModelSettings

    rng = np.random.default_rng(0)
    special, general = data.by_split["special_train"], data.by_split["general_train"]
    rows = [int(row) for split in (special, general) for row in rng.choice(split, BATCH // 2, replace=False)]
    found = {}
    for name, (preset, changes) in VARIANTS.items():
        torch.manual_seed(0)
        second = {"reduced_width": reduced_width, "dropout": 0.0, **changes}
        settings = {"preset": preset, "architecture": architecture, "second_order": second}
        model = build_model(ModelSettings.model_validate(settings)).train()
        preprocess = model.preprocess_settings
        pixels = normalise(data.views(rows, None), preprocess.mean, preprocess.std)
        found[name] = _look_at(model, pixels, torch.stack([data.tokens[row][0] for row in rows]))
        print(name, found[name])
    (work / "start.json").write_text(json.dumps(found))


def _look_at(model: Any, pixels: Any, tokens: Any) -> dict[str, float]:
    import torch

    from training.model.loss import LossSettings, make_loss

    features = model(pixels, tokens)
    found = {name: _likeness(features[name].detach()) for name in features if not name.startswith("logit_scale")}
    towers = [p for name, p in model.clip.named_parameters() if "logit_scale" not in name]
    for kind, weight in (("f", 1.0), ("z", 0.0)):
        loss = make_loss(LossSettings(first_order_weight=weight))(features)["loss"]
        pulls = torch.autograd.grad(loss, towers, retain_graph=True, allow_unused=True)
        found[f"loss {kind}"] = float(loss.detach())
        found[f"pull {kind}"] = float(torch.cat([pull.flatten() for pull in pulls if pull is not None]).norm())
    return found | _anchor_matters(model, pixels, tokens)


def _likeness(features_BC: Any) -> float:
    """Mean cosine between different samples; 1 where all are one."""
    num_samples = len(features_BC)
    return float((features_BC @ features_BC.t()).sum() - num_samples) / (num_samples * (num_samples - 1))


def _anchor_matters(model: Any, pixels: Any, tokens: Any) -> dict[str, float]:
    """How much of the statistics changes, relative to their length, when the anchor is drawn at random."""
    import torch

    from training.model import towers

    mask = model.second_order.text_padding == "mask"
    found = {}
    with torch.no_grad():
        image = towers.image_tower(model.clip, pixels)
        text = towers.text_tower(model.clip, tokens, mask_padding=mask)
        for side, tower, branch in (("image", image, model.image_branch), ("text", text, model.text_branch)):
            own = branch.statistics(tower.feature, tower.tokens, tower.mask)
            other = branch.statistics(torch.randn_like(tower.feature), tower.tokens, tower.mask)
            found[f"anchor, {side}"] = float((own - other).norm() / own.norm())
    return found
