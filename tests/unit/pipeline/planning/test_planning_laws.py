from __future__ import annotations

import hashlib
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from manifests.errors import ConfigError
from pipeline.commands.plan.tables import read_runs
from pipeline.planning.crossval import Weights, assign_folds, choose_weights, fit_folds, weighted_mean
from pipeline.planning.files import json_content, law_to_json, read_law
from pipeline.planning.forms.catalogue import EXPONENTIAL, FORMS, MEMBERS, REGULARISED_EXPONENTIAL
from pipeline.planning.forms.gaussian_process import GaussianProcess, _kernel, _likelihood
from pipeline.planning.forms.parametric import ExponentialLaw, PowerLaw
from pipeline.planning.intervals import jackknife_plus, relative_widths
from pipeline.planning.laws import bound_hits, fit_law
from pipeline.planning.limits import Box
from pipeline.planning.runs.run_table import RunsTable, build_runs
from pipeline.planning.search import cloud, minimise_score

DATA = Path(__file__).parent / "data"
LARGE = "model_size = '410M' AND step = 60000"


@pytest.fixture(scope="module")
def public() -> RunsTable:
    return read_runs(DATA / "3mix.csv", LARGE)


def table_of(shares: np.ndarray, losses: np.ndarray) -> RunsTable:
    columns = {f"mix_{k}": shares[:, k].tolist() for k in range(shares.shape[1])}
    columns |= {
        f"loss_{c}": [None if np.isnan(x) else x for x in losses[:, c].tolist()] for c in range(losses.shape[1])
    }
    return build_runs(list(columns), columns, source="made.csv")


def numeric_slopes(model, theta):
    slopes = []
    for p in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[p] = 1e-6
        slopes.append((model(theta + step)[0] - model(theta - step)[0]) / 2e-6)
    return np.stack(slopes, axis=2)


@pytest.mark.parametrize(("shared", "num_inner"), [(True, 1), (False, 3)])
def test_power_law_slopes_are_the_derivatives_also_at_zero_shares(shared, num_inner):
    law = PowerLaw("x", shared=shared)
    shares = np.array([[0.0, 0.4, 0.6], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    theta = np.random.default_rng(0).normal(size=(4, 6 + num_inner)) * 0.4
    model = law.model(shares)
    assert_allclose(model(theta)[1](), numeric_slopes(model, theta), atol=1e-6)


def test_exponential_slopes_are_the_derivatives():
    shares = np.array([[0.0, 1.0], [0.3, 0.7]])
    theta = np.random.default_rng(1).normal(size=(3, 3))
    model = ExponentialLaw().model(shares)
    assert_allclose(model(theta)[1](), numeric_slopes(model, theta), atol=1e-7)


def test_gaussian_process_slopes_are_the_derivatives():
    rng = np.random.default_rng(2)
    shares, z = rng.dirichlet(np.ones(3), 9), rng.normal(size=(2, 9))
    root_weight = np.array([[1.0] * 9, [1.0] * 8 + [0.0]])
    theta = np.log(np.array([[1.0, 0.7, 0.5, 0.6, 0.02], [2.0, 1.3, 0.4, 3.0, 0.1]]))
    objective, both = _likelihood(shares, z, root_weight), np.arange(2)
    _, downhill, _ = objective(theta, both)
    for p in range(5):
        step = np.zeros(5)
        step[p] = 1e-5
        above, below = objective(theta + step, both)[0], objective(theta - step, both)[0]
        assert_allclose(downhill[:, p], -(above - below) / 2e-5, rtol=1e-4, atol=1e-5)


def test_gaussian_process_equals_the_textbook_and_ignores_left_out_runs():
    process = GaussianProcess()
    rng = np.random.default_rng(3)
    shares, losses = rng.dirichlet(np.ones(3), 12), rng.normal(size=(1, 12))
    weights = np.ones((1, 12))
    weights[0, 4] = 0.0
    fit = process.fit(shares, losses, weights)
    kept = weights[0] > 0
    asked = rng.dirichlet(np.ones(3), 5)
    theta, scale = fit.arrays["theta"], fit.arrays["scale"][0]
    noise = np.exp(theta[0, 4])
    own = _kernel(theta, shares[kept], shares[kept])[0] + noise * np.eye(11)
    cross = _kernel(theta, asked, shares[kept])[0]
    z = (losses[0, kept] - fit.arrays["centre"][0]) / scale
    plain = fit.arrays["centre"][0] + scale * (cross @ np.linalg.solve(own, z))
    assert_allclose(process.predict(fit, asked)[0], plain, atol=1e-6)
    variance = np.diag(_kernel(theta, asked, asked)[0] - cross @ np.linalg.solve(own, cross.T))
    assert_allclose(process.deviation(fit, asked)[0], scale * np.sqrt(variance + noise), atol=1e-5)


def test_the_boundless_ridge_is_the_mean(public):
    losses, weights = public.loss_values.T, np.ones((3, 32))
    weights[:, :5] = 0.5
    fit = FORMS["mean"].fit(public.shares, losses, weights)
    expected = np.average(losses, axis=1, weights=weights[0])
    assert_allclose(FORMS["mean"].predict(fit, public.shares[:2]), np.repeat(expected[:, None], 2, axis=1), atol=1e-9)


def test_the_exponential_law_recovers_known_parameters():
    rng = np.random.default_rng(4)
    shares = rng.dirichlet(np.ones(4), 20)
    slope = np.array([-3.0, 0.2, -0.4, 0.1])
    losses = (1.7 + np.exp(shares @ slope))[None]
    form = ExponentialLaw()
    fit = form.fit(shares, losses, np.ones((1, 20)))
    asked = rng.dirichlet(np.ones(4), 50)
    assert_allclose(form.predict(fit, asked)[0], 1.7 + np.exp(asked @ slope), atol=5e-4)


def test_an_outlier_moves_the_law_little():
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(3), 20)
    losses = (1.7 + np.exp(shares @ np.array([-3.0, 0.2, -0.4])))[None]
    spoilt = losses.copy()
    spoilt[0, 3] += 1.0
    form = ExponentialLaw()
    asked = rng.dirichlet(np.ones(3), 50)
    clean = form.predict(form.fit(shares, losses, np.ones((1, 20))), asked)
    disturbed = form.predict(form.fit(shares, spoilt, np.ones((1, 20))), asked)
    assert np.abs(clean - disturbed).mean() < 0.03


def test_held_out_error_on_public_runs_is_below_every_published_form(public):
    published = (EXPONENTIAL, "additive")
    errors = {name: [] for name in ("chosen", "mean", *published)}
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(32)
        law, test = fit_law(public.take(order[:24])), public.take(order[24:])
        for c, column in enumerate(law.columns):
            truth = test.loss_values[:, c]
            errors["chosen"].append(np.abs(column.predict(test.shares)[0] - truth).mean())
            for name in ("mean", *published):
                guess = FORMS[name].predict(column.whole[name], test.shares)[0]
                errors[name].append(np.abs(guess - truth).mean())
    chosen = float(np.mean(errors["chosen"]))
    assert all(chosen < float(np.mean(errors[name])) for name in published)
    assert chosen < 0.65 * float(np.mean(errors[EXPONENTIAL]))
    assert chosen < 0.2 * float(np.mean(errors["mean"]))


@pytest.mark.parametrize("size", ["70M", "160M"])
def test_with_five_ratios_of_two_domains_it_errs_less_than_the_published_form(size):
    table = read_runs(DATA / "2mix.csv", f"model_size = '{size}' AND step = 30000")
    errors = []
    for left in range(5):
        law = fit_law(table.take(np.flatnonzero(np.arange(5) != left)))
        asked, truth = table.shares[[left]], table.loss_values[left]
        for c, column in enumerate(law.columns):
            published = FORMS[EXPONENTIAL].predict(column.whole[EXPONENTIAL], asked)[0]
            errors.append([abs(column.predict(asked)[0][0] - truth[c]), abs(published[0] - truth[c])])
    chosen, published = np.mean(errors, axis=0)
    assert chosen < 0.97 * published  # 0.94 and 0.89 measured


def weights_on(shares: np.ndarray, losses: np.ndarray) -> Weights:
    folded = fit_folds(shares, losses.T, np.ones_like(losses.T))
    return choose_weights(folded, shares, losses.T, np.ones_like(losses.T)).weights


def test_few_ratios_in_the_middle_take_the_regularised_exponential_alone():
    def weights(first_shares: list[float]) -> Weights:
        first = np.array(first_shares)
        return weights_on(np.stack([first, 1 - first], axis=1), 1.0 + np.exp(-2.0 * first[:, None]))

    alone = {REGULARISED_EXPONENTIAL: 1.0}
    assert weights([0.25, 0.4, 0.6, 0.75]) == alone
    assert weights([0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.8]) == alone  # a replicate is no mixture more
    assert REGULARISED_EXPONENTIAL not in weights([0.1, 0.4, 0.6, 0.75])
    assert REGULARISED_EXPONENTIAL not in weights(np.linspace(0.25, 0.75, 7).tolist())
    three = np.full((4, 3), 0.25) + 0.25 * np.eye(4, 3)
    three /= three.sum(axis=1, keepdims=True)
    assert REGULARISED_EXPONENTIAL not in weights_on(three, three[:, :1])


def test_weights_sum_to_one_and_follow_the_held_out_errors():
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(4), 24)
    truth = 1.5 + np.exp(shares @ np.array([-4.0, 0.0, 0.0, -0.5]))[:, None]
    steep = weights_on(shares, truth)
    assert sum(steep.values()) == pytest.approx(1.0)
    assert set(steep) <= set(MEMBERS)
    assert steep[EXPONENTIAL] > 0.95  # the truth is a member of this form
    noise = weights_on(shares, 2.0 + 0.1 * rng.normal(size=(24, 12)))
    assert noise["mean"] > 0.1 > steep.get("mean", 0.0)


def test_losses_decide_together_which_forms_count():
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(3), 12)
    clear = 1.5 + np.exp(shares @ np.array([-4.0, 0.0, 0.5]))
    unclear = 2.0 + 0.1 * rng.normal(size=12)
    law = fit_law(table_of(shares, np.stack([clear, unclear], axis=1)))
    assert law.columns[0].weights == law.columns[1].weights


def test_a_few_noisy_runs_bend_the_regularised_exponential_less():
    first = np.array([0.25, 0.4, 0.6, 0.75])
    shares = np.stack([first, 1 - first], axis=1)
    losses = 2.0 + np.exp(-3.0 * first) + 0.04 * np.random.default_rng(0).normal(size=(400, 4))
    asked, expected = np.array([[0.2, 0.8], [0.8, 0.2]]), 2.0 + np.exp([-0.6, -2.4])
    missed = {}
    for name in (EXPONENTIAL, REGULARISED_EXPONENTIAL):
        fit = FORMS[name].fit(shares, losses, np.ones_like(losses))
        missed[name] = np.abs(FORMS[name].predict(fit, asked) - expected).mean()
    assert missed[REGULARISED_EXPONENTIAL] < 0.9 * missed[EXPONENTIAL]  # 0.82 measured


def test_a_fit_with_cross_validation_of_every_form_is_quick(public):
    start = time.thread_time()
    law = fit_law(public)
    assert time.thread_time() - start < 2.0  # 0.22 s measured
    for column in law.columns:
        assert set(column.form_errors) == set(FORMS)
        assert column.error < 0.2 * column.form_errors["mean"]


@pytest.mark.slow
def test_hundreds_of_runs_of_many_domains_fit_in_little_memory():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(17, 0.3), 512)
    losses = 1.5 + (0.1 + shares**0.6 @ rng.uniform(0.05, 1.0, 17)) ** -0.5 + 0.01 * rng.normal(size=512)
    tracemalloc.start()
    law = fit_law(table_of(shares, losses[:, None]))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 250 * 2**20  # with a kernel for every fold 1.5 GiB
    assert law.columns[0].error < 0.02


def test_a_hundred_domains_can_be_planned():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(100, 0.3), 110)
    losses = 1.5 + np.exp(-3.0 * shares[:, :2].sum(axis=1)) + 0.3 * shares[:, 2:].sum(axis=1)
    table = table_of(shares, losses[:, None])
    assert len(table.domains) == 100
    fit = FORMS["gaussian_process"].fit(table.shares, table.loss_values.T, np.ones((1, 110)))
    box = Box(np.zeros(100), np.ones(100), ("",) * 100)
    best = minimise_score(
        lambda points: FORMS["gaussian_process"].predict(fit, points)[0],
        cloud(box, 1800, np.random.default_rng(0)),
        box,
    )
    assert best[:2].sum() > 0.9


def test_replicates_stay_in_one_fold_and_row_order_does_not_matter():
    shares = np.array([[0.1, 0.9], [0.5, 0.5], [0.1, 0.9], [0.7, 0.3], [1.0, 0.0]])
    folds, count = assign_folds(shares)
    assert count == 4
    assert folds[0] == folds[2]
    again, _ = assign_folds(shares[::-1])
    assert again[::-1].tolist() == folds.tolist()


def test_held_out_predictions_come_from_fits_that_never_saw_the_run(public):
    table = public.take(np.arange(12))
    losses = table.loss_values.T.copy()
    weights = np.ones_like(losses)
    before = fit_folds(table.shares, losses, weights)
    losses[:, 5] += 0.7
    after = fit_folds(table.shares, losses, weights)
    for name in FORMS:
        # a warm start from the fit on all runs may end a hair elsewhere, never 0.7 elsewhere
        assert np.abs(before.held_out[name][:, 5] - after.held_out[name][:, 5]).max() < 0.06, name


def test_unmeasured_losses_are_left_out_column_by_column(public):
    values = public.loss_values.copy()
    values[:6, 0] = np.nan
    law = fit_law(table_of(public.shares, values))
    assert len(law.columns[0].residuals) == 26
    assert len(law.columns[1].residuals) == 32
    alone = fit_law(table_of(public.shares[6:], values[6:]))
    asked = np.array([[0.3, 0.3, 0.4]])
    assert law.predict(asked)["0"][0] == pytest.approx(alone.predict(asked)["0"][0], abs=3e-3)


@pytest.mark.parametrize("num_domains", [2, 5, 7, 20])
def test_predictions_never_explode(num_domains):
    rng = np.random.default_rng(num_domains)
    shares = rng.dirichlet(np.ones(num_domains), num_domains + 1)
    losses = 2.0 + rng.normal(size=(num_domains + 1, 1)) * 0.3
    law = fit_law(table_of(shares, losses))
    asked = np.concatenate([np.eye(num_domains), rng.dirichlet(np.full(num_domains, 0.3), 50)])
    span = np.ptp(losses, axis=0)
    for c, (value, low, high) in enumerate(law.predict(asked).values()):
        assert np.isfinite([value, low, high]).all()
        assert (low <= value).all()
        assert (value <= high).all()
        assert value.min() > losses[:, c].min() - 2.0 * span[c]
        assert value.max() < losses[:, c].max() + 4.0 * span[c]


def test_pure_noise_is_called_no_better_than_the_mean():
    rng = np.random.default_rng(0)
    law = fit_law(table_of(rng.dirichlet(np.ones(3), 20), 2.0 + 0.1 * rng.normal(size=(20, 8))))
    assert sum(line.startswith("DO NOT TRUST the law of loss_") for line in law.warnings) >= 6  # chance foretells some
    shares = rng.dirichlet(np.ones(3), 12)
    flat = fit_law(table_of(shares, np.full((12, 1), 2.0)))
    assert any(line.startswith("DO NOT TRUST the law of loss_0") for line in flat.warnings)
    assert not bound_hits(flat.columns[0], shares).any()


def test_a_loss_that_never_moves_is_fitted_flat():
    rng = np.random.default_rng(0)
    law = fit_law(table_of(rng.dirichlet(np.ones(3), 12), np.full((12, 1), 2.5)))
    assert law.predict(np.eye(3))["0"][0] == pytest.approx([2.5] * 3)


def test_the_file_gives_identical_numbers_and_identical_bytes(public, tmp_path):
    law = fit_law(public)
    for name, one in (("a.json", law), ("b.json", fit_law(public))):
        (tmp_path / name).write_bytes(json_content(law_to_json(one)))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded, sha256 = read_law(tmp_path / "a.json")
    assert sha256 == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    assert law_to_json(loaded) == law_to_json(law)
    asked = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    for loss, three in law.predict(asked).items():
        for mine, theirs in zip(three, loaded.predict(asked)[loss], strict=True):
            assert_allclose(mine, theirs, rtol=0, atol=1e-9)  # the numbers are the same, their place in memory is not


def test_a_file_that_is_no_law_is_refused(tmp_path):
    path = tmp_path / "law.json"
    with pytest.raises(ConfigError, match="no such law"):
        read_law(path)
    path.write_text('{"format": "plantmix-law/99"}')
    with pytest.raises(ConfigError, match="plantmix-law/99"):
        read_law(path)
    path.write_text('{"format": "plantmix-law/5", "runs": {}}')
    with pytest.raises(ConfigError, match="damaged law file"):
        read_law(path)
    path.write_text("not json")
    with pytest.raises(ConfigError, match="not a law file"):
        read_law(path)


def test_bound_hits_are_reported():
    shares = np.stack([np.linspace(0.4, 1.0, 9), np.linspace(0.6, 0.0, 9)], axis=1)
    law = fit_law(table_of(shares, (1.0 + np.exp(-20.0 * shares[:, :1]) * 1e3)))
    column = law.columns[0]
    hit = bound_hits(column, np.array([[0.0, 1.0], [0.7, 0.3]]))
    assert hit[0]
    assert not hit[1]


def test_jackknife_plus_by_hand():
    by_fold = np.array([[1.0], [2.0], [3.0]])
    residual = np.full(19, 0.5)
    folds = np.arange(19) % 3
    low, high = jackknife_plus(by_fold, residual, folds, np.ones(1))
    assert low[0] == 0.5
    assert high[0] == 3.5


def test_between_two_ranks_an_interval_takes_what_lies_between():
    by_fold = np.zeros((1, 1))
    residual = np.arange(1.0, 13.0)  # rank 0.9 x 13 = 11.7 of 12
    low, high = jackknife_plus(by_fold, residual, np.zeros(12, dtype=np.intp), np.ones(1))
    assert high[0] == pytest.approx(11.7)
    assert low[0] == pytest.approx(-11.7)


def test_intervals_widen_with_the_uncertainty_of_the_process():
    widths = relative_widths(np.array([0.0, 1.0, 3.0]), 1.0)
    assert widths == pytest.approx([np.sqrt(0.5), 1.0, np.sqrt(5.0)])
    by_fold, residual, folds = np.zeros((1, 3)), np.full(19, 0.5), np.zeros(19, dtype=np.intp)
    assert jackknife_plus(by_fold, residual, folds, widths)[1] == pytest.approx(0.5 * widths)


def test_intervals_are_wide_where_the_loss_is_noisy_and_narrow_where_it_is_not():
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(3), 40)
    asked = rng.dirichlet(np.ones(3), 400)
    covered, widths = [], []
    for _ in range(8):
        truth, new = (1.0 + np.exp(-3.0 * at[:, 0]) for at in (shares, asked))
        noise, new_noise = (0.005 + 0.03 * (value - 1.05) for value in (truth, new))  # a high loss is a noisy one
        law = fit_law(table_of(shares, (truth + noise * rng.normal(size=40))[:, None]))
        _, low, high = law.predict(asked)["0"]
        drawn = new + new_noise * rng.normal(size=400)
        lowest, highest = new < np.quantile(new, 0.25), new > np.quantile(new, 0.75)
        covered.append([np.mean(((low <= drawn) & (drawn <= high))[part]) for part in (lowest, highest)])
        widths.append([np.mean((high - low)[part]) for part in (lowest, highest)])
    low_widths, high_widths = np.mean(widths, axis=0)
    assert high_widths > 1.6 * low_widths  # 1.0 times without a slope
    assert np.mean(covered) == pytest.approx(0.9, abs=0.06)


def test_errors_behind_the_intervals_do_not_owe_the_weights_to_themselves():
    rng = np.random.default_rng(3)
    shares, losses = rng.dirichlet(np.ones(2), 9), 2.0 + 0.1 * rng.normal(size=(12, 9))
    folded, counted = fit_folds(shares, losses, np.ones((12, 9))), np.ones((12, 9))
    choice = choose_weights(folded, shares, losses, counted)
    for run in (0, 4):
        others = counted.copy()
        others[:, run] = 0.0
        weights = choose_weights(folded, shares, losses, others).weights
        assert weights != choice.weights
        held_out = {name: predicted[:, run] for name, predicted in folded.held_out.items()}
        gap = np.abs(weighted_mean(held_out, weights) - losses[:, run])
        assert_allclose(choice.residuals[:, run], gap, rtol=0, atol=1e-12)


def test_a_loss_that_is_never_negative_gets_no_negative_interval():
    shares = np.stack([np.linspace(0.0, 1.0, 9), np.linspace(1.0, 0.0, 9)], axis=1)
    losses = np.where(shares[:, :1] == 0, 9.0, 0.05)
    law = fit_law(table_of(shares, losses))
    low = law.predict(shares)["0"][1]
    assert low.min() == 0.0
    shifted = fit_law(table_of(shares, losses - 1.0)).predict(shares)["0"][1]
    assert shifted.min() < -1.0


def test_intervals_cover_new_runs_of_a_known_law():
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(8):
        slope = rng.uniform(-4.0, 0.0, size=3)
        shares = rng.dirichlet(np.ones(3), 16)
        truth = 1.5 + np.exp(shares @ slope)
        law = fit_law(table_of(shares, (truth + 0.01 * rng.normal(size=16))[:, None]))
        asked = rng.dirichlet(np.ones(3), 60)
        new = 1.5 + np.exp(asked @ slope) + 0.01 * rng.normal(size=60)
        _, low, high = law.predict(asked)["0"]
        covered.append(np.mean((low <= new) & (new <= high)))
    assert 0.82 <= np.mean(covered) <= 0.99
