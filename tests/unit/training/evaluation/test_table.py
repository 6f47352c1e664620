"""Models side by side: intervals on the same pictures, a paper's figures beside, answers that are kept and compared."""

from __future__ import annotations

import csv
import runpy
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from evaluation_sets import write_folders, write_tars
from tiny_clip import exported_clip, tiny

from manifests.errors import ConfigError
from training.cli import main
from training.evaluation import answers as answers_module
from training.evaluation.answers import Answers
from training.evaluation.set_layouts import open_eval_set
from training.evaluation.table import by_sizes, make_table, paired

ROOT = Path(__file__).parents[4]


def silent(line: str) -> None:
    pass


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def drawn(rng: np.random.Generator, num_classes: int, size: int) -> list[dict[str, Answers]]:
    """Answers of two models: classes differ in how hard they are, and in which model they suit."""
    classes_N = np.repeat(np.arange(num_classes, dtype=np.int32), size)
    ease_N = rng.normal(0, 1, num_classes)[classes_N] + rng.normal(0, 1, len(classes_N))
    better_N = rng.normal(0.3, 0.5, num_classes)[classes_N]
    hits = [
        (rng.random(len(classes_N)) < 1 / (1 + np.exp(-logit_N))).astype(float)
        for logit_N in (ease_N + better_N, ease_N)
    ]
    return [{"set": Answers("", [], classes_N, classes_N, hits_N)} for hits_N in hits]


@pytest.mark.parametrize("num_classes", [5, 40])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    truth = np.mean([paired(*drawn(rng, 4000, 25), ["set"]).value for _ in range(10)])
    differences = [paired(*drawn(rng, num_classes, 25), ["set"]) for _ in range(1500)]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in differences]) <= 0.97


def test_a_mean_of_sets_takes_each_set_alike() -> None:
    rng = np.random.default_rng(1)
    (one, other), (small, small_other) = drawn(rng, 20, 50), drawn(rng, 10, 5)
    both = paired(one | {"small": small["set"]}, other | {"small": small_other["set"]}, ["set", "small"])
    parts = [paired(one, other, ["set"]), paired(small, small_other, ["set"])]
    assert both.value == pytest.approx(np.mean([part.value for part in parts]))
    assert both.high - both.low < parts[1].high - parts[1].low


def test_of_one_class_nothing_can_be_told() -> None:
    """The spread over classes is what the interval stands on."""
    classes_N = np.zeros(50, np.int32)
    one, other = ({"set": Answers("", [], classes_N, classes_N, np.full(50, share))} for share in (1.0, 0.0))
    assert paired(one, other, ["set"]).verdict() == "cannot be told"


def test_the_published_plant_gain_cannot_be_told_and_the_general_one_can(tmp_path: Path) -> None:
    lines = make_table([], str(ROOT / "configs/evaluation/published.yaml"), str(tmp_path), silent)
    assert "| DALIP less OpenCLIP | mean of plant | +1.0 (-0.7 to +2.7) | cannot be told |" in lines
    assert "| DALIP less OpenCLIP | mean of general | +6.7 (+6.1 to +7.3) | better |" in lines
    (row,) = [line for line in lines if line.startswith("| DALIP, published")]
    assert row.endswith("| 61.6 | 91.0 | 52.8 | 34.5 | 43.7 | 34.3 | 51.3 | 56.4 |"), "as the paper prints it"


@pytest.mark.parametrize(
    ("ours", "pictures", "verdict"),
    [(0.503, 50_000, "agrees"), (0.44, 1_000, "differs"), (0.53, 100, "cannot be told at this size")],
)
def test_a_figure_agrees_with_a_published_one_only_where_the_size_can_tell(
    ours: float, pictures: int, verdict: str
) -> None:
    assert by_sizes([ours], [0.5], [pictures]).agreement() == verdict


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    architecture = tiny(folder, "dalip-table")
    return [str(exported_clip(folder, seed, architecture)) for seed in range(2)]


@pytest.fixture
def samples(writer: ModuleType) -> list[Any]:
    return writer.drawn_samples(30, 0)


@pytest.fixture
def sets(samples: list[Any], tmp_path: Path) -> Path:
    """Shapes in two layouts, captions, and a set that is not there."""
    write_folders(tmp_path / "folders", samples)
    write_tars(tmp_path / "tars", samples)
    items = [
        {"name": "Folders", "group": "shapes", "path": "folders"},
        {"name": "Tars", "group": "shapes", "path": "tars"},
        {"name": "Gone", "group": "shapes", "path": "gone"},
    ]
    published = {"source": "a paper", "pictures": {"Folders": len(samples)}, "top1": {"one": {"Folders": 8.0}}}
    path = tmp_path / "sets.yaml"
    path.write_text(yaml.safe_dump({"split": None, "sets": items, "published": published}))
    return path


def test_models_are_compared_on_every_picture_and_answers_are_kept(
    models: list[str], sets: Path, tmp_path: Path, samples: list[Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "table"
    call = ["table", f"one={models[0]}", f"two={models[1]}", "--sets", str(sets), "--out", str(out)]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "Gone is not there" in printed
    assert "| two less one | mean of shapes |" in printed
    assert "Measured less published" in printed
    assert (out / "table.png").read_bytes()[:4] == b"\x89PNG"
    by_class, confusion, table = (rows_of(out / f"{name}.csv") for name in ("classes", "confusion", "table"))
    for row in table:
        own = [part for part in by_class if (part["model"], part["set"]) == (row["model"], row["set"])]
        assert sum(int(part["pictures"]) for part in own) == int(row["pictures"]) == len(samples)
        hits = sum(int(part["pictures"]) * float(part["top1"]) for part in own)
        assert hits == pytest.approx(float(row["top1"]) * len(samples), abs=0.05)
        wrong = [
            int(part["pictures"]) for part in confusion if (part["model"], part["set"]) == (row["model"], row["set"])
        ]
        assert sum(wrong) + round(hits) == len(samples)
    before = (out / "table.md").read_bytes()
    monkeypatch.setattr(answers_module, "encode_pictures", None)  # no model runs again
    assert main(call) == 0
    assert (out / "table.md").read_bytes() == before
    theirs = out / "answers/two.parquet"
    assert main(["table", f"one={models[0]}", str(theirs), "--sets", str(sets), "--out", str(out)]) == 0
    assert (out / "table.md").read_bytes() == before, "answers that somebody sent stand for the model"


def test_answers_of_another_protocol_are_refused(models: list[str], sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    make_table([models[0]], str(sets), str(out), silent)
    theirs = next((out / "answers").iterdir()).rename(tmp_path / "theirs.parquet")
    changed = yaml.safe_load(sets.read_text())
    changed["sets"][1]["templates"] = ["one {}"]
    sets.write_text(yaml.safe_dump(changed))
    with pytest.raises(
        ConfigError, match=r"its answers on Tars are of protocol \w{12}, and the set here is \w{12}: other"
    ):
        make_table([str(theirs)], str(sets), str(out), silent)


def test_what_cannot_be_compared_is_one_line(models: list[str], sets: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "table")
    with pytest.raises(ConfigError, match=r"two models are called 'x': .*; write NAME=MODEL"):
        make_table([f"x={models[0]}", f"x={models[1]}"], str(sets), out, silent)
    own = tmp_path / "own"
    own.mkdir()
    (own / "classes.csv").write_text("id,name\n1,mine\n")
    with pytest.raises(ConfigError, match=r"classes.csv"):
        make_table([models[0]], str(sets), str(own), silent)
    assert (own / "classes.csv").read_text() == "id,name\n1,mine\n"
    make_table([models[0]], str(sets), out, silent)
    theirs = next((tmp_path / "table/answers").iterdir())
    rows = pq.read_table(theirs)
    pq.write_table(rows.slice(1), tmp_path / "cut.parquet")
    with pytest.raises(ConfigError, match=r"cut.parquet: its rows on Folders are not those of the set's pictures"):
        make_table([str(tmp_path / "cut.parquet")], str(sets), out, silent)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"other.parquet: holds no answers of `dalip table`"):
        make_table([str(tmp_path / "other.parquet")], str(sets), out, silent)
    gone = yaml.safe_load(sets.read_text())
    gone["sets"] = gone["sets"][2:]
    sets.write_text(yaml.safe_dump(gone))
    with pytest.raises(ConfigError, match=r"none of its 1 sets is there; put one at its path"):
        make_table([models[0]], str(sets), out, silent)


def test_downloads_of_meta_album_become_sets(
    samples: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One as an archive, one unpacked; the others are named."""
    layout = runpy.run_path(str(ROOT / "configs/evaluation/lay_out.py"))
    downloads, target = tmp_path / "downloads", tmp_path / "sets"
    for name in ("PLT_NET_Mini", "FNG_Mini"):
        images = downloads / name / "images"
        images.mkdir(parents=True)
        for i, sample in enumerate(samples):
            (images / f"{i}.jpg").write_bytes(sample.jpg)
        rows = [
            ("FILE_NAME", "CATEGORY", "SUPER_CATEGORY"),
            *((f"{i}.jpg", s.category, "") for i, s in enumerate(samples)),
        ]
        with (downloads / name / "labels.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    shutil.make_archive(str(downloads / "FNG_Mini"), "zip", downloads, "FNG_Mini")
    shutil.rmtree(downloads / "FNG_Mini")
    assert layout["main"](downloads, target) == 1
    assert capsys.readouterr().out.splitlines() == [
        "plantnet: 30 pictures",
        "fungi: 30 pictures",
        f"not in {downloads}, as .zip or folder: PLT_VIL_Mini, MED_LF_Mini, PLT_DOC_Mini",
    ]
    assert sorted(path.name for path in target.iterdir()) == ["fungi", "plantnet"]
    for folder in target.iterdir():
        opened = open_eval_set(str(folder), "test")
        assert [opened.classes[label] for label in opened.labels] == [sample.category for sample in samples]
