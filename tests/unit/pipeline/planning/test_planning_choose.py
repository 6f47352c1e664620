from __future__ import annotations

import json

import numpy as np
import pytest

from manifests.errors import ConfigError
from pipeline.planning.amounts import parse_amounts, parse_number
from pipeline.planning.choose import choose_mixture
from pipeline.planning.files import mixture_to_json
from pipeline.planning.goals import Constraint, Goal
from pipeline.planning.laws import Law, fit_law
from pipeline.planning.limits import Box, Limits, effective_shares, share_box
from pipeline.planning.runs.run_table import build_runs
from pipeline.planning.search import cloud, minimise_score
from pipeline.planning.steps import parse_constraints, parse_objective

DOMAINS = ("plant", "general", "herbarium", "fungi", "web")


def true_losses(shares: np.ndarray) -> np.ndarray:
    """Each domain's loss falls with its own share, a little with the others': known, and smooth."""
    num_domains = shares.shape[-1]
    use = np.full((num_domains, num_domains), 0.15) + 0.85 * np.eye(num_domains)
    return 1.5 + 1.2 * np.exp(-3.0 * shares @ use)


def law_on(num_domains: int, num_runs: int, noise: float = 0.0, seed: int = 0) -> Law:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(num_domains), num_runs)
    losses = true_losses(shares) + noise * rng.normal(size=(num_runs, num_domains))
    columns = {f"mix_{d}": shares[:, k].tolist() for k, d in enumerate(DOMAINS[:num_domains])}
    columns |= {f"loss_{d}": losses[:, k].tolist() for k, d in enumerate(DOMAINS[:num_domains])}
    return fit_law(build_runs(list(columns), columns, source="known.csv"))


@pytest.fixture(scope="module")
def two() -> Law:
    return law_on(2, 9)


@pytest.fixture(scope="module")
def three() -> Law:
    return law_on(3, 14, noise=0.002)


def goal(weights: dict[str, float], **rest) -> Goal:
    return Goal(weights, num_sampled_laws=40, **rest)


@pytest.mark.parametrize(("num_domains", "num_runs"), [(2, 8), (3, 12), (5, 20)])
def test_a_known_optimum_is_found(num_domains, num_runs):
    law = law_on(num_domains, num_runs, noise=0.002)
    weights = {name: 1.0 + 0.5 * (k == 0) for k, name in enumerate(law.domains)}
    chosen = choose_mixture(law, goal(weights))
    weight = np.array(list(weights.values()))
    box = Box(np.zeros(num_domains), np.ones(num_domains), ("",) * num_domains)

    def truth(shares: np.ndarray) -> np.ndarray:
        return true_losses(shares) @ weight

    best = minimise_score(truth, cloud(box, 2000, np.random.default_rng(0)), box)
    lost = truth(chosen.shares[None])[0] - truth(best[None])[0]
    assert -1e-9 <= lost < 0.01
    assert chosen.shares == pytest.approx(best, abs=0.06)
    assert chosen.shares.sum() == pytest.approx(1.0, abs=1e-9)
    assert (chosen.interval[:, 0] <= chosen.shares).all()
    assert (chosen.near_optimal[:, 0] <= chosen.shares).all()
    assert (chosen.shares <= chosen.near_optimal[:, 1]).all()
    assert np.mean((chosen.interval[:, 0] - 0.01 <= best) & (best <= chosen.interval[:, 1] + 0.01)) >= 0.6
    _, low, high = chosen.objective
    assert low <= truth(chosen.shares[None])[0] <= high


def test_mixtures_near_the_optimum_are_found_in_many_domains():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(12, 0.7), 40)
    losses = 1.5 + np.exp(-3.0 * shares[:, :3] @ (0.1 + 0.9 * np.eye(3)))
    columns = {f"mix_{k}": shares[:, k].tolist() for k in range(12)}
    columns |= {f"loss_{c}": losses[:, c].tolist() for c in range(3)}
    law = fit_law(build_runs(list(columns), columns, source="many.csv"))
    chosen = choose_mixture(law, goal(dict.fromkeys(law.losses, 1.0)))
    assert chosen.shares[:3].sum() > 0.9
    assert (
        chosen.near_optimal[:3, 1] - chosen.near_optimal[:3, 0]
    ).min() > 0.02  # 0.005 nats allow more than the chosen point
    assert sum(line.count(",") for line in chosen.binding if "at zero" in line) >= 5


def test_a_constraint_binds_and_is_kept(three):
    free = choose_mixture(three, goal({"plant": 1.0}))
    chosen = choose_mixture(three, goal({"plant": 1.0}, constraints=(Constraint("general", 0.05, True),)))
    least = min(three.predict(np.eye(3))["general"][0])
    assert free.shares[0] > chosen.shares[0]
    assert chosen.losses["general"][0] <= chosen.allowed["general"] + 1e-6
    assert chosen.allowed["general"] == pytest.approx(1.05 * least, rel=0.02)
    assert any("loss of general" in line for line in chosen.binding)
    assert chosen.trade_off is not None
    assert chosen.trade_off.losses == ("plant", "general")
    assert len(chosen.trade_off.shares) >= 5
    assert (np.diff(chosen.trade_off.predicted[:, 0]) > 0).all()
    assert (np.diff(chosen.trade_off.predicted[:, 1]) < 0).all()


def test_constraints_that_cannot_be_met_are_refused(three):
    with pytest.raises(ConfigError, match=r"general<=0.5 .its least is 1\.\d+. cannot be met within the limits"):
        choose_mixture(three, goal({"plant": 1.0}, constraints=(Constraint("general", 0.5, False),)))
    tight = tuple(Constraint(name, 0.001, True) for name in ("general", "herbarium"))
    with pytest.raises(ConfigError, match=r"general<=.* and herbarium<=.* cannot be met within the limits"):
        choose_mixture(three, goal({"plant": 1.0}, constraints=tight))
    with pytest.raises(ConfigError, match="no loss 'moss'; it knows plant, general, herbarium"):
        choose_mixture(three, goal({"moss": 1.0}))


def test_an_epoch_cap_holds_and_is_named(two):
    limits = Limits(pools={"plant": 1e6}, num_samples=1e7, max_epochs={"plant": 3.0})
    chosen = choose_mixture(two, goal({"plant": 1.0}, limits=limits))
    assert chosen.shares[0] == pytest.approx(0.3, abs=2e-3)
    assert chosen.shares[0] <= 0.3 + 1e-9
    assert chosen.epochs[0] == pytest.approx(3.0, abs=0.02)
    assert any("3 epochs of its pool of 1,000,000" in line for line in chosen.binding)
    everything = Limits(
        pools={"plant": 1e6, "general": 1e6}, num_samples=1e7, max_epochs={"plant": 3.0, "general": 4.0}
    )
    with pytest.raises(ConfigError, match=r"largest shares sum to 0.7, below 1"):
        choose_mixture(two, goal({"plant": 1.0}, limits=everything))
    with pytest.raises(ConfigError, match="needs its pool"):
        choose_mixture(two, goal({"plant": 1.0}, limits=Limits(max_epochs={"plant": 3.0})))
    with pytest.raises(ConfigError, match="'moss' is no domain of the law"):
        choose_mixture(two, goal({"plant": 1.0}, limits=Limits(pools={"moss": 3.0})))


def test_repetition_takes_share_from_a_finite_pool(two):
    free = choose_mixture(two, goal({"plant": 1.0, "general": 1.0}))
    finite = Limits(pools={"plant": 1e5}, num_samples=1e7)
    chosen = choose_mixture(two, goal({"plant": 1.0, "general": 1.0}, limits=finite))
    matched = Limits(pools={"plant": 1e5}, num_samples=1e7, repetition_scale_epochs=None)
    same = choose_mixture(two, goal({"plant": 1.0, "general": 1.0}, limits=matched))
    assert chosen.shares[0] < free.shares[0] - 0.02
    assert same.shares == pytest.approx(free.shares, abs=1e-6)
    assert chosen.losses["plant"][0] > free.losses["plant"][0]
    assert any("would be seen" in line for line in chosen.warnings)


def test_effective_shares_by_hand():
    limits = Limits(pools={"a": 100.0}, num_samples=1000.0, repetition_scale_epochs=15.4)
    shares = np.array([[0.05, 0.95], [0.1, 0.9], [0.4, 0.6]])
    worth = effective_shares(("a", "b"), shares, limits)
    assert worth[0].tolist() == [0.05, 0.95]
    assert worth[1].tolist() == [0.1, 0.9]
    assert worth[2, 0] == pytest.approx(0.1 * (1 + 15.4 * (1 - np.exp(-3 / 15.4))))
    assert worth[2, 1] == 0.6


def test_extrapolation_is_called_out():
    shares = np.linspace(0.3, 0.6, 8)
    losses = true_losses(np.stack([shares, 1 - shares], axis=1))
    columns = {
        "mix_plant": shares.tolist(),
        "mix_general": (1 - shares).tolist(),
        "loss_plant": losses[:, 0].tolist(),
    }
    law = fit_law(build_runs(list(columns), columns, source="narrow.csv"))
    chosen = choose_mixture(law, goal({"plant": 1.0}))
    assert chosen.shares[0] > 0.9
    assert any("outside the tried region" in line for line in chosen.warnings)
    assert chosen.trade_off is None


def test_a_domain_with_one_single_share_stays_there():
    rng = np.random.default_rng(3)
    plant = rng.uniform(0.05, 0.7, size=10)
    shares = np.stack([plant, 0.8 - plant, np.full(10, 0.2)], axis=1)
    losses = true_losses(shares)
    columns = {f"mix_{d}": shares[:, k].tolist() for k, d in enumerate(DOMAINS[:3])}
    columns |= {f"loss_{d}": losses[:, k].tolist() for k, d in enumerate(DOMAINS[:2])}
    law = fit_law(build_runs(list(columns), columns, source="fixed.csv"))
    chosen = choose_mixture(law, goal({"plant": 1.0, "general": 1.0}))
    assert chosen.shares[2] == pytest.approx(0.2)
    assert any("herbarium has the single share" in line for line in chosen.warnings)


def test_share_bounds_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"least shares sum to 1.2"):
        share_box(("a", "b"), Limits(min_shares={"a": 0.6, "b": 0.6}), {})
    with pytest.raises(ConfigError, match=r"least share 0.5 is above the largest 0.3"):
        share_box(("a", "b"), Limits(min_shares={"a": 0.5}, max_shares={"a": 0.3}), {})
    with pytest.raises(ConfigError, match=r"a=-0.1 is out of range"):
        share_box(("a", "b"), Limits(min_shares={"a": -0.1}), {})


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        (Limits(max_shares={"b": 0.1}), r"at most 0.1 \(largest share allowed\)"),
        (Limits(min_shares={"b": 0.5}), "at least 0.5"),
        (Limits(pools={"b": 1000}, num_samples=1e6, max_epochs={"b": 2}), r"at most 0.002 \(2 epochs of its pool"),
    ],
)
def test_limits_that_no_run_knows_are_refused_and_never_overridden(limits, asked):
    with pytest.raises(ConfigError, match=f"b: all runs have the share 0.25, .* the limits ask for {asked}"):
        share_box(("a", "b", "c"), limits, {1: 0.25})
    box = share_box(("a", "b", "c"), Limits(max_shares={"b": 0.25}), {1: 0.25})
    assert box.low[1] == box.high[1] == 0.25


def test_the_mixture_file_is_whole_and_the_same_every_time(three):
    asked = goal({"plant": 1.0}, constraints=(Constraint("general", 0.05, True),))
    texts = []
    for _ in range(2):
        values = mixture_to_json(three, "ab" * 32, "law.json", asked, choose_mixture(three, asked))
        texts.append(json.dumps(values, allow_nan=False))
    assert texts[0] == texts[1]
    values = json.loads(texts[0])
    assert values["format"] == "plantmix-mixture/1"
    assert sum(values["ratio"].values()) == pytest.approx(1.0, abs=1e-9)
    assert set(values) >= {"ratio", "interval", "objective", "predicted", "law", "limits", "warnings", "binding"}
    assert values["law"]["sha256"] == "ab" * 32
    assert values["law"]["losses"]["plant"]["cv_error"] > 0
    assert values["objective"]["constraints"][0]["relative_to_best"] is True


def test_what_people_type():
    assert parse_objective(["plant=1,general=0.5"]) == {"plant": 1.0, "general": 0.5}
    assert parse_objective(["plant", "general"]) == {"plant": 1.0, "general": 1.0}
    assert parse_constraints(["general<=1%, fungi <= 3.2"]) == (
        Constraint("general", 0.01, True),
        Constraint("fungi", 3.2, False),
    )
    assert parse_amounts("--pool", ["plant=10M,general=3_000_000"]) == {"plant": 1e7, "general": 3e6}
    assert parse_number("--samples", "1.5G") == 1.5e9
    for option, call in (
        ("--pool", lambda: parse_amounts("--pool", ["plant:3"])),
        ("--pool", lambda: parse_amounts("--pool", ["plant=3,plant=4"])),
        ("--constraint", lambda: parse_constraints(["general<1%"])),
        ("--constraint", lambda: parse_constraints(["general<=-1%"])),
        ("--objective", lambda: parse_objective([""])),
        ("--samples", lambda: parse_number("--samples", "many")),
        ("--samples", lambda: parse_number("--samples", "inf")),
    ):
        with pytest.raises(ConfigError, match=option):
            call()
