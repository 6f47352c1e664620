"""The command line: help, one clear line and exit code 2 for wrong input with nothing written, and the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_runs import Finished, write_values

from training.cli import main
from training.config import read_train_settings
from training.record.checkpoint import newest_weights
from training.record.log import read_log


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, training.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'open_clip', 'pyarrow', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def _file_in_the_way(values: dict[str, Any]) -> None:
    place = Path(values["output_dir"])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    values["output_dir"] = str(place / "run")


def _set(**sections: Any) -> Any:
    return lambda values: values.update(sections)


def _within(section: str, **changes: Any) -> Any:
    return lambda values: values[section].update(changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_set(optimizer={"lr": 1}), "unknown key 'optimizer'; did you mean 'optimiser'?"),
        (_within("data", batchsize=3), "unknown key 'data.batchsize'; did you mean 'batch_size'?"),
        (_set(optimiser={"learning_rate": 1}), "'optimiser.learning_rate'; did you mean 'lr'?"),
        (_set(schedule={"max_steps": 3}), "'schedule.max_steps'; did you mean 'steps'?"),
        (_set(lr=1), "unknown key 'lr'; 'lr' is a key of optimiser"),
        (_set(schedule={}), "'schedule': give the length either as epochs or as steps"),
        (_set(compute={"accumulate": 5}), "not divisible by compute.accumulate 5"),
        (
            _set(eval={"zero_shot": [{"field": "taxon_family", "templates": ["a photo"]}]}),
            "each template needs one {} for the class name",
        ),
        (lambda values: values.update(release=f"{values['release']}/nothing"), "no sealed release here"),
        (
            _set(model={"architecture": "ViT-B-61"}),
            "architecture 'ViT-B-61' is not known to open_clip; near it: ViT-B-16",
        ),
        (_within("model", pretrained="nowhere.pt"), "pretrained 'nowhere.pt' is neither a file nor a tag"),
        (
            _within("data", mixture={"plant": 1, "sea": 2}),
            "the mixture names 'sea', but the release has the domains general, plant",
        ),
        (_within("data", split="test"), "no split 'test'"),
        (_file_in_the_way, "cannot be written"),
        (_set(release=[]), "'release': the list is empty; name a release"),
        (_within("model", image_size_px=-4), "'model.image_size_px': must be 1 or more, given -4"),
        (
            _within("eval", zero_shot=[{"field": "taxon_famly"}]),
            "the release has no field 'taxon_famly'; it has extra.KEY and sample_id",
        ),
        (_set(schedule={"steps": 3, "epochs": 1}), "'schedule': give the length either as epochs or as steps"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_written(
    spoil: Any, words: str, config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(config)
    path = write_values(tmp_path, config)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", path]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("dalip: error: ")
    assert words in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_release_that_does_not_verify_stops_before_work(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = writer.write_release(tmp_path / "release", writer.drawn_samples(20, 0))
    shard = folder / "shards" / "toy-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert main(["train", write_values(tmp_path, config), "--release", str(folder)]) == 2
    assert "1 of 2 files differ from the record; first: shards/toy-000000.tar has" in capsys.readouterr().err
    assert not Path(config["output_dir"]).exists()


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such config file" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 2
    assert "neither a config file nor the folder of a run" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "out.pt")]) == 2
    assert (
        "neither a config file nor the folder of a run (no config.json in it) or of a model" in capsys.readouterr().err
    )
    assert main(["import", str(tmp_path / "none.pt"), str(tmp_path / "out")]) == 2
    assert "no such checkpoint file" in capsys.readouterr().err


def test_eval_before_train_says_so(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", write_values(tmp_path, config)]) == 2
    assert "no trained model here; run `dalip train` first" in capsys.readouterr().err


def test_train_eval_and_export(
    config: dict[str, Any], tmp_path: Path, architecture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chain on shapes that are easily told apart: held-out figures end above chance."""
    # ends lower than it begins within seconds, see the assertions on the figures below
    config["schedule"] = {"steps": 150, "warmup_steps": 10}
    config["data"] |= {"batch_size": 24, "augment": {"scale": [0.8, 1.0]}}
    config["eval"]["zero_shot"] = [
        {"field": "extra.category", "templates": ["a {}"]},
        {"field": "taxon_species", "templates": ["a {}", "a red {}", "a green {}"], "domain": "plant"},
    ]
    path = write_values(tmp_path, config)
    assert main(["train", path]) == 0
    out = capsys.readouterr().out
    assert out.startswith("finished: 150 steps, 3,600 samples (33.6 epochs)")
    assert f"run: {config['output_dir']}" in out
    assert main(["train", path]) == 0
    assert capsys.readouterr().out.startswith("finished before, reused: 150 steps")

    assert main(["eval", config["output_dir"]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"weights: raw ({config['output_dir']}/model.pt)"
    assert lines[1].startswith("intervals are of 95 %; those of a classification draw classes anew")
    assert lines[2] == "36 samples of split 'heldout' of toy-0001"
    assert all("chance" in line for line in lines[3:-2])
    result = json.loads(Path(lines[-1].removeprefix("figures: ")).read_text())
    colour_shape, species = result["zero_shot"]
    assert (colour_shape["num_classes"], species["num_classes"]) == (12, 3)
    assert species["figures"]["f"]["top1"]["trials"] == 18
    assert set(colour_shape["figures"]) == {"f", "z", "both"}
    top1 = colour_shape["figures"]["both"]["top1"]
    assert top1["low"] > 2 * top1["chance"]
    recall = result["retrieval"]["both"]["image_to_text_r1"]
    assert recall["low"] > 2 * recall["chance"]
    overall = result["validation_loss"]["all"]
    assert overall["value"] < overall["chance"]
    assert set(result["validation_loss"]) == {"all", "general", "plant"}

    target = tmp_path / "exported.pt"
    assert main(["export", config["output_dir"], str(target)]) == 0
    assert "create_model_and_transforms" in capsys.readouterr().out
    import open_clip

    open_clip.create_model_and_transforms(architecture.stem, pretrained=str(target))
    assert main(["export", config["output_dir"], str(tmp_path / "hf"), "--format", "huggingface"]) == 0
    assert (tmp_path / "hf" / "open_clip_config.json").exists()


def test_a_start_from_weights_says_what_is_new(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain CLIP as an open_clip file, then as a folder, under a new branch; all of a model under itself: nothing."""
    config["schedule"] = {"steps": 1}
    branch = config["model"].pop("second_order")
    clip, dalip = ({"model": config["model"] | {"preset": preset}} for preset in ("clip", "dalip"))
    first = config | clip | {"output_dir": str(tmp_path / "clip")}
    assert main(["train", write_values(tmp_path, first)]) == 0
    assert "weights from" not in capsys.readouterr().err
    assert main(["export", str(tmp_path / "clip"), str(tmp_path / "clip.pt")]) == 0
    assert main(["export", str(tmp_path / "clip"), str(tmp_path / "clip-hf"), "--format", "huggingface"]) == 0
    dalip["model"]["second_order"] = branch
    run = tmp_path / "from-clip.pt"
    for source, is_new in ((tmp_path / "clip.pt", True), (tmp_path / "clip-hf", True), (run / "model.pt", False),
                           (run, False)):  # fmt: skip
        folder = tmp_path / f"from-{source.name}{'' if is_new else '-again'}"
        values = config | {"model": dalip["model"] | {"pretrained": str(source)}, "output_dir": str(folder)}
        assert main(["train", write_values(tmp_path, values)]) == 0
        new = read_log(folder / "log.jsonl", "start")[0]["new_parameters"]
        assert ({name.partition(".")[0] for name in new} == {"image_branch", "text_branch"}) is is_new
        assert len(new) == (16 if is_new else 0)
        total = len(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
        parts = "16 (image_branch 8, text_branch 8)" if is_new else "0"
        listed = (
            f"weights from {source}: {total - len(new)} of {total} tensors; new: {parts}; of the weights, not used: 0"
        )
        assert listed in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_prepares_pictures_as_the_weights_it_began_from_also_afterwards(
    config: dict[str, Any], tmp_path: Path, finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of another mean and interpolation (as SigLIP's): evaluation and export keep them, from any file."""
    from training.evaluation.trained_model import load_run_model
    from training.model.build import build_model
    from training.model.exports import export_hugging_face
    from training.model.presets import ModelSettings

    model = build_model(ModelSettings.model_validate(config["model"]))
    model.clip.visual.preprocess_cfg |= {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    export_hugging_face(model, tmp_path / "start")
    config["model"]["pretrained"] = str(tmp_path / "start")
    config["schedule"] = {"steps": 2}
    assert main(["train", write_values(tmp_path, config)]) == 0
    run = Path(config["output_dir"])
    if not finished:
        (run / "model.pt").unlink()
    trained = load_run_model(read_train_settings(str(run)), run).model
    given = trained.preprocess_settings
    assert (list(given.mean), list(given.std), given.interpolation) == ([0.5] * 3, [0.25] * 3, "bilinear")
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "huggingface"]) == 0
    said = json.loads((tmp_path / "out/open_clip_config.json").read_text())["preprocess_cfg"]
    assert (said["mean"], said["interpolation"]) == ([0.5] * 3, "bilinear")
    assert main(["export", str(run), str(tmp_path / "out.pt")]) == 0
    options = "image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], image_interpolation='bilinear')"
    assert capsys.readouterr().out.strip().endswith(options)
    again = build_model(ModelSettings.model_validate(config["model"] | {"pretrained": str(newest_weights(run))}))
    assert list(again.preprocess_settings.mean) == [0.5] * 3


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"field": "extra.colour"}, "eval.zero_shot: no sample has extra.colour; write extra.category, or take"),
        ({"field": "rank"}, "the release has no field 'rank'; it has extra.KEY and"),
        ({"field": "taxon_genus"}, "0 classes with at least 1 samples, two are needed"),
        ({"field": "extra.category", "domain": "sea"}, "in domain 'sea': 0 classes"),
        ({"field": "taxon_species", "within": "cross"}, "1 of the 3 labels lie within cross, two or more are needed"),
        ({"field": "taxon_species", "within": "Rosales"}, "'taxon_species' within: no label is 'Rosales', or lies in"),
    ],
)
def test_a_wrong_zero_shot_task_is_named(
    task: dict[str, Any],
    words: str,
    config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    finished: Finished,
) -> None:
    config["schedule"] = {"steps": 1}
    finished(config)
    config["eval"]["zero_shot"] = [task]
    path = write_values(tmp_path, config)
    assert main(["eval", path]) == 2
    assert words in capsys.readouterr().err
    assert not (Path(config["output_dir"]) / "eval").exists()


def test_a_zero_shot_task_within_a_group_has_its_own_chance(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:
    """The list lies beside the config; the same pictures are measured over all classes and over two."""
    config["schedule"] = {"steps": 1}
    run = finished(config)
    (tmp_path / "list.txt").write_text("red circle\nred square\nred rectangle\n")
    tasks = [{"field": "extra.category"}, {"field": "extra.category", "within": "list.txt"}]
    settings = write_values(tmp_path, config["eval"] | {"zero_shot": tasks, "retrieval": False}, "eval")
    out = tmp_path / "figures.json"
    assert main(["eval", str(run), "--settings", settings, "--out", str(out)]) == 0
    every, two = json.loads(out.read_text())["zero_shot"]
    assert (every["num_classes"], two["num_classes"], two["within"]) == (12, 2, "list.txt")
    top1 = two["figures"]["f"]["top1"]
    assert (top1["chance"], top1["trials"], every["figures"]["f"]["top1"]["trials"]) == (0.5, 6, 36)
    assert top1["low"] < top1["value"] < top1["high"] or top1["value"] in (0, 1)
    printed = capsys.readouterr().out
    assert "extra.category, within list.txt, 2 classes" in printed
    assert "note: zero-shot over extra.category: within list.txt: 2 of 12 labels, the other 10 are left out" in printed
    assert "1 of the 3 names of list.txt are not among the labels: 'red rectangle'" in printed


def test_another_split_and_release_can_be_evaluated(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str], finished: Finished
) -> None:
    config["schedule"] = {"steps": 1}
    path = write_values(tmp_path, config)
    finished(config)
    assert main(["eval", path, "--split", "train", "--out", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["num_samples"] == 107
    other = writer.write_release(tmp_path / "other", writer.drawn_samples(4, 24), name="other")
    assert main(["eval", path, "--release", str(other)]) == 0
    assert "24 samples of split 'heldout' of other-0001" in capsys.readouterr().out


@pytest.fixture
def trained(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Finished) -> Path:
    """The folder of a run of one step."""
    write_values(tmp_path, config | {"schedule": {"steps": 1}})
    return finished(config, schedule={"steps": 1})


@pytest.mark.parametrize(
    ("name", "content", "command", "words"),
    [
        (
            "config.json",
            '{"a":',
            "eval RUN",
            "config.json: cannot be read: Expecting value: line 1 column 6 (char 5); give the YAML",
        ),
        ("config.json", "[]", "export RUN OUT.pt", "config.json: cannot be read: it holds no JSON object"),
        ("log.jsonl", "not json\n", "plot RUN --out OUT.png", "log.jsonl: line 1 is no event of a run"),
        ("log.jsonl", "{}\n", "plot RUN --out OUT.png", "log.jsonl: line 1 is no event"),
        ("log.jsonl", '{"event": "step", "step": 1}\n', "plot RUN --out OUT.png", "lacks what a plot needs"),
        ("log.jsonl", "{}\n", "plot RUN --out OUT.pdf", "OUT.pdf: the name must end in .png"),
        ("log.jsonl", "{}\n", "plot RUN --out RUN", "run: the name must end in .png"),
        ("model.pt", "x", "eval RUN", "model.pt: damaged or replaced"),
        ("run.json", "[]", "eval RUN", "run.json: cannot be read: it holds no JSON object"),
        ("run.json", "{}", "train CONFIG", "run.json: is damaged, or not the record of a training"),
        ("x", "", "eval RUN --out OUT.png", "OUT.png: --out is the JSON file, the plot goes beside it"),
        ("x", "", "eval RUN --out RUN", "run: --out is the JSON file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    name: str, content: str, command: str, words: str, trained: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (trained / name).write_text(content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    places = {"RUN": str(trained), "CONFIG": str(tmp_path / "run.yaml"), "OUT": str(tmp_path / "OUT")}
    for word, place in places.items():
        command = command.replace(word, place)
    capsys.readouterr()  # what the training said, where this is the first test of it
    assert main(command.split()) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_for_what_is_written_are_made(trained: Path, tmp_path: Path) -> None:
    assert main(["plot", str(trained), "--out", str(tmp_path / "a/b/x.png")]) == 0
    assert main(["export", str(trained), str(tmp_path / "c/d/x.pt")]) == 0
    assert main(["eval", str(trained), "--out", str(tmp_path / "e/f/x.json")]) == 0
    for name in ("a/b/x.png", "c/d/x.pt", "e/f/x.json", "e/f/x.png"):
        assert (tmp_path / name).is_file(), name


def test_a_k_that_too_few_pictures_are_there_for_is_said(
    config: dict[str, Any], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """36 pictures of 12 classes: two shots leave one to ask about, three none."""
    settings = config["eval"] | {"few_shot": {"shots": [2, 3]}}
    write_values(tmp_path, settings, "eval")
    out = tmp_path / "figures.json"
    assert main(["eval", str(trained), "--settings", str(tmp_path / "eval.yaml"), "--out", str(out)]) == 0
    said = "note: zero-shot over extra.category: no 3-shot figure, no two classes have more than 3 pictures"
    assert said in capsys.readouterr().out.splitlines()
    task = json.loads(out.read_text())["zero_shot"][0]
    assert (set(task["few_shot"]["f"]), task["few_shot_left_out"]) == ({"2"}, [3])
