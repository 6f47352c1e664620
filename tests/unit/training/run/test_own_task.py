"""The task that CONTRIBUTING shows, in a package outside: a column of its own, and parameters of its own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import release_writer
import torch
from training_runs import assert_same_run, final_weights, make_settings, run_once, stop_at

from manifests.errors import ConfigError, RunError
from training.cli import main
from training.data.columns import Numbers, txt_columns
from training.data.loader import open_releases
from training.data.shards import open_pool
from training.evaluation.encoder import Encoder
from training.evaluation.trained_model import open_trained_model
from training.record.log import read_log
from training.run.loop import train

ROOT = Path(__file__).parents[4]
(TASK,) = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a task")[2].partition("\n## ")[0],
    re.DOTALL,
)


def write_graded(folder: Path, **extra: Any) -> str:
    """A release whose `extra` holds a grade of every pair but each fifth, or what `extra` says."""
    samples = release_writer.drawn_samples(107, 36)
    more = {
        release_writer.sample_id("toy", sample.record_key): {
            "extra": json.dumps(extra or ({"grade": number % 3} if number % 5 else {"category": "none"}))
        }
        for number, sample in enumerate(samples)
    }
    return str(release_writer.write_release(folder, samples, more=more))


@pytest.fixture
def graded(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The config of a run that has this task."""
    (tmp_path / "graded.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "graded", raising=False)
    judged = {"batch_size": 12, "zero_shot": [], "every_steps": 3}
    return config | {
        "release": write_graded(tmp_path / "graded"), "loss": {"form": "graded:Graded"}, "eval": judged,
    }  # fmt: skip


def test_a_task_of_another_package_trains_resumes_and_validates(
    graded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_once(graded)
    folder = Path(graded["output_dir"])
    weights, steps = final_weights(str(folder)), read_log(folder / "log.jsonl", "step")
    assert weights["terms.slope"].item() != 1.0
    assert weights["terms.offset"].item() > 0.0, "grades are 0 to 2, cosines about 0"
    assert steps[-1]["grade_error"] < steps[0]["grade_error"]

    again = graded | {"output_dir": str(tmp_path / "again")}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError):
            run_once(again)
    run_once(again)
    assert_same_run(str(folder), again["output_dir"])
    parts = graded | {"output_dir": str(tmp_path / "parts")}
    run_once(parts, compute={"accumulate": 3})
    for name, value in final_weights(parts["output_dir"]).items():
        if name.startswith("terms."):
            assert value.item() == pytest.approx(weights[name].item(), abs=1e-4), name

    validation = read_log(folder / "log.jsonl", "validation")[-1]["losses"]["all"]
    capsys.readouterr()
    assert main(["eval", str(folder)]) == 0
    (figures,) = (folder / "eval").glob("*.json")
    assert json.loads(figures.read_text())["validation_loss"]["all"]["value"] == pytest.approx(validation, rel=1e-5)
    exports = {"huggingface": str(tmp_path / "hub"), "open_clip": str(tmp_path / "alone.pt")}
    for layout, exported in exports.items():
        assert main(["export", str(folder), exported, "--format", layout]) == 0
    assert Encoder.open(exports["huggingface"]).fingerprint == Encoder.open(str(folder)).fingerprint
    assert open_trained_model(exports["huggingface"]).model.terms["slope"] == weights["terms.slope"]
    ungraded = write_graded(tmp_path / "ungraded", category="none")
    assert main(["eval", str(folder), "--release", ungraded, "--out", str(tmp_path / "figures.json")]) == 0
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["validation_loss"] == {}
    note = "the validation loss is not measured (loss.form: no sample has extra.grade; write extra.category, or"
    assert any(line.startswith(note) for line in result["notes"])


def test_a_column_that_no_sample_has_is_named_before_the_run(graded: dict[str, Any], tmp_path: Path) -> None:
    for extra, words in (
        ({"category": "none"}, r"loss\.form: no sample has extra\.grade; write extra\.category, or take it out"),
        ({"grade": "12"}, r"loss\.form: the field 'extra\.grade' holds no numbers: it holds the text '12'"),
        ({"grade": [1]}, None),
    ):
        release = write_graded(tmp_path / f"of-{len(str(extra))}", **extra)
        if words is None:  # a vector of one number
            numbers = txt_columns(open_pool(open_releases(release), "heldout"), {"grade": Numbers("extra.grade")})
            assert torch.equal(numbers["grade"], torch.ones(36, 1))
            continue
        with pytest.raises(ConfigError, match=words):
            train(make_settings(graded | {"release": release}))
        assert not Path(graded["output_dir"], "run.json").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("__call__(self, f, c): return f['image'].mean()", "went wrong at .*, line 3, in __call__: KeyError: 'image'"),
        ("__call__(self, f, c): return f['logit_scale']", "must give a dict of tensors of one number each .*, line 3"),
        ("__call__(self, f, c): return {'los': f['logit_scale']}", r"has a gradient.*: \['los'\] .*, line 3"),
        ("__call__(self, f, c): return {'loss': c['labels'].double().mean()}", "has a gradient.*, line 3"),
        ("of_pairs(self, f, c, size): return f['logit_scale']", "must give a tensor with the loss of each.*, line 3"),
        ("of_pairs(self, f, c): return", "Mine.of_pairs must take features, columns, batch_size .*, line 3"),
        ("bound(self, model): model.clamp()", "line 3, in bound: AttributeError"),
        ("oops", "line 3: SyntaxError: expected '\\('"),
    ],
)
def test_a_mistake_in_ones_own_loss_is_named_with_its_line(
    wrong: str, words: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    head = "from training.tasks.contrastive import SumOfLosses as Base\nclass Mine(Base):\n"
    (tmp_path / "mistaken.py").write_text(f"{head}    def {wrong}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mistaken", raising=False)
    config["eval"]["every_steps"] = 1
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config | {"loss": {"form": "mistaken:Mine"}}))
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(r"dalip: error: loss\.form: .*" + words, said), said
