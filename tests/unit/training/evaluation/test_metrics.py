"""Figures against plain counting, known intervals, and chance by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import RunError
from training.evaluation import metrics
from training.evaluation.encoding import Encoded, similarity_of
from training.evaluation.outside_sets import shared_names
from training.model.presets import LossSettings
from training.tasks import contrastive
from training.tasks.task import make_task


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(hits: int, trials: int, low: float, high: float) -> None:
    assert metrics.wilson_interval(hits, trials) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        low, high = metrics.bootstrap_interval(rng.normal(3.0, 2.0, 60), 300, seed=i)
        covered += low <= 3.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_crossed_bootstrap_covers_a_mean_over_new_classes_and_runs_where_pictures_alone_do_not() -> None:
    """Pictures of a class share half of what happens to them, and so do the pictures of a run.

    With 8 runs the percentiles leave out a little too much: 0.95 is not quite reached.
    """
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(25), rng.integers(2, 14, 25))
    crossed = alone = 0
    for i in range(150):
        values = rng.normal(size=(8, 1)) + rng.normal(size=25)[classes] + rng.normal(size=(8, len(classes)))
        low, high = metrics.middle_95(metrics.crossed_bootstrap(values, classes, 200, seed=i)[0])
        crossed += low <= 0 <= high
        low, high = metrics.bootstrap_interval(values.mean(0), 200, seed=i)
        alone += low <= 0 <= high
    assert 0.82 <= crossed / 150 <= 0.99
    assert alone / 150 < 0.5


def test_the_crossed_bootstrap_of_pictures_without_classes_is_the_plain_one() -> None:
    """A single run, every picture a class of its own: the spread of the mean, by picture and by class."""
    values = np.random.default_rng(1).normal(size=80)
    by_picture, by_class = metrics.crossed_bootstrap(values[None], np.arange(80), 2000)
    assert by_picture.std() == pytest.approx(values.std() / 80**0.5, rel=0.1)
    assert by_picture.mean() == pytest.approx(values.mean(), abs=0.01)
    np.testing.assert_allclose(by_picture, by_class)


def test_the_crossed_bootstrap_draws_whole_classes_and_pictures_within_them() -> None:
    """A class of constant pictures gives its own value only, and a large class weighs more by picture than by class."""
    classes = np.array([7, 7, 7, 2])
    by_picture, by_class = metrics.crossed_bootstrap(np.array([[1.0, 1.0, 1.0, 0.0]]), classes, 400)
    assert set(np.unique(by_picture)) == {0.0, 0.75, 1.0}
    assert set(np.unique(by_class)) == {0.0, 0.5, 1.0}
    assert by_class.mean() == pytest.approx(0.5, abs=0.07)


def test_intervals_of_a_classification_widen_with_classes_that_are_all_right_or_all_wrong() -> None:
    """The same hits, spread over the classes or in whole classes."""
    labels = [k for k in range(10) for _ in range(10)]
    spread, whole = torch.zeros(100, 10), torch.zeros(100, 10)
    for i, label in enumerate(labels):
        spread[i, label if i % 2 else (label + 1) % 10] = 1.0
        whole[i, label if label % 2 else (label + 1) % 10] = 1.0
    figures = [metrics.classify(similarity, labels, 400)["top1"] for similarity in (spread, whole)]
    assert figures[0]["value"] == figures[1]["value"] == 0.5
    assert (figures[0]["low"], figures[0]["high"]) == pytest.approx(metrics.wilson_interval(50, 100), abs=0.04)
    assert figures[1]["high"] - figures[1]["low"] > 1.5 * (figures[0]["high"] - figures[0]["low"])


def test_one_vector_of_f_and_z_gives_the_weighted_sum_of_both_similarities() -> None:
    images, texts = Encoded(_features(7, 6, 0), _features(7, 6, 1)), Encoded(_features(9, 6, 2), _features(9, 6, 3))
    assert images.z is not None
    assert texts.z is not None
    vectors = [side.vectors("both", 0.3) for side in (images, texts)]
    assert [vector.shape for vector in vectors] == [(7, 12), (9, 12)]
    torch.testing.assert_close(vectors[0].norm(dim=1), torch.ones(7))
    expected = 0.3 * images.f @ texts.f.t() + 0.7 * images.z @ texts.z.t()
    torch.testing.assert_close(vectors[0] @ vectors[1].t(), expected)
    torch.testing.assert_close(similarity_of(images, texts, "both", 0.3), expected)


def _features(num: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(num, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 25), st.integers(1, 8), st.integers(0, 99))
def test_retrieval_equals_plain_counting(num_images: int, num_texts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [f"text {rng.integers(num_texts)}" for _ in range(num_images)]
    by_text = {text: _features(1, 6, 1000 + int(text.split()[1]))[0] for text in set(texts)}
    images, text_features = _features(num_images, 6, seed), torch.stack([by_text[text] for text in texts])
    similarity = images @ text_features.t()
    figures = metrics.retrieve(similarity, texts, (1, 3))
    distinct = sorted(set(texts))
    for k in (1, 3):
        hits = 0
        for i, text in enumerate(texts):
            order = sorted(distinct, key=lambda other: -float(similarity[i, texts.index(other)]))
            hits += text in order[:k]
        assert figures[f"image_to_text_r{k}"]["hits"] == hits
        hits = 0
        for text in distinct:
            order_i = sorted(range(num_images), key=lambda i: -float(similarity[i, texts.index(text)]))
            hits += any(texts[i] == text for i in order_i[:k])
        assert figures[f"text_to_image_r{k}"]["hits"] == hits
        assert figures[f"text_to_image_r{k}"]["trials"] == len(distinct)


def test_chance_is_what_guessing_reaches() -> None:
    """500 blind models on 40 images with 7 unevenly shared texts."""
    rng = np.random.default_rng(1)
    texts = [f"text {min(6, int(rng.exponential(2)))}" for _ in range(40)]
    reached: dict[str, list[float]] = {}
    for seed in range(500):
        columns = {text: i for i, text in enumerate(sorted(set(texts)))}
        blind = torch.rand(40, len(columns), generator=torch.Generator().manual_seed(seed))
        similarity = blind[:, [columns[text] for text in texts]]
        for name, figure in metrics.retrieve(similarity, texts, (1, 3)).items():
            reached.setdefault(name, []).append(figure["value"])
            reached.setdefault(f"{name} chance", []).append(figure["chance"])
    for name in ("image_to_text_r1", "image_to_text_r3", "text_to_image_r1", "text_to_image_r3"):
        assert np.mean(reached[name]) == pytest.approx(np.mean(reached[f"{name} chance"]), abs=0.02)


def test_a_dead_model_scores_nothing_beyond_its_chance() -> None:
    """Equal similarities everywhere: each candidate is as likely to come first, so every figure is its chance."""
    flat = torch.ones(12, 12)
    texts = [f"text {i % 7}" for i in range(12)]
    for figures in (
        metrics.retrieve(flat, texts, (1, 5)),
        metrics.classify(flat, [i % 5 for i in range(12)], 100),
        metrics.retrieve_captions(torch.zeros(8, 20), [text % 8 for text in range(20)], (1, 3)),
    ):
        for name, figure in figures.items():
            assert figure["value"] == pytest.approx(figure["chance"]), name


@pytest.mark.slow
def test_ties_count_what_drawing_their_order_gives() -> None:
    """Coarse similarities, full of ties: the mean over many random orders of the tied."""
    rng = np.random.default_rng(2)
    similarity = torch.from_numpy(rng.integers(0, 3, (10, 10)).astype(np.float32))
    texts = [f"text {i % 6}" for i in range(10)]
    columns = torch.tensor([texts.index(text) for text in texts])
    owners = [i % 10 for i in range(25)]
    captions = torch.from_numpy(rng.integers(0, 3, (10, 25)).astype(np.float32))

    def measure(seed: int | None) -> dict[str, float]:
        def drawn(values: torch.Tensor, salt: int) -> torch.Tensor:
            if seed is None:
                return values
            generator = torch.Generator().manual_seed(2 * seed + salt)
            return values + 0.5 * torch.rand(values.shape, generator=generator)

        paired = drawn(similarity[:, columns], 0)[:, columns]
        found = metrics.retrieve(paired, texts, (1, 3))
        found |= {f"c {k}": v for k, v in metrics.retrieve_captions(drawn(captions, 1), owners, (1, 3)).items()}
        found |= metrics.classify(drawn(similarity, 0), list(range(10)), 1)
        return {name: figure["value"] for name, figure in found.items()}

    expected = measure(None)
    draws = list(map(measure, range(1500)))
    mean = {name: np.mean([draw[name] for draw in draws]) for name in expected}
    assert expected == pytest.approx(mean, abs=0.02)


def test_two_classes_of_one_name_share_their_pictures() -> None:
    """A model that knows everything is right on half of the pictures of the two, as with the first of equal ones."""
    classes = _features(5, 16, 0)
    classes[1] = classes[0]
    labels = [0, 1, 2, 3, 4] * 4
    similarity = classes[labels] @ classes.t()
    similarity[:, 1] = similarity[:, 0]  # not left to the rounding of a product
    figures = metrics.classify(similarity, labels, 100)
    assert figures["top1"]["value"] == pytest.approx(0.8)
    assert figures["mean_per_class"]["value"] == pytest.approx(0.8)
    assert shared_names(["missile", "oak", "missile"]) == {"missile": [0, 2]}


def test_figures_of_numbers_that_are_not_finite_are_refused() -> None:
    """One NaN among the similarities would win every comparison, since none with it is true."""
    similarity = torch.eye(6)
    similarity[4, 2] = torch.nan
    texts, six = [f"text {i}" for i in range(6)], list(range(6))
    for measure in (
        lambda: metrics.classify(similarity, six, 100),
        lambda: metrics.retrieve(similarity, texts, (1,)),
        lambda: metrics.retrieve_captions(similarity, six, (1,)),
        lambda: metrics.few_shot(similarity, [0, 0, 0, 1, 1, 1], 1, 1, 100),
    ):
        with pytest.raises(RunError, match=r"1 of 6 are not finite"):
            measure()


def test_a_perfect_model_scores_everything() -> None:
    figures = metrics.classify(torch.eye(8), list(range(8)), 100)
    assert [figures[name]["value"] for name in ("top1", "top5", "mean_per_class")] == [1.0, 1.0, 1.0]
    assert figures["top1"]["chance"] == 1 / 8


def test_mean_per_class_weighs_classes_alike() -> None:
    similarity = torch.tensor([[1.0, 0.0]] * 9 + [[1.0, 0.0]])
    figures = metrics.classify(similarity, [0] * 9 + [1], 100)
    assert figures["top1"]["value"] == 0.9
    assert figures["top1"]["most_common_class"] == 0.9
    assert figures["mean_per_class"]["value"] == 0.5


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_chance_to_hit_is_a_probability(total: int, wanted: int, drawn: int) -> None:
    wanted, drawn = min(wanted, total), min(drawn, total)
    chance = metrics.chance_to_hit(total, wanted, drawn)
    assert 0 < chance <= 1
    assert metrics.chance_to_hit(total, wanted, 1) == pytest.approx(wanted / total)


def _pair_losses(images: torch.Tensor, texts: torch.Tensor, scale: float, batch_size: int) -> torch.Tensor:
    features = {"image_features": images, "text_features": texts, "logit_scale": torch.tensor(scale).to(images.dtype)}
    return make_task(LossSettings()).of_pairs(features, {}, batch_size)


def test_pair_losses_are_the_mean_contrastive_loss() -> None:
    images, texts = _features(20, 8, 0), _features(20, 8, 1)
    losses = _pair_losses(images, texts, 10.0, 6)
    assert len(losses) == 18
    logits = 10.0 * (images[6:12] @ texts[6:12].t())
    target = torch.arange(6)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.t(), target)) / 2
    assert float(losses[6:12].mean()) == pytest.approx(float(expected), abs=1e-6)
    assert len(_pair_losses(images, texts, 10.0, 64)) == 20
    loss, same = make_task(LossSettings()), torch.ones(8, 4) / 2
    flat = metrics.loss_figure(_pair_losses(same, same, 10.0, 4).numpy(), loss.chance(4), 100)
    assert flat["value"] == pytest.approx(flat["chance"]) == pytest.approx(math.log(4))


@pytest.mark.parametrize("scale", [1.0, 100.0, 5000.0])
def test_the_loss_of_a_large_batch_is_made_of_blocks(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to the whole matrix at once, also where exp would overflow."""
    monkeypatch.setattr(contrastive, "_BLOCK_PAIRS", 16)
    images, texts = _features(110, 8, 0).double(), _features(110, 8, 1).double()
    losses = _pair_losses(images, texts, scale, 50)
    for start in (0, 50):
        logits, target = scale * images[start : start + 50] @ texts[start : start + 50].t(), torch.arange(50)
        there, back = (
            torch.nn.functional.cross_entropy(side, target, reduction="none") for side in (logits, logits.t())
        )
        torch.testing.assert_close(losses[start : start + 50], (there + back) / 2, rtol=1e-12, atol=1e-9)


def test_a_mean_of_sets_has_an_interval_of_shares() -> None:
    """Half the widths in quadrature, over the number of sets; a share is neither below 0 nor above 1."""
    one, two = metrics.share_figure(40, 100, 0.1), metrics.share_figure(60, 100, 0.1)
    mean = metrics.mean_figure([one, two])
    half = (one["high"] - one["low"]) / 2
    assert mean["value"] == pytest.approx(0.5)
    assert mean["high"] - mean["value"] == pytest.approx(half / 2**0.5)
    assert metrics.mean_figure([metrics.share_figure(0, 5, 0.1)])["low"] == 0.0
    assert metrics.mean_figure([metrics.share_figure(5, 5, 0.1)])["high"] == 1.0


@pytest.mark.parametrize("form", ["sum_of_losses", "sum_of_similarities"])
@pytest.mark.parametrize("orders", [1, 2])
def test_the_validation_loss_is_the_training_loss_of_the_same_pairs(form: str, orders: int) -> None:
    """In both forms, with the second order or without."""
    names = ("image_features", "text_features", "image_second_order", "text_second_order")
    features = {name: _features(8, 6, seed) for seed, name in enumerate(names)}
    features = dict(list(features.items())[: 2 * orders]) | {"logit_scale": torch.tensor(9.0)}
    loss = make_task(LossSettings(form=form, first_order_weight=0.3))
    assert loss.of_pairs(features, {}, 8).mean() == pytest.approx(loss(features, {})["loss"].item(), rel=1e-5)


def test_few_shot_equals_the_protocol_written_out() -> None:
    """A loop over seeds, classes and queries, as the protocol's description reads."""
    rng = np.random.default_rng(3)
    labels = [0] * 9 + [1] * 6 + [2] * 3 + [3] * 2  # the last is too small for 2 shots
    features = rng.normal(size=(20, 5)) + 0.9 * rng.normal(size=(4, 5))[labels]
    figure = metrics.few_shot(torch.from_numpy(features), labels, shots=2, seeds=4, rounds=200)
    assert figure is not None
    accuracies = []
    for seed in range(4):
        draw = np.random.default_rng([seed, 2])
        orders = [draw.permutation(np.flatnonzero(np.asarray(labels) == k)) for k in range(3)]
        support = np.concatenate([order[:2] for order in orders])
        mean = features[support].mean(0)

        def unit(x: np.ndarray[Any, Any], mean: np.ndarray[Any, Any] = mean) -> np.ndarray[Any, Any]:
            return (x - mean) / np.linalg.norm(x - mean)

        centroids = [np.mean([unit(features[i]) for i in order[:2]], axis=0) for order in orders]
        right = [
            min(range(3), key=lambda k, i=i: np.linalg.norm(unit(features[i]) - centroids[k])) == c
            for c, order in enumerate(orders)
            for i in order[2:]
        ]
        accuracies.append(np.mean(right))
    assert figure["value"] == pytest.approx(np.mean(accuracies))
    assert figure["seed_std"] == pytest.approx(np.std(accuracies))
    assert (figure["num_classes"], figure["chance"], figure["seeds"]) == (3, pytest.approx(1 / 3), 4)
    assert figure["low"] < figure["value"] < figure["high"]
    assert metrics.few_shot(torch.from_numpy(features), labels, shots=7, seeds=1, rounds=100) is None


def test_few_shot_of_a_model_that_tells_nothing_apart_is_its_chance() -> None:
    """All features are one; the first class has most of the queries."""
    labels = [0] * 40 + [1] * 5 + [2] * 5
    one = np.random.default_rng(1).normal(size=(1, 64)).repeat(50, axis=0)
    features = torch.from_numpy(one / np.linalg.norm(one, axis=1, keepdims=True)).float()
    figure = metrics.few_shot(features, labels, shots=2, seeds=3, rounds=100)
    assert figure is not None
    assert figure["value"] == pytest.approx(figure["chance"]) == pytest.approx(1 / 3)


def test_retrieval_with_several_captions_equals_plain_counting() -> None:
    similarity = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 20)))
    owners = [text % 8 for text in range(20)]
    figures = metrics.retrieve_captions(similarity, owners, (1, 3))
    for k in (1, 3):
        to_text = [any(owners[t] == i for t in similarity[i].argsort(descending=True)[:k].tolist()) for i in range(8)]
        to_image = [owners[t] in similarity[:, t].argsort(descending=True)[:k].tolist() for t in range(20)]
        assert figures[f"image_to_text_r{k}"]["hits"] == sum(to_text)
        assert figures[f"text_to_image_r{k}"]["hits"] == sum(to_image)
    assert figures["text_to_image_r1"]["chance"] == 1 / 8
