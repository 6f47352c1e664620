"""A trained model on a hub on the loopback: its card, its files, and that open_clip and PlantMix load it from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from building import hash_tree
from foreign_tars import img2dataset_samples, write_tar
from huggingface_hub import snapshot_download
from misbehaving.hub import FakeHub, fake_hub, use_hub
from release_writer import drawn_samples, write_release
from training_runs import Finished, make_settings, run_once, stop_at, write_values

from manifests.contract.release import Release
from manifests.errors import RunError
from training.cli import main
from training.data.loader import build_order, open_releases
from training.data.shards import open_pool
from training.evaluation.encoder import Encoder
from training.evaluation.model_card import ModelFacts, TrainedOn, write_card
from training.evaluation.publishing import _base_model
from training.evaluation.trained_model import TrainedModel, open_trained_model, releases_of_run
from training.model.weights import CONFIG_FILE, WEIGHTS_FILE
from training.run.loop import train

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOSITORY = "models/lab/model"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as hub:
        use_hub(hub, monkeypatch)
        yield hub


def card_of(hub: FakeHub) -> str:
    return (hub.repositories[REPOSITORY].files["README.md"].content or b"").decode()


def test_a_run_is_published_with_its_card_and_loads_from_there(
    config: dict[str, Any], hub: FakeHub, tmp_path: Path, capsys: Output
) -> None:
    run_once(config, data={"mixture": {"plant": 0.75, "general": 0.25}})
    assert main(["eval", config["output_dir"]]) == 0
    figures = json.loads((tmp_path / "run/eval/heldout-toy-0001.json").read_text())
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert not hub.log
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model"]) == 0
    found = hub.repositories[REPOSITORY]
    assert found.private
    assert CONFIG_FILE in found.commits[-1]
    card = card_of(hub)
    assert card in dry

    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "open_clip"
    assert (front["license"], front["license_name"], front["datasets"]) == ("other", "not-stated", ["toy-0001"])
    assert "base_model" not in front, "it began with new weights"
    assert "Training pictures of toy-0001 by licence: 107 CC0-1.0." in card
    assert "Release toy-0001" in card
    assert "| plant | 74.77% | 54 |" in card, "80 of the 107 samples of an epoch"
    assert "no mixing law was fitted" in card
    top1 = figures["zero_shot"][0]["figures"]["both"]["top1"]
    row = next(line for line in card.splitlines() if line.startswith("| zero-shot top1 | both |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:6] == [f"{top1['value']:.1%}", f"{top1['low']:.1%} to {top1['high']:.1%}", f"{top1['chance']:.1%}"]
    assert 'create_model_and_transforms("hf-hub:lab/model")' in card
    everything = b"".join(file.content or b"" for file in found.files.values())
    assert str(tmp_path).encode() not in everything
    assert str(Path(config["model"]["architecture"]).parent).encode() not in everything

    model = open_trained_model(config["output_dir"]).model
    loaded, _, _ = open_clip.create_model_and_transforms("hf-hub:lab/model", cache_dir=str(tmp_path / "cache"))
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text = open_clip.get_tokenizer("hf-hub:lab/model", cache_dir=str(tmp_path / "cache"))(["a red circle"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval().encode_image(image), model.clip.encode_image(image))
        torch.testing.assert_close(loaded.encode_text(text), model.clip.encode_text(text))
    folder = snapshot_download("lab/model", cache_dir=str(tmp_path / "cache"))
    words = ["a red circle", "a blue square"]
    torch.testing.assert_close(
        Encoder.open(folder).encode_texts(words), Encoder.open(config["output_dir"]).encode_texts(words)
    )


def test_weights_that_are_there_are_not_sent_again(config: dict[str, Any], hub: FakeHub, finished: Finished) -> None:
    finished(config)
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--public"]) == 0
    assert not hub.repositories[REPOSITORY].private
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--public"]) == 0
    assert set(hub.arrived.values()) == {1}
    assert hub.repositories[REPOSITORY].files[WEIGHTS_FILE].content


def test_figures_go_with_the_weights_that_they_are_of_whatever_the_times_of_files(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    finished(config)
    run_once(config | {"output_dir": str(tmp_path / "other")}, seed=1)
    folder = Path(config["output_dir"])
    assert main(["eval", str(folder)]) == 0
    assert main(["eval", str(tmp_path / "other"), "--out", str(folder / "eval/of-the-other.json")]) == 0
    (folder / "eval/no-result.json").write_text("{}")
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied, copy_function=shutil.copyfile)  # as a store gives it: all times are new
    os.utime(copied / "eval/heldout-toy-0001.json", (0, 0))
    capsys.readouterr()
    assert main(["publish", str(copied), "--to", "hf:lab/model", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "of-the-other.json: says nothing of these weights, left out of the card" in out
    assert "no-result.json: not a result of `dalip eval`" in out
    assert "| zero-shot top1 | both |" in out


def test_a_copied_run_names_its_own_weights(
    config: dict[str, Any], tmp_path: Path, capsys: Output, finished: Finished
) -> None:
    finished(config)
    copied = tmp_path / "copied"
    shutil.copytree(config["output_dir"], copied)
    path = write_values(tmp_path, config | {"output_dir": str(copied)}, "copied")
    assert main(["train", path]) == 0
    assert f"model: {copied}/model.pt" in capsys.readouterr().out


def test_an_evaluation_says_how_many_pictures_the_training_has_seen(
    config: dict[str, Any], tmp_path: Path, capsys: Output
) -> None:
    """A newer version has come to the work folder since, and holds out what was trained on."""
    releases = tmp_path / "work/releases"
    first = Release.open(config["release"])
    trained_on = releases / f"toy-{first.fingerprint[:12]}"
    shutil.copytree(first.path, trained_on)
    (releases / "LATEST").write_text(trained_on.name)
    run_once(config | {"release": str(tmp_path / "work")})
    samples = drawn_samples(12, 6)
    for sample in samples:
        sample.split = "heldout" if sample.split == "train" else "train"
    write_release(releases / "toy-0002", samples)
    (releases / "LATEST").write_text("toy-0002")
    assert main(["eval", config["output_dir"]]) == 0
    assert (
        "note: 12 of the 12 pictures were in the training: the figures of the split flatter" in capsys.readouterr().out
    )
    blended = tmp_path / "blended"
    assert main(["blend", *[config["output_dir"]] * 2, "--alpha", "0", "--out", str(blended)]) == 0
    assert capsys.readouterr().out.count("12 of the 12 pictures were in the training") == 2, "of each of both models"
    assert len(json.loads((blended / "blend.json").read_text())["notes"]) == 2
    before = hash_tree(blended)
    assert main(["export", config["output_dir"], str(blended), "--format", "huggingface"]) == 2
    assert "blend.json: `dalip blend` wrote the model of this folder" in capsys.readouterr().err
    assert hash_tree(blended) == before
    shutil.rmtree(trained_on)
    assert main(["eval", config["output_dir"]]) == 0
    assert "which is not at its place: whether it saw these pictures is not known" in capsys.readouterr().out


def test_a_run_that_went_on_with_another_release_has_seen_both(
    config: dict[str, Any], tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures on what the first one trained on do not pass for held-out ones; the card names both."""
    releases = tmp_path / "work/releases"
    first = Release.open(config["release"])
    shutil.copytree(first.path, releases / f"toy-{first.fingerprint[:12]}")
    (releases / "LATEST").write_text(f"toy-{first.fingerprint[:12]}")
    config |= {"release": str(tmp_path / "work"), "schedule": {"steps": 4, "warmup_steps": 0}}
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(RunError):
            run_once(config)
    samples = drawn_samples(12, 12)
    for sample in samples:
        sample.split = "heldout" if sample.split == "train" else "train"
    write_release(releases / "toy-0002", samples)
    (releases / "LATEST").write_text("toy-0002")
    train(make_settings(config), allow_changed=True)
    assert main(["eval", config["output_dir"]]) == 0
    assert "note: 12 of the 12 pictures were in the training" in capsys.readouterr().out
    _, fingerprints = releases_of_run(open_trained_model(config["output_dir"]))
    assert fingerprints == [Release.open(str(releases / "toy-0002")).fingerprint, first.fingerprint]


def test_a_release_that_is_gone_is_named_by_its_fingerprint(
    config: dict[str, Any], hub: FakeHub, tmp_path: Path, capsys: Output
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(config["release"])
    run_once(config | {"release": str(moved)})
    moved.unlink()
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model"]) == 0
    assert "that it was trained on is not at its place" in capsys.readouterr().out
    card = card_of(hub)
    assert "which was not there any more:" in card
    assert "| plant | 50.47% | 54 |" in card, "what was drawn of it is recorded"


def _shares_in(card: str) -> dict[str, float]:
    rows = [line.split("|")[1:3] for line in card.splitlines() if line.startswith("| ") and line.count("|") == 4]
    return {name.strip(): float(share.strip().rstrip("%")) for name, share in rows if share.strip().endswith("%")}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"pool_samples": {"plant": 6}}, {"plant": 100 * 6 / 59, "general": 100 * 53 / 59}),
        ({"mixture": {"plant": 0.9, "general": 0.1}, "pool_samples": {"plant": 6}}, {"plant": 90, "general": 10}),
        ({"mixture": {"plant": 1.0}}, {"plant": 100}),
    ],
)
def test_a_card_has_the_shares_that_were_drawn(
    config: dict[str, Any], data: dict[str, Any], expected: dict[str, float], recorded: bool, capsys: Output
) -> None:
    """The rows that the steps drew agree; of a run of an earlier version they follow from its settings."""
    settings = make_settings(config, data=data | {"batch_size": 6}, schedule={"steps": 1, "warmup_steps": 0})
    train(settings)
    record = Path(config["output_dir"]) / "run.json"
    if not recorded:
        record.write_text(json.dumps({**json.loads(record.read_text()), "drawn": []}))
    pool = open_pool(open_releases(config["release"]), "train")
    order = build_order(pool, settings.data, settings.release, settings.seed)
    domains = np.array(pool.table["domain"].to_pylist())[order.rows(0, 40 * order.epoch_size)]
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--dry-run"]) == 0
    shares = _shares_in(capsys.readouterr().out)
    assert shares == pytest.approx(expected, abs=0.6)
    for name, share in shares.items():
        assert share == pytest.approx(100 * (domains == name).mean(), abs=0.01)


def test_a_card_says_which_shards_of_others_were_drawn(config: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """They are no release that is gone."""
    for name, first, stop in (("lab", 0, 16), ("web", 16, 24)):
        write_tar(tmp_path / f"{name}.tar", img2dataset_samples(first, stop))
    groups = [{"name": name, "shards": str(tmp_path / f"{name}.tar"), "weight": weight}
              for name, weight in (("lab", 1.0), ("web", 3.0))]  # fmt: skip
    changes = {"release": None, "eval": {"split": None, "zero_shot": []}, "data": {"shards": groups, "batch_size": 4,
               "cache_dir": str(tmp_path / "cache")}, "schedule": {"steps": 1, "warmup_steps": 0}}  # fmt: skip
    train(make_settings(config, **changes))
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("Shards of others, ") == 2
    assert "not there any more" not in out
    assert "not at its place" not in out
    assert "| lab | 25.00% | 16 |" in out
    assert "| web | 75.00% | 8 |" in out


def test_figures_of_the_training_split_do_not_say_how_good_a_model_is(
    config: dict[str, Any], capsys: Output, finished: Finished
) -> None:
    finished(config)
    assert main(["eval", config["output_dir"], "--split", "train"]) == 0
    assert "note: split 'train' is what it was trained on: the figures say nothing of other" in capsys.readouterr().out
    assert main(["publish", config["output_dir"], "--to", "hf:lab/model", "--dry-run"]) == 0
    good, fit = capsys.readouterr().out.split("## How good it is")[1].split("## How well it fits the pictures it was")
    assert "It was not evaluated on pictures that it was not trained on." in good
    assert "zero-shot" not in good
    assert "| zero-shot top1 | both |" in fit.partition("## How to load it")[0]


def test_a_model_folder_says_that_nothing_is_known_of_its_training(
    config: dict[str, Any], hub: FakeHub, tmp_path: Path, finished: Finished
) -> None:
    finished(config)
    folder = str(tmp_path / "exported")
    assert main(["export", config["output_dir"], folder, "--format", "huggingface"]) == 0
    assert main(["publish", folder, "--to", "hf:lab/model"]) == 0
    assert "what they were trained on is not known here" in card_of(hub)


def test_a_card_shows_the_law_that_chose_the_shares(config: dict[str, Any], finished: Finished) -> None:
    finished(config)
    settings = open_trained_model(config["output_dir"]).settings
    law = {"ratio": {"plant": 0.7, "general": 0.3}, "interval": {"plant": [0.6, 0.8]}}
    drawn = [{"domain": domain, "share": share, "samples": 50} for domain, share in law["ratio"].items()]
    release = TrainedOn("ab" * 32, "toy-0001", drawn=drawn, law=law)
    facts = ModelFacts(settings, "raw", [release], {}, {}, has_second_order=True)
    lines = write_card(facts, "lab/model").splitlines()
    assert "| plant | 0.7000 | 0.6000 to 0.8000 |" in lines
    assert "| general | 0.3000 | not known |" in lines
    assert "The run was not finished when this was published." in lines
    assert not any("at the end of its training" in line for line in lines)
    assert any("those of the newest checkpoint of a run that is not finished" in line for line in lines)


def test_a_target_that_is_no_repository_is_refused(config: dict[str, Any], capsys: Output) -> None:
    assert main(["publish", config["output_dir"], "--to", "s3://bucket/model"]) == 2
    assert "write hf:OWNER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pretrained", "base"),
    [
        ("hf-hub:imageomics/bioclip", "imageomics/bioclip"),
        ("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        (None, None),
        ("elsewhere/run", None),
    ],
)
def test_the_card_names_the_model_that_the_training_began_with(pretrained: str | None, base: str | None) -> None:
    """As far as the hub has it: a tag of open_clip's or a name; a file of one's own is nobody's base."""
    settings = make_settings(
        {"output_dir": "run", "release": "r", "schedule": {"steps": 1}, "model": {"architecture": "ViT-B-32"}},
        model={"preset": "clip", "pretrained": pretrained},
    )
    named = _base_model(TrainedModel(torch.nn.Identity(), settings, Path("run"), "raw", "model.pt"))
    assert named == base
    facts = ModelFacts(settings, "raw", (), {}, {}, has_second_order=False, base_model=named)
    front = yaml.safe_load(write_card(facts, "lab/model").split("---")[1])
    assert front.get("base_model") == base
