from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.services.draws import largest_remainders
from pipeline.planning.crossval import assign_folds
from pipeline.planning.design import _rounded, propose_runs
from pipeline.planning.intervals import jackknife_plus
from pipeline.planning.laws import fit_law
from pipeline.planning.limits import Box, Limits, effective_shares
from pipeline.planning.runs.checks import least_for_a_check
from pipeline.planning.runs.run_table import build_runs
from pipeline.planning.search import cloud, minimise_each, minimise_score, neighbours, project


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    num_domains = draw(st.integers(2, 7))
    inside = np.random.default_rng(draw(st.integers(0, 10**6))).dirichlet(np.ones(num_domains))
    below = draw(st.floats(0.0, 1.0))
    above = draw(st.floats(0.0, 1.0))
    return Box(inside * (1 - below), inside + (1 - inside) * above, ("",) * num_domains)


@given(boxes(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_point_lies_in_the_box_and_sums_to_one(box, seed):
    rng = np.random.default_rng(seed)
    points = project(rng.normal(size=(20, len(box.low))), box)
    for found in (points, cloud(box, 60, rng)):
        assert np.allclose(found.sum(axis=1), 1.0, atol=1e-7)
        assert (found >= box.low - 1e-6).all()
        assert (found <= box.high + 1e-6).all()


@given(boxes(), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_neighbours_never_leave_the_box(box, seed):
    rng = np.random.default_rng(seed)
    start = project(rng.dirichlet(np.ones(len(box.low)), 3), box)
    found = neighbours(start, box, 0.3, 5, rng)
    assert len(found) == 15
    assert np.allclose(found.sum(axis=1), 1.0, atol=1e-9)
    assert (found >= box.low - 1e-6).all()
    assert (found <= box.high + 1e-6).all()
    assert (np.abs(found - np.repeat(start, 5, axis=0)).max(axis=1) <= 0.3 + 1e-9).all()


@given(boxes(), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_search_never_gets_worse_and_finds_the_nearest_point(box, seed):
    rng = np.random.default_rng(seed)
    target = rng.dirichlet(np.ones(len(box.low)))

    def score(shares: np.ndarray) -> np.ndarray:
        return np.sum((shares - target) ** 2, axis=1)

    start = cloud(box, 60, rng)
    end = minimise_score(score, start, box)[None]
    assert score(end)[0] <= score(start).min()
    assert np.allclose(end.sum(axis=1), 1.0, atol=1e-9)
    assert (end >= box.low - 1e-6).all()
    assert (end <= box.high + 1e-6).all()
    assert score(end)[0] <= score(project(target[None], box))[0] + 1e-3


@given(boxes(), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_search_for_many_scores_finds_each_its_own(box, seed):
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.ones(len(box.low)), 4)

    def score(shares: np.ndarray) -> np.ndarray:
        return np.sum((shares[None] - targets[:, None]) ** 2, axis=2)

    start = cloud(box, 60, rng)
    ends = minimise_each(score, start, box)
    assert np.allclose(ends.sum(axis=1), 1.0, atol=1e-9)
    assert (ends >= box.low - 1e-6).all()
    assert (ends <= box.high + 1e-6).all()
    reached = np.diag(score(ends))
    assert (reached <= score(start).min(axis=1)).all()
    assert (reached <= np.diag(score(project(targets, box))) + 5e-3).all()


@given(st.integers(2, 20), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_rounded_shares_still_sum_to_one(num_domains, seed):
    shares = np.random.default_rng(seed).dirichlet(np.full(num_domains, 0.5))
    rounded = _rounded(shares[None])[0]
    assert round(float(rounded.sum()) * 10000) == 10000
    assert np.abs(rounded - shares).max() < 1e-4 + 1e-12
    assert rounded.tolist() == [count / 10000 for count in largest_remainders((shares * 10000).tolist(), 10000)]


@given(st.integers(2, 5), st.integers(3, 12))
@settings(max_examples=15, deadline=None)
def test_a_design_repeats_only_where_it_says_so(num_domains, budget):
    box = Box(np.zeros(num_domains), np.ones(num_domains), ("",) * num_domains)
    proposed = propose_runs(tuple("abcde"[:num_domains]), budget, box)
    assert len(proposed) == budget
    fresh = [tuple(run.shares) for run in proposed if run.reason != "replicate"]
    assert len(set(fresh)) == len(fresh)
    # of a budget that is enough, `plan fit` says nothing of a law that cannot be checked
    assert len(fresh) >= min(budget, least_for_a_check(num_domains))


@given(st.integers(0, 10**6), st.floats(0.5, 40.0))
@settings(max_examples=60, deadline=None)
def test_repetition_never_makes_a_sample_worth_more(seed, scale):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3), 10)
    limits = Limits(
        pools={"a": 10 ** rng.uniform(1, 6), "b": 10 ** rng.uniform(1, 6)},
        num_samples=1e5,
        repetition_scale_epochs=scale,
    )
    worth = effective_shares(("a", "b", "c"), shares, limits)
    assert (worth <= shares + 1e-12).all()
    assert (worth >= 0).all()
    assert np.array_equal(worth[:, 2], shares[:, 2])


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_jackknife_ends_are_in_order_and_grow_with_the_errors(num_runs, seed):
    rng = np.random.default_rng(seed)
    by_fold = rng.normal(size=(num_runs, 4))
    residual = np.abs(rng.normal(size=num_runs))
    folds = np.arange(num_runs)
    low, high = jackknife_plus(by_fold, residual, folds, np.ones(4))
    wider = jackknife_plus(by_fold, residual + 0.1, folds, np.ones(4))
    assert (wider[0] <= low).all()
    assert (wider[1] >= high).all()


@given(st.permutations(list(range(9))))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_order_of_the_runs_changes_nothing_that_matters(order):
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    losses = 1.5 + np.exp(-3.0 * shares)
    asked = np.random.default_rng(1).dirichlet(np.ones(3), 10)

    def law(rows: list[int]) -> list[np.ndarray]:
        columns = {f"mix_{k}": shares[rows, k].tolist() for k in range(3)}
        columns |= {f"loss_{k}": losses[rows, k].tolist() for k in range(2)}
        return list(fit_law(build_runs(list(columns), columns, source="t")).predict(asked)["0"])

    for mine, theirs in zip(law(list(range(9))), law(list(order)), strict=True):
        assert np.allclose(mine, theirs, atol=2e-3)
    folds, _ = assign_folds(shares)
    again, _ = assign_folds(shares[order])
    assert again.tolist() == folds[order].tolist()
