from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ConfigError, RunError
from pipeline.commands.plan import add_parser
from pipeline.planning.limits import Limits
from pipeline.planning.runs.groups import expand_shares, find_groups, merge_limits, merge_shares
from pipeline.planning.runs.run_table import build_runs

KEPT = {"plant": 0.5, "general": 0.3, "web": 0.2}


def plan(*words: object) -> int:
    parser = argparse.ArgumentParser(prog="plantmix")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *map(str, words)])
    code: int = args.func(args)
    return code


def true_loss(plant: float, general: float, moss: float) -> list[float]:
    return [1.5 + np.exp(-3.0 * plant), 1.6 + np.exp(-2.0 * general), 1.4 + np.exp(-4.0 * moss)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A kept mixture of three domains and one new one: designed, and run in a world with known losses."""
    (tmp_path / "kept.json").write_text(json.dumps({"format": "plantmix-mixture/1", "ratio": KEPT | {"fungi": 0.0}}))
    out = tmp_path / "design.csv"
    words = (
        "design",
        "--keep",
        tmp_path / "kept.json",
        "--free",
        "moss",
        "--budget",
        9,
        "--replicates",
        0,
        "--out",
        out,
    )
    assert plan(*words) == 0
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.startswith("mix_")]
    lines = [",".join([*names, "loss_plant", "loss_general", "loss_moss"])]
    for row in rows:
        losses = true_loss(*(float(row[f"mix_{name}"]) for name in ("plant", "general", "moss")))
        lines.append(",".join([*(row[name] for name in names), *(f"{loss:.6f}" for loss in losses)]))
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_kept_mixture_moves_as_one_domain_from_the_design_to_the_choice(runs, tmp_path, capsys):
    with runs.open() as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    moss = [row["mix_moss"] for row in rows]
    assert len(set(moss)) == 9
    assert max(moss) - min(moss) > 0.9
    for row in rows:
        kept = 1.0 - row["mix_moss"]
        assert [row[f"mix_{name}"] for name in KEPT] == pytest.approx([kept * part for part in KEPT.values()], abs=2e-6)
        assert sum(row[name] for name in row if name.startswith("mix_")) == pytest.approx(1.0, abs=1e-9)
    assert plan("fit", runs, "--out", tmp_path / "law.json") == 0
    assert "plant+general+web, moss" in capsys.readouterr().out
    words = ("choose", tmp_path / "law.json", "--objective", "plant,general,moss", "--bootstrap", 20)
    assert plan(*words, "--out", tmp_path / "m.json", "--plot", tmp_path / "m.png") == 0
    mixture = json.loads((tmp_path / "m.json").read_text())
    ratio = mixture["ratio"]
    assert set(ratio) == {"plant", "general", "web", "moss"}
    assert sum(ratio.values()) == pytest.approx(1.0, abs=1e-9)
    kept = 1.0 - ratio["moss"]
    assert [ratio[name] / kept for name in KEPT] == pytest.approx(list(KEPT.values()), abs=1e-5)
    grid = np.linspace(0, 1, 2001)
    best = grid[np.argmin([sum(true_loss(0.5 * (1 - m), 0.3 * (1 - m), m)) for m in grid])]
    assert ratio["moss"] == pytest.approx(best, abs=0.03)
    # a member's pool caps the whole group: 0.5 of it is plant, so 1,000 plants twice are 0.4 of 5,000 samples
    capped = (*words, "--pool", "plant=1000", "--samples", 5000, "--max-epochs", "plant=2", "--max-share", "moss=0.9")
    assert plan(*capped, "--out", tmp_path / "c.json") == 0
    capped_mixture = json.loads((tmp_path / "c.json").read_text())
    assert capped_mixture["ratio"]["plant"] <= 0.4 + 1e-6
    assert capped_mixture["epochs"]["plant"] == pytest.approx(5 * capped_mixture["ratio"]["plant"])


def test_a_second_round_keeps_the_ratio_too(runs, tmp_path):
    assert plan("fit", runs, "--out", tmp_path / "law.json") == 0
    assert plan("design", "--runs", runs, "--budget", 2, "--out", tmp_path / "more.csv") == 0
    with (tmp_path / "more.csv").open() as stream:
        for row in csv.DictReader(stream):
            kept = 1.0 - float(row["mix_moss"])
            assert float(row["mix_web"]) == pytest.approx(0.2 * kept, abs=2e-6)


def test_what_cannot_be_kept_is_refused(runs, tmp_path):
    out = ("--budget", 4, "--out", tmp_path / "d.csv")
    for words, message in (
        (("--keep", tmp_path / "none.json", "--free", "moss"), "cannot be read"),
        (("--keep", runs, "--free", "moss"), "not a mixture file"),
        (("--keep", tmp_path / "kept.json", "--free", "web"), "web is part of"),
        (("--keep", tmp_path / "kept.json"), "name 2 to 200"),
        (("--keep", tmp_path / "kept.json", "--runs", runs), "leave --keep out"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan("design", *words, *out)


def test_groups_are_seen_only_where_shares_vary_in_one_ratio():
    rng = np.random.default_rng(0)
    free = rng.dirichlet(np.ones(4), 12)
    assert find_groups(("a", "b", "c", "d"), free) == {}
    held = np.column_stack([0.6 * free[:, :2] / free[:, :2].sum(axis=1, keepdims=True), np.full((12, 2), 0.2)])
    assert find_groups(("a", "b", "c", "d"), held) == {}  # two domains of one share each vary with nothing
    tied = np.column_stack([free[:, 0] * 0.75, free[:, 1:].sum(axis=1), free[:, 0] * 0.25])
    groups = find_groups(("a", "b", "c"), np.round(tied, 4))
    assert list(groups) == ["a+c"]
    assert groups["a+c"] == pytest.approx({"a": 0.75, "c": 0.25}, abs=1e-4)
    names, merged = merge_shares(("a", "b", "c"), tied, groups)
    assert names == ("a+c", "b")
    assert expand_shares(names, merged, groups) == pytest.approx(tied[:, [0, 2, 1]], abs=1e-4)


def test_the_member_that_reaches_its_limit_first_decides():
    groups = {"a+b": {"a": 0.8, "b": 0.2}}
    limits = Limits(
        pools={"a": 800.0, "b": 100.0, "c": 5.0}, max_shares={"a": 0.4}, min_shares={"b": 0.1}, num_samples=9.0
    )
    merged = merge_limits(limits, groups)
    assert merged.pools == {"a+b": 500.0, "c": 5.0}
    assert merged.max_shares == {"a+b": pytest.approx(0.5)}
    assert merged.min_shares == {"a+b": pytest.approx(0.5)}
    assert merge_limits(limits, {}) == limits


def test_accuracies_are_losses_of_which_less_is_better(tmp_path):
    shares = np.linspace(0, 1, 9)
    columns = {"mix_a": shares.tolist(), "mix_b": (1 - shares).tolist(), "accuracy_top1": (0.2 + 0.6 * shares).tolist()}
    table = build_runs(list(columns), columns, source="made.csv")
    assert table.losses == ("error_top1",)
    assert table.loss_values[:, 0] == pytest.approx(0.8 - 0.6 * shares)
    lines = ["mix_a,mix_b,accuracy_top1", *(f"{a},{1 - a},{0.2 + 0.6 * a}" for a in shares)]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    assert plan("fit", tmp_path / "runs.csv", "--out", tmp_path / "law.json") == 0
    words = ("choose", tmp_path / "law.json", "--objective", "error_top1", "--bootstrap", 20)
    assert plan(*words, "--out", tmp_path / "m.json") == 0
    assert json.loads((tmp_path / "m.json").read_text())["ratio"]["a"] > 0.99
    columns["accuracy_top1"][2] = 35.0
    with pytest.raises(ConfigError, match=r"row 3: accuracy_top1 is 35; .* percent must be divided by 100"):
        build_runs(list(columns), columns, source="made.csv")


def test_a_choice_stays_near_the_pools_as_far_as_it_may(runs, tmp_path, capsys):
    assert plan("fit", runs, "--out", tmp_path / "law.json") == 0
    pools = [word for pool in ("plant=6M", "general=2M", "web=1M", "moss=1M") for word in ("--pool", pool)]
    words = ("choose", tmp_path / "law.json", "--objective", "plant,general,moss", "--bootstrap", 20, *pools)
    mixtures = {}
    for nats in (None, 0.0, 0.05, 9.0):
        near = () if nats is None else ("--near-pools", nats)
        assert plan(*words, *near, "--out", tmp_path / "m.json") == 0
        mixtures[nats] = json.loads((tmp_path / "m.json").read_text())
    free, natural = mixtures[None], 0.1  # of all data, moss is a tenth
    assert free["near_pools"] is None
    assert mixtures[0.0]["ratio"]["moss"] == pytest.approx(free["ratio"]["moss"], abs=2e-3)
    assert mixtures[9.0]["ratio"]["moss"] == pytest.approx(natural, abs=2e-3)
    between = mixtures[0.05]
    assert natural + 0.01 < between["ratio"]["moss"] < free["ratio"]["moss"] - 0.01
    assert between["objective"]["value"] == pytest.approx(free["objective"]["value"] + 0.05, abs=2e-3)
    assert between["near_pools"]["optimum"] == pytest.approx(free["ratio"])
    assert between["near_pools"]["natural"] == pytest.approx({"plant": 0.6, "general": 0.2, "web": 0.1, "moss": 0.1})
    assert "nearest to the pools within 0.05 nats" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="needs the pool of every domain; add --pool moss=N"):
        plan(*words[:-2], "--near-pools", "0.1", "--out", tmp_path / "m.json")


@pytest.mark.parametrize(("scale", "most"), [("none", 10), ("15.4", 5)])
def test_more_passes_than_a_law_was_shown_to_hold_for_are_refused(runs, tmp_path, scale, most):
    assert plan("fit", runs, "--out", tmp_path / "law.json") == 0
    words = ("choose", tmp_path / "law.json", "--objective", "moss", "--repetition-scale", scale, "--bootstrap", 20)
    words = (*words, "--pool", "moss=100", "--samples", "20k", "--out", tmp_path / "m.json")
    with pytest.raises(
        RunError, match=rf"moss would be seen .* times.*{most} passes.*--max-epochs {most}.*--accept-unt"
    ):
        plan(*words)
    assert not (tmp_path / "m.json").exists()
    assert plan(*words, "--max-epochs", f"moss={most}") == 0
    assert plan(*words, "--accept-untrusted") == 0
