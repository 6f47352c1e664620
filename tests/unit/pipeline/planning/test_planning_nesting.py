from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ConfigError
from pipeline.planning.laws import fit_law
from pipeline.planning.runs.nesting import nest_runs, require_one_setting
from pipeline.planning.runs.run_table import read_runs
from pipeline.planning.runs.size_maps import affine_map

DATA = Path(__file__).parent / "data"


def test_a_table_of_several_settings_is_refused_with_a_way_out():
    table = read_runs(DATA / "3mix.csv")
    with pytest.raises(ConfigError) as caught:
        require_one_setting(table)
    message = str(caught.value)
    assert "model_size = '410M' AND step = 60000: 32 runs" in message
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


def test_measured_losses_at_the_target_stay_as_they_are():
    table = read_runs(DATA / "2mix.csv")
    nested = nest_runs(table, "160M", 30000.0)
    measured = table.take((table.steps == 30000) & (table.model_sizes == "160M"))
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
    assert set(nested.table.model_sizes.tolist()) == {"160M", "410M"}
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
    law = fit_law(nested)
    assert all(len(column.residuals) == 32 for column in law.columns)
    assert all(column.error < 0.25 * column.form_errors["mean"] for column in law.columns)
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
    with pytest.raises(ConfigError, match=r"0 mixture.s. were run at size 1B; .*the sizes are: 160M, 70M"):
        nest_runs(table, "1B", None)
    few = read_runs(DATA / "2mix.csv", "step <= 12000")
    with pytest.raises(ConfigError, match="no run reaches step 90000"):
        nest_runs(few, None, 90000.0)
    one = read_runs(DATA / "2mix.csv", "step = 30000 AND (model_size = '70M' OR mix_Github = 0.25)")
    with pytest.raises(ConfigError, match=r"1 mixture.s. were run at size 160M"):
        nest_runs(one, "160M", None)


def test_an_affine_map_is_exact_with_many_pairs_and_mild_with_two():
    small = np.linspace(1.0, 3.0, 200)
    level, slope = affine_map(small, 0.3 + 0.8 * small)
    assert slope == pytest.approx(0.8, abs=0.01)
    assert level + slope * 2.0 == pytest.approx(1.9, abs=1e-6)
    _, wild = affine_map(np.array([2.0, 2.01]), np.array([1.8, 1.9]))
    assert 1.0 < wild < 10.0
    assert affine_map(np.array([2.0]), np.array([1.7])) == pytest.approx((-0.3, 1.0))
