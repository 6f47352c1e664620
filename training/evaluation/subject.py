"""The model that is judged or handed over: a run's, one in a folder of its own, or the weights a run would begin from.

Reads the folder of a run (its newest weights, averaged ones where it keeps an average), a folder in the Hugging Face
layout (`dalip import`, `dalip export`, open_clip), or a config. What a run was trained with is in its folder and
counts: a config given for it only says what to measure and where, and an architecture file that changed since is not
read. Writes nothing. Gives up with ConfigError where there is no model, or one that does not fit.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from manifests.errors import ConfigError, IntegrityError
from manifests.settings import differences, parse_settings
from training.config import SETTINGS_FILE, TrainSettings, read_train_settings
from training.model import weights
from training.model.architecture import architecture_config, register_architecture
from training.model.build import build_model, load_hugging_face
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings
from training.record import checkpoint

Weights = Literal["ema", "raw", "folder", "pretrained"]


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, the settings it goes with, and what a reader of its figures has to know.

    `weights`: `ema` or `raw` of a run, `folder` of a model's own folder, `pretrained` for a run's start.
    """

    model: DalipModel
    settings: TrainSettings
    folder: Path
    weights: Weights
    source: str
    notes: tuple[str, ...] = ()
    has_release: bool = True


def open_subject(path: str, *, output_dir: str | None = None) -> Subject:
    """The model of a run's folder, of a model's folder, or of the run that a config names.

    Raises: ConfigError.
    """
    given = Path(path)
    if (given / weights.CONFIG_FILE).is_file():
        return _of_folder(given)
    if given.is_dir() and not (given / SETTINGS_FILE).is_file():
        raise ConfigError(
            f"{path}: neither a config file nor the folder of a run (no {SETTINGS_FILE} in it) or of a model "
            f"(no {weights.CONFIG_FILE})"
        )
    asked = read_train_settings(path, output_dir=None if given.is_dir() else output_dir)
    folder = given if given.is_dir() else Path(asked.output_dir)
    if not given.is_dir() and asked.model.pretrained is not None and not _has_weights(folder):
        return _of_start(asked, folder)
    settings, notes = _settings_of_run(folder, asked, path)
    file = checkpoint.newest_weights(folder)
    model, kind, more = _load(settings, file)
    return Subject(model, settings, folder, kind, str(file), (*notes, *more))


def load_run_model(settings: TrainSettings, file: Path) -> DalipModel:
    """The model of a run with the weights of one of its files, the averaged ones if it keeps an average.

    Raises: ConfigError when they do not fit.
    """
    return _load(settings, file)[0]


def _load(settings: TrainSettings, file: Path) -> tuple[DalipModel, Weights, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    chosen = settings.model.model_copy(update={"pretrained": None})
    kept = checkpoint.read_architecture(_folder_of(file))
    if kept is not None and kept != _config_or_none(chosen.architecture):
        notes = (f"{chosen.architecture} is not what the run was trained with; the copy in its folder is used",)
        chosen = chosen.model_copy(update={"architecture": register_architecture(kept)})
    model = build_model(chosen)
    state, kind = _state_of(file, settings)
    weights.load_state(model, state, where=str(file))
    weights.take_preprocessing(model, file)  # that of the weights the run began from, which are not read again
    model.new_parameters = ()
    return model.eval(), kind, notes


def _state_of(file: Path, settings: TrainSettings) -> tuple[dict[str, Tensor], Weights]:
    """Of a finished run the weights it ended with; of a resume point its average, which the run would end with.

    Raises: IntegrityError when bytes are not those that were written, which torch does not look at.
    """
    if zipfile.is_zipfile(file) and not checkpoint.is_whole(file):
        raise IntegrityError(f"{file}: damaged, its bytes are not those that were written; take another copy")
    if file.parent.name != checkpoint.CHECKPOINT_FOLDER:
        return weights.read_state(file), "ema" if settings.ema_decay is not None else "raw"
    content = checkpoint.load_checkpoint(file)
    average = content.get("average")
    return (content["state_dict"], "raw") if average is None else (average, "ema")


def _folder_of(file: Path) -> Path:
    return file.parent.parent if file.parent.name == checkpoint.CHECKPOINT_FOLDER else file.parent


def _config_or_none(architecture: str) -> dict[str, Any] | None:
    try:
        return architecture_config(architecture)
    except (ConfigError, OSError, ValueError):
        return None


def _settings_of_run(folder: Path, asked: TrainSettings, path: str) -> tuple[TrainSettings, tuple[str, ...]]:
    """What the run was trained with, and from the config what to measure, on what and where."""
    if not (folder / SETTINGS_FILE).is_file() or Path(path) == folder:
        return asked, ()
    try:
        own = read_train_settings(str(folder))
    except ConfigError as error:
        return asked, (f"what the run was trained with cannot be known, {path} is taken for it: {error}",)
    place = {"device": asked.compute.device, "num_threads": asked.compute.num_threads}
    workers = {"num_workers": asked.data.num_workers, "prefetch_batches": asked.data.prefetch_batches}
    settings = own.model_copy(
        update={
            "release": asked.release,
            "output_dir": asked.output_dir,
            "eval": asked.eval,
            "compute": own.compute.model_copy(update=place),
            "data": own.data.model_copy(update=workers),
        }
    )
    found = differences(_that_counts(asked), _that_counts(own))
    if not found:
        return settings, ()
    return settings, (f"the run was trained with other settings than {path}, its own are used: {'; '.join(found)}",)


def _that_counts(settings: TrainSettings) -> dict[str, Any]:
    """The settings that figures depend on."""
    values = settings.model_dump(mode="json", include={"model", "loss", "ema_decay"})
    del values["model"]["pretrained"]
    return values | {"compute": {"precision": settings.compute.precision}}


def _has_weights(folder: Path) -> bool:
    return (folder / checkpoint.MODEL_FILE).exists() or bool(checkpoint.list_checkpoints(folder))


def _of_start(asked: TrainSettings, folder: Path) -> Subject:
    """The pretrained weights of a config without a run yet."""
    model = build_model(asked.model)
    source = str(asked.model.pretrained)
    notes = [f"{folder} has no trained weights yet: these are the pretrained ones of the config ({source})"]
    if new := model.new_parameters:
        notes.append(f"{len(new)} tensors are in no pretrained weights and untrained: {', '.join(new[:3])}, ...")
    return Subject(model.eval(), asked, folder, "pretrained", source, tuple(notes))


def _of_folder(folder: Path) -> Subject:
    """A model in the Hugging Face layout, with the loss it was trained by where the folder says it."""
    loss: dict[str, Any] = {}
    if (folder / weights.SECOND_CONFIG_FILE).is_file():
        model = load_hugging_face(folder)
        said = json.loads((folder / weights.SECOND_CONFIG_FILE).read_text(encoding="utf-8"))
        loss = said.get("loss", {})
    else:
        model = build_model(ModelSettings(preset="clip", architecture=str(folder), pretrained=str(folder)))
    settings = parse_settings(
        {
            "release": "",
            "output_dir": str(folder),
            "model": model.settings.model_dump(mode="json"),
            "loss": loss,
            "schedule": {"steps": 1},
        },
        TrainSettings,
        where=str(folder),
    )
    return Subject(model.eval(), settings, folder, "folder", str(folder), has_release=False)
