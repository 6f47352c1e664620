"""The forms by name, and which of them a law is a weighted mean of.

A form that is added here is cross-validated, reported and stored with the others. It has a name and two methods:
`fit` fits each row of losses under its own row of weights (0 leaves a run out; `warm` holds an earlier fit for each
row, to start from), and `predict` gives losses of shape F x Q. Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.forms.fitted import Fitted, as_losses, standardise
from pipeline.planning.forms.gaussian_process import GaussianProcess
from pipeline.planning.forms.parametric import ExponentialLaw, ParametricForm, PowerLaw


@dataclass(frozen=True)
class RidgeForm:
    """Linear ridge regression on the shares: the baseline that every law has to beat, and with it the plain mean.

    The penalty is in standardised units and does not touch the mean: a boundless one leaves the mean alone.
    """

    name: str
    penalty: float

    def fit(self, shares_NK: Array, losses_FN: Array, weights_FN: Array, warm: Fitted | None = None) -> Fitted:
        """Fit in closed form."""
        z, units = standardise(losses_FN, weights_FN)
        weighted = shares_NK.T[None] * weights_FN[:, None, :]
        normal = weighted @ shares_NK + self.penalty * np.eye(shares_NK.shape[1])
        slopes = np.linalg.solve(normal, weighted @ z[:, :, None])[:, :, 0]
        return Fitted({"theta": np.asarray(slopes, dtype=np.float64), **units})

    def predict(self, fitted: Fitted, shares_QK: Array) -> Array:
        """Losses, shape F x Q."""
        return as_losses(fitted, fitted.arrays["theta"] @ shares_QK.T)


MEAN = "mean"
EXPONENTIAL = "exponential"
REGULARISED_EXPONENTIAL = "regularised_exponential"
SHARED_EXPONENT = "shared_exponent"
PROCESS = GaussianProcess()

Form = RidgeForm | ParametricForm | GaussianProcess

_FIXED = (1.0, 1.0)
_ALL: tuple[Form, ...] = (
    RidgeForm(MEAN, penalty=1e12),
    RidgeForm("ridge", penalty=0.03),
    ExponentialLaw(EXPONENTIAL),
    ExponentialLaw(REGULARISED_EXPONENTIAL, noise=0.05, slope_sd=1.0),
    PowerLaw("effective_data", inner_centre=1.0, inner_range=_FIXED, outer_sd=1.0),
    PowerLaw(SHARED_EXPONENT),
    PowerLaw(
        "additive", huber=0.1, shared=False, inner_centre=0.7, inner_sd=0.4,
        outer_centre=1.0, outer_range=_FIXED, source_sd=3.0, floor_log_centre=-1.0,
    ),
    PROCESS,
)  # fmt: skip

FORMS: dict[str, Form] = {form.name: form for form in _ALL}
# What a law is a weighted mean of, and the weight of each before any run is seen. The three that erred least on public
# runs of 3, 5 and 7 domains count twice. The regularised exponential takes part in one case only, see
# `crossval.law_weights`: with zero shares among the runs it errs twice as much as the others.
MEMBERS: dict[str, float] = {
    MEAN: 1.0,
    "ridge": 1.0,
    EXPONENTIAL: 1.0,
    "effective_data": 1.0,
    SHARED_EXPONENT: 2.0,
    "additive": 2.0,
    PROCESS.name: 2.0,
}
