from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.planning.choose import sample_optima
from pipeline.planning.forms.catalogue import PROCESS
from pipeline.planning.goals import Goal, Scorer
from pipeline.planning.laws import Law, fit_law
from pipeline.planning.limits import Box
from pipeline.planning.runs.run_table import build_runs
from pipeline.planning.search import cloud


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


def noise_free_deviation(law: Law, asked: np.ndarray) -> np.ndarray:
    process = law.columns[0].whole[PROCESS.name]
    noise = process.arrays["scale"][0] ** 2 * np.exp(process.arrays["theta"][0, 4])
    return np.sqrt(PROCESS.deviation(process, asked)[0] ** 2 - noise)


def test_random_functions_are_as_large_as_the_deviation_of_the_process(noisy):
    process = noisy.columns[0].whole[PROCESS.name]
    asked = np.random.default_rng(5).dirichlet(np.ones(3), 40)
    deviation = noise_free_deviation(noisy, asked)
    drawn = PROCESS.sample(process, 4000, np.random.default_rng(0)).at(asked)
    assert drawn.mean(axis=0) == pytest.approx(np.zeros(40), abs=0.1 * deviation.max())
    assert drawn.std(axis=0) == pytest.approx(deviation, rel=0.15)


def test_random_functions_of_a_law_are_as_large_as_its_held_out_errors_say(noisy):
    column = noisy.columns[0]
    asked = np.random.default_rng(5).dirichlet(np.ones(3), 40)
    errors = column.sample_errors(400, np.random.default_rng(0)).at(asked)
    plain = PROCESS.sample(column.whole[PROCESS.name], 400, np.random.default_rng(0)).at(asked)
    relative = np.median(column.residuals / (column.residual_widths * column.typical_deviation))
    assert_allclose(errors, 1.4826 * relative * plain, rtol=0, atol=1e-9 * np.abs(plain).max())


def test_a_scorer_with_functions_gives_every_law_a_loss_of_its_own(noisy):
    functions = noisy.columns[1].sample_errors(12, np.random.default_rng(0))
    asked = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    values = Scorer(noisy, Goal({"1": 1.0}), {"1": functions}).loss("1", asked)
    assert values.shape == (12, 5)
    assert_allclose(values - noisy.columns[1].value(asked), functions.at(asked), rtol=0, atol=1e-9)
    assert values.std(axis=0).min() > 1e-4


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
