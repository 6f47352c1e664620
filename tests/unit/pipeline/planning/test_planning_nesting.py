from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ConfigError
from pipeline.planning.laws import fit_law
from pipeline.planning.nesting import nest_runs, require_one_setting
from pipeline.planning.runs import RunsTable, build_runs, read_runs
from pipeline.planning.size_maps import affine_map

DATA = Path(__file__).parent / "data"


def test_a_table_of_several_settings_is_refused_with_a_way_out():
    table = read_runs(DATA / "3mix.csv")
    with pytest.raises(ConfigError) as caught:
        require_one_setting(table)
    message = str(caught.value)
    assert "model_size 410M, step 60000: 32 runs" in message
    assert "--where \"model_size = '410M' AND step = 60000\"" in message
    assert "--target-size" in message
    require_one_setting(read_runs(DATA / "3mix.csv", "model_size = '410M' AND step = 60000"))


def test_runs_carry_to_a_later_step_better_than_their_last_value():
    whole = read_runs(DATA / "3mix.csv", "model_size = '160M'")
    half = read_runs(DATA / "3mix.csv", "model_size = '160M' AND step <= 30000")
    nested = nest_runs(half, None, 60000.0)
    truth = whole.take(whole.steps == 60000)
    last = half.take(half.steps == 30000)
    errors, stale = [], []
    for n in range(truth.num_runs):
        row = np.abs(nested.table.shares - truth.shares[n]).max(axis=1).argmin()
        old = np.abs(last.shares - truth.shares[n]).max(axis=1).argmin()
        errors.append(np.abs(nested.table.loss_values[row] - truth.loss_values[n]))
        stale.append(np.abs(last.loss_values[old] - truth.loss_values[n]))
    assert nested.table.num_runs == truth.num_runs
    assert np.nanmean(errors) < 0.5 * np.nanmean(stale)
    assert any("carried to it" in note for note in nested.notes)
    assert any("back-test" in note for note in nested.notes)


def test_measured_losses_at_the_target_stay_as_they_are():
    table = read_runs(DATA / "2mix.csv")
    nested = nest_runs(table, "160M", 30000.0)
    measured = table.take((table.steps == 30000) & np.array([size == "160M" for size in table.model_sizes]))
    kept = nested.table.take(~nested.table.derived)
    assert np.array_equal(np.sort(kept.loss_values, axis=0), np.sort(measured.loss_values, axis=0))


def test_small_runs_help_a_few_large_ones():
    large = read_runs(DATA / "3mix.csv", "model_size = '410M' AND step = 60000")
    small = read_runs(DATA / "3mix.csv", "model_size = '160M' AND step = 60000")
    paired = [n for n in range(large.num_runs) if (np.abs(small.shares - large.shares[n]).max(axis=1) < 1e-6).any()]
    shares = [",".join(repr(float(x)) for x in large.shares[n]) for n in paired[:3]]
    chosen = " OR ".join(f"(mix_Github = {s.split(',')[0]} AND mix_Books3 = {s.split(',')[1]})" for s in shares)
    table = read_runs(
        DATA / "3mix.csv", f"step = 60000 AND (model_size = '160M' OR (model_size = '410M' AND ({chosen})))"
    )
    nested = nest_runs(table, None, None)
    assert set(nested.table.model_sizes) == {"160M", "410M"}
    carried = nested.table.take(nested.table.derived & np.isfinite(nested.table.loss_values).all(axis=1))
    errors, means = [], []
    known = nested.table.take(~nested.table.derived).loss_values
    for n in range(carried.num_runs):
        match = np.abs(large.shares - carried.shares[n]).max(axis=1)
        if match.min() < 1e-6:
            errors.append(np.abs(carried.loss_values[n] - large.loss_values[match.argmin()]))
            means.append(np.abs(known.mean(axis=0) - large.loss_values[match.argmin()]))
    assert errors
    assert np.mean(errors) < 0.5 * np.mean(means)


def test_a_nested_law_is_judged_on_measured_runs_only():
    table = read_runs(DATA / "3mix.csv", "step = 60000")
    nested = nest_runs(table, "410M", 60000.0)
    law = fit_law(nested.table, nested.notes, nested.plan)
    assert all(len(column.residuals) == 32 for column in law.columns)
    assert all(column.errors[column.form] < 0.25 * column.errors["mean"] for column in law.columns)
    assert any("of 160M carried to 410M" in note for note in law.nesting)


def test_a_left_out_mixture_is_replaced_by_its_mapped_loss():
    table = read_runs(DATA / "2mix.csv", "step = 30000")
    nested = nest_runs(table, "160M", None)
    assert nested.plan is not None
    derived = nested.table.derived
    for fold in range(nested.plan.losses.shape[0]):
        weights = nested.plan.weights[fold, 0]
        out = np.flatnonzero((nested.plan.fold_of_run == fold) & ~derived)
        assert (weights[out] == 0).all()
        twin = derived & (np.abs(nested.table.shares - nested.table.shares[out[0]]).max(axis=1) < 1e-6)
        assert (weights[twin] > 0).all()
        others = derived & ~twin
        assert (weights[others] == 0).all()  # their measured runs are known in this fold


def test_targets_nothing_reaches_are_refused():
    table = read_runs(DATA / "2mix.csv")
    with pytest.raises(ConfigError, match=r"0 at 3 sizes or more .the sizes are: 70M, 160M"):
        nest_runs(table, "1B", None)
    with pytest.raises(ConfigError, match="'large': not a number such as 70M"):
        nest_runs(table, "large", None)
    few = read_runs(DATA / "2mix.csv", "step <= 12000")
    with pytest.raises(ConfigError, match="no run reaches step 90000"):
        nest_runs(few, None, 90000.0)
    one = read_runs(DATA / "2mix.csv", "step = 30000 AND (model_size = '70M' OR mix_Github = 0.25)")
    with pytest.raises(ConfigError, match="fewer than two mixtures were run there"):
        nest_runs(one, "160M", None)


def sized_runs(sizes: tuple[float, ...], noise: float = 0.0) -> RunsTable:
    """Nine mixtures of two domains at each size, and one at the smallest only; L = E(r) + B(r) N^-0.3."""
    rng = np.random.default_rng(0)
    first = np.r_[np.tile(np.linspace(0, 1, 9), len(sizes)), 0.3]
    number = np.r_[np.repeat(sizes, 9), sizes[0]]
    losses = true_loss(first, number) + noise * rng.normal(size=len(first))
    columns = {"mix_a": first, "mix_b": 1 - first, "loss_a": losses}
    names = [f"{size / 1e6:g}M" for size in number]
    return build_runs(
        [*columns, "model_size"],
        {**{k: v.tolist() for k, v in columns.items()}, "model_size": names},
        source="made.csv",
    )


def true_loss(first, number):
    return 1.0 + np.exp(-2.0 * first) + (300.0 + 100.0 * first) * number**-0.3


def test_a_power_law_in_size_foretells_a_size_that_no_run_has():
    nested = nest_runs(sized_runs((1e7, 3e7, 1e8, 3e8)), "1B", None)
    first, losses = nested.table.shares[:, 0], nested.table.loss_values[:, 0]
    assert nested.table.model_sizes[:9] == ("1B",) * 9
    expected = true_loss(first, 1e9)
    stale = np.abs(true_loss(first[:9], 3e8) - expected[:9]).mean()
    assert np.abs(losses[:9] - expected[:9]).mean() < 0.02 * stale
    only_small = np.isclose(first, 0.3) & nested.table.derived  # by the affine map from its one size
    assert only_small.sum() == 1
    assert losses[only_small] == pytest.approx(expected[only_small], abs=0.2)  # its loss at 10M is 2 nats higher
    notes = " ".join(nested.notes)
    assert "by E + B N^-0.3" in notes
    assert "back-test, 3e+08 from the smaller sizes: error 0.0" in notes
    assert "all its losses are extrapolated" in notes

    noisy = nest_runs(sized_runs((1e7, 3e7, 1e8), noise=0.003), "1B", None)
    assert "no back-test: it takes four sizes" in " ".join(noisy.notes)
    stale = np.abs(true_loss(first[:9], 1e8) - expected[:9]).mean()
    assert np.abs(noisy.table.loss_values[:9, 0] - expected[:9]).mean() < 0.3 * stale
    law = fit_law(noisy.table, noisy.notes, noisy.plan)
    assert len(law.columns[0].residuals) == 9


def test_an_affine_map_is_exact_with_many_pairs_and_mild_with_two():
    small = np.linspace(1.0, 3.0, 200)
    level, slope = affine_map(small, 0.3 + 0.8 * small)
    assert slope == pytest.approx(0.8, abs=0.01)
    assert level + slope * 2.0 == pytest.approx(1.9, abs=1e-6)
    _, wild = affine_map(np.array([2.0, 2.01]), np.array([1.8, 1.9]))
    assert 1.0 < wild < 10.0
    assert affine_map(np.array([2.0]), np.array([1.7])) == pytest.approx((-0.3, 1.0))
