"""A run judged on evaluation sets from outside: its figures, and the mistakes and broken models that give none."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from evaluation_sets import classes_of, write_folders, write_table, write_tars
from PIL import Image
from training_runs import Finished, write_values

from manifests.drawing.panels import draw_svg
from training.cli import main
from training.evaluation.report import result_panels


@pytest.mark.slow
def test_a_run_is_judged_on_sets_of_every_layout(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-shot, few-shot, retrieval, group means, JSON and plot; above chance where it learned."""
    samples = writer.drawn_samples(107, 120)[107:]
    write_tars(tmp_path / "tars", samples)
    write_folders(tmp_path / "folders", samples)
    write_table(tmp_path / "table", samples)
    pairs = write_tars(tmp_path / "pairs", samples[:12], captions=True)
    (pairs / "dataset_type.txt").write_text("retrieval")
    config["schedule"] = {"steps": 120, "warmup_steps": 10}
    config["data"] |= {"batch_size": 24}
    run = write_values(tmp_path, config)
    assert main(["train", run]) == 0
    wanted = {
        "split": None,
        "few_shot": {"shots": [1, 3]},
        "sets": [
            {"name": "tars", "path": str(tmp_path / "tars"), "group": "general"},
            {"name": "folders", "path": str(tmp_path / "folders"), "group": "general", "templates": ["a {}"]},
            {"name": "table", "path": str(tmp_path / "table"), "group": "plant", "text": "scientific",
             "templates": ["a {}"]},
            {"name": "pairs", "path": str(pairs)},
        ],
    }  # fmt: skip
    write_values(tmp_path, wanted, "eval")
    capsys.readouterr()
    assert main(["eval", config["output_dir"], "--settings", str(tmp_path / "eval.yaml")]) == 0
    out = capsys.readouterr().out
    result = json.loads(Path(out.splitlines()[-1].removeprefix("figures: ")).read_text())
    assert "tars: 120 pictures, 12 classes" in out
    for item in result["sets"][:3]:
        assert set(item["zero_shot"]) == {"f", "z", "both"}
        top1 = item["zero_shot"]["both"]["top1"]
        assert top1["trials"] == 120
        assert top1["low"] > 2 * top1["chance"]
        assert item["few_shot"]["f"]["3"]["low"] > item["few_shot"]["f"]["3"]["chance"]
    # the same pictures and prompts: the layout only changes their order, by which rounding may move a near tie
    folders, table = result["sets"][1]["zero_shot"]["f"]["top1"], result["sets"][2]["zero_shot"]["f"]["top1"]
    assert abs(folders["hits"] - table["hits"]) <= 1
    assert result["groups"]["general"]["both"]["sets"] == 2
    assert set(result["groups"]) == {"general", "plant", "all sets"}
    assert result["sets"][3]["retrieval"]["f"]["text_to_image_r1"]["trials"] == 24
    with Image.open(Path(config["output_dir"]) / "eval" / "sets.png") as plot:
        assert plot.width > 600
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 10
    written = tmp_path / "run" / "eval" / "sets.json"
    other = tmp_path / "other" / "eval" / "sets.json"
    other.parent.mkdir(parents=True)
    shutil.copy(written, other)
    picture = tmp_path / "compared.png"
    capsys.readouterr()
    assert main(["plot", str(written), str(other), "--out", str(picture)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["general", "plant"]
    for line, model in zip(table[1:3], ("run", "other"), strict=True):
        figures = [f"{result['groups'][group]['both']['value']:.1%}" for group in ("general", "plant")]
        assert [line[0], line[1], line[4]] == [model, *figures]
    with Image.open(picture) as plot:
        assert plot.width > 600
    panels = [draw_svg(panel) for panel in result_panels({"run": result, "other": result})]
    assert len(panels) == 5, "a panel for each set, and one for the means"
    for words in ("run, f", "other, both", "chance", "zero-shot top1", "3-shot", "text to image r1", "all sets"):
        assert words in "".join(panels)
    assert main(["plot", str(written), str(written), "--out", str(picture)]) == 2
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"split": None}, "nothing to measure"),
        ({"sets": [{"name": "a", "path": "nowhere"}]}, "nowhere: no such folder"),
        ({"sets": [{"name": "a", "path": "."}, {"name": "a", "path": "."}]}, "the name 'a' is given twice"),
        ({"sets": [{"name": "a", "path": "FOLDERS", "text": "common"}]}, "text common needs taxa"),
        ({"few_shots": 1}, "unknown key 'few_shots'; did you mean 'few_shot'?"),
        ({"sets": [{"name": "a", "path": ".", "templates": ["a"]}]}, "each template needs one {}"),
    ],
)
def test_wrong_evaluation_settings_are_one_line_and_write_nothing(
    wanted: dict[str, Any], words: str, config: dict[str, Any], tmp_path: Path, writer: ModuleType,
    capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:  # fmt: skip
    folders = write_folders(tmp_path / "folders", writer.drawn_samples(12, 0))
    run = write_values(tmp_path, config | {"schedule": {"steps": 1}})
    finished(config, schedule={"steps": 1})
    text = yaml.safe_dump(wanted).replace("FOLDERS", str(folders))
    (tmp_path / "eval.yaml").write_text(text)
    capsys.readouterr()
    assert main(["eval", run, "--settings", str(tmp_path / "eval.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (Path(config["output_dir"]) / "eval").exists()


@pytest.mark.parametrize("part", ["clip.visual.proj", "clip.text_projection", "clip.logit_scale"])
def test_a_model_of_nans_has_no_score(
    part: str,
    config: dict[str, Any],
    tmp_path: Path,
    writer: ModuleType,
    capsys: pytest.CaptureFixture[str],
    finished: Finished,
) -> None:
    """Each kind of figure says of which set how many vectors are broken, and writes nothing."""
    samples = writer.drawn_samples(24, 0)
    pairs = write_tars(tmp_path / "pairs", samples, captions=True)
    (pairs / "dataset_type.txt").write_text("retrieval")
    write_folders(tmp_path / "folders", samples)
    run = write_values(tmp_path, config | {"schedule": {"steps": 1}})
    finished(config, schedule={"steps": 1})
    weights = Path(config["output_dir"]) / "model.pt"
    content = torch.load(weights, weights_only=True)
    content["state_dict"][part].fill_(float("nan"))
    torch.save(content, weights)
    summary = weights.with_name("summary.json")
    made = json.loads(summary.read_text()) | {"model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    summary.write_text(json.dumps(made))  # as if the training had ended so
    sets = [{"name": name, "path": str(tmp_path / name)} for name in ("folders", "pairs")]
    side = "picture features" if "visual" in part else "class features"
    texts = "picture features" if "visual" in part else "caption features"
    wanted = [({}, "held-out samples")]
    if part != "clip.logit_scale":  # the scale is in the loss alone
        wanted += [
            ({"split": None, "sets": sets[:1]}, f"eval.sets 'folders', {side} (f): "),
            ({"split": None, "sets": sets[1:]}, f"eval.sets 'pairs', {texts} (f): "),
        ]
    for values, words in wanted:
        write_values(tmp_path, values, "eval")
        capsys.readouterr()
        assert main(["eval", run, "--settings", str(tmp_path / "eval.yaml")]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "are not finite" in error
    assert not (Path(config["output_dir"]) / "eval").exists()


def test_classes_of_one_name_are_named(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:
    samples = writer.drawn_samples(24, 0)
    classes = classes_of(samples)
    folder = write_tars(tmp_path / "set", samples)
    (folder / "classnames.txt").write_text("\n".join(["missile", classes[1], "missile", *classes[3:]]) + "\n")
    run = write_values(tmp_path, config | {"schedule": {"steps": 1}})
    finished(config, schedule={"steps": 1})
    write_values(tmp_path, {"split": None, "sets": [{"name": "a", "path": str(folder)}]}, "eval")
    capsys.readouterr()
    assert main(["eval", run, "--settings", str(tmp_path / "eval.yaml"), "--out", str(tmp_path / "r.json")]) == 0
    assert "note: a: classes share a name: 'missile' (2 classes)" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["sets"][0]["shared_names"] == {"missile": [0, 2]}
