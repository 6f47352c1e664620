from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ConfigError, RunError
from pipeline.commands.plan import add_parser

DATA = Path(__file__).parents[1] / "planning/data"
LARGE = "model_size = '410M' AND step = 60000"


def plan(*words: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="plantmix")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["plan", *map(str, words)])
    code: int = args.func(args)
    return code


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("law") / "law.json"
    assert plan("fit", DATA / "3mix.csv", "--out", path, "--where", LARGE) == 0
    return path


def test_fit_prints_a_table_a_person_can_read(tmp_path, capsys):
    assert (
        plan("fit", DATA / "2mix.csv", "--out", tmp_path / "law.json", "--where", "step=30000 AND model_size='70M'")
        == 0
    )
    out = capsys.readouterr().out
    assert "5 runs, 5 mixtures of 2 domains: Github, Pile-CC" in out
    assert "cv error" in out
    assert "warning: no mixture was run twice" in out
    assert f"law: {tmp_path / 'law.json'}" in out


def test_fit_refuses_runs_of_several_settings(tmp_path):
    with pytest.raises(ConfigError, match="different settings"):
        plan("fit", DATA / "2mix.csv", "--out", tmp_path / "law.json")
    assert not (tmp_path / "law.json").exists()


def test_choose_writes_the_mixture_and_a_plot(law, tmp_path, capsys):
    code = plan(
        "choose", law, "--objective", "Github", "--constraint", "Pile-CC<=1%", "--pool", "Github=1M",
        "--samples", "10M", "--max-epochs", "4", "--bootstrap", "20", "--out", tmp_path / "mixture.json",
        "--plot", tmp_path / "choice.png",
    )  # fmt: skip
    assert code == 0
    mixture = json.loads((tmp_path / "mixture.json").read_text())
    assert mixture["format"] == "plantmix-mixture/1"
    assert mixture["limits"]["max_epochs"] == {"Github": 4.0}
    assert mixture["ratio"]["Github"] <= 0.4 + 1e-9
    assert (tmp_path / "choice.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "binds: loss of Pile-CC" in capsys.readouterr().out


def test_choose_writes_nothing_for_a_law_that_is_not_to_be_trusted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shares, losses = rng.dirichlet(np.ones(2), 20), 2.0 + 0.1 * rng.normal(size=20)
    rows = [f"{a},{b},{loss}" for (a, b), loss in zip(shares, losses, strict=True)]
    (tmp_path / "noise.csv").write_text("\n".join(["mix_a,mix_b,loss_a", *rows]) + "\n")
    assert plan("fit", tmp_path / "noise.csv", "--out", tmp_path / "law.json") == 0
    words = ("choose", tmp_path / "law.json", "--objective", "a", "--bootstrap", "20", "--out", tmp_path / "m.json")
    with pytest.raises(RunError, match=r"cannot be trusted.*m\.json was not written.*--accept-untrusted"):
        plan(*words)
    assert not (tmp_path / "m.json").exists()
    assert "DO NOT TRUST" in capsys.readouterr().out
    assert plan(*words, "--accept-untrusted") == 0
    assert (tmp_path / "m.json").exists()


def test_choose_refuses_what_it_cannot_use_before_it_writes(law, tmp_path):
    out = tmp_path / "mixture.json"
    for words, message in (
        (("--objective", "moss"), "no loss 'moss'"),
        (("--objective", "Github", "--plot", "x.pdf"), "must end in .png"),
        (("--objective", "Github", "--bootstrap", "3"), "at least 20"),
        (("--objective", "Github", "--repetition-scale", "-1"), "above 0, or none"),
        (("--objective", "Github", "--samples", "0"), "above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan("choose", law, *words, "--out", out)
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_the_users_to_mend(law, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        plan("choose", law, "--objective", "Github", "--bootstrap", "20", "--out", tmp_path / "file" / "m.json")


def test_folders_of_outputs_are_made(law, tmp_path):
    out, plot = tmp_path / "new" / "m.json", tmp_path / "plots" / "m.png"
    assert plan("choose", law, "--objective", "Github", "--bootstrap", "20", "--out", out, "--plot", plot) == 0
    drawn = json.loads(out.read_text(encoding="utf-8"))["drawn"]
    assert len(drawn["grid"]) == len(drawn["losses"]["Github"]["low"]) == 231
    assert len(drawn["runs"]["shares"]) == len(drawn["runs"]["losses"]["Github"])
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert (
        plan(
            "fit",
            DATA / "2mix.csv",
            "--where",
            "step=30000 AND model_size='70M'",
            "--out",
            tmp_path / "laws" / "law.json",
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-epochs", "4"), "there is no pool; add --pool"),
        (("--max-epochs", "4", "--pool", "Github=1k"), "needs its pool .* and the total --samples"),
        (("--pool", "Github=0"), "to leave Github out, write --max-share Github=0"),
        (("--max-share", "Github=1.5"), "a share lies in 0 to 1"),
        (("--objective", "Pile-CC=-1"), "the weight of Pile-CC is -1"),
        (("--objective", "Github + Pile-CC"), "an objective is written as in Github=1,Pile-CC=1"),
    ],
)
def test_limits_and_objectives_that_mean_nothing_are_refused(law, tmp_path, words, message):
    objective = () if "--objective" in words else ("--objective", "Github")
    with pytest.raises(ConfigError, match=message):
        plan("choose", law, *objective, *words, "--out", tmp_path / "m.json")


def test_spaces_in_an_objective_do_not_matter(law, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, words in zip(files, ("Github = 1 , Pile-CC = 2", "Github=1,Pile-CC=2"), strict=True):
        assert plan("choose", law, "--objective", words, "--bootstrap", "20", "--out", file) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_design_starts_from_nothing(tmp_path, capsys):
    out = tmp_path / "design.csv"
    words = ("--pool", "plant=10M", "--samples", "50M", "--proxy-samples", "1M")
    assert plan("design", "--domains", "plant,general", "--budget", "8", *words, "--out", out) == 0
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    shares = np.array([[float(row["mix_plant"]), float(row["mix_general"])] for row in rows])
    assert (shares.sum(axis=1) == 1.0).all()
    assert {row["pool_plant"] for row in rows} == {"200000"}  # 10 M x 1 M / 50 M
    assert [row["reason"] for row in rows].count("replicate") == 2
    assert len({(row["seed"], row["mix_plant"]) for row in rows}) == 8
    assert "repetition shows as in the full training" in capsys.readouterr().out


def test_design_goes_where_the_optimum_is_uncertain(tmp_path):
    out = tmp_path / "design.csv"
    code = plan(
        "design", "--runs", DATA / "3mix.csv", "--where", LARGE, "--budget", "4",
        "--objective", "Github,Books3,Pile-CC", "--out", out,
    )  # fmt: skip
    assert code == 0
    with out.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["reason"] for row in rows] == ["uncertain optimum"] * 2 + ["space-filling"] * 2
    for row in rows[:2]:  # the optimum lies near 0.28, 0.13, 0.59
        assert 0.15 < float(row["mix_Github"]) < 0.45
        assert float(row["mix_Pile-CC"]) > 0.4


def test_design_refuses_contradictions(tmp_path):
    out = tmp_path / "design.csv"
    for words, message in (
        (("--domains", "plant", "--budget", "4"), "name 2 to 200"),
        (("--domains", ",".join(map(str, range(201))), "--budget", "4"), "201 are named"),
        (("--domains", "a,b,a", "--budget", "4"), "a is named more than once"),
        (("--domains", "a,b", "--budget", "4", "--proxy-samples", "0"), "must be at least 1"),
        (("--domains", "a,b", "--budget", "0"), "at least 1"),
        (("--domains", "a,b", "--budget", "3", "--replicates", "3"), "leave a run"),
        (("--domains", "a,b", "--budget", "3", "--objective", "a"), "needs --runs"),
        (("--domains", "a,b", "--budget", "3", "--pool", "a=5"), "match the pools"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan("design", *words, "--out", out)


def test_design_says_what_it_cannot_do(tmp_path, capsys):
    out = tmp_path / "design.csv"
    assert plan("design", "--domains", "a,b,c", "--budget", "3", "--out", out) == 0
    assert "3 different mixtures of 3 domains; `plan fit` needs 4" in capsys.readouterr().out
    assert plan("design", "--domains", "a,b", "--budget", "4", "--min-share", "a=0.5,b=0.5", "--out", out) == 0
    assert "1 runs in place of 4: the limits leave no other mixtures" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 2


def test_a_second_round_says_that_it_moves_what_was_held(tmp_path, capsys):
    runs, out = tmp_path / "runs.csv", tmp_path / "design.csv"
    rows = [f"{a / 10},{0.75 - a / 10},0.25,{1 + a / 10}" for a in range(7)]
    runs.write_text("\n".join(["mix_a,mix_b,mix_c,loss_a", *rows]) + "\n")
    assert plan("design", "--runs", runs, "--budget", "3", "--out", out) == 0
    assert "c had the share 0.25 in all runs so far; these vary it" in capsys.readouterr().out
    hold = ("--min-share", "c=0.25", "--max-share", "c=0.25")
    assert plan("design", "--runs", runs, "--budget", "3", *hold, "--out", out) == 0
    assert "vary it" not in capsys.readouterr().out
