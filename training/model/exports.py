"""Models out: an open_clip checkpoint, or a folder in open_clip's layout for the Hugging Face Hub.

A checkpoint is the file TARGET and, for an architecture that open_clip does not know by name, a JSON file beside it. A
folder holds `open_clip_config.json`, `open_clip_model.safetensors` and, in own files, the second-order part. Both
are first written to a private place, loaded back by open_clip and compared: size, preparation of pictures, features.
Only an earlier export is replaced. Gives up with ConfigError, and publishes nothing, when open_clip cannot load them or
would compute something else.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.contract.release import refuse_within
from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.storage import read_if_there
from training.model.architecture import architecture_config, is_built_in, quiet_open_clip, register_architecture
from training.model.dalip import DalipModel
from training.model.presets import LossSettings
from training.model.towers import evaluating, image_size_px
from training.model.weights import CONFIG_FILE, SECOND_CONFIG_FILE, SECOND_WEIGHTS_FILE, WEIGHTS_FILE, in_parts

MADE_BY = "dalip export"  # in a file of weights: the next export may replace it


def export_open_clip(model: DalipModel, path: str | Path) -> str:
    """Write the first-order part as an open_clip checkpoint; returns the Python line that loads it.

    The file is safetensors when its name ends so, else PyTorch's format.

    Raises: ConfigError for a target that is a folder or cannot be written, and for what open_clip cannot load.
    """
    target = local_place(path)
    if target.is_dir():
        raise ConfigError(
            f"{target}: is a folder; name a file for an open_clip checkpoint, or use --format huggingface"
        )
    if target.exists() and not _is_export(target):
        raise ConfigError(
            f"{target}: is there, and no `dalip export` of this version wrote it; choose another TARGET or remove it"
        )
    config, size = _config_at_own_size(model), image_size_px(model.clip)
    arguments: dict[str, Any] = {}
    own_json = None
    if is_built_in(model.settings.architecture):
        name = reader_name = model.settings.architecture.replace("/", "-")
        if config != architecture_config(name):
            arguments["force_image_size"] = config["vision_cfg"]["image_size"]
    else:
        own_json = target.with_suffix(".json")
        _check_own_json(own_json, config)
        name, reader_name = register_architecture(config), own_json.stem
    arguments |= _preprocessing_arguments(model)
    with _private_folder(target) as private:
        file = private / target.name
        _write_weights(in_parts(model.state_dict())[0], file)
        _check_loads(model, name, {"pretrained": str(file), **arguments}, size)
        storage.make_folder(str(target.parent))
        if own_json is not None:
            storage.publish_json(own_json, config)
        storage.publish(str(file), str(target))
    listed = "".join(f", {key}={value!r}" for key, value in arguments.items())
    register = f'open_clip.add_model_config("{own_json}"); ' if own_json is not None else ""
    return f'{register}open_clip.create_model_and_transforms("{reader_name}", "{target}"{listed})'


def export_hugging_face(model: DalipModel, folder: str | Path, loss: LossSettings | None = None) -> str:
    """Write the Hugging Face layout; returns the Python line that loads its first part with open_clip.

    `training.model.build.load_hugging_face` loads the whole. `loss`, by which the model was trained, goes with it,
    because an evaluation weighs f and z by it.

    Raises: ConfigError for a target that is a file or cannot be written, and for what open_clip cannot load.
    """
    target = local_place(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; name a folder for the Hugging Face layout")
    of_clip, second = in_parts(model.state_dict())
    architecture = model.settings.architecture
    if not is_built_in(architecture):  # the folder holds it; where its file lies here is nobody's business
        architecture = Path(architecture).name
    settings = model.settings.model_dump(mode="json") | {"pretrained": None, "architecture": architecture}
    preprocess = {key: value for key, value in model.clip.visual.preprocess_cfg.items() if key != "size"}
    with _private_folder(target) as private:
        _write_weights(of_clip, private / WEIGHTS_FILE)
        if second:
            _write_weights(second, private / SECOND_WEIGHTS_FILE)
        trained = {"loss": _loss_to_share(loss)} if loss is not None else {}
        storage.publish_json(private / SECOND_CONFIG_FILE, {"model": settings} | trained)
        config = {"model_cfg": _config_at_own_size(model), "preprocess_cfg": preprocess}
        storage.publish_json(private / CONFIG_FILE, config)
        _check_loads(model, f"local-dir:{private}", {}, image_size_px(model.clip))
        _publish_folder(private, target)
        if not second:  # of an export that was here before
            (target / SECOND_WEIGHTS_FILE).unlink(missing_ok=True)
    return f'open_clip.create_model_and_transforms("local-dir:{target}")'


def _loss_to_share(loss: LossSettings) -> dict[str, Any]:
    """Return the loss without its teacher, whose vectors stay here; pairs are then judged by the contrastive part."""
    values = loss.model_dump(mode="json", exclude={"teacher"})
    return values | ({"form": "sum_of_similarities"} if loss.form == "distil" else {})


def _check_loads(model: DalipModel, name: str, arguments: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Load what was written, as its reader will, and compare it with the model.

    Raises: ConfigError.
    """
    what = f"open_clip cannot take this model ({model.settings.architecture}, {size[0]} x {size[1]} px)"
    try:
        with quiet_open_clip(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other, _, _ = open_clip.create_model_and_transforms(name, **arguments)
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError, KeyError) as error:
        words = " ".join(str(error).split())[:300].rstrip(".")
        raise ConfigError(f"{what}: {words}{_timm_hint(model)}; nothing is written") from None
    preparation, own = _as_lists(other.visual.preprocess_cfg), _as_lists(model.clip.visual.preprocess_cfg)
    if image_size_px(other) != size or preparation != own:
        raise ConfigError(f"{what}: it would prepare pictures as {preparation}, not {own}; nothing is written")
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(model.clip.context_length)[None] % 50 + 1
    with evaluating(model):
        for side, theirs, ours in (
            ("picture", other.eval().encode_image(images), model.clip.encode_image(images)),
            ("text", other.encode_text(tokens), model.clip.encode_text(tokens)),
        ):
            if not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ConfigError(f"{what}: its {side} features differ from the model's; nothing is written")


def _timm_hint(model: DalipModel) -> str:
    vision = architecture_config(model.settings.architecture)["vision_cfg"]
    if "timm_model_name" not in vision:
        return ""
    return (
        f". open_clip builds a timm tower ({vision['timm_model_name']}) at its own size before it takes weights: "
        "train with model.image_size_px null, or in an architecture with a timm tower of that size"
    )


def _config_at_own_size(model: DalipModel) -> dict[str, Any]:
    """Return the architecture in open_clip's format, at the size the model has."""
    config = architecture_config(model.settings.architecture)
    height, width = image_size_px(model.clip)
    size = config["vision_cfg"].get("image_size", 224)
    if ([size, size] if isinstance(size, int) else list(size)) != [height, width]:
        config["vision_cfg"] = config["vision_cfg"] | {"image_size": height if height == width else [height, width]}
    return config


def _check_own_json(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ConfigError when the architecture's file would replace another one, or has a name that open_clip uses."""
    registered = open_clip.get_model_config(path.stem)
    if registered is not None and registered != config and is_built_in(path.stem):
        raise ConfigError(f"{path.stem}: is the name of an architecture of open_clip's own; choose another TARGET")
    if path.exists() and json_object(read_if_there(str(path))) != config:
        raise ConfigError(
            f"{path}: the architecture goes into this file, which holds another one; choose another TARGET"
        )


def _preprocessing_arguments(model: DalipModel) -> dict[str, Any]:
    """Return the arguments that tell open_clip how pictures are prepared; its checkpoint file does not say."""
    usual, own = (_as_lists(vars(cfg)) for cfg in (open_clip.PreprocessCfg(), model.preprocess_settings))
    names = ("mean", "std", "interpolation", "resize_mode")
    return {f"image_{name}": own[name] for name in names if own[name] != usual[name]}


@contextmanager
def _private_folder(target: Path) -> Iterator[Path]:
    """Open a folder beside the target for what is not checked yet, and remove it afterwards.

    When the export fails, folders that were made for it are removed too.
    """
    made = next((folder for folder in reversed([target.parent, *target.parent.parents]) if not folder.exists()), None)
    storage.make_folder(str(target.parent))
    private = Path(storage.temp_path(str(target)))
    private.mkdir()
    try:
        yield private
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _publish_folder(private: Path, target: Path) -> None:
    """Publish the files of an export; `SECOND_CONFIG_FILE` comes first and marks the folder as one.

    Raises: ConfigError where a file of these names is there, and no such mark.
    """
    files = sorted(private.iterdir(), key=lambda file: (file.name != SECOND_CONFIG_FILE, file.name))
    there = [target / file.name for file in files if (target / file.name).exists()]
    if there and not (target / SECOND_CONFIG_FILE).is_file():
        raise ConfigError(f"{there[0]}: is there, and no `dalip export` wrote it; choose another TARGET")
    storage.make_folder(str(target))
    for file in files:
        storage.publish(str(file), str(target / file.name))


def _is_export(file: Path) -> bool:
    """Return whether an export wrote this file of weights."""
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                return (opened.metadata() or {}).get("made_by") == MADE_BY
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # each reader raises its own kinds for a file of something else
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


def local_place(path: str | Path) -> Path:
    """Return the path to export to.

    Raises: ConfigError for an object store, and within a release.
    """
    if storage.is_remote(str(path)):
        raise ConfigError(f"{path}: a model is exported to a local place; copy it to an object store afterwards")
    refuse_within(str(path))
    return Path(path)


def _write_weights(state: dict[str, Tensor], path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path, metadata={"format": "pt", "made_by": MADE_BY})
        path.chmod(0o644)  # it is for the owner alone otherwise
    else:
        torch.save({"state_dict": state, "made_by": MADE_BY}, path)


def _as_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing with pairs as lists, and one number for a square as two."""
    listed = {key: list(value) if isinstance(value, (tuple, list)) else value for key, value in values.items()}
    size = listed.get("size")
    return listed | ({"size": [size, size]} if isinstance(size, int) else {})
