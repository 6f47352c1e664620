from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.commands.plan.tables import read_runs
from pipeline.planning.choose import choose_mixture, sample_optima
from pipeline.planning.crossval import predict_weighted
from pipeline.planning.goals import Goal, Scorer
from pipeline.planning.laws import ERROR_PART, LARGEST_CHANGE, Law, fit_law
from pipeline.planning.limits import Box
from pipeline.planning.runs.run_table import build_runs
from pipeline.planning.search import cloud, minimise_each, minimise_score

DATA = Path(__file__).parent / "data"


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


def test_sampled_laws_spread_by_a_part_of_the_held_out_errors(noisy):
    column = noisy.columns[1]
    assert column.num_folds == 14
    multipliers = np.random.default_rng(0).normal(size=(4000, 14))
    asked = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    values = column.sample_values(asked, multipliers)
    assert values.shape == (4000, 5)
    by_fold = np.stack([predict_weighted(column.folds, column.weights, asked)[g] for g in range(14)])
    changes = by_fold - by_fold.mean(axis=0)
    largest = LARGEST_CHANGE * np.median(column.residuals)
    jackknife = np.sqrt(13 / 14 * np.sum(np.clip(changes, -largest, largest) ** 2, axis=0))
    kept = column.fit_error / np.median(column.residuals)
    assert 0.1 < kept < 0.8
    assert_allclose(values.mean(axis=0), column.value(asked), atol=0.05 * jackknife.max())
    assert_allclose(values.std(axis=0), ERROR_PART / (1 - kept) * jackknife, rtol=0.1)


def test_a_scorer_with_multipliers_gives_every_law_a_loss_of_its_own(noisy):
    multipliers = np.random.default_rng(0).normal(size=(12, 14))
    asked = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    values = Scorer(noisy, Goal({"1": 1.0}), {"1": multipliers}).loss("1", asked)
    assert values.shape == (12, 5)
    assert_allclose(values, noisy.columns[1].sample_values(asked, multipliers), rtol=0, atol=1e-9)
    assert values.std(axis=0).min() > 1e-4


def test_a_lone_corner_that_no_other_run_predicts_does_not_move_every_sampled_optimum():
    law = fit_law(read_runs(DATA / "3mix.csv", "model_size = '410M' AND step = 60000"))
    column = law.column("Github")
    assert column.residuals.max() > 100 * np.median(column.residuals)  # the corner
    chosen = choose_mixture(law, Goal(dict.fromkeys(law.losses, 1.0)))
    assert 0.1 < chosen.interval[0, 0] < chosen.interval[0, 1] < 0.45


def test_sampled_optima_spread_with_the_noise():
    box = Box(np.zeros(3), np.ones(3), ("",) * 3)
    widths = []
    for noise in (0.0, 0.005, 0.05):
        law = law_on(noise)
        rng = np.random.default_rng(0)
        goal = Goal(dict.fromkeys(law.losses, 1.0), num_sampled_laws=40)
        optima = sample_optima(law, goal, cloud(box, 900, rng), box, rng)
        assert optima.shape == (40, 3)
        assert_allclose(optima.sum(axis=1), 1.0, atol=1e-9)
        widths.append(float(np.ptp(np.quantile(optima, [0.05, 0.95], axis=0), axis=0).mean()))
    assert widths[0] < 0.05 < widths[2]
    assert widths[0] < widths[1] < widths[2]


def test_optima_of_many_scores_are_as_good_as_those_searched_for_one_by_one():
    box = Box(np.zeros(12), np.ones(12), ("",) * 12)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (40, 12))

    def scores(shares: np.ndarray) -> np.ndarray:
        return weights @ np.exp(-4.0 * shares @ (0.1 + 0.9 * np.eye(12))).T

    points = cloud(box, 1800, np.random.default_rng(0))
    together = minimise_each(scores, points, box)
    for number in range(0, 40, 8):
        alone = minimise_score(lambda shares, row=number: scores(shares)[row], points, box)
        assert scores(together[[number]])[number, 0] < scores(alone[None])[number, 0] + 5e-3
