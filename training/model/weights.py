"""Weights in: from the authors' released layout, a run's own checkpoints, and the Hugging Face layout.

Reads safetensors and PyTorch checkpoints, whose code is not run. Writes nothing. Gives up with ConfigError that names
every key that is missing, unknown or of another shape.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip
from manifests.settings import differences
from training.model.architecture import architecture_config, forward_settings
from training.model.dalip import DalipModel

CONFIG_FILE = "open_clip_config.json"  # these two names are open_clip's
WEIGHTS_FILE = "open_clip_model.safetensors"
SECOND_CONFIG_FILE = "dalip_config.json"
SECOND_WEIGHTS_FILE = "dalip_second_order.safetensors"

# Names in the released code -> names here. Every other key is CLIP's own and gets the prefix `clip.`.
# `vbdc.conv_dr_block.0.weight` is a 1 x 1 convolution there and a matrix here.
_RELEASED_BRANCHES = {
    "visual.fc1.weight": "image_branch.token_projection.weight",
    "visual.vbdc.conv_dr_block.0.weight": "image_branch.reduce.weight",
    "visual.vbdc.conv_dr_block.1.weight": "image_branch.norm.weight",
    "visual.vbdc.conv_dr_block.1.bias": "image_branch.norm.bias",
    "visual.vbdc.conv_dr_block.1.running_mean": "image_branch.norm.running_mean",
    "visual.vbdc.conv_dr_block.1.running_var": "image_branch.norm.running_var",
    "visual.vbdc.conv_dr_block.1.num_batches_tracked": "image_branch.norm.num_batches_tracked",
    "visual.vbdc.ln.weight": "image_branch.second_order_norm.weight",
    "visual.vbdc.ln.bias": "image_branch.second_order_norm.bias",
    "visual.vbdc.down.weight": "image_branch.projection.0.weight",
    "visual.vbdc.down.bias": "image_branch.projection.0.bias",
    "visual.fc2.weight": "image_branch.projection.1.weight",
    "fc1.weight": "text_branch.token_projection.weight",
    "tbdc.conv_dr_block.0.weight": "text_branch.reduce.weight",
    "tbdc.conv_dr_block.1.weight": "text_branch.norm.weight",
    "tbdc.conv_dr_block.1.bias": "text_branch.norm.bias",
    "tbdc.ln.weight": "text_branch.second_order_norm.weight",
    "tbdc.ln.bias": "text_branch.second_order_norm.bias",
    "tbdc.down.weight": "text_branch.projection.0.weight",
    "tbdc.down.bias": "text_branch.projection.0.bias",
    "fc2.weight": "text_branch.projection.1.weight",
}


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file: safetensors, or a PyTorch file read without running its code.

    The tensors may lie under `state_dict` or `model`. A prefix `module.` (data parallel) is taken off.

    Raises: ConfigError for a file that is missing, damaged or holds no tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such checkpoint file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise their own kinds (pickle, zip, safetensors) for a damaged file
        raise ConfigError(f"{file}: cannot be read as a checkpoint: {load_fault(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(f"{file}: holds no state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def load_fault(error: Exception) -> str:
    """Why a file of weights cannot be read. Torch's own words would advise to run the code in the file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, and code in a file is never run"
    return str(error).partition("\n")[0][:200]


def is_dalip_checkpoint(path: str | Path) -> bool:
    """True for a file that holds the state dict of a `DalipModel`."""
    return Path(path).is_file() and any(name.startswith("clip.") for name in read_state(path))


def rename_released(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A released-layout state dict as that of a `DalipModel` of preset `released`; `where` names it in messages.

    Raises: ConfigError when a key of either branch is missing; `load_state` names all else that does not fit.
    """
    missing = [name for name in _RELEASED_BRANCHES if name not in state]
    if missing:
        raise ConfigError(
            f"{where}: not a released DALIP checkpoint, {len(missing)} of its {len(_RELEASED_BRANCHES)} second-order "
            f"keys are missing: {', '.join(missing)}"
        )
    renamed = {_RELEASED_BRANCHES.get(name, f"clip.{name}"): tensor for name, tensor in state.items()}
    return renamed | {"image_branch.reduce.weight": renamed["image_branch.reduce.weight"].flatten(1)}


def load_state(model: DalipModel, state: Mapping[str, Tensor], where: str) -> None:
    """Load a complete state dict.

    Raises: ConfigError that names every missing, unknown or misfitting key; the model is then unchanged.
    """
    problems = _mismatches(model.state_dict(), state)
    if problems:
        raise ConfigError(f"{where}: does not fit the model, {len(problems)} keys differ:\n  " + "\n  ".join(problems))
    model.load_state_dict(dict(state))


def load_weights(model: DalipModel, source: str | Path) -> set[str]:
    """Start from a folder in the Hugging Face layout or a `DalipModel` checkpoint; returns the names loaded.

    The CLIP part must fit. A second-order part that is absent, or of another shape, stays new.

    Raises: ConfigError for a CLIP part that does not fit, or that was trained to compute something else.
    """
    path = Path(source)
    if path.is_dir():
        take_preprocessing(model, path / CONFIG_FILE)
        state = {f"clip.{name}": tensor for name, tensor in read_state(_weights_in(path)).items()}
        if (path / SECOND_WEIGHTS_FILE).is_file():
            state |= read_state(path / SECOND_WEIGHTS_FILE)
    else:
        state = read_state(path)
        take_preprocessing(model, path)
    own = model.state_dict()
    wanted_clip, given_clip = (
        {name: tensor for name, tensor in tensors.items() if name.startswith("clip.")} for tensors in (own, state)
    )
    if problems := _mismatches(wanted_clip, given_clip):
        raise ConfigError(f"{path}: does not fit {model.settings.architecture}:\n  " + "\n  ".join(problems))
    if path.is_dir():
        _check_same_forward(model, path)
    fitting = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    model.load_state_dict(fitting, strict=False)
    return set(fitting)


def _weights_in(folder: Path) -> Path:
    """The weights of a folder; open_clip wrote them as a PyTorch file before it took safetensors."""
    older = folder / "open_clip_pytorch_model.bin"
    return older if older.is_file() and not (folder / WEIGHTS_FILE).is_file() else folder / WEIGHTS_FILE


def _check_same_forward(model: DalipModel, folder: Path) -> None:
    config, own = architecture_config(str(folder)), architecture_config(model.settings.architecture)
    if changes := differences(forward_settings(config), forward_settings(own)):
        raise ConfigError(
            f"{folder}: its weights were trained in another architecture than {model.settings.architecture} "
            f"({'; '.join(changes[:3])}): give the folder as model.architecture too"
        )


def take_preprocessing(model: DalipModel, path: Path) -> None:
    """Prepare pictures as the weights in a file were trained with; the size stays the model's.

    A file that does not say, as open_clip's own checkpoints, changes nothing.

    Raises: ConfigError for a configuration that cannot be read.
    """
    set_preprocessing(model, preprocessing_of(path))


def preprocessing_of(path: Path) -> dict[str, Any]:
    """How pictures were prepared for the weights in a file; empty where it does not say.

    Raises: ConfigError for a configuration that cannot be read.
    """
    if path.name == CONFIG_FILE:
        return dict(read_json(path).get("preprocess_cfg", {}))
    if path.suffix == ".safetensors":
        return {}
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return dict(content.get("preprocess", {})) if isinstance(content, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside weights.

    Raises: ConfigError for a file that holds none.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def set_preprocessing(model: DalipModel, values: Mapping[str, Any]) -> None:
    """Take mean, standard deviation and interpolation from `values`; the size stays the model's."""
    kept = model.clip.visual.preprocess_cfg
    open_clip.set_model_preprocess_cfg(model.clip, {**kept, **values, "size": kept["size"]})


def _mismatches(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    problems = [f"missing: {name} {list(own[name].shape)}" for name in own if name not in stored]
    problems += [f"unknown: {name} {list(stored[name].shape)}" for name in stored if name not in own]
    problems += [
        f"shape: {name} is {list(stored[name].shape)}, the model has {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    return problems
