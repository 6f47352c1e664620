"""The protocol of a task, and the lookup of a config's task.

The loop, the state of a run and the evaluation know a task by this class alone. `training.model.presets.TASKS` names
those that are here, a module each family. Another one is a class in any module that Python can import:
`loss: {form: my_tasks:Rated}`. Gives up with ConfigError on a class that is no whole task.

Shape letters: `B` pairs on this rank, `N` pairs on all ranks or held out, `C` embedding width.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.errors import ConfigError
from manifests.services.packages import load_named
from training.config import TrainSettings
from training.data.columns import BatchColumns, Column, Kinds, Labels
from training.data.sampling import SampleOrder
from training.data.shards import SamplePool
from training.model.dalip import DalipModel
from training.model.presets import TASKS, LossSettings

LABELS, KIND = "labels", "kind"  # columns of `loss.same_label` and of `model.projectors`

Values = Mapping[str, Tensor]


class Task(ABC):
    """The task that a model is trained by.

    `features` are what `DalipModel.forward` returns: `image_features`, `text_features` and `logit_scale`; unless the
    preset is `clip` also `image_second_order` and `text_second_order`; `logit_bias` where the architecture has one; and
    the task's `terms`. `columns` are what `columns()` and `logged_columns()` name, a row a pair.
    """

    takes_labels: ClassVar[bool] = False  # whether it does what `loss.same_label` says, by columns["labels"]
    takes_text_tower: ClassVar[bool] = False  # of `model.pretrained` alone, where its picture tower is another
    cache_dir: str | None = None  # `data.cache_dir`, for columns that keep copies

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings

    # -- before the first step

    def columns(self) -> Mapping[str, Column]:
        """Return the columns that the loss needs of each pair, trained on or held out, beside its features."""
        return self._labels if self.settings.same_label != "negative" else {}

    def logged_columns(self) -> Mapping[str, Column]:
        """Columns for the log of a training alone."""
        return self._labels if self.settings.same_label == "negative" else {}

    @property
    def _labels(self) -> Mapping[str, Column]:
        return {LABELS: Labels(self.settings.label_field, "loss.label_field")} if self.takes_labels else {}

    def terms(self, model: DalipModel) -> Values:
        """Parameters of the loss, as they begin; the model keeps and trains them, and `features` holds them."""
        return {}

    def prepare(self, model: DalipModel) -> None:
        """Freeze the parameters that this loss gives no gradient; called before the optimiser is made.

        Here that is the bias: a constant changes no softmax.
        """
        if getattr(model.clip, "logit_bias", None) is not None:
            model.clip.logit_bias.requires_grad_(False)

    def check(self, columns: BatchColumns, drawn: Sequence[NDArray[np.int64]]) -> None:
        """Look at the columns before the first step; each of `drawn` are rows of the pool that one batch may hold.

        Raises: ConfigError for what leaves nothing to learn; here where `masked` leaves no negatives.
        """
        field = self.settings.label_field
        if self.settings.same_label != "masked" or Labels(field).reads_text:
            return
        for rows in map(torch.from_numpy, drawn):
            labels = columns.of(rows, -torch.ones_like(rows), torch.zeros_like(rows))[LABELS]  # of any text
            if bool((labels == labels[0]).all()):
                raise ConfigError(
                    f"loss.same_label: masked: all pairs of a batch share one label of '{field}', so no negatives are "
                    "left and the loss is 0; name another loss.label_field"
                )

    # -- each step

    @abstractmethod
    def __call__(self, features: Values, columns: Values) -> dict[str, Tensor]:
        """Return the loss of a batch as `loss` and, detached, the terms to log, the same ones on every rank.

        The values are this rank's; their mean over ranks is the whole batch's.
        """

    def bound(self, model: DalipModel) -> None:
        """Keep the parameters within their bounds; called after each step of the optimiser."""
        if self.settings.logit_scale_max is not None:
            model.clamp_logit_scale(self.settings.logit_scale_max)

    def note_on(self, losses: Mapping[str, float]) -> str | None:
        """Return a line about a step whose loss says nothing, said once; `losses` are the whole batch's."""
        return None

    # -- held-out pairs

    @abstractmethod
    def of_pairs(self, features: Values, columns: Values, batch_size: int) -> Tensor:
        """Return the loss of each held-out pair, float64, in batches of consecutive pairs.

        A rest smaller than a batch is left out, unless there is nothing else.
        """

    @abstractmethod
    def chance(self, batch_size: int) -> float:
        """Return the loss of a model that tells nothing apart."""


def make_task(settings: LossSettings, cache_dir: str | None = None) -> Task:
    """Return the task of a config; `cache_dir` is `data.cache_dir`.

    Raises: ConfigError for a module or class that is not there, or is no whole `Task`.
    """
    kind = load_named("loss.form", TASKS.get(settings.form, settings.form))
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ConfigError(f"loss.form: {settings.form} is no class of training.tasks.task.Task")
    if kind.__abstractmethods__:
        raise ConfigError(f"loss.form: {settings.form} must define {', '.join(sorted(kind.__abstractmethods__))}")
    task = kind(settings)
    task.cache_dir = cache_dir
    for name in ("columns", "logged_columns", "terms", "prepare", "check", "__call__", "bound", "note_on", "of_pairs",
                 "chance"):  # fmt: skip
        parameters = list(inspect.signature(getattr(Task, name)).parameters)[1:]
        try:
            inspect.signature(getattr(task, name)).bind(*parameters)
        except TypeError:
            _require(False, getattr(task, name), f"must take {', '.join(parameters) or 'nothing'}")
    if settings.same_label != "negative" and not task.takes_labels:
        raise ConfigError(
            f"loss.same_label: {settings.same_label} has no effect on loss.form {settings.form}, which does not set "
            "takes_labels; set it to negative, or let the loss read columns['labels']"
        )
    return task


def needed_columns(task: Task, kinds: tuple[str, ...]) -> dict[str, Column]:
    """Columns a task needs of each pair and, of a model with projections for several `kinds`, the kind of its text."""
    return {**({KIND: Kinds(kinds)} if kinds else {}), **task.columns()}


def open_columns(task: Task, settings: TrainSettings, pool: SamplePool, order: SampleOrder) -> BatchColumns:
    """Return the columns of a training, as its task has seen them.

    Raises: ConfigError for a column that samples do not have, or that teaches nothing.
    """
    columns = needed_columns(task, settings.model.projectors) | dict(task.logged_columns())
    opened = BatchColumns(pool, columns, settings.data.text.members)
    drawn = [part.rows for part in order.strata]
    task.check(opened, drawn if settings.data.batches == "one_domain" else [np.concatenate(drawn)])
    return opened


def losses_of(task: Task, features: Values, columns: Values) -> dict[str, Tensor]:
    """Return the losses that a task gives for a batch of a training.

    Raises: ConfigError unless that is one number of each name, and one of them a loss that follows from the features.
    """
    losses = task(features, columns)
    are_numbers = isinstance(losses, dict) and all(isinstance(v, Tensor) and v.numel() == 1 for v in losses.values())
    _require(are_numbers, task.__call__, "must give a dict of tensors of one number each")
    has_loss = "loss" in losses and losses["loss"].requires_grad
    _require(has_loss, task.__call__, f"must give a 'loss' that has a gradient, beside what is logged: {list(losses)}")
    return losses


def judged(task: Task, features: Values, columns: Values, batch_size: int) -> Tensor:
    """Return the judgement of a task on held-out pairs.

    Raises: ConfigError unless that is a number for each pair of some batches.
    """
    losses = task.of_pairs(features, columns, batch_size)
    are_numbers = isinstance(losses, Tensor) and losses.ndim == 1 and 0 < len(losses) <= len(features["text_features"])
    _require(are_numbers, task.of_pairs, "must give a tensor with the loss of each pair")
    return losses


def _require(holds: bool, method: Callable[..., Any], what: str) -> None:
    if not holds:
        code: Any = inspect.unwrap(method).__code__
        raise ConfigError(f"loss.form: {method.__qualname__} {what} ({code.co_filename}, line {code.co_firstlineno})")
