"""The gain of a choice over mixtures that need no law, and the advice that follows."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.planning.choose import Choice, choose_mixture
from pipeline.planning.files import json_content, mixture_to_json
from pipeline.planning.gains import BEST_RUN, EQUAL, NATURAL, Gain, advise
from pipeline.planning.goals import Constraint, Goal
from pipeline.planning.laws import Law, fit_law
from pipeline.planning.limits import Limits
from pipeline.planning.reports import choice_report, fit_report
from pipeline.planning.runs.run_table import build_runs

POOLS = {"plant": 1e6, "general": 9e6}


def true_losses(shares: np.ndarray) -> np.ndarray:
    return np.stack([2 + 1.2 * np.exp(-3 * shares[..., 0]), 2 + 0.8 * np.exp(-4 * shares[..., 1])], axis=-1)


def law_of(first: list[float], noise: float = 0.0, **columns: list) -> Law:
    shares = np.stack([first, 1 - np.array(first)], axis=1)
    losses = true_losses(shares) + noise * np.random.default_rng(0).normal(size=shares.shape)
    columns |= {f"mix_{name}": shares[:, k].tolist() for k, name in enumerate(POOLS)}
    columns |= {f"loss_{name}": losses[:, k].tolist() for k, name in enumerate(POOLS)}
    return fit_law(build_runs(list(columns), columns, source="known.csv"))


def chosen_by(law: Law, **rest) -> Choice:
    return choose_mixture(law, Goal({"plant": 1.0, "general": 1.0}, num_sampled_laws=40, **rest))


def gains(choice: Choice) -> dict[str, Gain]:
    return {gain.rival: gain for gain in choice.gains}


@pytest.fixture(scope="module")
def law() -> Law:
    """Nine runs; the nearest to the optimum, a share of plant of about 0.6, misses it by 0.1."""
    return law_of([0.02, 0.1, 0.2, 0.3, 0.72, 0.8, 0.88, 0.93, 0.98])


def test_the_true_gain_lies_in_each_interval(law: Law) -> None:
    choice = chosen_by(law, limits=Limits(pools=POOLS))
    assert list(gains(choice)) == [BEST_RUN, NATURAL, EQUAL]
    truth = true_losses(choice.shares).sum()
    for gain in choice.gains:
        assert gain.low <= true_losses(gain.shares).sum() - truth <= gain.high
    assert_allclose(gains(choice)[NATURAL].shares, [0.1, 0.9])
    assert gains(choice)[NATURAL].low > 0, "losses without noise tell 0.1 of plant from 0.6"


def test_the_best_run_is_the_one_of_least_measured_objective_and_repeats_are_averaged() -> None:
    """The lucky repeat of a bad mixture is not the best run."""
    first = [0.02, 0.1, 0.2, 0.3, 0.6, 0.75, 0.8, 0.9, 0.98]
    law = law_of([*first, 0.02], seed=[*([1] * 9), 2])
    law.runs.loss_values[9] -= 0.6
    assert_allclose(gains(chosen_by(law))[BEST_RUN].shares, [0.6, 0.4])


def test_without_pools_there_is_no_natural_ratio(law: Law) -> None:
    assert list(gains(chosen_by(law))) == [BEST_RUN, EQUAL]


def test_a_rival_that_limits_or_constraints_forbid_is_left_out(law: Law) -> None:
    held = gains(chosen_by(law, limits=Limits(max_shares={"plant": 0.25})))
    assert list(held) == [BEST_RUN]
    assert_allclose(held[BEST_RUN].shares, [0.2, 0.8])
    kept = gains(chosen_by(law, constraints=(Constraint("general", 0.02, relative=True),)))
    assert kept[BEST_RUN].shares[0] < 0.35
    assert EQUAL not in kept
    none = chosen_by(law, limits=Limits(min_shares={"plant": 0.4}, max_shares={"plant": 0.45}))
    assert none.gains == ()
    assert none.advice.startswith("no run that was tried keeps the limits")


def test_a_choice_that_was_tried_gains_nothing(law: Law) -> None:
    only = {"plant": law.runs.shares[3, 0]}
    choice = chosen_by(law, limits=Limits(min_shares=only, max_shares=only))
    (gain,) = choice.gains
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)
    assert choice.advice == "the choice is the best run tried"


def test_noise_makes_the_interval_wider_and_the_advice_careful() -> None:
    first = [0.02, 0.15, 0.3, 0.45, 0.5, 0.6, 0.7, 0.85, 0.98]
    quiet, loud = (gains(chosen_by(law_of(first, noise)))[EQUAL] for noise in (0.001, 0.1))
    assert loud.high - loud.low > 3 * (quiet.high - quiet.low)
    assert chosen_by(law_of(first, 0.1)).advice.startswith("take the mixture of the best run tried")


@pytest.mark.parametrize(
    ("value", "half", "advice"),
    [
        (0.3, 0.2, "take the choice: it is better than the best run tried"),
        (0.2, 0.3, "take the mixture of the best run tried: the choice cannot be told from it; about 12 more runs may"),
        (0.02, 0.3, "take the mixture of the best run tried: the choice cannot be told from it"),
        (-0.1, 0.3, "take the mixture of the best run tried: the choice cannot be told from it"),
    ],
)
def test_the_advice_follows_the_interval(law: Law, value: float, half: float, advice: str) -> None:
    said = advise((Gain(BEST_RUN, np.array([0.3, 0.7]), value, value - half, value + half),), law)
    assert said.startswith(advice)
    assert ("more runs" in said) == ("more runs" in advice)


def test_report_and_file_say_it(law: Law) -> None:
    goal = Goal({"plant": 1.0, "general": 1.0}, limits=Limits(pools=POOLS), num_sampled_laws=40)
    choice = choose_mixture(law, goal)
    report = choice_report(law, goal, choice)
    assert "natural ratio" in report
    assert "plant 0.1000, general 0.9000" in report
    assert f"advice: {choice.advice}" in report
    values = json.loads(json_content(mixture_to_json(law, "0" * 64, "law.json", goal, choice)))
    assert values["advice"] == choice.advice
    assert [each["over"] for each in values["gains"]] == [BEST_RUN, NATURAL, EQUAL]
    assert values["gains"][1]["ratio"] == pytest.approx({"plant": 0.1, "general": 0.9})


def test_the_report_says_where_the_noise_was_measured_and_of_which_size_the_losses_are() -> None:
    first = [0.02, 0.1, 0.2, 0.3, 0.5, 0.72, 0.8, 0.9, 0.98, 0.5]
    law = law_of(first, noise=0.01, seed=[*range(10)], model_size=["tiny"] * 10)
    report = fit_report(law)
    assert "noise: standard deviation between runs that repeat plant 0.5000, general 0.5000" in report
    assert "coverage" not in report
    choice = chosen_by(law)
    assert "losses are those of models like the runs (tiny)" in choice_report(law, Goal({"plant": 1.0}), choice)
