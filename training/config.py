"""The training config: one YAML file is one whole run, read once into strict frozen models.

Each setting stands here with its default; those of `model` and `loss` stand in `training.model.presets`, those of
`data` in `training.data.settings`. configs/REFERENCE.md lists them all.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from manifests.contract.settings import ConfigPath, NameOrPath, Settings, parse_settings, read_settings
from manifests.errors import ConfigError
from manifests.services.packages import code_of, load_named
from manifests.services.untrusted import read_object
from training.data import loader
from training.data.settings import DataSettings, ReleaseShare
from training.model.presets import LossSettings, ModelSettings, loss_of_preset

SETTINGS_FILE = "config.json"  # the settings of a run, in its folder

# What nobody turned: open_clip's AdamW for a ViT, the progress lines of a log, ranks of recall and draws of intervals.
BETAS, EPS = (0.9, 0.98), 1e-6
LINE_SECONDS = 30.0
RECALL_AT = (1, 5, 10)
BOOTSTRAP_ROUNDS = 1000
FEW_SHOT_DRAWS = 5  # as BioCLIP's protocol has it

ClassText = Literal["asis", "common", "scientific", "taxonomic", "scientific_common", "taxonomic_common"]


class OptimiserSettings(Settings):
    """AdamW, with open_clip's betas and eps for a ViT."""

    lr: float = Field(default=5e-4, gt=0.0)
    """Peak learning rate."""
    second_order_lr_ratio: float = Field(default=1.0, gt=0.0)
    """Learning rate of the second-order branches over `lr`."""
    weight_decay: float = Field(default=0.2, ge=0.0)
    """Weight decay, of matrices only."""
    clip_norm: float | None = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient; null: no clipping."""


class ScheduleSettings(Settings):
    """Length of the run, in epochs or steps; linear warm-up, then a cosine to 0."""

    epochs: float | None = Field(default=None, gt=0.0)
    """Length of the run; give this or `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run; give this or `epochs`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from 0 to its peak."""

    @model_validator(mode="after")
    def _has_one_length(self) -> ScheduleSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the length either as epochs or as steps")
        return self


class ComputeSettings(Settings):
    """Where and how precisely to compute."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of autocast; distances, similarities and the loss stay in float32."""
    accumulate: int = Field(default=1, ge=1)
    """Number of micro-batches that one step is computed in."""
    grad_checkpointing: bool = False
    """Recompute the blocks of the towers in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile: slower to start, faster steps on a GPU."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of each rank on the CPU; null: torch's choice."""


class LockSettings(Settings):
    """Freezing of towers (LiT), whole or all but their last blocks; the second-order branches stay free."""

    lock_image: bool = False
    """Freeze the image tower."""
    lock_text: bool = False
    """Freeze the text tower."""
    image_blocks: int | None = Field(default=None, ge=1)
    """Train only so many last blocks of the image tower, and what comes behind them: less memory, faster steps."""
    text_blocks: int | None = Field(default=None, ge=1)
    """The same of the text tower."""

    @model_validator(mode="after")
    def _one_of_two(self) -> LockSettings:
        for side in ("image", "text"):
            if getattr(self, f"lock_{side}") and getattr(self, f"{side}_blocks") is not None:
                raise ValueError(f"lock_{side} freezes the whole tower: leave out either it or {side}_blocks")
        return self


class AdapterSettings(Settings):
    """Low-rank adapters (LoRA) in the blocks of each tower that `lock` does not name, instead of its weights.

    The second-order branches and `projectors` train whole. A run's `model.pt`, and all that reads a run, has them
    merged.
    """

    rank: int = Field(default=8, ge=1)
    """More learns what is further from the start, and takes more memory."""
    layers: tuple[Literal["attn", "mlp"], ...] = Field(default=("attn", "mlp"), min_length=1)
    """The matrices that have one; attn alone, as in the LoRA paper, has three eighths of the parameters of both."""


class CheckpointSettings(Settings):
    """Settings of checkpoints: how often one is written, and how many are kept."""

    every_steps: int = Field(default=500, ge=1)
    """How often a checkpoint is written."""
    keep: int = Field(default=2, ge=1)
    """How many are kept."""


class WandbSettings(Settings):
    """Weights & Biases. After an interruption a run of the same folder continues there."""

    project: str = Field(min_length=1)
    """Name of the project there."""


class LogSettings(Settings):
    """Settings of the log: how often, and to what."""

    tensorboard: bool = False
    """Write the figures into RUN/tensorboard."""
    wandb: WandbSettings | None = None
    every_steps: int = Field(default=10, ge=1)
    """How often a line is written to `log.jsonl`."""


def has_one_slot(template: str) -> bool:
    """Return true for a template with one {} for the class name, and no other field."""
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError:  # a single brace
        return False
    return fields == [("", "", None)]


def _each_has_one_slot(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not isinstance(value, str) and not (value and all(map(has_one_slot, value))):
        raise ValueError("each template needs one {} for the class name, and no other field in braces")
    return value


class ZeroShotSettings(Settings):
    """One zero-shot classification: the classes are the values of a field of the samples."""

    field: str = Field(min_length=1)
    """Column of samples.parquet, or extra.KEY."""
    templates: Literal["openai", "simple"] | tuple[str, ...] = ("a photo of a {}.",)
    """Prompts with one {} for the class, or a list that open_clip has."""
    text: ClassText = "asis"
    """The class in the prompt: as given, or a text type of BioCLIP made from the taxon."""
    domain: str | None = None
    """Only samples of this domain."""
    min_per_class: int = Field(default=1, ge=1)
    """Classes with fewer held-out samples are left out."""
    within: NameOrPath | None = None
    """Only classes within a taxon at any rank, or a checklist: a file with a name a line, or csv, tsv, xlsx."""

    _slots = field_validator("templates")(_each_has_one_slot)


class EvalSetSettings(Settings):
    """One evaluation set from outside; `training.evaluation.set_layouts` reads it."""

    name: str = Field(min_length=1)
    """Name of the set in the results."""
    path: ConfigPath
    """Folder of the set."""
    split: str = "test"
    """Folder of the tars or of the class folders within `path`, where there is one."""
    group: str | None = None
    """Sets of a group get a mean, as general and plant in the published table."""
    templates: Literal["openai", "simple", "own"] | tuple[str, ...] = "own"
    """Prompts with one {} for the class, or a list that open_clip has; own: the set's, else "a photo of a {}"."""
    text: ClassText = "asis"
    """The class in the prompt: as given, or a text type made from the taxon."""

    _slots = field_validator("templates")(_each_has_one_slot)


class FewShotSettings(Settings):
    """k-shot nearest centroid, by BioCLIP's protocol, for every classification."""

    shots: tuple[PositiveInt, ...] = (1, 5)
    """Pictures of each class."""


class PublishedSettings(Settings):
    """Figures of a paper, which `dalip table` puts beside those of the models."""

    source: str = Field(min_length=1)
    """Where they are from."""
    pictures: dict[str, PositiveInt] = Field(min_length=1)
    """How many pictures each set had, by name."""
    top1: dict[str, dict[str, Annotated[float, Field(ge=0, le=100)]]] = Field(min_length=1)
    """Zero-shot accuracy in percent, by model, by set."""

    @model_validator(mode="after")
    def _every_set_has_a_size(self) -> PublishedSettings:
        named = {name for figures in self.top1.values() for name in figures}
        if unknown := sorted(named - self.pictures.keys()):
            raise ValueError(f"top1 has '{unknown[0]}', and pictures does not say how many it has")
        return self


class EvalSettings(Settings):
    """The measurements of `dalip eval`: on a held-out split of the release, and on sets from outside."""

    split: str | None = "heldout"
    """Split of the release that is measured; null: only the sets are."""
    batch_size: int = Field(default=64, ge=2)
    """Pictures encoded at a time, and samples of one contrastive batch of the loss."""
    zero_shot: tuple[ZeroShotSettings, ...] = ()
    sets: tuple[EvalSetSettings, ...] = ()
    few_shot: FewShotSettings | None = None
    retrieval: bool = True
    """Measure recall of images by texts, and of texts by images."""
    every_steps: int | None = Field(default=None, ge=1)
    """How often the validation loss is measured during training; null: never."""
    published: PublishedSettings | None = None


class TrainSettings(Settings):
    """A whole training run."""

    release: ConfigPath | tuple[ReleaseShare, ...] | None = None
    """A release, a work folder (its newest release), or a list of `{release, weight}`; null: `data.shards` alone."""
    output_dir: ConfigPath = Field(min_length=1)
    """Folder of the run, also of an object store (s3://, gs://): then it works in `data.cache_dir` and uploads."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and dropout."""
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    data: DataSettings = DataSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings
    compute: ComputeSettings = ComputeSettings()
    lock: LockSettings = LockSettings()
    adapters: AdapterSettings | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    eval: EvalSettings = EvalSettings()

    @field_validator("release")
    @classmethod
    def _names_a_release(cls, release: str | tuple[ReleaseShare, ...] | None) -> str | tuple[ReleaseShare, ...] | None:
        if release == ():
            raise ValueError("the list is empty; name a release, a work folder, or a list of {release, weight}")
        return release

    @field_validator("loss")
    @classmethod
    def _loss_of_the_preset(cls, loss: LossSettings, info: ValidationInfo) -> LossSettings:
        model = info.data.get("model")  # absent when it is wrong itself
        return loss if model is None else loss_of_preset(loss, model.preset)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        data = self.data
        if self.release is None and not data.shards:
            raise ValueError("nothing to train on: name a release, or shards of others under data.shards")
        if data.batch_size % self.compute.accumulate:
            raise ValueError(
                f"data.batch_size {data.batch_size} is not divisible by compute.accumulate {self.compute.accumulate}"
            )
        if self.eval.every_steps and self.eval.split is None:
            raise ValueError("eval.every_steps needs eval.split: the validation loss is of a split of the release")
        lock = self.lock
        if self.adapters and (lock.lock_image or lock.image_blocks) and (lock.lock_text or lock.text_blocks):
            raise ValueError("adapters go into the towers that lock does not name, and it names both: leave out one")
        return self


# These settings change no weight, so a resume may change them. They say where, how fast, and what is measured.
_EXECUTION = ("release", "output_dir", "checkpoint", "log", "eval")
_EXECUTION_DATA = ("num_workers", "max_corrupt_samples", "check_shards", "cache_dir", "cache_gb", "shards")
_EXECUTION_COMPUTE = ("device", "num_threads", "compile")


def read_train_settings(path: str, *, release: str | None = None, output_dir: str | None = None) -> TrainSettings:
    """Read a YAML config, or the settings in a run's folder; `release` and `output_dir` replace its own.

    Raises: ConfigError.
    """
    stored = Path(path) / SETTINGS_FILE
    if stored.is_file():
        values = read_object(stored, "give the YAML config instead of the folder", ConfigError)
        settings = parse_settings(values, TrainSettings, where=str(stored), is_kept=True)
    elif Path(path).is_dir():
        raise ConfigError(f"{path}: neither a config file nor the folder of a run (no {SETTINGS_FILE} in it)")
    else:
        settings = read_settings(path, TrainSettings)
    changes = {"release": release, "output_dir": output_dir}
    return settings.model_copy(update={name: value for name, value in changes.items() if value is not None})


def identity_values(settings: TrainSettings, fingerprints: Sequence[str]) -> dict[str, Any]:
    """All that shapes the weights of a run, as plain values: the settings, the architecture, the releases' content.

    A resume compares them, and names each that differs.

    Raises: ConfigError for an unknown architecture.
    """
    from training.model.architecture import architecture_config
    from training.model.weights import content_of

    values = settings.model_dump(mode="json")
    for key in _EXECUTION:
        del values[key]
    for key in _EXECUTION_DATA:
        del values["data"][key]
    for key in _EXECUTION_COMPUTE:
        del values["compute"][key]
    # Where these keys shape nothing, runs that were begun without them can go on.
    if settings.data.batches == "mixed":
        del values["data"]["batches"]
    if not settings.model.projectors:
        del values["model"]["projectors"]
    if settings.loss.same_label == "negative":
        del values["loss"]["same_label"], values["loss"]["label_field"]
    if settings.loss.teacher is None:
        del values["loss"]["teacher"]
    else:  # a path; a checkpoint knows the vectors by their content
        del values["loss"]["teacher"]["vectors"]
    if ":" in settings.loss.form:  # a class of the user's
        values["loss"]["code"] = code_of(load_named("loss.form", settings.loss.form))
    values["model"]["architecture"] = architecture_config(settings.model.architecture)
    if settings.model.pretrained and (content := content_of(settings.model.pretrained)):
        values["model"]["pretrained_sha256"] = content
    weights = loader.share_weights(settings.release, settings.data)
    values["releases"] = {"fingerprints": list(fingerprints), "weights": weights}
    return values
