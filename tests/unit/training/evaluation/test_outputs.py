"""What a command is asked to write replaces what an earlier call of it wrote, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_runs import Finished, content_of, make_settings, run_once

from manifests.contract.release import Release
from manifests.errors import ConfigError, IntegrityError
from training.cli import main
from training.evaluation import trained_model
from training.evaluation.trained_model import load_run_model, open_trained_model
from training.record import checkpoint

Output = pytest.CaptureFixture[str]


@pytest.fixture
def run(config: dict[str, Any], finished: Finished) -> Path:
    return finished(config, schedule={"steps": 1, "warmup_steps": 0})


def test_no_export_lies_among_the_files_of_a_run(run: Path, tmp_path: Path, capsys: Output) -> None:
    before = content_of(run)
    for target, how in ((run / "model.pt", "open_clip"), (run / "other.pt", "open_clip"), (run, "huggingface"),
                        (run / "hub", "huggingface")):  # fmt: skip
        assert main(["export", str(run), str(target), "--format", how]) == 2
        assert "lies in the folder of a run" in capsys.readouterr().err
    assert main(["import", str(run / "model.pt"), str(run)]) == 2
    assert content_of(run) == before


def test_an_export_replaces_an_earlier_export_alone(run: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "hub").mkdir()
    for name, how in (("a.pt", "open_clip"), ("a.safetensors", "open_clip"), ("hub", "huggingface")):
        target = tmp_path / name
        file = target / "open_clip_config.json" if target.is_dir() else target
        shutil.copy(run / "model.pt", file)
        mine = file.read_bytes()
        assert main(["export", str(run), str(target), "--format", how]) == 2
        assert f"{file}: is there, and no `dalip export`" in capsys.readouterr().err
        assert file.read_bytes() == mine
        file.unlink()
        for _ in range(2):
            assert main(["export", str(run), str(target), "--format", how]) == 0, capsys.readouterr().err
        assert file.read_bytes() != mine


@pytest.mark.slow
def test_figures_replace_figures_alone(run: Path, config: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    before = content_of(run)
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "photo.png").write_bytes(b"a photo")
    (run / "eval").mkdir()
    (run / "eval/heldout-toy-0001.json").write_text('{"of": "someone else"}')
    for more in (["--out", str(run / "run.json")], ["--out", str(tmp_path / "mine.json")],
                 ["--out", str(tmp_path / "photo.json")], []):  # fmt: skip
        assert main(["eval", str(run), *more]) == 2
        assert "is there, and `dalip eval` did not write it; choose another --out" in capsys.readouterr().err
    assert before.items() <= content_of(run).items()
    assert (tmp_path / "photo.png").read_bytes() == b"a photo"
    for _ in range(2):
        assert main(["eval", str(run), "--out", str(tmp_path / "figures.json")]) == 0


def test_nothing_is_written_into_a_release(run: Path, writer: ModuleType, tmp_path: Path, capsys: Output) -> None:
    release = writer.write_release(tmp_path / "toy", writer.drawn_samples(20, 0))
    inside = str(release / "shards/x")
    before = content_of(release)
    for command in (["export", str(run), f"{inside}.pt"], ["export", str(run), inside, "--format", "huggingface"],
                    ["eval", str(run), "--out", f"{inside}.json"],
                    ["embed", str(release), "--model", str(run), "--out", f"{inside}.parquet"]):  # fmt: skip
        assert main(command) == 2, command
        assert "lies in the sealed release" in capsys.readouterr().err
    assert content_of(release) == before
    assert not list(Release.open(str(release)).unknown_files())


def test_a_run_is_judged_by_its_own_weights_whatever_was_exported_beside_them(run: Path, tmp_path: Path) -> None:
    """An earlier version exported into the folder of an unfinished run."""
    assert main(["export", str(run), str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    shutil.copytree(tmp_path / "hub", run, dirs_exist_ok=True)
    assert open_trained_model(str(run)).weights == "raw"


def test_a_checkpoint_that_a_training_removes_meanwhile_costs_nothing(
    run: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model.pt", "summary.json"):
        (run / name).unlink()
    newest, older = run / "checkpoints/step-00000001.pt", run / "checkpoints/step-00000000.pt"
    newest_weights, seen = checkpoint.newest_weights, list[Path]()
    shutil.copy(newest, older)

    def late(folder: Path) -> Path:
        seen.append(newest_weights(folder) if seen else older)
        if len(seen) == 1:
            older.unlink()
        return seen[-1]

    monkeypatch.setattr(trained_model.checkpoint, "newest_weights", late)
    assert load_run_model(make_settings(config), run).source == str(newest)
    assert seen == [older, newest]


def test_a_file_of_code_is_refused_without_advice_to_run_it(run: Path, config: dict[str, Any], capsys: Output) -> None:
    for name in ("model.pt", "summary.json"):
        (run / name).unlink()
    torch.save({"run": Path("x")}, run / "checkpoints/step-00000001.pt")
    assert main(["eval", str(run)]) == 1
    said = capsys.readouterr().err
    assert "code in a file is never run" in said
    assert "weights_only" not in said
    assert "two options" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_samples_table_with_a_changed_byte_is_one_line(
    config: dict[str, Any], writer: ModuleType, tmp_path: Path
) -> None:
    """Wherever the byte lies: the table is read before it is compared with its record."""
    release = writer.write_release(tmp_path / "toy", writer.drawn_samples(20, 0))
    table = release / "samples.parquet"
    whole, refused = table.read_bytes(), 0
    for place in range(3, len(whole), len(whole) // 60):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        table.write_bytes(changed)
        with pytest.raises((IntegrityError, ConfigError), match=r"samples\.parquet|shard"):
            run_once(config, release=str(release), schedule={"steps": 1})
        refused += 1
    assert refused > 50
