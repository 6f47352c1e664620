"""Pairs of one label in the loss: a double loop as oracle, several batches as one, and where labels come from."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import release_writer
import torch
from double_loop import expected_loss
from sigmoid_loss import Sigmoid
from torch import Tensor
from torch.nn.functional import normalize
from training_runs import make_settings, run_once

from manifests.errors import ConfigError
from manifests.services.open_clip_api import PreprocessCfg
from training.cli import main
from training.config import ZeroShotSettings
from training.data.columns import BatchColumns, Column, Kinds, Labels, SampleColumns, text_labels, txt_columns
from training.data.images import EvalView
from training.data.loader import SampleDataset, open_releases
from training.data.settings import TextSettings
from training.data.shards import SamplePool, open_pool
from training.evaluation.evaluate import class_texts, zero_shot_labels
from training.evaluation.metrics import retrieve
from training.model.large_batches import accumulate_backward
from training.model.presets import LossSettings
from training.record.log import read_log
from training.run.loop import train
from training.tasks.contrastive import Contrastive
from training.tasks.task import make_task
from training.using.labels import labels_of_release

LABELS = torch.tensor([3, 7, 3, 9, 7, 3, 1])
NAMES = ("image_features", "text_features", "image_second_order", "text_second_order")
FORMS = ("sum_of_losses", "sum_of_similarities")


def features_of(size: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    drawn = {name: torch.randn(size, 6, generator=generator, dtype=torch.float64) for name in NAMES}
    features = {name: normalize(value, dim=-1).requires_grad_() for name, value in drawn.items()}
    return features | {"logit_scale": torch.tensor(7.0, dtype=torch.float64, requires_grad=True)}


@pytest.mark.parametrize("same_label", ["negative", "masked", "positive"])
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_equal_a_double_loop(form: str, same_label: str) -> None:
    settings = LossSettings(form=form, same_label=same_label, first_order_weight=0.3)
    features, oracle = features_of(), features_of()
    losses = make_task(settings)(features, {"labels": LABELS})
    losses["loss"].backward()
    expected = expected_loss(oracle, settings, LABELS)
    expected.backward()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    for name, value in features.items():
        assert torch.allclose(value.grad, oracle[name].grad, rtol=0, atol=1e-12), name
    assert losses["same_label_share"].item() == pytest.approx((3 * 2 + 2 * 1) / (7 * 6))
    for name, weight in (("first_order_loss", 1.0), ("second_order_loss", 0.0)):
        alone = LossSettings(form="sum_of_losses", same_label=same_label, first_order_weight=weight)
        assert losses[name].item() == pytest.approx(expected_loss(oracle, alone, LABELS).item(), rel=1e-12)
    held_out = make_task(settings).of_pairs(features, {"labels": LABELS}, 7).mean()
    assert held_out.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_negative_is_the_loss_without_labels_to_the_bit() -> None:
    for form in FORMS:
        loss = make_task(LossSettings(form=form))
        with_labels, without = loss(features_of(), {"labels": LABELS}), loss(features_of(), {})
        assert {name: value.item() for name, value in without.items()} == {
            name: with_labels[name].item() for name in without
        }


def test_held_out_pairs_are_compared_in_blocks_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = features_of(12), torch.arange(12) % 3
    for form, same_label in itertools.product(FORMS, ("masked", "positive")):
        loss = make_task(LossSettings(form=form, same_label=same_label))
        whole = loss.of_pairs(features, {"labels": labels}, 6)
        monkeypatch.setattr("training.tasks.contrastive._BLOCK_PAIRS", 2)
        assert torch.allclose(loss.of_pairs(features, {"labels": labels}, 6), whole, rtol=1e-12)
        monkeypatch.undo()
        half = {name: value[6:] if value.ndim else value for name, value in features.items()}
        expected = loss(half, {"labels": labels[6:]})["loss"].item()
        assert whole[6:].mean().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("same_label", ["masked", "positive"])
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 2, 3)])
def test_accumulated_batches_equal_the_large_one(sizes: tuple[int, ...], same_label: str) -> None:
    loss, inputs = make_task(LossSettings(same_label=same_label)), features_of()
    whole, pieces = (torch.nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))
    pieces.load_state_dict(whole.state_dict())

    def forward(model: torch.nn.Linear, rows: slice) -> dict[str, Tensor]:
        drawn = {name: normalize(model(inputs[name][rows].detach()), dim=-1) for name in NAMES}
        return drawn | {"logit_scale": torch.tensor(7.0, dtype=torch.float64, requires_grad=True)}

    expected = loss(forward(whole, slice(0, 7)), {"labels": LABELS})
    expected["loss"].backward()
    ends = [0, *itertools.accumulate(sizes)]
    losses = accumulate_backward(
        lambda i: forward(pieces, slice(ends[i], ends[i + 1])), len(sizes), partial(loss, columns={"labels": LABELS})
    )
    assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)
    assert losses["same_label_share"] == expected["same_label_share"]
    assert torch.allclose(pieces.weight.grad, whole.weight.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("same_label", ["masked", "positive"])
def test_a_sigmoid_loss_reads_the_same_labels(same_label: str) -> None:
    settings = LossSettings(form="sigmoid_loss:Sigmoid", same_label=same_label)
    features = features_of() | {"logit_bias": torch.tensor(-3.0).double()}
    logits = 7 * features["image_features"] @ features["text_features"].t() - 3
    total = 0.0
    for i, j in itertools.product(range(7), repeat=2):
        alike = bool(LABELS[i] == LABELS[j])
        if i != j and alike and same_label == "masked":
            continue
        total += math.log1p(math.exp(-logits[i, j].item() * (1 if alike else -1)))
    assert make_task(settings)(features, {"labels": LABELS})["loss"].item() == pytest.approx(total / 7, rel=1e-12)


def test_a_loss_that_reads_no_labels_refuses_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sigmoid, "takes_labels", False)
    settings = LossSettings(form="sigmoid_loss:Sigmoid", same_label="masked")
    with pytest.raises(ConfigError, match=r"same_label: masked has no effect on loss\.form sigmoid_loss:Sigmoid"):
        make_task(settings)


# -- where labels come from


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> SamplePool:
    """Oaks and mulberries whose species columns hold the epithet alone, a binomial or nothing; one is a caption."""
    rows = [
        ("a photo of Quercus alba.", "sci", "Quercus", "alba", "tree"),
        ("Quercus alba.", "sentence", "", "Quercus alba", "tree"),
        ("a photo of Morus alba.", "sci", "Morus", "alba", "tree"),
        ("a photo of Quercus.", "sci", "Quercus", "", ""),
        ("an oak in the snow", "caption", "Quercus", "alba", ""),
        ("a red bus", "caption", "", "", "car"),
        ("a red bus", "caption", "", "", "car"),
    ]
    samples = [
        release_writer.Sample(str(i), release_writer.draw_picture("red", "circle", i), text, category=category)
        for i, (text, _, _, _, category) in enumerate(rows)
    ]
    more = {
        release_writer.sample_id("toy", str(i)): {"text_type": kind, "taxon_genus": genus, "taxon_species": species}
        for i, (_, kind, genus, species, _) in enumerate(rows)
    }
    folder = release_writer.write_release(tmp_path_factory.mktemp("labels") / "r", samples, more=more)
    return open_pool(open_releases(str(folder)), "train")


def alike(pool: SamplePool, labels: Tensor) -> set[tuple[int, ...]]:
    """Groups of two and more samples with one label, by their numbers."""
    numbers = {release_writer.sample_id("toy", str(i)): i for i in range(len(pool))}
    number_of = [numbers[sample] for sample in pool.table["sample_id"].to_pylist()]
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(number_of[row])
    return {tuple(sorted(group)) for group in groups.values() if len(group) > 1}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("text", {(5, 6)}),
        ("species", {(0, 1, 4)}),
        ("taxon_species", {(0, 1, 4)}),
        ("genus", {(0, 3, 4)}),
        ("taxon", {(0, 1), (5, 6)}),
        ("extra.category", {(0, 1, 2), (5, 6)}),
        ("domain", {(0, 1, 2, 3, 4, 5, 6)}),
    ],
)
def test_samples_with_equal_values_share_a_label(field: str, expected: set[Any], pool: SamplePool) -> None:
    assert alike(pool, txt_columns(pool, {"labels": Labels(field)})["labels"]) == expected
    assert alike(pool, drawn(pool, Labels(field), ("txt",), 0)) == expected


def test_oaks_and_mulberries_are_two_species_for_every_reader(pool: SamplePool) -> None:
    """The classes of `predict --taxa` and of zero-shot, of a release whose table holds the epithet alone."""
    release = open_releases(pool.paths[0])[0]
    assert labels_of_release(release, "species").names == ("Morus alba", "Quercus alba")
    task = ZeroShotSettings(field="taxon_species", text="scientific", min_per_class=1)
    samples = SampleColumns(release, "train")
    classes, members = zero_shot_labels(pool, samples, task)
    assert class_texts(samples, classes, members, task) == classes == ["Morus alba", "Quercus alba"]
    assert len(members) == 4
    assert release.samples("train", ["taxon_species"]).column_names == ["taxon_species"]


def drawn(
    pool: SamplePool, column: Column, members: tuple[str, ...], number: int, texts: list[str] | None = None
) -> Tensor:
    """A column of every row, in a batch where the text of that number was drawn."""
    rows = torch.arange(len(pool))
    columns = BatchColumns(pool, {"column": column}, members)
    return columns.of(rows, torch.full_like(rows, number), text_labels(texts or texts_of(pool)))["column"]


def texts_of(pool: SamplePool) -> list[str]:
    table = open_releases(pool.paths[0])[0].samples("train")
    return table.sort_by([("shard", "ascending"), ("position", "ascending")])["text"].to_pylist()


def test_a_drawn_name_speaks_of_the_taxon_and_a_caption_of_itself(pool: SamplePool) -> None:
    """Where `sci` is drawn, also a sample whose `txt` is a caption has the label of its taxon."""
    texts = [str(i) for i in range(len(pool))]
    assert (0, 1, 4) in alike(pool, drawn(pool, Labels("taxon"), ("txt", "sci"), 1, texts))
    assert alike(pool, drawn(pool, Labels("taxon"), ("txt", "sci"), -1, texts)) == {(0, 1)}
    assert not alike(pool, drawn(pool, Labels("taxon"), ("txt", "trait"), 1, texts))


@pytest.mark.parametrize(
    ("kinds", "members", "number", "expected"),
    [
        (("taxon", "caption"), ("txt",), 0, [0, 0, 0, 0, 1, 1, 1]),
        (("caption", "taxon"), ("txt", "sci"), 1, [1] * 7),
        (("caption", "taxon"), ("txt", "sci"), -1, [1, 1, 1, 1, 0, 0, 0]),
        (("taxon", "plant"), ("txt",), 0, [1] * 7),
        (("taxon", "trait", "caption"), ("txt", "trait_2"), 1, [1] * 7),
        (("taxon", "caption"), ("txt", "trait"), 1, [1] * 7),
        (("taxon", "caption"), ("txt", "extra_caption_1"), 1, [1] * 7),
    ],
)
def test_the_kind_of_a_text_is_its_domain_or_what_it_names(
    kinds: tuple[str, ...], members: tuple[str, ...], number: int, expected: list[int], pool: SamplePool
) -> None:
    numbers = drawn(pool, Kinds(kinds), members, number).tolist()
    ids = pool.table["sample_id"].to_pylist()
    by_id = dict(zip(ids, numbers, strict=True))
    assert [by_id[release_writer.sample_id("toy", str(i))] for i in range(7)] == expected


def test_samples_without_a_kind_are_named(pool: SamplePool) -> None:
    words = r"model\.projectors: 3 of 7 samples of split 'train' have none of the kinds taxon, general; first: .*plant"
    with pytest.raises(ConfigError, match=words):
        BatchColumns(pool, {"kind": Kinds(("taxon", "general"))}, ("txt",))


def test_texts_that_are_equal_but_for_their_spelling_are_one_everywhere(tmp_path: Path) -> None:
    """In the labels of a training, of held-out pairs, of a field, and in retrieval."""
    texts = ["Rose", "rose", " ROSE", "Alo\u00e9", "Aloe\u0301", "tulip"]
    samples = [
        release_writer.Sample(str(i), release_writer.draw_picture("red", "circle", i), text, category=text)
        for i, text in enumerate(texts)
    ]
    pool = open_pool(open_releases(str(release_writer.write_release(tmp_path / "r", samples))), "train")
    expected = {(0, 1, 2), (3, 4)}
    view = EvalView(PreprocessCfg(size=32, mode="RGB"))
    dataset = SampleDataset(pool, view, lambda texts: torch.zeros(len(texts), 4), TextSettings(), 0)
    batch = dataset.load([(0, row) for row in range(6)])
    trained = BatchColumns(pool, {"labels": Labels("text")}, ("txt",)).of(batch.rows, batch.members, batch.texts)
    assert alike(pool, trained["labels"]) == expected
    for field in ("text", "extra.category"):
        assert alike(pool, txt_columns(pool, {"labels": Labels(field)})["labels"]) == expected
    found = retrieve(torch.eye(6).roll(1, 0), texts, (1,))["image_to_text_r1"]
    assert found["hits"] == 3, "each picture finds the text before its own, as the only one of its spelling or not"


def test_a_batch_that_masking_leaves_no_negatives_is_said_once(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [dataclasses.replace(sample, text="A rose") for sample in release_writer.drawn_samples(36, 0)]
    values = config | {"release": str(release_writer.write_release(tmp_path / "roses", samples))}
    run_once(values, loss={"same_label": "masked"}, schedule={"steps": 2}, eval={"split": None, "zero_shot": []})
    note = "loss.same_label: masked: all pairs of a batch share one label of 'text', so the loss is 0"
    assert capsys.readouterr().err.count(note) == 1
    (event,) = read_log(Path(config["output_dir"]) / "log.jsonl", "note")
    assert (event["step"], event["note"][: len(note)]) == (1, note)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"label_field": "extra.kind"}, r"loss\.label_field: no sample has extra\.kind; write extra\.category"),
        ({"label_field": "kind"}, r"loss\.label_field: the release has no field 'kind'; it has extra\.KEY and"),
        ({"label_field": "family"}, r"loss\.label_field: no sample of split 'train' has a value of 'family'"),
        ({"label_field": "taxon", "same_label": "masked"}, r"loss\.label_field: the release has no field 'text_type'"),
    ],
)
def test_a_field_that_is_not_there_is_named(loss: dict[str, str], words: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make_settings(config, loss=loss))
    assert not (Path(config["output_dir"]) / "run.json").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_counts_the_pairs_of_its_batches(accumulate: int, config: dict[str, Any]) -> None:
    """12 texts: the share in the log, from the rows that were drawn; validation and `eval` read labels too."""
    config["eval"]["every_steps"] = 3
    seen: list[Tensor] = []
    original = BatchColumns.of

    def kept(self: BatchColumns, *batch: Tensor) -> dict[str, Tensor]:
        values = original(self, *batch)
        seen.extend([values["labels"]] if len(values["labels"]) <= 12 else [])  # not the 36 that are held out
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchColumns, "of", kept)
        run_once(
            config,
            loss={"same_label": "positive", "label_field": "extra.category"},
            compute={"accumulate": accumulate},
            schedule={"steps": 3},
        )
    steps = read_log(Path(config["output_dir"]) / "log.jsonl", "step")
    labels = torch.cat(seen).view(3, 12)
    pairs = [(row[:, None] == row).sum().item() - 12 for row in labels]
    assert [line["same_label_share"] for line in steps] == pytest.approx([num / (12 * 11) for num in pairs])
    assert sum(pairs) > 0
    stored = json.loads((Path(config["output_dir"]) / "run.json").read_text())["identity"]["loss"]
    assert stored["same_label"] == "positive"


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("form", "same_label"), [("sum_of_losses", "masked"), ("sum_of_similarities", "positive")])
def test_batches_of_one_domain_have_the_loss_of_the_double_loop(
    form: str, same_label: str, accumulate: int, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 texts a domain, so that each batch of 12 has pairs of one label."""
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    original = Contrastive.__call__

    def kept(self: Contrastive, features: dict[str, Tensor], columns: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = original(self, features, columns)
        seen.append(({name: value.detach().double() for name, value in (features | columns).items()}, losses))
        return losses

    monkeypatch.setattr(Contrastive, "__call__", kept)
    run_once(
        config,
        data={"batches": "one_domain", "mixture": {"plant": 0.5, "general": 0.5}},
        loss={"form": form, "same_label": same_label},
        compute={"accumulate": accumulate},
        schedule={"steps": 2},
    )
    assert len(seen) == 2
    for features, losses in seen:
        labels = features["labels"].long()
        assert len(labels) == 12
        assert losses["same_label_share"].item() > 0.05
        expected = expected_loss(features, LossSettings(form=form, same_label=same_label), labels)
        assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_evaluation_elsewhere_says_that_labels_are_missing(config: dict[str, Any], tmp_path: Path) -> None:
    """A release without the field is measured all the same: its validation loss takes other pairs for negatives."""
    loss = {"same_label": "masked", "label_field": "extra.category"}
    run_once(config, loss=loss, schedule={"steps": 1})
    samples = [dataclasses.replace(sample, category="") for sample in release_writer.drawn_samples(4, 24)]
    release = release_writer.write_release(tmp_path / "elsewhere", samples)
    (tmp_path / "measures.yaml").write_text("split: heldout\nbatch_size: 12\nretrieval: false\n")
    options = ["--release", str(release), "--settings", str(tmp_path / "measures.yaml")]
    assert main(["eval", config["output_dir"], *options, "--out", str(tmp_path / "figures.json")]) == 0
    result = json.loads((tmp_path / "figures.json").read_text())
    assert any("takes every other pair for a negative (loss.label_field: no sample" in note for note in result["notes"])
    assert result["validation_loss"]["all"]["value"] > 0
