"""What a law may be off by between and beyond the runs: random smooth functions that the runs leave open.

A refit on disturbed runs stays a member of its form; where the truth is none of the forms, all refits err alike. A
departure is drawn from the posterior of the Gaussian process that was fitted to the same runs: near 0 where runs
are, as large as the process's doubt elsewhere. Reads and writes nothing. Axes: B departures, N runs, P points, Q
queries, K domains.

Source: Rasmussen and Williams 2006, section 2.2: with noise for a draw, without noise for its interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted
from pipeline.planning.forms import PROCESS

# Points at which a draw is made, besides the runs; elsewhere it is interpolated by the process's own kernel.
EXTRA_POINTS = 60
_JITTER = 1e-6


@dataclass(frozen=True)
class Departures:
    """B functions of the mixture: `weights_BP` times the covariance with `points_PK`."""

    process: Fitted  # one fit
    points: Array
    weights: Array

    def at(self, shares_QK: Array) -> Array:
        """Values in nats, shape B x Q; shares of shape B x Q x K give every departure mixtures of its own."""
        num_domains = shares_QK.shape[-1]
        covariance = PROCESS.covariance(self.process, shares_QK.reshape(-1, num_domains), self.points)[0]
        if shares_QK.ndim == 2:
            return np.asarray(self.weights @ covariance.T)
        own = covariance.reshape(*shares_QK.shape[:2], -1)
        return np.asarray((own @ self.weights[:, :, None])[:, :, 0])


def draw_departures(process: Fitted, scale_B: Array, most: float, rng: np.random.Generator) -> Departures:
    """One departure a scale from the posterior of one fitted Gaussian process; scale 1 is as large as its doubt.

    Doubt beyond `most` nats counts as `most`: on the public 3-domain runs, which leave out Pile-CC in none, the process
    holds a leap of half a nat at its share of 0 for possible, and every twentieth optimum would lie there.
    """
    if process.anchors is None:
        raise ValueError("a Gaussian process cannot be drawn from without its training shares")
    num_domains = process.anchors.shape[1]
    extra = rng.dirichlet(np.full(num_domains, 0.7), EXTRA_POINTS)
    points = np.unique(np.round(np.concatenate([process.anchors, extra]), 6), axis=0)
    covariance = PROCESS.posterior_covariance(process, points)[0]
    deviation = np.sqrt(np.maximum(np.diagonal(covariance), 1e-30))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) * np.minimum(1.0, most / deviation)[:, None]
    drawn = scale_B[:, None] * (rng.normal(size=(len(scale_B), len(points))) @ root.T)
    among = PROCESS.covariance(process, points, points)[0]
    among[np.diag_indices(len(points))] += _JITTER * float(np.trace(among)) / len(points)
    return Departures(process, points, np.linalg.solve(among, drawn.T).T)
