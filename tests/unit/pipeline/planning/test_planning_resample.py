from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.planning.departures import draw_departures
from pipeline.planning.forms import PROCESS
from pipeline.planning.laws import Law, fit_law
from pipeline.planning.resample import _disturbance, _noise, departing_share, resample
from pipeline.planning.runs import build_runs


def law_on(noise: float, seed: int = 0, num_runs: int = 14) -> Law:
    """Three domains, each loss falls with its own share and a little with the others'."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3), num_runs)
    losses = 1.5 + 1.2 * np.exp(-3.0 * shares @ (0.15 + 0.85 * np.eye(3))) + noise * rng.normal(size=(num_runs, 3))
    columns = {f"mix_{k}": shares[:, k].tolist() for k in range(3)}
    columns |= {f"loss_{k}": losses[:, k].tolist() for k in range(3)}
    return fit_law(build_runs(list(columns), columns, source="known.csv"))


@pytest.fixture(scope="module")
def noisy() -> Law:
    return law_on(0.02)


def with_doubt_share(law: Law, share: float) -> Law:
    return replace(law, columns=tuple(replace(column, doubt_share=share) for column in law.columns))


def test_one_wild_error_does_not_shake_every_run():
    own = np.ones(14, dtype=bool)
    own[-1] = False  # carried over from another size: no error of its own
    calm = _disturbance(np.full(13, 0.01), own)
    assert calm[:13] == pytest.approx(0.01 * np.sqrt(0.5 * (1.4826**2 + 1)))
    wild = _disturbance(np.r_[np.full(12, 0.01), 1.0], own)
    assert wild[:12] == pytest.approx(calm[:12])
    assert wild[12] < 3 * calm[12]
    assert wild[13] == pytest.approx(0.014826)


def test_the_noise_is_measured_without_the_share_of_the_fit():
    ours, held_out = [], []
    for seed in range(8):
        law = law_on(0.02, seed)
        for column in law.columns:
            ours.append(np.mean(_noise(law, column) ** 2))
            held_out.append(np.mean(column.residuals**2))
    assert np.sqrt(np.mean(ours)) == pytest.approx(0.02, rel=0.15)
    assert np.sqrt(np.mean(held_out)) > 0.023


def test_a_departure_is_as_large_as_the_doubt_and_no_larger_than_the_most(noisy):
    process = noisy.columns[0].whole[PROCESS.name]
    asked = np.random.default_rng(5).dirichlet(np.ones(3), 40)
    doubt = PROCESS.deviation(process, asked)[0]
    drawn = draw_departures(process, np.ones(4000), 10.0, np.random.default_rng(0)).at(asked)
    assert drawn.mean(axis=0) == pytest.approx(np.zeros(40), abs=0.1 * doubt.max())
    assert drawn.std(axis=0) == pytest.approx(doubt, rel=0.15)
    scaled = draw_departures(process, np.full(4000, 3.0), 10.0, np.random.default_rng(0)).at(asked)
    # sums of terms that cancel: a value near 0 is only as exact as the largest of them
    assert_allclose(scaled, 3.0 * drawn, rtol=0, atol=1e-9 * np.abs(drawn).max())
    held = draw_departures(process, np.ones(4000), float(np.median(doubt)), np.random.default_rng(0)).at(asked)
    assert held.std(axis=0).max() < 1.5 * np.median(doubt) < drawn.std(axis=0).max()


def test_departures_take_part_as_far_as_errors_follow_the_doubt(noisy):
    for share, num_departing in ((0.0, 0), (0.45, 10), (0.9, 40)):
        law = with_doubt_share(noisy, share)
        assert departing_share(law.columns[0]) == pytest.approx(num_departing / 40)
        laws = resample(law, ("0", "2"), 40, np.random.default_rng(0))
        for loss in ("0", "2"):
            parts = laws.by_loss[loss]
            assert sorted(np.concatenate([part.laws for part in parts])) == list(range(40))
            assert all(len(part.laws) for part in parts)
            departing = [part.laws for part in parts if part.departures is not None]
            assert [len(numbers) for numbers in departing] == ([num_departing] if num_departing else [])


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
def test_each_law_may_be_asked_for_mixtures_of_its_own(noisy, share):
    law = with_doubt_share(noisy, share)
    laws = resample(law, law.losses, 12, np.random.default_rng(0))
    asked = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    together = laws.losses("1", asked)
    apart = laws.losses("1", np.repeat(asked[None], 12, axis=0))
    assert together.shape == (12, 5)
    assert_allclose(apart, together, rtol=0, atol=1e-7)
    assert together.std(axis=0).min() > 1e-4
    again = resample(law, law.losses, 12, np.random.default_rng(0)).losses("1", asked)
    assert_allclose(again, together, rtol=0, atol=1e-9)
