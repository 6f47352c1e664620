"""All that both packages take of open_clip: the one module that imports it.

`from manifests.services import open_clip_api as open_clip`, then `open_clip.NAME`: open_clip is imported when a name is
first used, since that takes seconds. Where another version moves or drops a name, this is the place to change.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.services.packages import install_line, require

_NAMES = {
    "": "add_model_config create_model create_model_and_transforms get_input_dtype get_model_config get_tokenizer "
    "list_models list_pretrained_tags_by_model load_checkpoint OPENAI_IMAGENET_TEMPLATES SIMPLE_IMAGENET_TEMPLATES",
    ".coca_model": "CoCa",
    ".convert": "convert_state_dict",
    ".hf_model": "HFTextEncoder",
    ".model": "CLIPTextCfg CLIPVisionCfg convert_to_custom_text_state_dict resize_pos_embed set_model_preprocess_cfg",
    ".modified_resnet": "ModifiedResNet",
    ".pretrained": "HF_SAFE_WEIGHTS_NAME download_pretrained download_pretrained_from_hf get_pretrained_cfg",
    ".tokenizer": "HFTokenizer SimpleTokenizer",
    ".transform": "PreprocessCfg image_transform_v2",
    ".transformer": "text_global_pool",
}
MODULE_OF = {name: f"open_clip{module}" for module, names in _NAMES.items() for name in names.split()}
"""Names by the module of open_clip that has them."""


def __getattr__(name: str) -> Any:
    """Return a name of open_clip. All are looked up with the first, so that a compiled model meets plain names.

    Raises: ConfigError where open_clip is not installed, or is a version that lacks the name.
    """
    if name not in MODULE_OF:
        raise AttributeError(name)
    require("this", "open_clip", "torch")
    for constant, module in MODULE_OF.items():
        with suppress(ModuleNotFoundError, AttributeError):
            globals()[constant] = getattr(_import_module(module), constant)
    if name in globals():
        return globals()[name]
    raise ConfigError(
        f"open_clip_torch {version('open_clip_torch')} has no {MODULE_OF[name]}.{name}; install a version "
        f"that PlantMix knows: {install_line('open_clip')}"
    )


def _import_module(name: str) -> Any:
    """Return a module of open_clip.

    It brings timm, which would import wandb where that is installed: half a second of every
    process, and two folders in /tmp that a killed one leaves.
    """
    loaded: dict[str, Any] = sys.modules
    loaded.setdefault("wandb", None)  # Python's mark of what cannot be imported
    try:
        return importlib.import_module(name)
    finally:
        if loaded["wandb"] is None:
            del loaded["wandb"]


def config_folder() -> Path:
    """Where open_clip keeps the architectures that every installation of this version knows."""
    return Path(_import_module("open_clip").__file__ or "").parent / "model_configs"
