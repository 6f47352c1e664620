"""`python -m pipeline.planning`: the planner on csv files, without the rest of PlantMix, with the same answers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from building import ROOT, done
from environments import environment

from pipeline.planning.__main__ import main

DATA = ROOT / "tests/unit/pipeline/planning/data/3mix.csv"
MOST_BYTES = 260_000_000
CHOICE = ("--objective", "Github", "--constraint", "Pile-CC<=1%", "--bootstrap", "20")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A csv of comparable runs, in the folder where the steps run."""
    monkeypatch.chdir(tmp_path)
    header, *rows = DATA.read_text().splitlines()
    kept = [row for row in rows if ",410M,60000," in row]
    Path("runs.csv").write_text("\n".join([header, *kept]) + "\n")
    return Path("runs.csv")


def steps(runs: Path, out: str) -> list[tuple[str, ...]]:
    """The three steps, with their files in a folder."""
    return [
        ("design", "--runs", str(runs), "--budget", "4", "--out", f"{out}/design.csv"),
        ("fit", str(runs), "--out", f"{out}/law.json"),
        ("choose", f"{out}/law.json", *CHOICE, "--out", f"{out}/mixture.json"),
    ]


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_the_planner_alone_answers_as_plantmix_plan_does(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in steps(runs, "alone"):
        assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed == "".join(done("plan", *words) for words in steps(runs, "full")).replace("full/", "alone/")
    assert "32 runs, 32 mixtures of 3 domains" in printed
    assert contents("alone") == contents("full")
    assert list(contents("alone")) == ["design.csv", "law.json", "mixture.json"]
    assert main(steps(runs, "alone")[1]) == 0, "an earlier law is replaced"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("fit", "runs.csv", "--where", "step = 1", "--out", "law.json"),
            "--where is SQL, which needs `plantmix",
        ),
        (("fit", "runs.parquet", "--out", "law.json"), "runs.parquet: only csv can be read here"),
        (("fit", "none.csv", "--out", "law.json"), "none.csv: no such table of runs"),
        (("fit", "runs.csv", "--out", "runs.csv"), "runs.csv: is there, and this command did not write it"),
        (
            ("choose", "law.json", *CHOICE, "--out", "m.json", "--plot", "m.png"),
            "--plot m.png: drawing needs",
        ),
        (("choose", "nothing.json", *CHOICE, "--out", "m.json"), "nothing.json: no such law"),
    ],
)
def test_what_it_cannot_do_is_told(
    runs: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in words:
        assert main(("fit", "runs.csv", "--out", "law.json")) == 0
    Path("runs.parquet").touch()
    before = runs.read_bytes()
    assert main(words) == 2
    assert f"plan: error: {told}" in capsys.readouterr().err
    assert runs.read_bytes() == before
    assert not Path("m.json").exists()


def test_a_disk_that_cannot_be_written_to_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("fit", "runs.csv", "--out", "runs.csv/law.json")) == 1
    assert "plan: error: runs.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_where_nothing_but_numpy_scipy_and_pyyaml_is(runs: Path) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    python = environment("planner", re.findall(r"(?im)^(?:numpy|scipy|pyyaml)==\S+", pins))
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.split()}
    assert names - {"pip", "setuptools"} == {"numpy", "scipy", "pyyaml"}
    size = sum(path.stat().st_size for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink())
    assert size <= MOST_BYTES
    printed = ""
    for words in steps(runs, "alone"):
        ended = subprocess.run(
            [python, "-m", "pipeline.planning", *words], capture_output=True, text=True, check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
        printed += ended.stdout
    assert printed == "".join(done("plan", *words) for words in steps(runs, "full")).replace("full/", "alone/")
    assert contents("alone") == contents("full")
