"""Evaluation sets from outside under a trained model: zero-shot and few-shot accuracy, retrieval, means of groups.

Takes sets that `evalsets` opened; writes nothing. Gives up with ConfigError on a set that cannot be had and
with RunError on a broken picture or features that are not finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from manifests.errors import ConfigError
from training.config import EvalSetSettings, TrainSettings, has_one_slot
from training.evaluation import metrics
from training.evaluation.class_names import class_text
from training.evaluation.encoding import (
    Encoded,
    encode_classes,
    encode_pictures,
    encode_texts,
    feature_kinds,
    prompt_templates,
    similarity_of,
)
from training.evaluation.evalsets import EvalSet, open_eval_set
from training.model.dalip import DalipModel

_DEFAULT_TEMPLATES = ("a photo of a {}.",)
OVERALL = "all sets"


def open_sets(wanted: Sequence[EvalSetSettings]) -> list[EvalSet]:
    """Open every set before any is used.

    Raises: ConfigError, also for two sets of one name.
    """
    names = [item.name for item in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"eval.sets: the name '{twice[0]}' is given twice; results are told apart by it")
    opened = [open_eval_set(item.path, item.split) for item in wanted]
    for item, found in zip(wanted, opened, strict=True):
        if item.text != "asis" and found.kind == "classification" and all(taxon is None for taxon in found.taxa):
            raise ConfigError(
                f"eval.sets '{item.name}': text {item.text} needs taxa, but the set has none; ranks come from a "
                "metadata.csv or from class folders named as iNaturalist 2021 names them"
            )
        if wrong := [template for template in found.templates if not has_one_slot(template)]:
            raise ConfigError(
                f"{item.path}: its template '{wrong[0]}' needs one {{c}} or {{}} for the class name, and no other field"
            )
    return opened


def evaluate_set(
    model: DalipModel, wanted: EvalSetSettings, found: EvalSet, settings: TrainSettings, device: torch.device
) -> dict[str, Any]:
    """All figures of a model on one set.

    Raises: RunError for a broken picture, or features that are not finite.
    """
    images = encode_pictures(model, found.items, settings, device)
    images.require_finite(f"eval.sets '{wanted.name}', picture features")
    result: dict[str, Any] = {
        "name": wanted.name, "path": wanted.path, "kind": found.kind, "group": wanted.group,
        "num_samples": len(found.items),
    }  # fmt: skip
    alpha = settings.loss.first_order_weight
    if found.kind == "retrieval":
        owners = [image for image, captions in enumerate(found.captions) for _ in captions]
        captions = [caption for captions in found.captions for caption in captions]
        texts = encode_texts(model, captions, settings.eval.batch_size, device)
        texts.require_finite(f"eval.sets '{wanted.name}', caption features")
        return result | {
            "retrieval": {
                kind: metrics.retrieve_captions(
                    similarity_of(images, texts, kind, alpha), owners, settings.eval.recall_at
                )
                for kind in feature_kinds(model)
            }
        }
    names = [
        name if wanted.text == "asis" else class_text(name, taxon, wanted.text)
        for name, taxon in zip(found.classes, found.taxa, strict=True)
    ]
    templates = wanted.templates if wanted.templates != "own" else found.templates or _DEFAULT_TEMPLATES
    where = f"eval.sets '{wanted.name}'"
    figures = zero_shot_figures(model, images, found.labels, names, prompt_templates(templates), settings, where)
    return result | {
        "num_classes": len(names),
        "text": wanted.text,
        "zero_shot": figures,
        "shared_names": shared_names(names),
        "few_shot": few_shot_figures(model, images, found.labels, settings),
        "few_shot_left_out": left_out_shots(found.labels, settings),
    }


def zero_shot_figures(
    model: DalipModel,
    images: Encoded,
    labels: Sequence[int],
    names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
    settings: TrainSettings,
    where: str,
) -> dict[str, dict[str, metrics.Figure]]:
    """Zero-shot figures by feature kind; `where` names the set in messages.

    Classes of one name share its features and column, so that rounding cannot part them.

    Raises: RunError for class features that are not finite.
    """
    distinct = list(dict.fromkeys(names))
    column = {name: i for i, name in enumerate(distinct)}
    columns = [column[name] for name in names]
    classes = encode_classes(model, distinct, templates, next(model.parameters()).device)
    classes.require_finite(f"{where}, class features")
    alpha, rounds = settings.loss.first_order_weight, settings.eval.bootstrap_rounds
    return {
        kind: metrics.classify(similarity_of(images, classes, kind, alpha)[:, columns], labels, rounds)
        for kind in feature_kinds(model)
    }


def shared_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Names in a prompt that several classes have, with the numbers of the classes; no model can tell these apart."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    return {name: numbers for name, numbers in places.items() if len(numbers) > 1}


def few_shot_figures(
    model: DalipModel, images: Encoded, labels: Sequence[int], settings: TrainSettings
) -> dict[str, dict[str, metrics.Figure]]:
    """k-shot accuracy by feature kind and k; a k that leaves no two classes with a query is left out."""
    wanted = settings.eval.few_shot
    if wanted is None:
        return {}
    found = {}
    for kind in feature_kinds(model):
        vectors = images.vectors(kind, settings.loss.first_order_weight)
        figures = {
            str(shots): metrics.few_shot(vectors, labels, shots, wanted.seeds, settings.eval.bootstrap_rounds)
            for shots in wanted.shots
        }
        found[kind] = {shots: figure for shots, figure in figures.items() if figure is not None}
    return found


def left_out_shots(labels: Sequence[int], settings: TrainSettings) -> list[int]:
    """Every k asked for that leaves no two classes with a picture to ask about."""
    counts = Counter(labels).values()
    wanted = settings.eval.few_shot.shots if settings.eval.few_shot is not None else ()
    return [shots for shots in wanted if sum(count > shots for count in counts) < 2]


def group_means(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, metrics.Figure]]:
    """Mean zero-shot accuracy (top 1) over the sets of each group, and over all sets when there are two or more."""
    classified = [item for item in results if item["kind"] == "classification"]
    groups = {name: [item for item in classified if item["group"] == name]
              for name in dict.fromkeys(item["group"] for item in classified) if name is not None}  # fmt: skip
    if len(classified) > 1:
        groups[OVERALL] = classified
    return {
        name: {
            kind: metrics.mean_figure([item["zero_shot"][kind]["top1"] for item in members])
            for kind in members[0]["zero_shot"]
        }
        for name, members in groups.items()
    }
