"""`dalip eval`: measure a trained model on a held-out split of a release and on evaluation sets from outside.

Measures zero-shot and few-shot accuracy, retrieval, and the validation loss of each domain. Writes one JSON file and
one plot into the model's folder. Every figure carries its 95 % interval and what guessing reaches. Gives up with
ConfigError on a field, split, set or class that is not there, and with RunError on features or losses that are not
finite.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.release import Release, newest_of_several, refuse_within
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.services.packages import require
from manifests.stores.storage import join, write_file
from training.config import BOOTSTRAP_ROUNDS, RECALL_AT, TrainSettings, ZeroShotSettings
from training.data import loader
from training.data.columns import SampleColumns, ShardColumns, txt_columns
from training.data.shard_index import ShardRelease
from training.data.shards import SamplePool, open_pool
from training.evaluation import metrics
from training.evaluation.class_names import Taxon, class_text, most_stated, taxon_of
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import (
    Encoded,
    encode_pairs,
    evaluation_device,
    feature_kinds,
    pair_features,
    prompt_templates,
    similarity_of,
)
from training.evaluation.outside_sets import (
    classification_figures,
    evaluate_set,
    group_means,
    open_sets,
)
from training.evaluation.report import plot_result
from training.evaluation.set_layouts import EvalSet
from training.evaluation.trained_model import TrainedModel, notes_on_takedowns, releases_of_run
from training.evaluation.within import choose_within, names_within
from training.model.dalip import DalipModel
from training.model.towers import evaluating
from training.record import run_files
from training.tasks.task import KIND, Task, Values, judged, make_task, needed_columns

Judge = tuple[Task, Values]  # a task, and its columns of every row of the pool that it judges pairs of
_PICTURE_HASHES = ("image_id", "stored_sha256")  # of the picture as it was downloaded, and as it lies in the shard


def evaluate_model(
    trained: TrainedModel,
    *,
    release: str | None = None,
    split: str | None = None,
    out: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a model; returns the result and the JSON file it was written to, with a plot beside it.

    Raises: ConfigError, IntegrityError before anything is written; RunError for a broken held-out sample.
    """
    require("a plot", "matplotlib")
    if out is not None and (Path(out).is_dir() or Path(out).suffix.lower() == ".png"):
        raise ConfigError(
            f"{out}: --out is the JSON file, the plot goes beside it as .png; name a file like figures.json"
        )
    trained = trained.without_missing_sets()
    settings = trained.settings
    chosen, opened, sets = open_measured(trained, release, split)
    name = f"{chosen}-{'+'.join(source.name for source in opened)}" if opened else "sets"
    path = Path(out) if out is not None else trained.folder / run_files.EVAL_FOLDER / f"{name}.json"
    refuse_within(str(path))
    run_files.require_own(path, path.with_suffix(".png"), run_files.is_evaluation, "dalip eval")
    started = time.monotonic()
    result: dict[str, Any] = {
        "weights": trained.weights, "model": trained.source, "notes": list(trained.notes),
        "preset": settings.model.preset, "model_fingerprint": Encoder(trained).fingerprint,
    }  # fmt: skip
    model = trained.model.to(evaluation_device(settings))
    if settings.model.projectors:
        result["kind"] = settings.model.projectors[model.kind]
    if chosen is not None:
        if settings.data.check_shards:
            loader.check_shards(opened, chosen)
        else:
            result["notes"].append("the shards were not compared with their record (data.check_shards: false)")
        places = loader.places_of(release or settings.release or ())
        result["notes"] += [line for line in map(newest_of_several, places) if line is not None]
        fingerprints = "+".join(source.fingerprint for source in opened)
        result |= {"release": "+".join(source.name for source in opened), "release_fingerprint": fingerprints}
        result["split"] = chosen
    measured = measure(model, settings, opened, chosen, sets)
    result["notes"] += measured.pop("notes")
    seen = [*seen_in_training(trained, opened, chosen), *seen_in_sets(trained, sets)]
    result |= measured | {"seen_in_training": seen}
    result["notes"] += [*seen, *notes_on_takedowns(trained)]
    result["seconds"] = round(time.monotonic() - started, 2)
    write_file(str(path), (json.dumps(result, indent=2) + "\n").encode("utf-8"))
    write_file(str(path.with_suffix(".png")), plot_result(result))
    if out is None and trained.address is not None:
        for file in (path, path.with_suffix(".png")):
            write_file(join(trained.address, run_files.EVAL_FOLDER, file.name), file.read_bytes())
    return result, path


def measure(
    model: DalipModel,
    settings: TrainSettings,
    sources: Sequence[Release | ShardRelease],
    split: str | None,
    sets: Sequence[EvalSet],
) -> dict[str, Any]:
    """All figures of a model: on a split of `sources`, where one is named, and on the sets of `settings`.

    Raises: as `evaluate_split` and `evaluate_set`.
    """
    named = zip(settings.eval.sets, sets, strict=True)
    notes = [f"eval.sets '{item.name}': {note}" for item, eval_set in named for note in eval_set.notes]
    result: dict[str, Any] = {"notes": notes}
    if split is not None:
        pool = open_pool(sources, split)
        result["notes"] += pool.notes
        judge, notes = open_judge(model, pool, settings)
        result["notes"] += notes
        release_alone = sources[0] if isinstance(sources[0], Release) else None
        cache = settings.data.cache
        columns = SampleColumns(release_alone, split) if release_alone else ShardColumns(pool, "eval.zero_shot", cache)
        result |= evaluate_split(model, pool, columns, settings, judge)
    result["sets"] = [
        evaluate_set(model, set_settings, opened_set, settings)
        for set_settings, opened_set in zip(settings.eval.sets, sets, strict=True)
    ]
    result["groups"] = group_means(result["sets"])
    return result


def seen_in_training(trained: TrainedModel, sources: Sequence[Release | ShardRelease], split: str | None) -> list[str]:
    """Return a note where pictures of a split were in the training of the run."""
    if split is None:
        return []
    release, (there, fingerprints) = sources[0], releases_of_run(trained)
    if split == trained.settings.data.split and release.fingerprint in fingerprints:
        return [f"split '{split}' is what it was trained on: the figures say nothing of other pictures"]
    if isinstance(release, ShardRelease) or trained.settings.data.shards:
        return ["shards that PlantMix did not build do not say whether the training saw these pictures"]
    others = [fingerprint for fingerprint in fingerprints if fingerprint != release.fingerprint]
    if unknown := [fingerprint[:12] for fingerprint in others if fingerprint not in there]:
        return [
            f"trained on {', '.join(unknown)}, which is not at its place: whether it saw these pictures is not known"
        ]
    images = pc.unique(release.samples(split, ["image_id"])["image_id"])
    seen = _seen(images, [there[fingerprint] for fingerprint in others], trained.settings.data.split)
    if not seen:
        return []
    return [f"{len(seen):,} of the {len(images):,} pictures were in the training: the figures of the split flatter"]


def seen_in_sets(trained: TrainedModel, sets: Sequence[EvalSet]) -> list[str]:
    """Return a note for each set with pictures of the training, by their bytes, as far as its releases are there."""
    there, fingerprints = releases_of_run(trained)
    releases = [there[fingerprint] for fingerprint in fingerprints if fingerprint in there]
    notes = []
    for settings, opened in zip(trained.settings.eval.sets, sets, strict=True) if releases else ():
        hashes = [hashlib.sha256(item.read()).hexdigest() for item in opened.items]
        seen = _seen(pa.array(hashes), releases, trained.settings.data.split)
        if num := sum(value in seen for value in hashes):
            notes.append(
                f"{settings.name}: {num:,} of its {len(hashes):,} pictures were in the training: its figures flatter"
            )
    return notes


def _seen(hashes: Any, releases: Sequence[Release], split: str) -> set[str]:
    """Those of some sha256 that are of a picture of the releases."""
    batches = (rows for release in releases for _, _, rows in release.iter_shards(_PICTURE_HASHES, split))
    columns = (rows[name] for rows in batches for name in _PICTURE_HASHES)
    return {sha256 for column in columns for sha256 in column.filter(pc.is_in(column, hashes)).to_pylist()}


def check_tasks(settings: TrainSettings) -> None:
    """See that the releases have the fields of the zero-shot tasks, before a training is spent on it.

    Raises: ConfigError for a field that is not there.
    """
    if settings.eval.split is None or not settings.eval.zero_shot:
        return
    for release in loader.open_releases(settings.release or ()):
        if settings.eval.split in release.splits:
            columns = SampleColumns(release, settings.eval.split)
            for task in settings.eval.zero_shot:
                columns.values(task.field)
                names_within(task.within or ())


def open_judge(model: DalipModel, pool: SamplePool, settings: TrainSettings) -> tuple[Judge | None, list[str]]:
    """Return the judge of a split's pairs, and notes: where samples have no labels, other pairs are negatives."""
    notes = list[str]()
    for same_label in dict.fromkeys((settings.loss.same_label, "negative")):
        task = make_task(settings.loss.model_copy(update={"same_label": same_label}), settings.data.cache_dir)
        try:
            return _judge(task, model, pool), notes
        except ConfigError as error:
            effect = "is not measured" if same_label == "negative" else "takes every other pair for a negative"
            notes = [f"the validation loss {effect} ({error})"]
    return None, notes


def _judge(task: Task, model: DalipModel, pool: SamplePool) -> Judge:
    if lost := task.terms(model).keys() - model.terms.keys():
        raise ConfigError(f"loss.form: the weights hold no {', '.join(sorted(lost))} of {task.settings.form}")
    kinds = model.settings.projectors if model.kind == 0 else ()
    return task, txt_columns(pool, needed_columns(task, kinds))


def evaluate_split(
    model: DalipModel, pool: SamplePool, columns: SampleColumns, settings: TrainSettings, judge: Judge | None
) -> dict[str, Any]:
    """All figures of a model on the held-out samples of a pool; the validation loss where something can judge it.

    Raises: ConfigError for a field or domain that is not there; RunError for features or losses that are not finite.
    """
    labels = [classes_within(columns, *zero_shot_labels(pool, columns, task), task) for task in settings.eval.zero_shot]
    rows = loader.split_rows(pool)
    images, texts = encode_pairs(model, pool, rows, settings)
    place = {row: i for i, row in enumerate(rows)}
    result: dict[str, Any] = {"num_samples": len(rows), "zero_shot": [], "retrieval": {}, "validation_loss": {}}
    for task, (classes, members, group) in zip(settings.eval.zero_shot, labels, strict=True):
        names = class_texts(columns, classes, members, task)
        chosen, answers = images.rows([place[row] for row in members]), list(members.values())
        templates, where = prompt_templates(task.templates), f"zero-shot over '{task.field}'"
        figures, rest = classification_figures(model, chosen, answers, names, templates, settings, where)
        result["zero_shot"].append(
            {
                "field": task.field,
                "domain": task.domain,
                "text": task.text,
                "num_classes": len(classes),
                "figures": figures,
                **rest,
                **group,
            }
        )
    if settings.eval.retrieval:
        all_captions = columns.values("text")
        captions = [all_captions[row] for row in rows]
        for kind in feature_kinds(model):
            similarity = similarity_of(images, texts, kind, settings.loss.first_order_weight)
            result["retrieval"][kind] = metrics.retrieve(similarity, captions, RECALL_AT)
    if judge is not None:
        result["validation_loss"] = _domain_losses(model, pool, rows, images, texts, settings, judge)
    return result


def domain_losses(
    model: DalipModel,
    pool: SamplePool,
    settings: TrainSettings,
    task: Task | None = None,
    encode: Callable[..., tuple[Encoded, Encoded] | None] = encode_pairs,
) -> dict[str, metrics.Figure]:
    """Return validation loss of the samples of a pool, within each domain and over `all`, each with its interval.

    Batches are of `eval.batch_size` pairs of one domain in the order of their ids, so that models compare. A domain
    with a single sample has no loss. The model is left in the mode it came in. `task` None: that of the settings.
    `encode` makes the features as `encode_pairs` does; where it gives None, another process has them and judges.

    Raises: ConfigError for a column of the task that samples do not have; RunError for a broken sample, or features or
        losses that are not finite.
    """
    judge = _judge(task or make_task(settings.loss, settings.data.cache_dir), model, pool)
    with evaluating(model):
        rows = loader.split_rows(pool)
        encoded = encode(model, pool, rows, settings)
        return {} if encoded is None else _domain_losses(model, pool, rows, *encoded, settings, judge)


def zero_shot_labels(
    pool: SamplePool, columns: SampleColumns, task: ZeroShotSettings
) -> tuple[list[str], dict[int, int]]:
    """Return the classes of a task, sorted, and the class number of every row that has one.

    Raises: ConfigError for fewer than two classes.
    """
    domains = pool.table["domain"].to_pylist()
    value_of = {
        row: str(value)
        for row, value in enumerate(columns.values(task.field))
        if value not in (None, "") and task.domain in (None, domains[row])
    }
    counts = Counter(value_of.values())
    classes = sorted(value for value, count in counts.items() if count >= task.min_per_class)
    if len(classes) < 2:
        place = f" in domain '{task.domain}'" if task.domain else ""
        raise ConfigError(
            f"zero-shot over '{task.field}'{place}: {len(classes)} classes with at least {task.min_per_class} samples, "
            "two are needed"
        )
    number = {value: k for k, value in enumerate(classes)}
    return classes, {row: number[value] for row, value in value_of.items() if value in number}


def classes_within(
    columns: SampleColumns, classes: list[str], members: dict[int, int], task: ZeroShotSettings
) -> tuple[list[str], dict[int, int], dict[str, Any]]:
    """Return the classes within the group of a task, and their samples; and what its result says of the group.

    Raises: ConfigError as `choose_within`.
    """
    if task.within is None:
        return classes, members, {}
    taxa_of_rows = ((number, taxon_of(columns.taxon_row(row), "taxon_")) for row, number in members.items())
    ranks = most_stated((number, taxon.ranks, 1) for number, taxon in taxa_of_rows if taxon)
    taxa = [Taxon(ranks[number]) if number in ranks else None for number in range(len(classes))]
    rank = task.field.removeprefix("taxon_")
    if is_rank := rank in TAXON_RANKS:
        taxa = [taxon and taxon.up_to(rank) for taxon in taxa]
    setting = f"zero-shot over '{task.field}' within"
    within = choose_within(task.within, classes, taxa, rank if is_rank else None, setting)
    number = {old: new for new, old in enumerate(within.numbers)}
    kept = {row: number[old] for row, old in members.items() if old in number}
    return [classes[i] for i in within.numbers], kept, {"within": within.group, "notes": within.notes}


def class_texts(
    columns: SampleColumns, classes: Sequence[str], members: dict[int, int], task: ZeroShotSettings
) -> list[str]:
    """Return the name of each class in the prompt; its taxon is that of its first sample."""
    first = {number: row for row, number in reversed(members.items())}
    return [
        class_text(name, taxon_of(columns.taxon_row(first[k]), "taxon_") if task.text != "asis" else None, task.text)
        for k, name in enumerate(classes)
    ]


def _domain_losses(
    model: DalipModel,
    pool: SamplePool,
    rows: Sequence[int],
    images: Encoded,
    texts: Encoded,
    settings: TrainSettings,
    judge: Judge,
) -> dict[str, metrics.Figure]:
    """Return the loss of the training, of the held-out pairs: over all of them and within each domain."""
    task, scales = judge[0], {name: value.detach().cpu() for name, value in model.scales().items()}
    columns = {name: values[rows] for name, values in judge[1].items()}
    if KIND in columns:
        images = Encoded(model.project(images.f, columns.pop(KIND)).detach(), images.z)
    figures = {}
    for domain, members in groups_with_loss(pool, rows).items():
        size = min(settings.eval.batch_size, len(members))
        features = pair_features(images.rows(members), texts.rows(members)) | scales
        losses = judged(task, features, {name: values[members] for name, values in columns.items()}, size)
        metrics.require_finite(losses, f"held-out samples of {domain}, validation losses")
        figure = metrics.loss_figure(losses.numpy(), task.chance(size), BOOTSTRAP_ROUNDS)
        figures[domain] = {**figure, "left_out": len(members) - len(losses)}
    return figures


def groups_with_loss(pool: SamplePool, rows: Sequence[int]) -> dict[str, list[int]]:
    """Positions in `rows` of `all` pairs and of those of each domain; one pair alone has no loss."""
    domains = pool.table["domain"].to_pylist()
    of_domains = {name: [i for i, row in enumerate(rows) if domains[row] == name] for name in pool.domains}
    groups = {"all": list(range(len(rows)))} | of_domains
    return {name: members for name, members in groups.items() if len(members) > 1}


def open_measured(
    trained: TrainedModel, release: str | None, split: str | None
) -> tuple[str | None, list[Release | ShardRelease], list[EvalSet]]:
    """Open what a model is measured on: the split, if any, of `release` or of what the run was trained on.

    The sets.

    Raises: ConfigError where there is neither, and where the run has several releases or none.
    """
    settings, data, sources = trained.settings, trained.settings.data, list[Release | ShardRelease]()
    if (split := split or settings.eval.split) is not None:
        if release is not None:
            data = data.model_copy(update={"shards": ()})
        elif not trained.has_release:
            raise ConfigError(
                f"{trained.folder}: a model's folder names no release; give one with --release, or --settings FILE "
                "with split: null and sets"
            )
        elif settings.release is not None and data.shards:
            raise ConfigError("the run was trained on a release and on shards; name the release with --release")
        elif not isinstance(settings.release, str | None):
            raise ConfigError("the run was trained on several releases; name the one to evaluate on with --release")
        if not (sources := loader.open_sources(release or settings.release, data, split)):
            raise ConfigError(f"data.shards: no group is of split '{split}'; give one that split, or name --split")
    elif not settings.eval.sets:
        raise ConfigError("nothing to measure: eval.split is null and eval.sets is empty")
    return split, sources, open_sets(settings.eval.sets)
