"""Architectures by name, file or folder, and the open_clip model and tokenizer made from them.

Reads JSON files in open_clip's model format, and registers each with open_clip under its stem. For a pretrained tag
open_clip downloads the weights. Gives up with ConfigError.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.services import model_hub
from manifests.services import open_clip_api as open_clip
from manifests.services.untrusted import read_object


def architecture_name(architecture: str) -> str:
    """Return open_clip's name of an architecture, given as a name, a JSON file, a folder or a model of the hub.

    Raises: ConfigError for a file or name that is not there.
    """
    path = model_hub.fetch_model(architecture) if architecture.startswith(model_hub.HUB) else Path(architecture)
    if (path / "open_clip_config.json").is_file():
        _read_architecture(path / "open_clip_config.json")
        return f"local-dir:{path}"
    if path.suffix != ".json":
        name = architecture.replace("/", "-")
        if open_clip.get_model_config(name) is None:
            near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ConfigError(
                f"architecture '{name}' is not known to open_clip{hint} (or give the path of a .json model file)"
            )
        return name
    config = _read_architecture(path)
    registered = open_clip.get_model_config(path.stem)
    if registered is None:
        _register(path.stem, config)
    elif registered != config:
        return register_architecture(config)
    return path.stem


def architecture_config(architecture: str) -> dict[str, Any]:
    """Return the architecture in open_clip's model format.

    Raises: ConfigError as `architecture_name`.
    """
    return dict(open_clip.get_model_config(architecture_name(architecture)))


def register_architecture(config: dict[str, Any]) -> str:
    """Make an architecture known to open_clip in this process; returns its name, a hash of it."""
    text = json.dumps(config, sort_keys=True)
    name = f"dalip-architecture-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:12]}"
    if open_clip.get_model_config(name) is None:
        _register(name, config)
    return name


def _register(name: str, config: dict[str, Any]) -> None:
    """By a file that is removed at once: open_clip keeps what it read, and would read every file again at each call."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)


def is_built_in(architecture: str) -> bool:
    """Return true for a name that every open_clip of this version knows."""
    return (open_clip.config_folder() / f"{architecture.replace('/', '-')}.json").is_file()


def create_clip(
    architecture: str,
    *,
    pretrained: str | None,
    image_size_px: int | tuple[int, int] | None = None,
    key: str = "model.pretrained",
) -> Any:
    """Return an open_clip model on the CPU in float32; random weights when `pretrained` (tag or file) is None.

    `key` names the setting that holds `pretrained`, for messages.

    Raises: ConfigError for an unknown architecture or tag, a download that fails, weights that do not fit.
    """
    name = architecture_name(architecture)
    if "frozen_tower" in architecture_config(architecture)["vision_cfg"]:
        raise ConfigError(
            f"{architecture}: is of `dalip tokens`, whose stored tokens no version after 0.4.0 reads; name the tower's "
            "own architecture and lock the towers (lock: {lock_image: true, lock_text: true})"
        )
    is_file = pretrained is not None and Path(pretrained).is_file()
    try:
        with ExitStack() as during:
            if pretrained is not None and not is_file:
                _check_tag(name, pretrained)
                during.enter_context(model_hub.cache_without_hub())
                model_hub.download_weights(name, pretrained, key)
            else:  # open_clip warns of random weights; here they are wanted, or replaced below
                during.enter_context(quiet_open_clip())
            clip = open_clip.create_model(
                name,
                None if is_file else pretrained,
                load_weights=pretrained is not None and not is_file,
                force_image_size=image_size_px,
                pretrained_text=False,
            )
            if is_file:
                open_clip.load_checkpoint(clip, pretrained)
        return clip
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        source = f" with weights '{pretrained}'" if pretrained else ""
        words = textwrap.shorten(str(error), 600, placeholder=" ...")
        raise ConfigError(f"open_clip cannot build {name}{source}: {words}") from error


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Without open_clip's warnings, which it sends to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


# Set beside the architecture, or known from the shapes of the weights.
_NOT_IN_FORWARD = ("image_size", "patch_dropout", "timm_model_pretrained", "hf_model_pretrained")


def forward_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide how a model of this architecture computes, with defaults written out.

    Two architectures may have weights of the same names and shapes, and differ here: activation, heads, pooling.
    """
    forward: dict[str, Any] = {"quick_gelu": False} | {
        key: value for key, value in config.items() if key[-4:] != "_cfg"
    }
    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        values = dataclasses.asdict(kind()) | dict(config[part])
        forward[part] = {key: value for key, value in values.items() if key not in _NOT_IN_FORWARD}
    return dict(json.loads(json.dumps(forward)))  # tuples as lists


def _check_tag(name: str, pretrained: str) -> None:
    """Refuse what is no tag of this architecture, and weights of another activation, of which open_clip only warns."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained.lower().replace("-", "_") not in {tag.lower().replace("-", "_") for tag in tags}:
        listed = f"; its tags: {', '.join(tags)}" if tags else ", which has no tags"
        raise ConfigError(f"pretrained '{pretrained}' is neither a file nor a tag of {name}{listed}")
    needs_quick = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    config = open_clip.get_model_config(name)
    if "timm_model_name" in config["vision_cfg"] or needs_quick == bool(config.get("quick_gelu", False)):
        return
    other = f"{name}-quickgelu" if needs_quick else name.removesuffix("-quickgelu")
    hint = (
        f"set model.architecture: {other}"
        if open_clip.get_model_config(other) is not None
        else f"give model.architecture as a JSON file: that of {name} with quick_gelu: {str(needs_quick).lower()}"
    )
    raise ConfigError(
        f"pretrained '{pretrained}' was trained with {'QuickGELU' if needs_quick else 'GELU'}, {name} computes "
        f"{'GELU' if needs_quick else 'QuickGELU'}: {hint}"
    )


@functools.lru_cache(maxsize=4)
def create_tokenizer(architecture: str) -> Any:
    """open_clip's tokenizer of an architecture: texts to ids, (number of texts, context length).

    Raises: ConfigError when the tokenizer cannot be loaded.
    """
    name = architecture_name(architecture)
    from_hub = "hf_tokenizer_name" in architecture_config(architecture)["text_cfg"]
    try:
        with model_hub.cache_without_hub() if from_hub else nullcontext():
            return open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        words = textwrap.shorten(str(error), 600, placeholder=" ...")
        raise ConfigError(f"the tokenizer of {name} cannot be loaded: {words}") from error


def _read_architecture(path: Path) -> dict[str, Any]:
    config = read_object(path, "name a model file of open_clip", ConfigError)
    if path.name == "open_clip_config.json":
        config = config.get("model_cfg", config)
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]:
        raise ConfigError(f"{path}: not an open_clip model file, it has no {', '.join(missing)}")
    return config
