"""Weights in: from the authors' released layout, a run's own checkpoints, open_clip's and transformers' layouts.

Reads safetensors and PyTorch checkpoints, whose code is not run. Writes nothing. Gives up with ConfigError that names
every key that is missing, unknown or of another shape.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.contract.settings import differences
from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip
from manifests.services.untrusted import read_object
from manifests.stores.storage import hash_file
from training.model.adapters import merged
from training.model.architecture import architecture_config, forward_settings
from training.model.dalip import DalipModel

CONFIG_FILE = "open_clip_config.json"  # these two names are open_clip's
WEIGHTS_FILE = "open_clip_model.safetensors"
SECOND_CONFIG_FILE = "dalip_config.json"
SECOND_WEIGHTS_FILE = "dalip_second_order.safetensors"
SECOND_FILES = (SECOND_CONFIG_FILE, SECOND_WEIGHTS_FILE)
_ENDINGS = (".pt", ".bin", ".safetensors")
_TRANSFORMERS_CONFIG, _TRANSFORMERS_VIEW = "config.json", "preprocessor_config.json"

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


def content_of(source: str) -> str | None:
    """Return the content of the files of weights that `source` names, by sha256.

    None for a tag, and for what is gone.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in _ENDINGS)
    return "+".join(hash_file(str(file)).sha256 for file in files) or None


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file: safetensors, or a PyTorch file read without running its code.

    The tensors may lie under `state_dict` or `model`. A prefix `module.` (data parallel) is taken off, and adapters
    are added to the weights that they adapt.

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
    return merged({name.removeprefix("module."): tensor for name, tensor in content.items()})


def in_parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a `DalipModel`: those of its CLIP by open_clip's names, and the others."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, tensor in state.items():
        parts[not name.startswith("clip.")][name.removeprefix("clip.")] = tensor
    return parts


def load_fault(error: Exception) -> str:
    """Why a file of weights cannot be read. Torch's own words would advise to run the code in the file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, and code in a file is never run"
    return str(error).partition("\n")[0][:200]


def rename_released(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return a released-layout state dict as that of a `DalipModel` of preset `released`; `where` names it in messages.

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
    """Load a complete state dict, which leaves no parameter new. The terms of its task come with it.

    Raises: ConfigError that names every missing, unknown or misfitting key; the weights are then unchanged.
    """
    model.terms.update({name[6:]: tensor.clone() for name, tensor in state.items() if name.startswith("terms.")})
    problems = _mismatches(model.state_dict(), state)
    if problems:
        raise ConfigError(f"{where}: does not fit the model, {len(problems)} keys differ:\n  " + "\n  ".join(problems))
    model.load_state_dict(dict(state))
    model.new_parameters = ()


def load_weights(
    model: DalipModel, source: str | Path, *, may_be_text_alone: bool = False
) -> tuple[set[str], tuple[str, ...]]:
    """Begin with weights that exist; returns the names loaded, and those of the file that the model has no place for.

    `source` is a folder of open_clip's or of transformers' CLIP, or a file: an open_clip checkpoint or a `DalipModel`.
    The CLIP part must fit; positions of another picture size are resized. A second-order part that is absent, or of
    another shape or statistic, stays new. With `may_be_text_alone` so does a picture tower of another shape; the text
    tower and the scale must fit, and pictures are prepared as the new tower wants them.

    Raises: ConfigError, in one line, for a CLIP part that does not fit, or that was trained to compute something else.
    """
    path, architecture = Path(source), None
    if path.suffix in (".npz", ".npy"):  # big_vision's
        open_clip.load_checkpoint(model.clip, str(path))
        return {f"clip.{name}" for name in model.clip.state_dict()}, ()
    if path.is_dir():
        config = next((path / name for name in (CONFIG_FILE, _TRANSFORMERS_CONFIG) if (path / name).is_file()), None)
        if config is None:
            raise ConfigError(
                f"{path}: holds no {CONFIG_FILE} (open_clip), no {_TRANSFORMERS_CONFIG} (transformers), and is no run"
            )
        view = config if config.name == CONFIG_FILE else path / _TRANSFORMERS_VIEW
        of_clip, second = read_state(_weights_in(path)), dict[str, Tensor]()
        if (path / SECOND_WEIGHTS_FILE).is_file():
            second = read_state(path / SECOND_WEIGHTS_FILE)
    else:
        of_clip, second = in_parts(read_state(path))
        view = path
        if of_clip:
            architecture = _content(path).get("architecture")
        else:  # a checkpoint of open_clip
            of_clip, second, view = second, {}, None
    state_now, of_clip = model.state_dict(), _in_open_clip_layout(model.clip, of_clip)
    own_clip = in_parts(state_now)[0]
    own_tower, tower = _visual(own_clip), _visual(of_clip)
    text_alone = may_be_text_alone and bool(_mismatches(own_tower, tower))
    if text_alone:
        own_clip = {name: tensor for name, tensor in own_clip.items() if name not in own_tower}
        of_clip = {name: tensor for name, tensor in of_clip.items() if name not in tower}
    if problems := _mismatches(own_clip, of_clip):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(
            f"{path}: does not fit {model.settings.architecture}, {len(problems)} of {len(own_clip)} tensors differ: "
            f"{'; '.join(problems[:3])}{more}"
        )
    if path.is_dir():
        _check_folder(model, path, text_alone)
    elif architecture is not None:  # runs of earlier versions say it in run.json alone
        check_same_forward(architecture, model.settings.architecture, path, text_alone=text_alone)
    if view is not None and not text_alone:
        set_preprocessing(model, preprocessing_of(view))
    state = second | {f"clip.{name}": tensor for name, tensor in of_clip.items()}
    fitting = {name: state[name] for name in state_now if name in state and state[name].shape == state_now[name].shape}
    model.load_state_dict(fitting, strict=False)
    left_out = {f"clip.{name}" for name in tower} if text_alone else set()
    return set(fitting), tuple(sorted((set(state) | left_out) - set(fitting)))


def _visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("visual.")}


def _in_open_clip_layout(clip: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a CLIP as open_clip's model has them.

    Names, a scale of one number, positions of its size.
    """
    if "text_model.embeddings.token_embedding.weight" in state:
        state = _of_transformers(state)
    state = dict(open_clip.convert_state_dict(clip, state))
    if "positional_embedding" in state and hasattr(clip, "text") and not hasattr(clip, "positional_embedding"):
        state = dict(open_clip.convert_to_custom_text_state_dict(state))
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(clip, name, None)
        if name in state and parameter is not None:
            state[name] = state[name].reshape(parameter.shape)
        elif name == "logit_bias" and parameter is not None:  # of weights that were trained without one
            state[name] = torch.zeros_like(parameter)
    state.pop("text.transformer.embeddings.position_ids", None)
    open_clip.resize_pos_embed(state, clip)
    return state


# Names in transformers' CLIPModel -> names in open_clip, applied one after another.
_TRANSFORMERS_NAMES = (
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("vision_model.", "visual."), ("text_model.", ""), ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.", ""), ("encoder.layers.", "transformer.resblocks."), ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."), ("self_attn.", "attn."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj."),
    ("pre_layrnorm.", "ln_pre."), ("post_layernorm.", "ln_post."), ("final_layer_norm.", "ln_final."),
    ("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection"),
)  # fmt: skip


def _of_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a CLIP of transformers under open_clip's names.

    One matrix for query, key and value, projections transposed.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key
        for theirs, ours in _TRANSFORMERS_NAMES:
            name = name.replace(theirs, ours)
        if name in ("visual.proj", "text_projection"):
            renamed[name] = tensor.t()
        elif ".attn.q_proj." in name:
            parts = [state[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
        elif not name.endswith("position_ids") and ".k_proj." not in name and ".v_proj." not in name:
            renamed[name] = tensor
    return renamed


def _weights_in(folder: Path) -> Path:
    """Return the weights of a folder; open_clip wrote them as a PyTorch file before it took safetensors."""
    names = (WEIGHTS_FILE, "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
    return next((folder / name for name in names if (folder / name).is_file()), folder / WEIGHTS_FILE)


def check_same_forward(
    stored: dict[str, Any], architecture: str, where: str | Path, hint: str = "", *, text_alone: bool = False
) -> None:
    """See that weights that were trained in the architecture `stored` compute the same in the one that is named.

    `text_alone` leaves the picture towers out.

    Raises: ConfigError that names what differs.
    """
    both = forward_settings(stored), forward_settings(architecture_config(architecture))
    for values in both if text_alone else ():
        values["vision_cfg"], values["custom_text"] = {}, False
    if changes := differences(*both):
        raise ConfigError(
            f"{where}: its weights were trained in another architecture than {architecture} "
            f"({'; '.join(changes[:3])}){hint}"
        )


def _check_folder(model: DalipModel, folder: Path, text_alone: bool) -> None:
    if (folder / CONFIG_FILE).is_file():
        config, hint = architecture_config(str(folder)), ": give the folder as model.architecture too"
    else:  # of transformers
        # The heads and the activation are in no weight's shape.
        stored, hint = read_json(folder / _TRANSFORMERS_CONFIG), ""
        config = forward_settings(architecture_config(model.settings.architecture))
        for part, key in (("vision_cfg", "vision_config"), ("text_cfg", "text_config")):
            values = {"hidden_act": "quick_gelu", "num_attention_heads": 12 if part == "vision_cfg" else 8}
            values |= stored.get(key) or {}
            config["quick_gelu"] = values["hidden_act"] == "quick_gelu"
            if part == "text_cfg":
                config[part]["heads"] = values["num_attention_heads"]
            elif "width" in config[part]:
                config[part]["head_width"] = config[part]["width"] // values["num_attention_heads"]
    check_same_forward(config, model.settings.architecture, folder, hint, text_alone=text_alone)


def preprocessing_of(path: Path) -> dict[str, Any]:
    """Return how pictures were prepared for the weights in a file; empty where it does not say.

    Raises: ConfigError for a configuration that cannot be read.
    """
    if path.name == CONFIG_FILE:
        return dict(read_json(path).get("preprocess_cfg", {}))
    if path.name == _TRANSFORMERS_VIEW:
        values = read_json(path) if path.is_file() else {}
        return {name: values[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in values}
    return dict(_content(path).get("preprocess", {}))


def _content(path: Path) -> dict[str, Any]:
    """Return the metadata of a file beside its tensors; nothing is known of one in another format than ours."""
    content = None if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True, mmap=True)
    return content if isinstance(content, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object beside weights.

    Raises: ConfigError for a file that holds none.
    """
    return read_object(path, "take another copy of its folder", ConfigError)


def said_of(file: Path) -> dict[str, Any]:
    """Read what a file of weights, or one beside it, says of its model: `model_settings`, `architecture`, `preprocess`.

    A file of open_clip says nothing. Its architecture may lie beside it: in a JSON file of its name, as `dalip export`
    writes one, or in the config of its folder.
    """
    stated: dict[str, Any] = {}
    with suppress(Exception):  # a file that cannot be read is refused by who reads its tensors
        stated = _content(file)
    beside = (str(path) for path in (file.with_suffix(".json"), file.with_name(CONFIG_FILE)) if path.is_file())
    return {"architecture": next(beside, None), **stated}


def set_preprocessing(model: DalipModel, values: Mapping[str, Any]) -> None:
    """Take mean, standard deviation and interpolation from `values`; the size stays the model's."""
    kept = model.clip.visual.preprocess_cfg
    open_clip.set_model_preprocess_cfg(model.clip, {**kept, **values, "size": kept["size"]})


def _mismatches(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    problems = [f"missing: {name} {list(expected[name].shape)}" for name in expected if name not in stored]
    problems += [f"unknown: {name} {list(stored[name].shape)}" for name in stored if name not in expected]
    problems += [
        f"shape: {name} is {list(stored[name].shape)}, the model has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    return problems
