"""All that both packages take of open_clip: the one module that imports it.

`from manifests.services import open_clip_api as open_clip`, then `open_clip.NAME`: open_clip is imported when a name is
first used, since that takes seconds. Where another version moves or drops a name, this is the place to change.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.services.packages import install_line, require

MODULE_OF = {
    "add_model_config": "open_clip",
    "create_model": "open_clip",
    "create_model_and_transforms": "open_clip",
    "get_input_dtype": "open_clip",
    "get_model_config": "open_clip",
    "get_tokenizer": "open_clip",
    "list_models": "open_clip",
    "list_pretrained_tags_by_model": "open_clip",
    "load_checkpoint": "open_clip",
    "OPENAI_IMAGENET_TEMPLATES": "open_clip",
    "SIMPLE_IMAGENET_TEMPLATES": "open_clip",
    "convert_state_dict": "open_clip.convert",
    "CoCa": "open_clip.coca_model",
    "HFTextEncoder": "open_clip.hf_model",
    "CLIPTextCfg": "open_clip.model",
    "CLIPVisionCfg": "open_clip.model",
    "convert_to_custom_text_state_dict": "open_clip.model",
    "resize_pos_embed": "open_clip.model",
    "resize_text_pos_embed": "open_clip.model",
    "set_model_preprocess_cfg": "open_clip.model",
    "ModifiedResNet": "open_clip.modified_resnet",
    "HF_SAFE_WEIGHTS_NAME": "open_clip.pretrained",
    "download_pretrained": "open_clip.pretrained",
    "get_pretrained_cfg": "open_clip.pretrained",
    "HFTokenizer": "open_clip.tokenizer",
    "SimpleTokenizer": "open_clip.tokenizer",
    "PreprocessCfg": "open_clip.transform",
    "image_transform_v2": "open_clip.transform",
    "text_global_pool": "open_clip.transformer",
}
"""Names by the module of open_clip that has them."""


def __getattr__(name: str) -> Any:
    """A name of open_clip. All are looked up with the first, so that a compiled model meets plain names.

    Raises: ConfigError where open_clip is not installed, or is a version that lacks the name.
    """
    if name not in MODULE_OF:
        raise AttributeError(name)
    require("this", "open_clip", "torch")
    for each, module in MODULE_OF.items():
        with suppress(ModuleNotFoundError, AttributeError):
            globals()[each] = getattr(importlib.import_module(module), each)
    if name in globals():
        return globals()[name]
    raise ConfigError(
        f"open_clip_torch {version('open_clip_torch')} has no {MODULE_OF[name]}.{name}; install a version "
        f"that PlantMix knows: {install_line('open_clip')}"
    )


def config_folder() -> Path:
    """Where open_clip keeps the architectures that every installation of this version knows."""
    return Path(importlib.import_module("open_clip").__file__ or "").parent / "model_configs"
