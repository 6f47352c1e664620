"""Distillation: the picture tower learns to give the vectors of a teacher, which were computed before.

With t the teacher's vector of a picture and f the student's, both of length 1, the loss is

    weight * (1 - cos(f, t)) + (1 - weight) * sum_of_similarities

One minus the cosine is half the squared distance, the feature distillation that Yang et al. 2024 find best for CLIP.
A student that gives the teacher's f understands the teacher's texts: begin with the teacher (`model.pretrained`), of
which a picture tower of another shape takes the text tower alone. At weight 1 that tower is frozen, and no text is
read. A picture without a vector counts as one of cosine 0. That is a constant: it teaches nothing of the teacher.

Source: Yang et al. 2024, "CLIP-KD: An Empirical Study of CLIP Model Distillation" (its loss FD).

Shape letters: `B` pairs on this rank, `N` pairs held out.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from manifests.errors import ConfigError
from training.data.columns import Column
from training.data.vectors import Space, Vectors
from training.model.architecture import architecture_config
from training.model.dalip import DalipModel, parameter_role
from training.model.precision import full_precision, without_autocast
from training.model.presets import LossSettings
from training.tasks.contrastive import SumOfSimilarities
from training.tasks.task import Values

TEACHER = "teacher"  # the column of the teacher's vectors


class Distil(SumOfSimilarities):
    """A teacher's vectors and, at a weight below 1, the contrastive loss. Logs `teacher_cosine`, `without_vector`."""

    takes_text_tower = True

    def __init__(self, settings: LossSettings) -> None:
        super().__init__(settings)
        if settings.teacher is None:
            raise ConfigError(f"loss.form: {settings.form} needs loss.teacher")
        self.teacher, self.weight = settings.teacher, settings.teacher.weight
        if self.weight == 1 and settings.same_label != "negative":
            raise ConfigError(
                f"loss.same_label: {settings.same_label} has no effect where loss.teacher.weight is 1: no pairs are "
                "compared; set it to negative, or lower the weight"
            )

    @property
    def _vectors(self) -> Vectors:
        return Vectors(self.teacher.vectors, self.teacher.column, self.cache_dir)

    def columns(self) -> Mapping[str, Column]:
        """Return the teacher's vectors, and what the contrastive part needs."""
        return {**super().columns(), TEACHER: self._vectors}

    def logged_columns(self) -> Mapping[str, Column]:
        """Those of the contrastive part."""
        return super().logged_columns() if self.weight < 1 else {}

    def prepare(self, model: DalipModel) -> None:
        """At weight 1 freeze what reads texts.

        Raises: ConfigError for vectors of another width or space, and for second branches that would learn nothing.
        """
        super().prepare(model)
        if self.weight == 1:
            idle = {
                "the second-order branches would learn nothing; set model.preset to clip": model.second_order,
                "model.projectors would learn nothing; leave them out": model.settings.projectors,
            }
            if words := [text for text, is_there in idle.items() if is_there]:
                raise ConfigError(f"loss.teacher.weight: at 1 {words[0]}, or lower the weight")
            for name, parameter in model.named_parameters():
                if parameter_role(name) in ("text_tower", "scale"):
                    parameter.requires_grad_(False)
            model.trains_texts = False
        self._check_space(self._vectors.space(), model)

    def _check_space(self, space: Space, model: DalipModel) -> None:
        path, architecture = self.teacher.vectors, model.settings.architecture
        if space.width != (width := architecture_config(architecture)["embed_dim"]):
            raise ConfigError(
                f"loss.teacher: vectors of {path} have {space.width} numbers, and {architecture} gives {width}; take "
                f"an architecture with embed_dim {space.width}"
            )
        if (features := space.model.get("features", "f")) != "f":
            raise ConfigError(
                f"loss.teacher: vectors of {path} are the features '{features}' of their model, and a student learns "
                "f; write them with `dalip embed --features f`"
            )
        names = [name for name, _ in model.named_parameters() if parameter_role(name) == "text_tower"]
        is_frozen = not any(model.get_parameter(name).requires_grad for name in names)
        was_loaded = not set(names) & set(model.new_parameters)  # a resume loads it later
        stated = space.model.get("text_tower")
        if stated is not None and is_frozen and was_loaded and stated != model.text_tower_digest():
            raise ConfigError(
                f"loss.teacher: vectors of {path} are of the model {space.model['model'][:12]}, and the text tower of "
                f"{model.settings.pretrained} is that of another one, so no text would fit a picture; name the teacher "
                "as model.pretrained, or embed with that model"
            )

    def __call__(self, features: Values, columns: Values) -> dict[str, Tensor]:
        """Return the teacher's part, beside it the contrastive one."""
        cosine_B = _cosine(features, columns)
        away = 1 - cosine_B.mean()
        without = (columns[TEACHER] == 0).all(dim=1).float().mean()
        terms = {"teacher_cosine": cosine_B.mean().detach(), "without_vector": without}
        if self.weight == 1:
            return {"loss": away} | terms
        losses = super().__call__(features, columns)
        return losses | {"loss": self.weight * away + (1 - self.weight) * losses["loss"]} | terms

    def of_pairs(self, features: Values, columns: Values, batch_size: int) -> Tensor:
        """Return the same of each pair."""
        away_N = 1 - _cosine(features, columns).double()
        if self.weight == 1:
            return away_N
        losses = super().of_pairs(features, columns, batch_size)
        return self.weight * away_N[: len(losses)] + (1 - self.weight) * losses

    def chance(self, batch_size: int) -> float:
        """Return the loss of cosines of 0 and of equal similarities."""
        return self.weight + (1 - self.weight) * super().chance(batch_size)


def _cosine(features: Values, columns: Values) -> Tensor:
    with without_autocast(features["image_features"]):
        return (full_precision(features["image_features"]) * columns[TEACHER]).sum(dim=1)
