"""The forms a law may take, by name, and the ensembles made of them.

Add a form here and it is cross-validated, reported and stored with the others. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.planning.baselines import LinearForm
from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted, Form
from pipeline.planning.gaussian_process import GaussianProcess
from pipeline.planning.implicit_domains import ImplicitDomains
from pipeline.planning.parametric import ExponentialLaw, PowerLaw

MEAN = "mean"
EXPONENTIAL = "exponential"
REGULARISED_EXPONENTIAL = "regularised_exponential"
IMPLICIT_DOMAINS = "implicit_domains"
SHARED_EXPONENT = "shared_exponent"
DEFAULT = "weighted_three"
AVERAGE = "average_of_three"
PROCESS = GaussianProcess()

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        LinearForm(MEAN, degree=0, penalty=1.0),
        LinearForm("ridge", degree=1, penalty=0.03),
        LinearForm("scheffe_quadratic", degree=2, penalty=0.03),
        ExponentialLaw(EXPONENTIAL),
        ExponentialLaw(REGULARISED_EXPONENTIAL, noise=0.05, slope_sd=1.0),
        ImplicitDomains(IMPLICIT_DOMAINS),
        PowerLaw("effective_data", shared=True, free_inner=False, free_outer=True, outer_sd=1.0),
        PowerLaw(SHARED_EXPONENT, shared=True, free_inner=True, free_outer=True),
        PowerLaw(
            "additive",
            shared=False,
            free_inner=True,
            free_outer=False,
            inner_centre=0.7,
            inner_sd=0.4,
            source_sd=3.0,
            floor_log_centre=-1.0,
            huber=0.1,
        ),
        PROCESS,
    )
}


THREE = (SHARED_EXPONENT, "additive", "gaussian_process")

ENSEMBLES: dict[str, tuple[str, ...]] = {
    DEFAULT: THREE,  # weighted by cross-validated error, see member_weights
    AVERAGE: THREE,
    "median_of_three": THREE,
}

CANDIDATES: tuple[str, ...] = (*FORMS, *ENSEMBLES)
# What cross-validation may take anywhere. The regularised exponential is for two domains tried in the middle only (see
# `crossval.pick_rule`): with zero shares among the runs it errs twice as much as the average of three.
ANYWHERE: tuple[str, ...] = tuple(name for name in CANDIDATES if name != REGULARISED_EXPONENTIAL)
# What may stand beside the chosen form when laws are drawn: not the one that bends to any runs.
RIVALS: tuple[str, ...] = tuple(name for name in ANYWHERE if name != IMPLICIT_DOMAINS)


def members_of(name: str) -> tuple[str, ...]:
    """The fitted forms that `name` needs: itself, or the members of an ensemble."""
    return ENSEMBLES.get(name, (name,))


def member_weights(errors: dict[str, float]) -> Array:
    """Weights of the three by the inverse square of their cross-validated errors, sum 1."""
    inverse = np.array([max(errors[name], 1e-9) for name in THREE]) ** -2.0
    result: Array = inverse / inverse.sum()
    return result


def combine_predictions(name: str, by_form: dict[str, Array], weights: Array) -> Array:
    """Predictions of `name` from those of its members; `weights` are those of the three for this loss column."""
    if name not in ENSEMBLES:
        return by_form[name]
    stacked = np.stack([by_form[member] for member in ENSEMBLES[name]])
    if name == "median_of_three":
        middle: Array = np.median(stacked, axis=0)
        return middle
    shares = weights if name == DEFAULT else np.full(len(stacked), 1.0 / len(stacked))
    result: Array = np.tensordot(shares, stacked, axes=1)
    return result


def predict_form(name: str, fits: Mapping[str, Fitted], weights: Array, shares_QK: Array) -> Array:
    """Predictions of a form or ensemble, shape F x Q."""
    by_form = {member: FORMS[member].predict(fits[member], shares_QK) for member in members_of(name)}
    return combine_predictions(name, by_form, weights)
