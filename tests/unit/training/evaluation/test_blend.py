"""`dalip blend`: the weights between two models, the table and its choice, and pairs of models that do not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import release_writer
import torch
import yaml
from PIL import Image
from training_runs import make_settings, tiny_values, write_values

from manifests.errors import ConfigError
from training.cli import main
from training.evaluation import blend
from training.evaluation.blend import parse_alphas
from training.evaluation.trained_model import open_trained_model
from training.model import exports
from training.model.build import build_model
from training.model.presets import ModelSettings

EVAL = {"split": "heldout", "batch_size": 12, "zero_shot": [{"field": "extra.category", "domain": "plant"}]}


@pytest.fixture
def settings(tmp_path: Path) -> str:
    return write_values(tmp_path, EVAL, "measures")


def model_folder(
    path: Path,
    architecture: Path,
    seed: int,
    *,
    preset: str = "dalip",
    kinds: tuple[str, ...] = (),
    slope: float | None = None,
    **second: int,
) -> Path:
    torch.manual_seed(seed)
    values: dict[str, Any] = {"preset": preset, "architecture": str(architecture), "projectors": kinds}
    if preset != "clip":
        values["second_order"] = {"heads": 2, "reduced_width": 4} | second
    model = build_model(ModelSettings.model_validate(values))
    for matrix in model.projectors.values():
        matrix.data += torch.randn(matrix.shape) / 4
    model.terms.update({} if slope is None else {"slope": torch.tensor(slope)})
    exports.export_hugging_face(model, path)
    return path


def blend_of(start: Path, end: Path, settings: str, release: Path, out: Path, *options: str) -> int:
    fixed = ["--settings", settings, "--release", str(release), "--out", str(out)]
    return main(["blend", str(start), str(end), *fixed, *options])


def test_the_chosen_weights_lie_between_both_models_and_load_everywhere(
    architecture: Path, release_folder: Path, settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = (model_folder(tmp_path / str(seed), architecture, seed) for seed in (1, 2))
    out = tmp_path / "blended"
    assert blend_of(start, end, settings, release_folder, out, "--alpha", "0:1:0.25") == 0
    lines = capsys.readouterr().out.splitlines()
    table = json.loads((out / "blend.json").read_text())
    assert [row["alpha"] for row in table["rows"]] == [0, 0.25, 0.5, 0.75, 1]
    assert table["groups"] == {"expert": "plant", "general": "general"}
    assert [line.split()[:2] for line in lines[:5]] == [["alpha", f"{a:.2f}"] for a in (0, 0.25, 0.5, 0.75, 1)]
    assert lines[5].startswith(f"chosen: alpha {table['alpha']:g}, by the largest geometric mean")
    assert (out / "blend.png").read_bytes()[:4] == b"\x89PNG"

    # the rule, by hand: plant has a task and is judged by accuracy, general has none and is judged by its loss
    def score(row: dict[str, Any]) -> float:
        assert (row["expert"]["what"], row["general"]["what"]) == ("zero-shot top1", "validation loss")
        return math.sqrt(row["expert"]["value"] / row["general"]["value"])

    assert max(table["rows"], key=score)["alpha"] == table["alpha"]
    both = [open_trained_model(str(folder)).model.state_dict() for folder in (start, end, out)]
    for name, tensor in both[2].items():
        expected = (1 - table["alpha"]) * both[0][name].double() + table["alpha"] * both[1][name].double()
        assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-7), name

    # the figures of each end are those of `dalip eval` on that model
    for folder, row in ((start, table["rows"][0]), (end, table["rows"][-1])):
        figures = tmp_path / f"{folder.name}.json"
        command = ["eval", str(folder), "--settings", settings, "--release", str(release_folder), "--out", str(figures)]
        assert main(command) == 0
        result = json.loads(figures.read_text())
        assert result["zero_shot"][0]["figures"]["both"]["top1"]["value"] == row["expert"]["value"]
        assert result["validation_loss"]["general"]["value"] == pytest.approx(row["general"]["value"], rel=1e-6)

    # an export of the blend is the same model in open_clip
    assert main(["export", str(out), str(tmp_path / "made" / "model.pt")]) == 0
    other = open_clip.create_model(f"local-dir:{out}").eval()
    exported = torch.load(tmp_path / "made" / "model.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, exported[name]) for name, tensor in other.state_dict().items())
    assert blend_of(start, end, settings, release_folder, out, "--alpha", "0.5") == 0, "its own files are replaced"


def test_without_a_branch_in_the_first_model_the_blend_has_none(
    architecture: Path, release_folder: Path, settings: str, tmp_path: Path
) -> None:
    start = model_folder(tmp_path / "1", architecture, 1, preset="clip")
    end = model_folder(tmp_path / "2", architecture, 2)
    assert blend_of(start, end, settings, release_folder, tmp_path / "out", "--alpha", "0") == 0
    trained = open_trained_model(str(tmp_path / "out"))
    assert trained.model.second_order is None
    states = [open_trained_model(str(path)).model.state_dict() for path in (start, tmp_path / "out")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dalip: error: ")
    return line


def test_models_that_do_not_fit_are_refused_in_one_line(
    architecture: Path, release_folder: Path, settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, out = model_folder(tmp_path / "1", architecture, 1), tmp_path / "out"
    other = tmp_path / "wider.json"
    config = json.loads(architecture.read_text())
    config["text_cfg"] |= {"width": 64}
    other.write_text(json.dumps(config))
    for end, words in (
        (model_folder(tmp_path / "2", other, 2), "they are different architectures: text_cfg.width"),
        (model_folder(tmp_path / "3", architecture, 3, heads=4), "their second-order branches differ"),
        (model_folder(tmp_path / "4", architecture, 4, preset="clip"), "their second-order branches differ"),
        (model_folder(tmp_path / "5", architecture, 5, preset="second_moment"), "their second-order branches differ"),
    ):
        capsys.readouterr()
        assert blend_of(start, end, settings, release_folder, out) == 2
        assert words in refusal(capsys)
    kinds = model_folder(tmp_path / "6", architecture, 6, kinds=("plant", "general"))
    capsys.readouterr()
    assert blend_of(kinds, start, settings, release_folder, out) == 2
    assert "their model.projectors differ: plant, general and none" in refusal(capsys)
    damaged = model_folder(tmp_path / "5", architecture, 5)
    weights = damaged / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    capsys.readouterr()
    assert blend_of(start, damaged, settings, release_folder, out) == 2
    assert f"{weights}: cannot be read as a checkpoint" in refusal(capsys)
    assert blend_of(start, start, settings, release_folder, out, "--expert", "moss", "--general", "general") == 2
    assert "'moss' is neither a group of eval.sets nor a domain of the split that can be judged" in (
        said := refusal(capsys)
    )
    assert said.endswith("there are general, plant")
    before = (start / "open_clip_model.safetensors").read_bytes()
    assert blend_of(start, start, settings, release_folder, start) == 2
    assert "is one of the models to blend; choose another --out" in refusal(capsys)
    assert (start / "open_clip_model.safetensors").read_bytes() == before
    assert not out.exists()
    out.mkdir()
    (out / "blend.png").write_text("mine")
    assert blend_of(start, start, settings, release_folder, out) == 2
    assert "blend.png: is there, and `dalip blend` did not write it" in refusal(capsys)


def test_a_domain_of_one_pair_is_refused_before_anything_is_measured(
    architecture: Path, settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = release_writer.drawn_samples(8, 8)
    samples[-1].domain = "tree"
    release = release_writer.write_work_folder(tmp_path / "work", samples)
    start, end = (model_folder(tmp_path / str(seed), architecture, seed) for seed in (1, 2))
    names = ("--expert", "tree", "--general", "general")
    assert blend_of(start, end, write_values(tmp_path, EVAL | {"zero_shot": []}, "losses"), release, tmp_path / "out",
                    *names) == 2  # fmt: skip
    said = refusal(capsys)
    assert "'tree' is neither a group of eval.sets nor a domain of the split that can be judged" in said
    assert "two pairs or more); there are general, plant" in said
    assert not (tmp_path / "out/blend.json").exists()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Gives how many alphas were measured since it was asked last."""
    calls: list[int] = []
    original = blend.measure

    def counted(*arguments: Any) -> dict[str, Any]:
        calls.append(1)
        return original(*arguments)

    def since() -> int:
        number = len(calls)
        calls.clear()
        return number

    monkeypatch.setattr(blend, "measure", counted)
    return since


@pytest.mark.slow
def test_an_interrupted_blend_goes_on_and_measures_nothing_twice(
    architecture: Path,
    release_folder: Path,
    tmp_path: Path,
    measured: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = tmp_path / "set"
    for number, name in enumerate("ab"):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (90 * number, 50, 50)).save(pictures / name / "1.png")
    settings = tmp_path / "measures.yaml"
    one_set = {"name": "set", "group": "plant", "path": str(pictures)}
    settings.write_text(yaml.safe_dump(EVAL | {"zero_shot": [], "sets": [one_set]}))
    start, end = (model_folder(tmp_path / str(seed), architecture, seed, preset="clip") for seed in (1, 2))
    out, names = tmp_path / "out", ["--alpha", "0:1:0.5", "--expert", "plant", "--general", "general"]

    def run(target: Path = out, final: Path = end) -> list[str]:
        assert blend_of(start, final, str(settings), release_folder, target, *names) == 0
        return capsys.readouterr().out.splitlines()

    with monkeypatch.context() as patch:
        write = blend.storage.publish_json

        def stop_after_two(path: str, content: Any) -> None:
            write(path, content)
            if len(content["rows"]) == 2:
                raise KeyboardInterrupt

        patch.setattr(blend.storage, "publish_json", stop_after_two)
        assert blend_of(start, end, str(settings), release_folder, out, *names) == 1
    assert measured() == 2
    assert json.loads((out / "blend.json").read_text())["alpha"] is None, "not finished"
    capsys.readouterr()
    assert run()[0] == "2 alphas were measured before"
    assert measured() == 1
    run(tmp_path / "whole")
    assert measured() == 3
    assert (out / "blend.json").read_bytes() == (tmp_path / "whole" / "blend.json").read_bytes()
    moved = tmp_path / "moved"
    shutil.copytree(end, moved)
    assert run(final=moved)[0] == "3 alphas were measured before"
    assert measured() == 0, "weights are known by content, not by place"

    # what changes a figure is measured anew
    names[1] = "1"
    another = model_folder(tmp_path / "3", architecture, 3, preset="clip")
    assert run(final=another)[0].endswith("blend.json: measured with other end; all alphas are measured anew")
    Image.new("RGB", (32, 32), (7, 7, 200)).save(pictures / "a" / "1.png")
    assert "measured with other sets;" in run(final=another)[0]
    other = tmp_path / "other-release"
    release_writer.write_work_folder(other, release_writer.drawn_samples(40, 30), shard_size=19)
    assert blend_of(start, another, str(settings), other, out, *names) == 0
    assert "measured with other releases;" in capsys.readouterr().out
    assert measured() == 3


def test_a_checklist_of_a_task_counts_by_its_names_and_a_task_without_one_as_before(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    tasks = [{"field": "taxon_species"}, {"field": "taxon_species", "within": str(listed)}]
    settings = make_settings(tiny_values(tmp_path, release="r", eval={"zero_shot": tasks}))
    measures = []
    for text in ("Quercus robur\nBetula nana\n", "quercus robur\n\nBetula nana", "Quercus robur\n"):
        listed.write_text(text)
        before, within = blend._measures(settings)["eval"]["zero_shot"]
        assert "within" not in before
        measures.append(within["within"])
    assert measures == [["Quercus robur", "Betula nana"], ["quercus robur", "Betula nana"], ["Quercus robur"]]


def test_a_run_with_itself_is_the_same_at_every_alpha(
    architecture: Path, release_folder: Path, settings: str, tmp_path: Path
) -> None:
    one, out = model_folder(tmp_path / "1", architecture, 1), tmp_path / "out"
    assert blend_of(one, one, settings, release_folder, out, "--alpha", "0,0.3,1") == 0
    table = json.loads((out / "blend.json").read_text())
    assert table["alpha"] == 0
    assert all(row | {"alpha": 0} == table["rows"][0] for row in table["rows"])
    states = [open_trained_model(str(path)).model.state_dict() for path in (one, out)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("of_start", "preset"),
    [((), "clip"), *(pytest.param(of, "dalip", marks=pytest.mark.slow) for of in (("plant", "general"), ()))],
)
def test_projections_of_kinds_are_blended(
    of_start: tuple[str, ...], preset: str, architecture: Path, release_folder: Path, settings: str, tmp_path: Path
) -> None:
    """A model without them has the identity for each kind. A parameter of a loss that one lacks is the other's."""
    start = model_folder(tmp_path / "1", architecture, 1, kinds=of_start, preset=preset)
    end = model_folder(tmp_path / "2", architecture, 2, kinds=("plant", "general"), slope=2.0)
    out = tmp_path / "out"
    assert blend_of(start, end, settings, release_folder, out, "--alpha", "0.5") == 0
    models = [open_trained_model(str(folder)).model for folder in (start, end, out)]
    assert models[2].settings.projectors == ("plant", "general")
    assert models[2].terms["slope"] == 2.0
    assert (models[2].second_order is None) == (preset == "clip")
    first = models[0].projectors["general"] if of_start else torch.eye(len(models[1].projectors["general"]))
    assert torch.allclose(models[2].projectors["general"], (first + models[1].projectors["general"]) / 2)


def test_an_accuracy_of_zero_has_a_score_that_json_can_hold() -> None:
    assert blend._gain({"value": 0.0, "what": "zero-shot top1"}) == 0.0
    assert math.isfinite(blend._gain({"value": 0.0, "what": "validation loss"}))


def test_positions_of_another_size_are_named(
    architecture: Path, release_folder: Path, settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = model_folder(tmp_path / "1", architecture, 1), tmp_path / "2"
    values = {"architecture": str(architecture), "image_size_px": 48, "second_order": {"heads": 2, "reduced_width": 4}}
    exports.export_hugging_face(build_model(ModelSettings.model_validate(values)), end)
    capsys.readouterr()
    assert blend_of(start, end, settings, release_folder, tmp_path / "out") == 2
    assert "tensors have other shapes; first: clip.visual.positional_embedding, [5, 32] and [10, 32]" in refusal(capsys)


@pytest.mark.parametrize(
    ("text", "alphas"),
    [("0:1:0.5", [0, 0.5, 1]), ("0:1:0.1", [i / 10 for i in range(11)]), ("1,0,1", [0, 1]), ("0.3", [0.3])],
)
def test_alphas_are_a_range_or_a_list(text: str, alphas: list[float]) -> None:
    assert parse_alphas(text) == alphas


@pytest.mark.parametrize(
    "text", ["", "0:1", "0:1:0", "1:0:0.1", "0:2:0.5", "-1", "a", "0:1:0.0001", "0:1:1e-300", "nan"]
)
def test_alphas_outside_the_line_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--alpha .*: give FIRST:LAST:STEP or a list like 0,0\.5,1"):
        parse_alphas(text)
