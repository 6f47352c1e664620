"""Figures of an evaluation from similarities, each with its interval and its chance, as pure functions.

Features are L2-normalised rows; similarity is their inner product. Texts that read alike count as one text, so that an
image whose caption appears twice is not wrong for finding the other. Candidates with equal similarity are in random
order: a hit among them counts by its probability. So a model that tells nothing apart scores its chance, and two
classes of one name share their pictures. Gives up with RunError on numbers that are not finite, which have no order.

Shape letters: `N` images, `K` classes, `M` images of a class, `U` texts, `Q` queries, `C` their candidates (or the
width of features), `S` runs, `T` rounds of a bootstrap.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from manifests.errors import RunError
from manifests.names.equal import name_key

Figure = dict[str, Any]
_Values = np.ndarray[Any, Any]
_TIED = 2e-6  # squared distances of unit vectors that float32 cannot tell apart
_CONFIDENCE_Z = 1.959963984540054  # of the 95 % interval


def wilson_interval(hits: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share; ties make `hits` a fraction, which scipy's interval does not take.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = hits / trials, _CONFIDENCE_Z**2
    centre = share + z2 / (2 * trials)
    spread = _CONFIDENCE_Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_interval(values: _Values, rounds: int, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, by drawing entries anew with replacement; one round is held at a time."""
    rng = np.random.default_rng(seed)
    means = np.empty(rounds)
    for i in range(rounds):
        means[i] = values[rng.integers(0, len(values), len(values))].mean()
    return middle_95(means)


def crossed_bootstrap(values_SN: _Values, classes_N: _Values, rounds: int, *, seed: int = 0) -> tuple[_Values, _Values]:
    """Means that other runs, other classes and other pictures could have given, one a round, for an interval.

    `values_SN` holds a number for each run (seed) and picture; a single model is one row. A round draws runs anew,
    draws classes anew, and draws the pictures within each drawn class anew, all with replacement. Pictures of one class
    are alike, so drawing pictures alone gives intervals that are too narrow. Returns the mean over pictures and the
    mean over classes, each (rounds,).

    Source: Owen 2007, "The pigeonhole bootstrap" (runs crossed with pictures); Davison and Hinkley 1997, section 3.8
    (pictures within classes).
    """
    values_SN, rng = np.asarray(values_SN, dtype=np.float64), np.random.default_rng(seed)
    classes = np.unique(classes_N)
    num_runs, num_classes = len(values_SN), len(classes)
    runs_TS = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), rounds) / num_runs
    copies_TK = rng.multinomial(num_classes, np.full(num_classes, 1 / num_classes), rounds)
    total_T, pictures_T, means_T = np.zeros(rounds), np.zeros(rounds), np.zeros(rounds)
    for k, number in enumerate(classes):
        own_SM = values_SN[:, classes_N == number]
        size = own_SM.shape[1]
        # Each copy of the class draws as many pictures as it has.
        times_TM = rng.multinomial(copies_TK[:, k] * size, np.full(size, 1 / size))
        sum_T = (times_TM * (runs_TS @ own_SM)).sum(axis=1)
        total_T += sum_T
        pictures_T += copies_TK[:, k] * size
        means_T += sum_T / size
    return total_T / pictures_T, means_T / num_classes


def middle_95(values: _Values) -> tuple[float, float]:
    """Return the interval that leaves out 2.5 % of the values on each side."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def require_finite(values: Tensor, what: str) -> None:
    """Refuse rows that hold a NaN or an infinity; `what` names them in the message.

    Raises: RunError.
    """
    broken = int((~values.isfinite()).reshape(len(values), -1).any(dim=1).sum())
    if broken:
        raise RunError(
            f"{what}: {broken:,} of {len(values):,} are not finite, so nothing is measured; the weights are broken (a "
            "lower optimiser.lr or optimiser.clip_norm keeps them whole), or compute.precision is too narrow for them"
        )


def share_figure(hits: float, trials: int, chance: float) -> Figure:
    """Return a share with its interval and what guessing reaches; ties make `hits` a fraction."""
    low, high = wilson_interval(hits, trials)
    shown = int(hits) if float(hits).is_integer() else hits
    return {"value": hits / trials, "low": low, "high": high, "chance": chance, "hits": shown, "trials": trials}


@dataclass(frozen=True)
class Places:
    """Where the best right candidate of each of Q queries stands: how many wrong ones are better, and who is tied."""

    better: Tensor
    tied_wrong: Tensor
    tied_right: Tensor

    def hits(self, k: int) -> Tensor:
        """Probability that a right candidate is among the k best, ties in random order, (Q,) float64."""
        hits_Q = (self.better < k).double()
        for i in ((hits_Q > 0) & (self.tied_wrong > 0)).nonzero()[:, 0].tolist():
            right, wrong = int(self.tied_right[i]), int(self.tied_wrong[i])
            hits_Q[i] = chance_to_hit(right + wrong, right, k - int(self.better[i]))
        return hits_Q


def places_of(similarity_QC: Tensor, right_QC: Tensor) -> Places:
    """Where the right candidates stand; `right_QC` is true for them, and every query needs one.

    Raises: RunError for similarities that are not finite.
    """
    require_finite(similarity_QC, "similarities")
    best_Q1 = similarity_QC.masked_fill(~right_QC, -torch.inf).amax(dim=1, keepdim=True)
    tied_QC = similarity_QC == best_Q1
    return Places(
        (similarity_QC > best_Q1).sum(1),  # a right one is never better than the best right one
        (tied_QC & ~right_QC).sum(1),
        (tied_QC & right_QC).sum(1),
    )


@functools.lru_cache(maxsize=4096)
def chance_to_hit(total: int, right: int, drawn: int) -> float:
    """Probability that `drawn` of `total`, picked blindly, hold one of `right`: 1 - C(t-r, d) / C(t, d)."""
    if drawn > total - right:
        return 1.0
    ways = math.comb(total, drawn)
    return (ways - math.comb(total - right, drawn)) / ways


def classify(similarity_NK: Tensor, labels: Sequence[int], rounds: int) -> dict[str, Figure]:
    """Zero-shot figures of N images over K classes: top-1, top-5 (K > 5) and the mean over classes of top-1.

    Intervals draw classes anew, and pictures within them. Those of top-1 and top-5 are never narrower than if every
    picture had a class of its own (Wilson's), since a figure of 0 or 1 leaves nothing to draw from.

    Raises: RunError for similarities that are not finite.
    """
    num_images, num_classes = similarity_NK.shape
    labels_N = torch.as_tensor(labels, device=similarity_NK.device)
    places = places_of(similarity_NK, labels_N[:, None] == torch.arange(num_classes, device=labels_N.device))
    top1_N = places.hits(1)
    classes_N = labels_N.cpu().numpy()
    top1, drawn_per_class = top1_figure(top1_N.cpu().numpy(), classes_N, num_classes, rounds)
    figures = {"top1": top1}
    if num_classes > 5:
        top5_N = places.hits(5)
        drawn_top5, _ = crossed_bootstrap(top5_N.cpu().numpy()[None], classes_N, rounds)
        figures["top5"] = _widened(share_figure(float(top5_N.sum()), num_images, 5 / num_classes), drawn_top5)
    counts_K = torch.bincount(labels_N, minlength=num_classes)
    figures["top1"]["most_common_class"] = int(counts_K.max()) / num_images
    per_class = [float(top1_N[labels_N == k].mean()) for k in range(num_classes) if counts_K[k] > 0]
    low, high = middle_95(drawn_per_class)
    figures["mean_per_class"] = {
        "value": float(np.mean(per_class)), "low": low, "high": high, "chance": 1 / num_classes
    }  # fmt: skip
    return figures


def top1_figure(hits_N: _Values, classes_N: _Values, num_classes: int, rounds: int) -> tuple[Figure, _Values]:
    """Return the share of hits with its interval, and draws (rounds,) of its mean over classes."""
    drawn, drawn_per_class = crossed_bootstrap(hits_N[None], classes_N, rounds)
    return _widened(share_figure(float(hits_N.sum()), len(hits_N), 1 / num_classes), drawn), drawn_per_class


def _widened(figure: Figure, drawn: _Values) -> Figure:
    low, high = middle_95(drawn)
    return figure | {"low": min(figure["low"], low), "high": max(figure["high"], high)}


def retrieve(similarity_NN: Tensor, texts: Sequence[str], recall_at: Sequence[int]) -> dict[str, Figure]:
    """Recall at k both ways; row i of the similarity is image i, column i its own text.

    Image to text: the image's text among the k best distinct texts. Text to image: a distinct text finds one of
    its images among the k best images.

    Raises: RunError for similarities that are not finite.
    """
    keys = [name_key(text) for text in texts]
    columns: dict[str, int] = {}  # the first of each distinct text
    for i, key in enumerate(keys):
        columns.setdefault(key, i)
    number = {key: u for u, key in enumerate(columns)}
    label_N = torch.tensor([number[key] for key in keys], device=similarity_NN.device)
    right_NU = label_N[:, None] == torch.arange(len(columns), device=label_N.device)
    return _recalls(similarity_NN[:, list(columns.values())], right_NU, recall_at)


def retrieve_captions(
    similarity_NU: Tensor, image_of_text: Sequence[int], recall_at: Sequence[int]
) -> dict[str, Figure]:
    """Recall at k both ways where an image has several captions, as clip_benchmark counts it.

    `image_of_text` gives the image of each of the U captions. Image to text: any of the image's captions among the k
    best captions. Text to image: the caption's image among the k best images.

    Raises: RunError for similarities that are not finite.
    """
    owner_U = torch.as_tensor(image_of_text, device=similarity_NU.device)
    right_NU = torch.arange(len(similarity_NU), device=owner_U.device)[:, None] == owner_U
    return _recalls(similarity_NU, right_NU, recall_at)


def _recalls(similarity_NU: Tensor, right_NU: Tensor, recall_at: Sequence[int]) -> dict[str, Figure]:
    figures = {}
    for name, similarity_QC, right_QC in (
        ("image_to_text", similarity_NU, right_NU),
        ("text_to_image", similarity_NU.t(), right_NU.t()),
    ):
        places = places_of(similarity_QC, right_QC)
        num_queries, num_candidates = similarity_QC.shape
        num_right = right_QC.sum(1).tolist()
        for k in recall_at:
            chance = statistics.fmean(chance_to_hit(num_candidates, number, k) for number in num_right)
            figures[f"{name}_r{k}"] = share_figure(float(places.hits(k).sum()), num_queries, chance)
    return figures


def few_shot(features_NC: Tensor, labels: Sequence[int], shots: int, seeds: int, rounds: int) -> Figure | None:
    """Accuracy of the nearest centroid of `shots` examples a class, mean over `seeds` draws of the examples.

    Every image that is not drawn is a query. The mean of the drawn examples is taken off, all vectors are
    L2-normalised, and a class's centroid is the mean of its examples. Classes without an image left for a query are
    left out; None when fewer than two remain. The interval draws classes anew, and pictures within them; `seed_std` is
    the spread over the draws of examples.

    Raises: RunError for features that are not finite.

    Source: the protocol of BioCLIP (Stevens et al. 2024), which is SimpleShot's CL2N (Wang et al. 2019).
    """
    require_finite(features_NC, "features")
    number_N = np.asarray(labels)
    classes = [k for k in np.unique(number_N) if (number_N == k).sum() > shots]
    if len(classes) < 2:
        return None
    members = [np.flatnonzero(number_N == k) for k in classes]
    hits, tries = np.zeros(len(number_N)), np.zeros(len(number_N))
    accuracies = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, shots])
        drawn = [rng.permutation(rows) for rows in members]
        support = torch.from_numpy(np.concatenate([rows[:shots] for rows in drawn]))
        queries = np.concatenate([rows[shots:] for rows in drawn])
        target = np.repeat(np.arange(len(classes)), [len(rows) - shots for rows in drawn])
        nearest_QK = _nearest_centroids(features_NC, support, shots, torch.from_numpy(queries))
        right = nearest_QK[np.arange(len(target)), target] / nearest_QK.sum(1)
        hits[queries] += right
        tries[queries] += 1
        accuracies.append(right.mean())
    asked = tries > 0
    low, high = middle_95(crossed_bootstrap((hits[asked] / tries[asked])[None], number_N[asked], rounds)[0])
    return {
        "value": float(np.mean(accuracies)), "low": low, "high": high, "chance": 1 / len(classes),
        "seed_std": float(np.std(accuracies)), "seeds": seeds, "trials": int(asked.sum()), "num_classes": len(classes),
    }  # fmt: skip


def _nearest_centroids(features_NC: Tensor, support: Tensor, shots: int, queries: Tensor) -> NDArray[np.bool_]:
    """Which classes are the nearest of each query, up to rounding; `support` holds `shots` rows of each class."""
    mean_C = features_NC[support].mean(0)
    centred_SC = functional.normalize(features_NC[support] - mean_C, dim=-1)
    centroid_KC = centred_SC.view(-1, shots, features_NC.shape[1]).mean(1)
    query_QC = functional.normalize(features_NC[queries] - mean_C, dim=-1)
    square_QK = torch.cdist(query_QC, centroid_KC).square()
    nearest: NDArray[np.bool_] = (square_QK <= square_QK.amin(dim=1, keepdim=True) + _TIED).numpy()
    return nearest


def mean_figure(figures: Sequence[Figure]) -> Figure:
    """Return the mean of shares over evaluation sets, with its interval as if they were independent, within 0 to 1."""
    value = sum(figure["value"] for figure in figures) / len(figures)
    spread = math.sqrt(sum(((figure["high"] - figure["low"]) / 2) ** 2 for figure in figures)) / len(figures)
    chance = sum(figure["chance"] for figure in figures) / len(figures)
    low, high = max(0.0, value - spread), min(1.0, value + spread)
    return {"value": value, "low": low, "high": high, "chance": chance, "sets": len(figures)}


def loss_figure(losses: _Values, chance: float, rounds: int) -> Figure:
    """Return a mean loss with its bootstrap interval."""
    low, high = bootstrap_interval(losses, rounds)
    return {
        "value": float(losses.mean()), "low": low, "high": high, "chance": chance, "trials": len(losses)
    }  # fmt: skip
