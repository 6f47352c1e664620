"""`dalip publish`: a model on the Hugging Face Hub, in the layout that open_clip loads, with a card.

Reads the run's folder, its evaluations and its release; writes export and card into the folder that is uploaded.
A stopped publish goes on where it was: the same weights have the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from manifests.contract.release import Release
from manifests.services import open_clip_api as open_clip
from manifests.services.model_hub import HUB
from manifests.stores import storage
from training.config import TrainSettings
from training.data import loader
from training.data.shards import open_pool
from training.evaluation.encoder import Encoder
from training.evaluation.model_card import ModelFacts, TrainedOn, write_card
from training.evaluation.report import figures_of
from training.evaluation.trained_model import TrainedModel, notes_on_takedowns, releases_of_run
from training.model.exports import export_hugging_face
from training.model.weights import read_json
from training.record import run_files

_MIXTURE_FILE = "mixture.json"
_SAME_SHARE = 0.01


def prepare(trained: TrainedModel, repository: str, folder: Path) -> tuple[str, list[str]]:
    """Write export and card into `folder`; returns the card, and what the model's owner should know first.

    Raises: ConfigError for a model that open_clip cannot load.
    """
    results, notes = _results_of(trained)
    releases, more = _releases_of(trained)
    if not results:
        notes.append("no evaluation of these weights is here; `dalip eval` first, so that the card has figures")
    facts = ModelFacts(
        trained.settings,
        trained.weights,
        releases,
        _read(trained.folder / run_files.SUMMARY_FILE),
        results,
        has_second_order=trained.model.second_order is not None,
        base_model=_base_model(trained),
    )
    export_hugging_face(trained.model, folder, trained.settings.loss)
    card = write_card(facts, repository)
    storage.publish_bytes(str(folder / "README.md"), card.encode())
    return card, [*trained.notes, *notes, *more, *notes_on_takedowns(trained)]


def _results_of(trained: TrainedModel) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the evaluations beside the model that are of these weights, and notes on the others."""
    fingerprint = Encoder(trained).fingerprint
    results: dict[str, dict[str, Any]] = {}
    notes = []
    for path in sorted((trained.folder / run_files.EVAL_FOLDER).glob("*.json")):
        result = _read(path)
        try:
            list(figures_of(result))
        except (KeyError, TypeError):
            notes.append(f"{path.name}: not a result of `dalip eval`, left out of the card")
            continue
        if result.get("model_fingerprint") != fingerprint:
            notes.append(f"{path.name}: says nothing of these weights, left out of the card; run `dalip eval` again")
        else:
            results[path.stem] = result
    return results, notes


def _releases_of(trained: TrainedModel) -> tuple[Sequence[TrainedOn], list[str]]:
    """Return the releases that the run was trained on, by the fingerprints that it recorded."""
    there, fingerprints = releases_of_run(trained)
    record, data = _read(trained.folder / run_files.RUN_FILE), trained.settings.data
    keys = record["identity"]["releases"]["fingerprints"] if fingerprints else []
    groups = [group.name for group in data.shards if group.split == data.split]
    of_groups = dict(zip(keys[len(keys) - len(groups) :], groups, strict=True))
    drawn = record.get("drawn") or _drawn_by(trained.settings, [there[key] for key in keys if key in there], len(keys))
    releases = []
    for key in fingerprints:
        release = there.get(key)
        rows = [row for row in drawn if row["release"] == key]
        name = release.name if release is not None else of_groups.get(key)
        law = None if release is None else _law_of(release, {row["domain"]: row["share"] for row in rows})
        licences = {} if release is None else _licences_of(release, data.split)
        releases.append(TrainedOn(key, name, key in of_groups, key not in keys, rows, law, licences))
    notes = [
        f"the release {release.fingerprint[:12]} that it was trained on is not at its place; the card has no name of it"
        for release in releases
        if release.name is None
    ]
    return releases, notes


def _licences_of(release: Release, split: str) -> dict[str, int]:
    """Distinct pictures of a split by licence."""
    rows = release.samples(split, ["licence_id", "copy"])
    counted = pc.value_counts(pc.fill_null(rows.filter(pc.equal(rows["copy"], 0))["licence_id"], "not stated"))
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def _base_model(trained: TrainedModel) -> str | None:
    """Return the model of the hub with whose weights the training began, or which this is; None for others."""
    settings = trained.settings.model
    source = settings.pretrained if trained.named is None else trained.named
    if source is None or source.startswith(HUB) or Path(source).exists():
        return source.removeprefix(HUB) if source is not None and source.startswith(HUB) else None
    known: dict[str, str] = open_clip.get_pretrained_cfg(settings.architecture.replace("/", "-"), source)
    return known.get("hf_hub", "").rpartition("/")[0] or None


def _drawn_by(settings: TrainSettings, releases: Sequence[Release], num_sources: int) -> list[dict[str, Any]]:
    """Return the shares of a run of an earlier version, which recorded none.

    Empty where its releases are not all there.
    """
    if not releases or len(releases) < num_sources:
        return []
    pool = open_pool(releases, settings.data.split)
    return loader.drawn_shares(pool, loader.build_order(pool, settings.data, settings.release, settings.seed))


def _law_of(release: Release, shares: Mapping[str, float]) -> Mapping[str, Any] | None:
    """Return the law of mixture.json, unless other shares were drawn than it chose."""
    if _MIXTURE_FILE not in release.record["files"]:
        return None
    law: Mapping[str, Any] | None = _read(Path(release.path) / _MIXTURE_FILE).get("law")
    if law and any(abs(shares.get(domain, 0.0) - share) > _SAME_SHARE for domain, share in law["ratio"].items()):
        return None
    return law


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON file, empty where there is none. Raises: ConfigError for one that cannot be read."""
    return read_json(path) if path.is_file() else {}
