"""The golden values of the second-order branch and of the loss, and the branch that has their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.model.branch import BranchShape, SecondOrderBranch

GOLDEN = Path(__file__).parent / "unit/training/model/mbdc_golden.npz"
SIDES = ("image", "text")


def golden_arrays() -> dict[str, Tensor]:
    """All of them, by name."""
    with np.load(GOLDEN) as stored:
        return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files}


def golden_branch(side: str, arrays: dict[str, Tensor]) -> SecondOrderBranch:
    """In float64 and evaluation mode."""
    image = side == "image"
    shape = BranchShape(512, 4, 46, "batch" if image else "layer", 0.5, "channel" if image else "token", "full")
    with torch.device("meta"):
        branch = SecondOrderBranch(shape)
    branch.projection = torch.nn.Sequential()
    branch.second_order_norm = torch.nn.LayerNorm(1)
    branch = branch.to_empty(device="cpu").double().eval()
    norm = {"weight": arrays[f"{side}_{'bn' if image else 'ln'}_weight"]}
    norm["bias"] = arrays[f"{side}_{'bn' if image else 'ln'}_bias"]
    if image:
        norm |= {"running_mean": arrays["image_bn_mean"], "running_var": arrays["image_bn_var"]}
        norm["num_batches_tracked"] = torch.tensor(0)
    branch.norm.load_state_dict(norm)
    branch.token_projection.weight.data = arrays[f"{side}_fc1"].double()
    branch.reduce.weight.data = arrays[f"{side}_reduce"].double()
    return branch


def golden_tokens(side: str, arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Anchor (B, C) and tokens (B, M, C) of one side, in float64."""
    tokens = arrays[f"{side}_tokens"].double()
    if side == "image":
        return tokens[:, 0], tokens[:, 1:]
    return tokens[torch.arange(len(tokens)), arrays["text_ids"].argmax(-1)], tokens


def golden_features(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the golden value of the loss is of."""
    names = {"f": "features", "z": "second_order"}
    features = {
        f"{side}_{name}": arrays[f"loss_{order}_{side}"].double() for order, name in names.items() for side in SIDES
    }
    return features | {"logit_scale": arrays["loss_scale"].double()}
