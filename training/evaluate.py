"""Measure a trained model on a held-out split: zero-shot accuracy, retrieval, validation loss per domain.

Reads the weights of a run and a release; writes one JSON file into the run's folder. Every figure carries its
95 % interval, the number of trials and what guessing reaches. Features are f (first order), z (second order)
or both, as the weighted sum of similarities that the loss weighs. Gives up with ConfigError on a field, split
or class set that is not there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.errors import ConfigError
from manifests.release import Release
from manifests.storage import make_folder, publish_bytes
from training import data, metrics
from training.checkpoint import newest_weights
from training.config import TrainSettings, ZeroShotSettings
from training.images import normalise
from training.model import DalipModel, build_model
from training.shards import SamplePool, open_pool

FeatureKind = str  # f, z or both
EVAL_FOLDER = "eval"


@dataclass(frozen=True)
class Encoded:
    """First- and second-order features of N things, (N, C), L2-normalised, float32 on the CPU."""

    f: Tensor
    z: Tensor | None

    def rows(self, chosen: Sequence[int]) -> Encoded:
        """Some of them."""
        index = torch.as_tensor(chosen)
        return Encoded(self.f[index], self.z[index] if self.z is not None else None)


def evaluate_run(
    settings: TrainSettings,
    folder: Path,
    *,
    release: str | None = None,
    split: str | None = None,
    out: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluate the weights of a run; returns the result and the JSON file it was written to.

    Raises: ConfigError, IntegrityError before anything is written; RunError for a broken held-out sample.
    """
    weights = newest_weights(folder)
    opened = _open_one(settings, release)
    chosen = split or settings.eval.split
    pool = open_pool([opened], chosen)
    extra = ExtraTable(opened, chosen)
    device = torch.device("cuda" if torch.cuda.is_available() and settings.compute.device != "cpu" else "cpu")
    model = load_run_model(settings, weights).to(device)
    started = time.monotonic()
    result = evaluate(model, pool, extra, settings, device)
    result |= {
        "release": opened.name,
        "release_fingerprint": opened.fingerprint,
        "split": chosen,
        "weights": str(weights),
        "seconds": round(time.monotonic() - started, 2),
    }
    path = Path(out) if out is not None else folder / EVAL_FOLDER / f"{chosen}-{opened.name}.json"
    make_folder(str(path.parent))
    publish_bytes(str(path), (json.dumps(result, indent=2) + "\n").encode("utf-8"))
    return result, path


def load_run_model(settings: TrainSettings, weights: Path) -> DalipModel:
    """The model of a run with the weights of one of its files, for evaluation.

    Raises: ConfigError when they do not fit.
    """
    from training.convert import load_state, read_state

    model = build_model(settings.model.model_copy(update={"pretrained": None}))
    load_state(model, read_state(weights), where=str(weights))
    return model.eval()


def evaluate(
    model: DalipModel, pool: SamplePool, extra: ExtraTable, settings: TrainSettings, device: torch.device
) -> dict[str, Any]:
    """All figures of a model on the samples of a pool.

    Raises: ConfigError for a field or domain that is not there.
    """
    labels = [zero_shot_labels(pool, extra, task) for task in settings.eval.zero_shot]
    rows = data.split_rows(pool)
    images, texts = encode_pairs(model, pool, rows, settings, device)
    captions = extra.column("text")
    captions = [captions[row] for row in rows]
    similarity = {kind: _similarity(images, texts, kind, settings) for kind in feature_kinds(model)}
    place = {row: i for i, row in enumerate(rows)}
    result: dict[str, Any] = {"num_samples": len(rows), "zero_shot": [], "retrieval": {}, "validation_loss": {}}
    for task, (classes, members) in zip(settings.eval.zero_shot, labels, strict=True):
        class_features = encode_classes(model, classes, task, device)
        chosen = images.rows([place[row] for row in members])
        figures = {
            kind: metrics.classify(
                _similarity(chosen, class_features, kind, settings),
                list(members.values()),
                settings.eval.bootstrap_rounds,
            )
            for kind in feature_kinds(model)
        }
        result["zero_shot"].append(
            {"field": task.field, "domain": task.domain, "num_classes": len(classes), "figures": figures}
        )
    if settings.eval.retrieval:
        result["retrieval"] = {
            kind: metrics.retrieve(values, captions, settings.eval.recall_at) for kind, values in similarity.items()
        }
    result["validation_loss"] = _domain_losses(model, pool, rows, images, texts, settings)
    return result


def validation_losses(model: DalipModel, settings: TrainSettings, device: torch.device) -> dict[str, float]:
    """The loss on the held-out split, per domain and over `all`, while a model is being trained."""
    pool = open_pool(data.open_releases(settings.release), settings.eval.split)
    figures = domain_losses(model, pool, settings, device)
    return {domain: figure["value"] for domain, figure in figures.items()}


def domain_losses(
    model: DalipModel, pool: SamplePool, settings: TrainSettings, device: torch.device
) -> dict[str, metrics.Figure]:
    """Validation loss of the samples of a pool, within each domain and over `all`, each with its interval.

    Batches are of `eval.batch_size` pairs of one domain in the order of their ids, so that models compare; a domain
    with a single sample has no loss. The model is left in the mode it came in.

    Raises: RunError for a broken sample.
    """
    was_training = model.training
    model.eval()
    try:
        rows = data.split_rows(pool)
        images, texts = encode_pairs(model, pool, rows, settings, device)
        return _domain_losses(model, pool, rows, images, texts, settings)
    finally:
        model.train(was_training)


class ExtraTable:
    """Columns of a split's sample table, in the row order of its pool, the keys of `extra` included."""

    def __init__(self, release: Release, split: str) -> None:
        self._table = release.samples(split).sort_by([("shard", "ascending"), ("position", "ascending")])

    def column(self, field: str) -> list[Any]:
        """The values of a column, or of `extra.KEY`.

        Raises: ConfigError when there is no such column or no row has the key.
        """
        if field.startswith("extra.") and "extra" in self._table.column_names:
            key = field.removeprefix("extra.")
            objects = [json.loads(value) if value else {} for value in self._table["extra"].to_pylist()]
            values = [item.get(key) for item in objects]
            if all(value is None for value in values):
                known = sorted({name for item in objects for name in item})
                raise ConfigError(f"no sample has '{key}' in its extra (there are: {', '.join(known) or 'none'})")
            return values
        if field not in self._table.column_names:
            raise ConfigError(
                f"the release has no field '{field}'; it has extra.KEY and {', '.join(self._table.column_names)}"
            )
        column: list[Any] = self._table[field].to_pylist()
        return column


def zero_shot_labels(pool: SamplePool, extra: ExtraTable, task: ZeroShotSettings) -> tuple[list[str], dict[int, int]]:
    """The classes of a task, sorted, and the class number of every row that has one.

    Raises: ConfigError for fewer than two classes.
    """
    values = extra.column(task.field)
    domains = pool.table["domain"].to_pylist()
    wanted = {
        row: str(value)
        for row, value in enumerate(values)
        if value not in (None, "") and task.domain in (None, domains[row])
    }
    counts: dict[str, int] = {}
    for value in wanted.values():
        counts[value] = counts.get(value, 0) + 1
    classes = sorted(value for value, count in counts.items() if count >= task.min_per_class)
    if len(classes) < 2:
        place = f" in domain '{task.domain}'" if task.domain else ""
        raise ConfigError(
            f"zero-shot over '{task.field}'{place}: {len(classes)} classes with at least {task.min_per_class} samples, "
            "two are needed"
        )
    number = {value: k for k, value in enumerate(classes)}
    return classes, {row: number[value] for row, value in wanted.items() if value in number}


def feature_kinds(model: DalipModel) -> tuple[FeatureKind, ...]:
    """Which features the model has: f alone for plain CLIP."""
    return ("f",) if model.second_order is None else ("f", "z", "both")


@torch.no_grad()
def encode_pairs(
    model: DalipModel, pool: SamplePool, rows: Sequence[int], settings: TrainSettings, device: torch.device
) -> tuple[Encoded, Encoded]:
    """Image and text features of the given rows, in their order."""
    preprocess = model.preprocess_settings
    kept: list[list[Tensor]] = []
    for batch in data.eval_batches(pool, rows, settings.data, model, settings.eval.batch_size):
        pixels = normalise(batch.images.to(device), preprocess.mean, preprocess.std)
        with _autocast(settings, device):
            output = model(pixels, batch.tokens.to(device))
        names = ("image_features", "image_second_order", "text_features", "text_second_order")
        kept.append([output[name].float().cpu() for name in names if name in output])
    parts = [torch.cat(column) for column in zip(*kept, strict=True)]
    if len(parts) == 2:
        return Encoded(parts[0], None), Encoded(parts[1], None)
    return Encoded(parts[0], parts[1]), Encoded(parts[2], parts[3])


@torch.no_grad()
def encode_classes(model: DalipModel, classes: Sequence[str], task: ZeroShotSettings, device: torch.device) -> Encoded:
    """One text feature a class: the mean over the templates, normalised again, as open_clip's classifier."""
    templates, tokenizer = _templates(task), model.tokenizer
    f_rows, z_rows = [], []
    for name in classes:
        tokens = tokenizer([template(class_text(name)) for template in templates]).to(device)
        if model.second_order is None:
            f_rows.append(model.encode_text(tokens).mean(0))
            continue
        f, z = model.encode_text(tokens, second_order=True)
        f_rows.append(f.mean(0))
        z_rows.append(z.mean(0))
    unit = torch.nn.functional.normalize
    f_KC = unit(torch.stack(f_rows).float(), dim=-1).cpu()
    return Encoded(f_KC, unit(torch.stack(z_rows).float(), dim=-1).cpu() if z_rows else None)


def class_text(value: str) -> str:
    """A field's value as words: underscores and hyphens between words become spaces."""
    return " ".join(value.replace("_", " ").replace("-", " ").split())


def _templates(task: ZeroShotSettings) -> list[Callable[[str], str]]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    if task.templates == "openai":
        return list(OPENAI_IMAGENET_TEMPLATES)
    if task.templates == "simple":
        return list(SIMPLE_IMAGENET_TEMPLATES)
    return [text.format for text in task.templates]


def _similarity(left: Encoded, right: Encoded, kind: FeatureKind, settings: TrainSettings) -> Tensor:
    """Cosines of f, of z, or their weighted sum with the loss's weights."""
    first = left.f @ right.f.t()
    if kind == "f" or left.z is None or right.z is None:
        return first
    second = left.z @ right.z.t()
    weight = settings.loss.first_order_weight
    return second if kind == "z" else weight * first + (1 - weight) * second


def _domain_losses(
    model: DalipModel, pool: SamplePool, rows: Sequence[int], images: Encoded, texts: Encoded, settings: TrainSettings
) -> dict[str, metrics.Figure]:
    """Validation loss over all pairs and within each domain, as the training loss weighs f and z."""
    domains = pool.table["domain"].to_pylist()
    groups = {"all": list(range(len(rows)))}
    for domain in pool.domains:
        groups[domain] = [i for i, row in enumerate(rows) if domains[row] == domain]
    figures = {}
    for domain, members in groups.items():
        if len(members) < 2:
            continue
        losses = _pair_losses(model, images.rows(members), texts.rows(members), settings)
        size = min(settings.eval.batch_size, len(members))
        figures[domain] = metrics.loss_figure(losses.numpy(), size, settings.eval.bootstrap_rounds)
    return figures


def _pair_losses(model: DalipModel, images: Encoded, texts: Encoded, settings: TrainSettings) -> Tensor:
    size = settings.eval.batch_size
    scale = float(model.clip.logit_scale.detach().exp())
    first = metrics.pair_losses(images.f @ texts.f.t(), scale, size)
    if images.z is None or texts.z is None:
        return first
    if settings.loss.form == "sum_of_similarities":
        return metrics.pair_losses(_similarity(images, texts, "both", settings), scale, size)
    own = model.logit_scale_second
    second_scale = float(own.detach().exp()) if own is not None else scale
    weight = settings.loss.first_order_weight
    return weight * first + (1 - weight) * metrics.pair_losses(images.z @ texts.z.t(), second_scale, size)


def _autocast(settings: TrainSettings, device: torch.device) -> Any:
    if settings.compute.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if settings.compute.precision == "bf16" else torch.float16)


def _open_one(settings: TrainSettings, release: str | None) -> Release:
    chosen = release or settings.release
    if isinstance(chosen, str):
        return data.open_releases(chosen)[0]
    raise ConfigError("the run was trained on several releases; say which to evaluate on with --release")


def report_lines(result: dict[str, Any]) -> list[str]:
    """The result for a person: a line a figure, chance beside it."""
    lines = [f"{result['num_samples']:,} samples of split '{result['split']}' of {result['release']}"]
    for task in result["zero_shot"]:
        where = f"{task['field']}" + (f", {task['domain']}" if task["domain"] else "")
        for kind, figures in task["figures"].items():
            lines += [
                f"zero-shot {name:<14} {kind:<4}  {_share(figure)}  ({where}, {task['num_classes']} classes"
                + (f", most common {figure['most_common_class']:.1%}" if "most_common_class" in figure else "")
                + ")"
                for name, figure in figures.items()
            ]
    for kind, figures in result["retrieval"].items():
        lines += [f"{name.replace('_', ' '):<24} {kind:<4}  {_share(figure)}" for name, figure in figures.items()]
    for domain, figure in result["validation_loss"].items():
        lines.append(
            f"validation loss {domain:<13}  {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]  "
            f"chance {figure['chance']:.3f}"
        )
    return lines


def _share(figure: metrics.Figure) -> str:
    return f"{figure['value']:6.1%} [{figure['low']:.1%}, {figure['high']:.1%}]  chance {figure['chance']:.1%}"
