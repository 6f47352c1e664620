"""Settings or a folder in, a `DalipModel` out: new, or with weights from elsewhere.

Reads architectures and weights; writes nothing. Gives up with ConfigError on an unknown architecture or tag, on weights
that do not fit, and on towers without tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from manifests.services.model_hub import HUB, fetch_model
from training.model import weights
from training.model.architecture import create_clip
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings


def build_model(settings: ModelSettings, *, may_be_text_alone: bool = False) -> DalipModel:
    """Build the model on the CPU in float32, with pretrained weights when the settings name some.

    `may_be_text_alone` as for `weights.load_weights`.

    Raises: ConfigError.
    """
    source = settings.pretrained
    if source is not None and source.startswith(HUB):
        source = str(fetch_model(source, *weights.SECOND_FILES))
    has_file = source is not None and Path(source).exists()
    tag = None if has_file else source
    clip = create_clip(settings.architecture, pretrained=tag, image_size_px=settings.image_size_px)
    model = DalipModel(clip, settings)
    loaded: set[str] = set()
    if source is not None and has_file:
        loaded, model.unused_tensors = weights.load_weights(model, source, may_be_text_alone=may_be_text_alone)
    elif source is not None:
        loaded = {f"clip.{name}" for name, _ in clip.named_parameters()}
    model.new_parameters = tuple(name for name, _ in model.named_parameters() if name not in loaded)
    return model


def load_released(path: str | Path, architecture: str = "ViT-B-16") -> DalipModel:
    """Return a released-layout checkpoint as a model of preset `released`, built on the named architecture.

    Raises: ConfigError for a checkpoint that does not fit it, each key named.
    """
    state = weights.rename_released(weights.read_state(path), where=str(path))
    model = build_model(ModelSettings(preset="released", architecture=architecture))
    weights.load_state(model, state, where=str(path))
    return model


def load_hugging_face(folder: str | Path) -> DalipModel:
    """Return a model from a folder that `training.model.exports.export_hugging_face` wrote.

    Raises: ConfigError for a folder without the files or with files that do not fit one another.
    """
    source = Path(folder)
    config_path = source / weights.SECOND_CONFIG_FILE
    if not config_path.is_file():
        raise ConfigError(f"{source}: has no {weights.SECOND_CONFIG_FILE}; plain open_clip folders load with open_clip")
    try:
        values = dict(json.loads(config_path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{config_path}: cannot be read: {error}; export or import the model again") from None
    # The folder holds the architecture; the name or file that it was trained by may not exist here.
    values |= {"architecture": str(source)}
    settings = parse_settings(values, ModelSettings, where=str(config_path), is_kept=True)
    model = build_model(settings)
    state = {f"clip.{name}": tensor for name, tensor in weights.read_state(source / weights.WEIGHTS_FILE).items()}
    if settings.preset != "clip" or settings.projectors or (source / weights.SECOND_WEIGHTS_FILE).is_file():
        state |= weights.read_state(source / weights.SECOND_WEIGHTS_FILE)
    weights.load_state(model, state, where=str(source))
    return model
