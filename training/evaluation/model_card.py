"""README.md of a published model: what it is, what it learnt from, how good it is, what it cannot, how to load it.

Pure: what a run left goes in, Markdown comes out. Every text from outside is made harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.publishing.markdown import markdown_cell, plain_markdown
from training.config import TrainSettings
from training.evaluation.report import figures_of


@dataclass(frozen=True)
class TrainedOn:
    """A release that a model was trained on, or shards of others. One that is gone has no name."""

    fingerprint: str
    name: str | None = None
    is_shards: bool = False
    is_earlier: bool = False  # the run went on with another one
    drawn: Sequence[Mapping[str, Any]] = ()  # share of the training and samples of each domain
    law: Mapping[str, Any] | None = None  # of mixture.json, where a fitted law chose the shares
    licences: Mapping[str, int] = field(default_factory=dict)  # of its training pictures, with their number


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model card. `summary` is that of its run, empty without one; `results` are of `dalip eval`."""

    settings: TrainSettings
    weights: str
    releases: Sequence[TrainedOn]
    summary: Mapping[str, Any]
    results: Mapping[str, dict[str, Any]]
    has_second_order: bool
    base_model: str | None = None  # of the hub, where the training began with one


def write_card(facts: ModelFacts, repository: str) -> str:
    """Return the card of a model that is published as OWNER/NAME."""
    names = [release.name for release in facts.releases if release.name and not release.is_shards]
    of_training = {name: result for name, result in facts.results.items() if _is_of_training(facts, result)}
    others = {name: result for name, result in facts.results.items() if name not in of_training}
    lines = [
        "---",
        "library_name: open_clip",
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        "- clip",
        *(["- dalip"] if facts.has_second_order else []),
        "license: other",
        "license_name: not-stated",
        *([f"base_model: {json.dumps(facts.base_model)}"] if facts.base_model else []),
        *(["datasets:"] if names else []),
        *(f"- {json.dumps(name)}" for name in names),
        "---",
        "",
        f"# {repository.rpartition('/')[2]}",
        "",
        _about(facts),
        "",
        "## What it learnt from",
        "",
        *_training(facts),
        "## How good it is",
        "",
        *_evaluation(others),
        *_fit(of_training),
        "## How to load it",
        "",
        *_loading(facts, repository),
        "## Limits",
        "",
        "- Figures on a held-out split are of pictures from the same sources as the training; others may be harder.",
        "- It ranks the names it is given, and always finds one likely. It was not taught to say that none fits.",
        "- Nobody measured it for biases, or on pictures of people.",
        *_licence(facts),
    ]
    if facts.has_second_order:
        lines.append("- open_clip loads the first-order feature alone, which can be weaker than both together.")
    return "\n".join([*lines, ""])


def _licence(facts: ModelFacts) -> Iterator[str]:
    began = f", and of {plain_markdown(facts.base_model)}, with which the training began," if facts.base_model else ""
    yield f"- Nobody stated a licence for these weights. Those of the training pictures{began} may bind their users."
    for release in facts.releases:
        if release.licences:
            most = sorted(release.licences.items(), key=lambda item: (-item[1], item[0]))
            words = ", ".join(f"{num:,} {plain_markdown(name)}" for name, num in most[:10])
            more = f" and {len(most) - 10} more" if len(most) > 10 else ""
            yield f"- Training pictures of {plain_markdown(release.name or '')} by licence: {words}{more}."


def _about(facts: ModelFacts) -> str:
    settings = facts.settings
    architecture = plain_markdown(Path(settings.model.architecture).stem)
    kind = "CLIP with a second-order branch (DALIP)" if facts.has_second_order else "CLIP"
    weights = {
        "raw": "those at the end of its training"
        if facts.summary
        else "those of the newest checkpoint of a run that is not finished",
        "folder": "those of an imported or exported model",
        "pretrained": "pretrained ones, without a step of training here",
    }[facts.weights]
    about = f"{kind} for pictures and texts, architecture {architecture}, preset {settings.model.preset}"
    return f"{about}. Weights: {weights}."


def _training(facts: ModelFacts) -> Iterator[str]:
    if not facts.releases:
        yield from ("No run is recorded beside these weights, so what they were trained on is not known here.", "")
        return
    summary = facts.summary
    if summary:
        yield f"{summary['steps']:,} steps, {summary['samples_seen']:,} samples seen ({summary['epochs']:.1f} epochs)."
    else:
        yield "The run was not finished when this was published."
    yield ""
    for release in facts.releases:
        if release.name is None:
            named = f"A release with fingerprint `{release.fingerprint}`, which was not there any more"
        else:
            what = "Shards of others," if release.is_shards else "Release"
            named = f"{what} {plain_markdown(release.name)} (fingerprint `{release.fingerprint}`)"
        if release.is_earlier:
            yield from (f"{named}: the run began with it and went on without it; how much it drew is not known.", "")
            continue
        if not release.drawn:
            yield from (f"{named}: its shares are not known.", "")
            continue
        yield from (f"{named}:", "", "| domain | share of the training | drawn from samples |", "|---|---:|---:|")
        for row in release.drawn:
            num = "not counted" if row["samples"] is None else f"{row['samples']:,}"
            yield f"| {markdown_cell(row['domain'])} | {row['share']:.2%} | {num} |"
        yield ""
        yield from _law(release.law)


def _law(law: Mapping[str, Any] | None) -> Iterator[str]:
    if law is None:
        yield from ("The release or the configuration gave the shares; no mixing law was fitted for them.", "")
        return
    intervals = law.get("interval") or {}
    yield from ("A mixing law fitted on proxy runs chose the shares:", "")
    yield from ("| domain | chosen share | 90 % interval of the optimum |", "|---|---:|---|")
    for domain, share in law["ratio"].items():
        low, high = intervals.get(domain, (None, None))
        interval = "not known" if low is None else f"{low:.4f} to {high:.4f}"
        yield f"| {markdown_cell(domain)} | {share:.4f} | {interval} |"
    yield ""


def _evaluation(results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    if not results:
        yield from ("It was not evaluated on pictures that it was not trained on.", "")
        return
    yield "Intervals are of 95 %; those of a classification draw classes anew, and pictures within them. Chance is what"
    yield "guessing reaches. Features: f is what open_clip loads, z the second order."
    yield from ("", *_tables(results))


def _fit(results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    if results:
        yield from ("## How well it fits the pictures it was trained on", "")
        yield from ("They say nothing of other pictures.", "", *_tables(results))


def _is_of_training(facts: ModelFacts, result: Mapping[str, Any]) -> bool:
    of_release = {*str(result.get("release_fingerprint")).split("+")} & {item.fingerprint for item in facts.releases}
    return bool(of_release) and result["split"] == facts.settings.data.split


def _tables(results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    for name, result in results.items():
        if "split" in result:
            split = f"Split {plain_markdown(result['split'])} of {plain_markdown(result['release'])}"
            yield f"{split}, {result['num_samples']:,} samples:"
        else:
            yield f"{plain_markdown(name)}:"
        yield from ("", *(f"- {plain_markdown(note)}" for note in result.get("seen_in_training", ())), "")
        yield from ("| measured | features | value | interval | chance | of |", "|---|---|---:|---|---:|---|")
        for label, kind, figure, note in figures_of(result):
            interval = f"{figure['low']:.1%} to {figure['high']:.1%}"
            yield (
                f"| {markdown_cell(label)} | {kind} | {figure['value']:.1%} | {interval} | {figure['chance']:.1%} "
                f"| {markdown_cell(note)} |"
            )
        yield ""


def _loading(facts: ModelFacts, repository: str) -> Iterator[str]:
    yield from ("With open_clip:", "", "```python", "import open_clip", "")
    yield f'model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repository}")'
    yield from (f'tokenizer = open_clip.get_tokenizer("hf-hub:{repository}")', "```", "")
    what = "all of it, f and z as one vector" if facts.has_second_order else "one vector a picture or text"
    yield from (f"With PlantMix, {what}:", "", "```python", "from huggingface_hub import snapshot_download")
    yield from ("from training.evaluation.encoder import Encoder", "")
    yield f'encoder = Encoder.open(snapshot_download("{repository}"))'
    yield 'scores = encoder.encode_pictures(["rose.jpg", "oak.jpg"]) @ encoder.encode_texts(["a photo of a rose."]).T'
    yield from ("```", "")
