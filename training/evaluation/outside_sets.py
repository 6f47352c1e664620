"""Figures of a model on evaluation sets from outside the release: zero-shot, few-shot, retrieval, means of groups.

Takes sets that `training.evaluation.set_layouts` opened; writes nothing. Gives up with ConfigError on a set that cannot
be opened, and with RunError on a broken picture or features that are not finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from manifests.errors import ConfigError
from training.config import BOOTSTRAP_ROUNDS, FEW_SHOT_DRAWS, RECALL_AT, EvalSetSettings, TrainSettings, has_one_slot
from training.evaluation import metrics
from training.evaluation.class_names import class_text
from training.evaluation.encoding import (
    Encoded,
    FeatureKind,
    encode_classes,
    encode_pictures,
    encode_texts,
    feature_kinds,
    prompt_templates,
    similarity_of,
)
from training.evaluation.set_layouts import EvalSet, open_eval_set
from training.model.dalip import DalipModel

_DEFAULT_TEMPLATES = ("a photo of a {}.",)
OVERALL = "all sets"


def open_sets(items: Sequence[EvalSetSettings]) -> list[EvalSet]:
    """Open every set before any is used.

    Raises: ConfigError, also for two sets of one name.
    """
    counts = Counter(item.name for item in items)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ConfigError(f"eval.sets: the name '{twice[0]}' is given twice; it tells results apart")
    opened = [open_eval_set(item.path, item.split) for item in items]
    for item, eval_set in zip(items, opened, strict=True):
        if item.text != "asis" and eval_set.kind == "classification" and all(taxon is None for taxon in eval_set.taxa):
            raise ConfigError(
                f"eval.sets '{item.name}': text {item.text} needs taxa, but the set has none; ranks come from a "
                "metadata.csv or from class folders named as iNaturalist 2021 names them"
            )
        if wrong := [template for template in eval_set.templates if not has_one_slot(template)]:
            raise ConfigError(
                f"{item.path}: its template '{wrong[0]}' needs one {{c}} or {{}} for the class name, and no other field"
            )
    return opened


def evaluate_set(
    model: DalipModel, item: EvalSetSettings, eval_set: EvalSet, settings: TrainSettings
) -> dict[str, Any]:
    """All figures of a model on one set.

    Raises: RunError for a broken picture, or features that are not finite.
    """
    where = f"eval.sets '{item.name}'"
    images = encode_pictures(model, eval_set.items, settings, where)
    result: dict[str, Any] = {
        "name": item.name, "path": item.path, "kind": eval_set.kind, "group": item.group,
        "num_samples": len(eval_set.items),
    }  # fmt: skip
    if eval_set.kind == "retrieval":
        owners = [image for image, captions in enumerate(eval_set.captions) for _ in captions]
        captions = [caption for captions in eval_set.captions for caption in captions]
        texts = encode_texts(model, captions, settings.eval.batch_size, f"{where}, caption features")
        similarities = {
            kind: similarity_of(images, texts, kind, settings.loss.first_order_weight) for kind in feature_kinds(model)
        }
        retrieval = {kind: metrics.retrieve_captions(s, owners, RECALL_AT) for kind, s in similarities.items()}
        return result | {"retrieval": retrieval}
    names, templates = class_prompts(item, eval_set)
    zero_shot, rest = classification_figures(model, images, eval_set.labels, names, templates, settings, where)
    return result | {"num_classes": len(names), "text": item.text, "zero_shot": zero_shot} | rest


def class_prompts(item: EvalSetSettings, eval_set: EvalSet) -> tuple[list[str], list[Callable[[str], str]]]:
    """Return the classes of a set as they stand in a prompt, and its templates."""
    names = [
        name if item.text == "asis" else class_text(name, taxon, item.text)
        for name, taxon in zip(eval_set.classes, eval_set.taxa, strict=True)
    ]
    return names, prompt_templates(
        item.templates if item.templates != "own" else eval_set.templates or _DEFAULT_TEMPLATES
    )


def class_similarities(
    model: DalipModel,
    images: Encoded,
    names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
    settings: TrainSettings,
    where: str,
) -> dict[FeatureKind, Tensor]:
    """Similarities (N, K) of pictures and classes by feature kind.

    Classes of one name share one text feature and its similarities, so that rounding cannot separate them.

    Raises: RunError for class features that are not finite.
    """
    distinct = list(dict.fromkeys(names))
    column = {name: i for i, name in enumerate(distinct)}
    columns = [column[name] for name in names]
    classes = encode_classes(model, distinct, templates, where)
    alpha = settings.loss.first_order_weight
    return {kind: similarity_of(images, classes, kind, alpha)[:, columns] for kind in feature_kinds(model)}


def classification_figures(
    model: DalipModel,
    images: Encoded,
    labels: Sequence[int],
    names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
    settings: TrainSettings,
    where: str,
) -> tuple[dict[str, dict[str, metrics.Figure]], dict[str, Any]]:
    """Zero-shot figures by feature kind; then few-shot figures, and what a reader of both has to know.

    `names` are the classes as they stand in a prompt; `where` names the set in messages.

    Raises: RunError for class features that are not finite.
    """
    similarities = class_similarities(model, images, names, templates, settings, where)
    zero_shot: dict[str, dict[str, metrics.Figure]] = {
        kind: metrics.classify(similarity, labels, BOOTSTRAP_ROUNDS) for kind, similarity in similarities.items()
    }
    few_shot, left_out = _few_shot_figures(model, images, labels, settings)
    return zero_shot, {"shared_names": shared_names(names), "few_shot": few_shot, "few_shot_left_out": left_out}


def shared_names(names: Sequence[str]) -> dict[str, list[int]]:
    """Names that several classes have in a prompt, and the numbers of these classes; no model can tell them apart."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    return {name: numbers for name, numbers in places.items() if len(numbers) > 1}


def group_means(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, metrics.Figure]]:
    """Mean zero-shot accuracy (top 1) over the sets of each group, and over all sets when there are two or more."""
    classified = [item for item in results if item["kind"] == "classification"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in classified:
        if item["group"] is not None:
            groups.setdefault(item["group"], []).append(item)
    if len(classified) > 1:
        groups[OVERALL] = classified
    return {
        name: {
            kind: metrics.mean_figure([item["zero_shot"][kind]["top1"] for item in members])
            for kind in members[0]["zero_shot"]
        }
        for name, members in groups.items()
    }


def _few_shot_figures(
    model: DalipModel, images: Encoded, labels: Sequence[int], settings: TrainSettings
) -> tuple[dict[str, dict[str, metrics.Figure]], list[int]]:
    """k-shot accuracy by feature kind and k; and every k that leaves no two classes with a picture to ask about."""
    if settings.eval.few_shot is None:
        return {}, []
    by_kind: dict[str, dict[str, metrics.Figure]] = {}
    left_out: dict[int, None] = {}
    for kind in feature_kinds(model):
        vectors, by_kind[kind] = images.vectors(kind, settings.loss.first_order_weight), {}
        for shots in settings.eval.few_shot.shots:
            figure = metrics.few_shot(vectors, labels, shots, FEW_SHOT_DRAWS, BOOTSTRAP_ROUNDS)
            if figure is None:
                left_out[shots] = None
            else:
                by_kind[kind][str(shots)] = figure
    return by_kind, list(left_out)
