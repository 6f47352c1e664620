"""The scale that makes probabilities true, the error that is left, and sums up the ranks, by hand and by simulation."""

from __future__ import annotations

import pytest
import torch

from training.evaluation.class_names import Taxon
from training.using.classifier import calibrate, calibration_error, fit_scale, rank_sums
from training.using.labels import Labels


def _drawn(scale: float, num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities, and labels drawn by softmax(scale x similarity): pictures of which `scale` is the truth."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.rand(num, 8, generator=generator) - 0.5
    return similarity, torch.multinomial((similarity * scale).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [2.0, 10.0, 40.0])
def test_the_true_scale_is_found(scale: float) -> None:
    assert fit_scale(*_drawn(scale, 20_000)) == pytest.approx(scale, rel=0.05)


def test_the_scale_has_the_least_loss() -> None:
    similarity, labels = _drawn(7.0, 500)
    found = fit_scale(similarity, labels)
    losses = [float(torch.nn.functional.cross_entropy(similarity.double() * found * factor, labels))
              for factor in (0.99, 1.0, 1.01)]  # fmt: skip
    assert losses[1] < min(losses[0], losses[2])


def test_an_overconfident_model_is_mended_on_pictures_that_it_was_not_fitted_to() -> None:
    similarity, labels = _drawn(10.0, 4_000)
    found = calibrate(similarity, labels, scale_before=80.0)
    assert found.error_before > 0.2
    assert found.error_after < 0.03
    assert found.scale == pytest.approx(10.0, rel=0.1)
    assert found.accuracy == pytest.approx(float((similarity.argmax(1) == labels).double().mean()))


def test_the_error_by_hand() -> None:
    """0.9 sure and right, 0.9 sure and wrong, 0.6 sure and right: (|1.8 - 1| + |0.6 - 1|) / 3."""
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert calibration_error(probabilities, torch.tensor([0, 0, 0])) == pytest.approx((0.8 + 0.4) / 3)


def test_labels_of_one_name_in_two_kingdoms_are_two_and_holes_add_to_none() -> None:
    def taxon(kingdom: str, genus: str) -> Taxon:
        return Taxon((kingdom, "", "", "", "", genus, "x"))

    given = [
        taxon("Plantae", "Ficus"),
        taxon("Animalia", "Ficus"),
        taxon("Plantae", "Ficus"),
        taxon("Plantae", ""),
        None,
    ]
    sums = rank_sums(Labels(tuple("abcde"), tuple(given), "species"))
    assert [part.rank for part in sums] == ["genus", "kingdom"]
    probabilities = torch.tensor([[0.1, 0.35, 0.2, 0.3, 0.05], [0.3, 0.4, 0.2, 0.1, 0.0]])
    numbers, values = sums[0].best(probabilities)
    assert values.tolist() == pytest.approx([0.35, 0.5])
    assert [sums[0].names[i] for i in numbers.tolist()] == ["Ficus", "Ficus"]
    assert numbers[0] != numbers[1]
    assert sums[1].best(probabilities)[1].tolist() == pytest.approx([0.6, 0.6])


def test_a_genus_is_one_where_some_of_its_labels_lack_the_kingdom() -> None:
    """As it was found: Fagus won with 0.284, since Quercus was parted into 0.26 and 0.26."""

    def taxon(kingdom: str, genus: str) -> Taxon:
        return Taxon((kingdom, "", "", "", "", genus, "x"))

    taxa = (taxon("Plantae", "Quercus"), taxon("", "Quercus"), taxon("Plantae", "Fagus"), taxon("", "Betula"))
    genus, _ = rank_sums(Labels(tuple("abcd"), taxa, "species"))
    numbers, values = genus.best(torch.tensor([[0.26, 0.26, 0.284, 0.196]]))
    assert [genus.names[i] for i in numbers.tolist()] == ["Quercus"]
    assert values.tolist() == pytest.approx([0.52])


@pytest.mark.parametrize("is_right", [True, False])
def test_pictures_that_are_all_right_or_all_wrong_have_no_scale(is_right: bool) -> None:
    """All right: the surer the likelier. All wrong: the less sure the likelier."""
    similarity_NK = torch.eye(4).repeat(5, 1) * 0.2
    labels_N = (similarity_NK if is_right else -similarity_NK).argmax(1)
    assert calibrate(similarity_NK, labels_N, scale_before=80.0).scale is None
