"""Finds the model to evaluate or export, and says which weights it has.

That is the model of a run, of a folder or hub repository in open_clip's layout (`dalip import`, `dalip export`,
open_clip), of a file of weights, or the pretrained weights of a config that has no run yet. A run's folder holds what
it was trained with, and that counts: a config given for it only says what to measure and where, and an architecture
file that changed since is not read.
Writes nothing. Gives up with ConfigError where there is no model, or one that does not fit.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from manifests.contract.records import fingerprints_of_run
from manifests.contract.release import Release
from manifests.contract.settings import differences, parse_settings, read_settings
from manifests.contract.takedowns import say_taken_down
from manifests.errors import ConfigError, IntegrityError, PlantMixError, RunError
from manifests.services.model_hub import HUB, fetch_model
from manifests.stores import storage
from manifests.stores.storage import is_remote
from training.config import SETTINGS_FILE, EvalSettings, TrainSettings, read_train_settings
from training.data import loader
from training.model import weights
from training.model.adapters import merged
from training.model.architecture import architecture_config, register_architecture
from training.model.build import build_model, load_hugging_face
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings
from training.record import checkpoint, run_files
from training.record.remote import fetch_run

Weights = Literal["raw", "folder", "pretrained"]
_WEIGHTS_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
_TORCH_BEGINS = b"PK\3\4"  # `dalip export` gives a file of torch any name that it is told


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, the settings that go with it, and notes for a reader of its figures.

    `weights` says where they come from: `raw` of a run, `folder` of a model's own folder, file or repository,
    `pretrained` where no run has begun.
    """

    model: DalipModel
    settings: TrainSettings
    folder: Path
    weights: Weights
    source: str
    notes: tuple[str, ...] = ()
    has_release: bool = True
    address: str | None = None  # of the run in an object store; `folder` is its copy
    named: str | None = None  # file or hf-hub: name of a model that has no folder of its own for what is written of it

    def without_missing_sets(self) -> TrainedModel:
        """Return the model without those of several `eval.sets` that are not there, and with a note on each."""
        sets = self.settings.eval.sets
        gone = [item for item in sets if not Path(item.path).exists()]
        if not gone or len(gone) == len(sets):
            return self
        kept = self.settings.eval.model_copy(update={"sets": tuple(item for item in sets if item not in gone)})
        notes = (f"eval.sets '{item.name}': {item.path} is not there, so it is left out" for item in gone)
        settings = self.settings.model_copy(update={"eval": kept})
        return replace(self, settings=settings, notes=(*self.notes, *notes))

    def measured_by(self, path: str | None) -> TrainedModel:
        """Return the model with the `eval` section that a YAML file holds; with its own where none is named.

        Raises: ConfigError.
        """
        if path is None:
            return self
        settings = self.settings.model_copy(update={"eval": read_settings(path, EvalSettings)})
        return replace(self, settings=settings)


def is_weights_file(path: str) -> bool:
    """Return whether a model is named by a file of weights, by its ending or by how it begins."""
    if is_remote(path) or Path(path).suffix in _WEIGHTS_ENDINGS:
        return not is_remote(path)
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as stream:
        return stream.read(len(_TORCH_BEGINS)) == _TORCH_BEGINS


def open_trained_model(path: str, *, output_dir: str | None = None, architecture: str | None = None) -> TrainedModel:
    """Return the model of a run's folder, a model's own folder or file, the hub, or the run that a config names.

    A run in an object store is copied to this machine first. `architecture` is that of a file which does not say it.

    Raises: ConfigError.
    """
    if is_weights_file(path):
        return _from_file(Path(path), architecture)
    if architecture is not None:
        raise ConfigError(f"--architecture is for a file of weights; {path} says its own")
    if path.startswith(HUB):
        return replace(_from_model_folder(fetch_model(path, *weights.SECOND_FILES)), source=path, named=path)
    if is_remote(path):
        return replace(open_trained_model(str(fetch_run(path))), address=path.rstrip("/"))
    local = Path(path)
    if (local / weights.CONFIG_FILE).is_file() and not run_files.is_run(path):
        return _from_model_folder(local)
    if local.is_dir() and not (local / SETTINGS_FILE).is_file():
        raise ConfigError(
            f"{path}: neither a config file nor the folder of a run (no {SETTINGS_FILE} in it) or of a model "
            f"(no {weights.CONFIG_FILE})"
        )
    config = read_train_settings(path, output_dir=None if local.is_dir() else output_dir)
    if local.is_dir():
        return load_run_model(config, local)
    folder = fetch_run(config.output_dir, config.data.cache_dir, must_exist=config.model.pretrained is None)
    if config.model.pretrained is not None and not checkpoint.has_weights(folder):
        return _from_pretrained(config, folder)
    settings, notes = _settings_of_run(folder, config, path)
    loaded = load_run_model(settings, folder)
    address = config.output_dir.rstrip("/") if is_remote(config.output_dir) else None
    return replace(loaded, notes=(*notes, *loaded.notes), address=address)


def releases_of_run(trained: TrainedModel) -> tuple[dict[str, Release], list[str]]:
    """Return the releases that a run was trained on, by fingerprint, as far as they lie where it read them.

    All fingerprints,
    also of those before another config went on.

    A newer version may have come to that place since: those beside it are looked at too.
    """
    record = trained.folder / run_files.RUN_FILE
    fingerprints = fingerprints_of_run(weights.read_json(record) if record.is_file() else {})
    there: dict[str, Release] = {}
    with suppress(PlantMixError):
        for newest in loader.open_releases(trained.settings.release or ()) if fingerprints else ():
            there[newest.fingerprint] = newest
            folder = newest.path.rstrip("/").rpartition("/")[0] or "."
            for fingerprint in fingerprints:
                for path in storage.find_matches(storage.join(folder, f"*-{fingerprint[:12]}")):
                    other = Release.open(path)
                    there[other.fingerprint] = other
    return there, fingerprints


def notes_on_takedowns(trained: TrainedModel) -> list[str]:
    """Note what was taken down since of the releases that a run was trained on: it goes out with the model.

    Of a release that was deleted, what its later versions say.
    """
    there, fingerprints = releases_of_run(trained)
    notes = [
        note for release in there.values() if release.fingerprint in fingerprints and (note := say_taken_down(release))
    ]
    for fingerprint in fingerprints:
        taken = [entry for release in there.values() for entry in release.record.get("takedowns", ())]
        froms = [entry["fingerprint"] for entry in taken]
        if fingerprint not in there and fingerprint in froms:
            num = sum(entry["num_images"] for entry in taken[froms.index(fingerprint) :])
            notes.append(f"trained on {fingerprint[:12]}, of which {num:,} images were taken down since")
    return notes


def load_run_model(settings: TrainSettings, folder: Path) -> TrainedModel:
    """Return the model of a run with its newest weights.

    Raises: ConfigError when they do not fit.
    """
    notes: tuple[str, ...] = ()
    chosen = settings.model.model_copy(update={"pretrained": None})
    kept, there = checkpoint.read_architecture(folder), None
    with suppress(ConfigError, OSError, ValueError):
        there = architecture_config(chosen.architecture)
    if kept not in (None, there):
        notes = (f"{chosen.architecture} is not what the run was trained with; the copy in its folder is used",)
        chosen = chosen.model_copy(update={"architecture": register_architecture(kept)})
    model = build_model(chosen)
    file, state, preprocess = _read_weights(folder)
    weights.load_state(model, state, where=str(file))
    weights.set_preprocessing(model, preprocess)  # that of the pretrained weights, which are not read again
    return TrainedModel(model.eval(), settings, folder, "raw", str(file), notes)


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the final weights of a run, their file and the preparation of pictures.

    Raises: IntegrityError when bytes are not those that were written; torch does not check them.
    """
    while True:
        file = checkpoint.newest_weights(folder)
        try:
            if file.parent.name != run_files.CHECKPOINT_FOLDER:
                checkpoint.check_model(folder)
                return file, weights.read_state(file), weights.preprocessing_of(file)
            if not checkpoint.is_whole(file):
                raise IntegrityError(f"{file}: damaged, its bytes are not those that were written; take another copy")
            content = checkpoint.load_checkpoint(file)
        except (FileNotFoundError, RunError):
            if file.exists():
                raise
            continue  # a training that is at work has removed it for a newer one
        return file, merged(content["state_dict"]), content["preprocess"]


def _settings_of_run(folder: Path, config: TrainSettings, path: str) -> tuple[TrainSettings, tuple[str, ...]]:
    """Return the settings that the run was trained with; what to measure, on what and where comes from the config."""
    if not (folder / SETTINGS_FILE).is_file():
        return config, ()
    try:
        of_run = read_train_settings(str(folder))
    except ConfigError as error:
        return config, (f"what the run was trained with cannot be read, {path} is used instead: {error}",)
    device = {"device": config.compute.device, "num_threads": config.compute.num_threads}
    workers = {"num_workers": config.data.num_workers}
    settings = of_run.model_copy(
        update={
            "release": config.release,
            "output_dir": config.output_dir,
            "eval": config.eval,
            "compute": of_run.compute.model_copy(update=device),
            "data": of_run.data.model_copy(update=workers),
        }
    )
    changed = differences(_settings_behind_figures(config), _settings_behind_figures(of_run))
    if not changed:
        return settings, ()
    return settings, (f"the run was trained with other settings than {path}, its own are used: {'; '.join(changed)}",)


def _settings_behind_figures(settings: TrainSettings) -> dict[str, Any]:
    values = settings.model_dump(mode="json", include={"model", "loss"})
    del values["model"]["pretrained"]
    return values | {"compute": {"precision": settings.compute.precision}}


def _from_pretrained(config: TrainSettings, folder: Path) -> TrainedModel:
    """Return the pretrained weights of a config without a run yet."""
    model = build_model(checkpoint.begin_with(config.model))
    source = str(config.model.pretrained)
    notes = [f"{folder} has no trained weights yet: these are the pretrained ones of the config ({source})"]
    if new := model.new_parameters:
        notes.append(f"{len(new)} tensors are in no pretrained weights and untrained: {', '.join(new[:3])}, ...")
    return TrainedModel(model.eval(), config, folder, "pretrained", source, tuple(notes))


def _from_file(file: Path, architecture: str | None) -> TrainedModel:
    """Return a file of weights: of a run, of a model's folder, or of anybody."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such file of weights")
    run = next((folder for folder in (file.parent, file.parent.parent) if run_files.is_run(str(folder))), None)
    if run == file.parent and file.name == run_files.MODEL_FILE:
        return open_trained_model(str(run), architecture=architecture)
    stated, settings, loss = weights.said_of(file), dict[str, Any](), dict[str, Any]()
    if run is not None:
        of_run = read_train_settings(str(run))
        settings, loss = of_run.model.model_dump(mode="json"), of_run.loss.model_dump(mode="json")
        stated["architecture"] = checkpoint.read_architecture(run) or of_run.model.architecture
    chosen = architecture or stated["architecture"]
    if chosen is None:
        raise ConfigError(
            f"{file}: the file does not say of which architecture its weights are; give --architecture NAME, as "
            "open_clip names it, or a .json file in open_clip's format"
        )
    values = settings or stated.get("model_settings") or {"preset": "clip"}
    values |= {"architecture": register_architecture(chosen) if isinstance(chosen, dict) else chosen}
    values |= {"pretrained": str(file)}
    model = build_model(parse_settings(values, ModelSettings, where=str(file), is_kept=True))
    notes = []
    for names, what in ((model.unused_tensors, "the model has no place for"), (model.new_parameters, "the file lacks")):
        if names:
            notes.append(f"{len(names)} tensors that {what}: {', '.join(names[:3])}")
    if "preprocess" not in stated:
        notes.append("the file does not say how pictures are prepared: as open_clip does by itself")
    if model.second_order is not None and not loss:
        notes.append("the file does not say how f and z are weighed: as loss.first_order_weight is by itself")
    trained = _of_a_model(model, file.parent, str(file), loss, tuple(notes))
    return replace(trained, named=str(file.resolve()))


def _from_model_folder(folder: Path) -> TrainedModel:
    """Return a model in the Hugging Face layout, with the loss it was trained by where the folder says it."""
    loss: dict[str, Any] = {}
    if (folder / weights.SECOND_CONFIG_FILE).is_file():
        model = load_hugging_face(folder)
        stored = weights.read_json(folder / weights.SECOND_CONFIG_FILE)
        loss = stored.get("loss", {})
    else:
        model = build_model(ModelSettings(preset="clip", architecture=str(folder), pretrained=str(folder)))
    return _of_a_model(model, folder, str(folder), loss)


def _of_a_model(
    model: DalipModel, folder: Path, source: str, loss: dict[str, Any], notes: tuple[str, ...] = ()
) -> TrainedModel:
    values = {
        "release": "",
        "output_dir": str(folder),
        "model": model.settings.model_dump(mode="json"),
        "loss": loss,
        "schedule": {"steps": 1},
    }
    settings = parse_settings(values, TrainSettings, where=source, is_kept=True)
    return TrainedModel(model.eval(), settings, folder, "folder", source, notes, has_release=False)
