"""Heads on frozen towers: tokens computed once and after kill -9, then train, resume, evaluate, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import release_writer
import timm
import torch
import yaml
from torch import Tensor, nn
from training_runs import assert_same_run, final_weights, make_settings, run_once, step_lines, stop_at, with_sections

from manifests.errors import ConfigError, IntegrityError
from training.cli import main
from training.config import TrainSettings, identity_values
from training.data import loader, tokens
from training.data.shards import SamplePool, open_pool
from training.data.tokens import TokenStore, fill_store, open_stores, principal_components
from training.evaluation.encoder import Encoder
from training.evaluation.trained_model import open_trained_model
from training.model import exports
from training.model.backbones import Backbone, load_backbone
from training.model.build import build_model
from training.model.presets import ModelSettings
from training.record.checkpoint import lock_folder
from training.record.log import read_log
from training.run import token_job
from training.run.stopping import StoppedError

SIZE, TOKENS = 32, 5


class Words(nn.Module):
    """A text tower: a vector for each byte."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(256, 12)


def image_tower() -> Backbone:
    """16 tokens of 24 channels, from patches of 8 px."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 24, 8, 8)

    def forward(pictures: Tensor) -> tuple[Tensor, Tensor, None]:
        tokens = network(pictures).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens, None

    half = (0.5, 0.5, 0.5)
    preprocess = {"size": SIZE, "mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"}
    return Backbone(network, forward, preprocess)


def text_tower() -> Backbone:
    network = Words()

    def forward(texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.zeros(len(texts), TOKENS, dtype=torch.long)
        for row, text in enumerate(texts):
            found = list(text.encode())[:TOKENS]
            ids[row, : len(found)] = torch.tensor(found)
        tokens, mask = network.table(ids), ids > 0
        return (tokens * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1), tokens, mask

    return Backbone(network, forward)


@pytest.fixture
def tokens_yaml(release_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of `dalip tokens`; the towers of this file can be imported as `test_towers`."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "test_towers.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), *sys.path]))
    values = {
        "release": str(release_folder), "output_dir": str(tmp_path / "tokens"), "splits": ["train", "heldout"],
        "image": {"tower": "test_towers:image_tower", "width": 10}, "text": {"tower": "test_towers:text_tower"},
        "embed_dim": 16, "num_threads": 1,
    }  # fmt: skip
    path = tmp_path / "tokens.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def on_tokens(config: dict[str, Any], tokens_yaml: Path, tmp_path: Path) -> dict[str, Any]:
    """A training config on computed tokens."""
    assert main(["tokens", str(tokens_yaml)]) == 0
    config["model"]["architecture"] = str(tmp_path / "tokens/architecture.json")
    config["data"]["tokens"] = str(tmp_path / "tokens")
    return config


def heldout(settings: TrainSettings) -> SamplePool:
    return open_pool(loader.open_releases(settings.release), "heldout")


def test_a_run_on_tokens_trains_goes_on_and_is_evaluated(
    on_tokens: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with other workers; stored tokens give the figures of the towers themselves."""
    whole = on_tokens | {"output_dir": str(tmp_path / "whole")}
    run_once(whole, data={"num_workers": 2}, schedule={"steps": 40}, optimiser={"lr": 0.01})
    longer: dict[str, Any] = {"schedule": {"steps": 40}, "optimiser": {"lr": 0.01}}
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(StoppedError):
            run_once(on_tokens, **longer)
    run_once(on_tokens, **longer)
    assert_same_run(whole["output_dir"], on_tokens["output_dir"])
    lines = step_lines(whole["output_dir"])
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]

    assert main(["eval", whole["output_dir"], "--out", str(tmp_path / "stored.json")]) == 0
    (tmp_path / "tokens/heldout").rename(tmp_path / "elsewhere")
    assert main(["eval", whole["output_dir"], "--out", str(tmp_path / "run.json")]) == 0
    stored, run = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("stored", "run"))
    for domain, figure in stored["validation_loss"].items():
        assert figure["value"] == pytest.approx(run["validation_loss"][domain]["value"], abs=2e-3)

    model = open_trained_model(whole["output_dir"]).model
    assert not any("backbone" in name or "network" in name for name in model.state_dict())
    assert main(["export", whole["output_dir"], str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    texts = ["a red circle", "a blue cross"]
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(release_writer.draw_picture("red", "circle", 0))
    encoders = [Encoder.open(place) for place in (whole["output_dir"], str(tmp_path / "hub"))]
    scores = [encoder.encode_pictures([picture]) @ encoder.encode_texts(texts).t() for encoder in encoders]
    assert scores[0].shape == (1, 2)
    torch.testing.assert_close(scores[0], scores[1])
    assert main(["export", whole["output_dir"], str(tmp_path / "model.pt")]) == 2


@pytest.mark.parametrize("preset", ["clip", "released", "dalip", "second_moment"])
def test_every_preset_trains_on_tokens(preset: str, on_tokens: dict[str, Any]) -> None:
    on_tokens["model"] |= {"preset": preset}
    if preset == "clip":
        del on_tokens["model"]["second_order"]
    run_once(on_tokens)
    assert len(step_lines(on_tokens["output_dir"])) == 6


def test_a_student_on_fewer_directions_learns_a_teacher_on_tokens(
    on_tokens: dict[str, Any], tokens_yaml: Path, tmp_path: Path
) -> None:
    """It takes the teacher's text side; one whose texts keep other directions is refused."""
    del on_tokens["model"]["second_order"]
    on_tokens["model"] |= {"preset": "clip"}
    teacher, vectors = on_tokens["output_dir"], str(tmp_path / "vectors.parquet")
    run_once(on_tokens, optimiser={"lr": 0.01})
    assert main(["embed", on_tokens["release"], "--model", teacher, "--out", vectors]) == 0
    loss = {"form": "distil", "teacher": {"vectors": vectors}}
    for name, part in (("small", {"image": {"width": 4}}), ("other", {"image": {"width": 4}, "text": {"width": 6}})):
        values = yaml.safe_load(tokens_yaml.read_text()) | {"output_dir": str(tmp_path / name)}
        for side, changed in part.items():
            values[side] = values[side] | changed
        tokens_yaml.write_text(yaml.safe_dump(values))
        assert main(["tokens", str(tokens_yaml)]) == 0
        model = {"architecture": str(tmp_path / name / "architecture.json"), "pretrained": teacher}
        student = with_sections(on_tokens, output_dir=f"{teacher}-{name}", loss=loss, model=model,
                                data={"tokens": str(tmp_path / name)}, optimiser={"lr": 0.01})  # fmt: skip
        if name == "small":
            run_once(student)
            (text, other_text) = (
                final_weights(folder)["clip.text.proj"] for folder in (teacher, student["output_dir"])
            )
            assert torch.equal(text, other_text)
            assert final_weights(student["output_dir"])["clip.visual.proj"].shape == (4, 16)
            assert read_log(Path(student["output_dir"]) / "log.jsonl", "step")[-1]["teacher_cosine"] > 0.9
        else:
            with pytest.raises(ConfigError, match=r"another architecture than .*text_cfg.width: 12 -> 6"):
                run_once(student)


def test_labels_of_drawn_texts_are_refused_on_tokens_and_left_out_of_the_log(on_tokens: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"loss\.label_field: it follows the text that is drawn, and data\.tokens keeps"
    ):
        run_once(on_tokens, loss={"same_label": "positive"})
    run_once(on_tokens, schedule={"steps": 1})
    assert "same_label_share" not in read_log(Path(on_tokens["output_dir"]) / "log.jsonl", "step")[0]
    loss = {"same_label": "positive", "label_field": "extra.category"}
    run_once(on_tokens | {"output_dir": on_tokens["output_dir"] + "2"}, loss=loss, schedule={"steps": 1})
    assert "same_label_share" in read_log(Path(on_tokens["output_dir"] + "2") / "log.jsonl", "step")[0]


def test_stored_tokens_are_those_of_the_towers(on_tokens: dict[str, Any]) -> None:
    """To the precision of float16, padding as zeros, and the principal components in the model."""
    run_once(on_tokens)
    settings = make_settings(on_tokens)
    pool = heldout(settings)
    model = open_trained_model(on_tokens["output_dir"]).model
    rows = list(range(len(pool)))
    stored = next(iter(loader.eval_batches(pool, rows, settings.data, model, 64)))
    plain = settings.data.model_copy(update={"tokens": None})
    raw = next(iter(loader.eval_batches(pool, rows, plain, model, 64)))
    assert stored.rows.tolist() == raw.rows.tolist() == rows
    assert stored.images.shape[1:] == (17, 10)
    preprocess = model.preprocess_settings
    pictures = (raw.images / 255 - preprocess.mean[0]) / preprocess.std[0]
    torch.testing.assert_close(stored.images.float(), model.clip.visual.tokens_of(pictures), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(stored.tokens.float(), raw.tokens, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_tokens_after_kill_9_are_the_same_bytes(
    tokens_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the midst of a chunk; the second command computes only what is missing."""
    script = (
        "import os, signal, sys\n"
        "from training.data import tokens\n"
        "publish, seen = tokens.storage.publish_bytes, []\n"
        "def counted(path, content):\n"
        "    if 'chunk-' in path:\n"
        "        seen.append(path)\n"
        "        if len(seen) > 3:\n"
        "            open(tokens.storage.temp_path(path), 'wb').write(content[:10])\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return publish(path, content)\n"
        "tokens.storage.publish_bytes, tokens.CHUNK = counted, 50\n"
        "from training.cli import main\n"
        "main(['tokens', sys.argv[1]])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tokens_yaml)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "tokens"
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("chunk-*.npy")}
    assert len(kept) == 3
    monkeypatch.setattr(tokens, "CHUNK", 50)
    assert main(["tokens", str(tokens_yaml)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    values = yaml.safe_load(tokens_yaml.read_text()) | {"output_dir": str(tmp_path / "anew")}
    tokens_yaml.write_text(yaml.safe_dump(values))
    assert main(["tokens", str(tokens_yaml)]) == 0
    anew = tmp_path / "anew"
    assert first == {path.relative_to(anew): path.read_bytes() for path in anew.rglob("*") if path.is_file()}


def test_towers_of_open_clip_give_their_tokens_before_the_projection(architecture: Path, tmp_path: Path) -> None:
    model = build_model(ModelSettings(preset="clip", architecture=str(architecture))).eval()
    exports.export_open_clip(model, tmp_path / "clip.pt")
    name = f"open_clip:{architecture}:{tmp_path / 'clip.pt'}"
    pictures, texts = torch.rand(2, 3, 32, 32), ["a leaf", "an oak in the sun"]
    pooled, tokens, mask = load_backbone(name, "image").run(pictures)
    assert tokens.shape == (2, 4, 32)
    assert mask is None
    torch.testing.assert_close(pooled @ model.clip.visual.proj, model.clip.encode_image(pictures))
    pooled, tokens, mask = load_backbone(name, "text").run(texts)
    assert mask is not None
    assert mask.sum(1).tolist() == [4, 7]  # start and end count
    torch.testing.assert_close(
        pooled @ model.clip.text_projection, model.clip.encode_text(model.tokenizer(texts)), rtol=1e-4, atol=1e-5
    )
    assert load_backbone(name, "image").fingerprint == load_backbone(name, "image").fingerprint
    with pytest.raises(ConfigError, match="names no weights"):
        load_backbone(f"open_clip:{architecture}", "image")


@pytest.mark.parametrize(("name", "shape"), [("test_vit.r160_in1k", (100, 64)), ("test_resnet.r160_in1k", (25, 96))])
def test_towers_of_timm_give_their_tokens(name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers and convolutional trunks; here without the weights, which timm would download."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda wanted, pretrained, **more: create(wanted, **more))
    backbone = load_backbone(f"timm:{name}", "image")
    assert backbone.preprocess["size"] == 160
    pictures = torch.rand(2, 3, 160, 160)
    pooled, tokens, mask = backbone.run(pictures)
    assert tokens.shape == (2, *shape)
    assert pooled.shape == (2, shape[1])
    assert mask is None
    torch.testing.assert_close(pooled, backbone.network(pictures))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone("timm:no_such_model", "image")


def test_tokens_of_something_else_are_named(on_tokens: dict[str, Any], tokens_yaml: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(tokens_yaml.read_text())
    tokens_yaml.write_text(yaml.safe_dump(values | {"image": {"tower": "test_towers:image_tower", "width": 9}}))
    assert main(["tokens", str(tokens_yaml)]) == 2
    with pytest.raises(ConfigError, match=r"data.tokens and the architecture.json in that folder go together"):
        run_once(on_tokens, data={"tokens": None})
    for key, section in (("adapters", {}), ("lock", {"text_blocks": 1})):
        with pytest.raises(ConfigError, match=f"{key}: the towers of this architecture are frozen"):
            run_once(on_tokens, **{key: section})
    settings = make_settings(on_tokens)
    assert open_stores(tmp_path / "tokens", heldout(settings), ("txt",)) is not None
    with pytest.raises(ConfigError, match="no tokens of the text sci"):
        open_stores(tmp_path / "tokens", heldout(settings), ("sci",))
    (tmp_path / "tokens/train").rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="has no tokens of these samples"):
        run_once(on_tokens)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone("test_towers:nothing", "image")


def test_where_tokens_lie_changes_no_run_but_what_they_are_of_does(on_tokens: dict[str, Any], tmp_path: Path) -> None:
    before = identity_values(make_settings(on_tokens), ["x"])
    assert "tokens" not in before["data"]
    other = json.loads((tmp_path / "tokens/architecture.json").read_text())
    other["vision_cfg"]["weights"] = "0" * 64
    (tmp_path / "other-frozen.json").write_text(json.dumps(other))
    on_tokens["model"]["architecture"] = str(tmp_path / "other-frozen.json")
    assert identity_values(make_settings(on_tokens), ["x"])["model"] != before["model"]


def test_a_tower_with_other_weights_is_refused(on_tokens: dict[str, Any], tmp_path: Path) -> None:
    run_once(on_tokens)
    run = Path(on_tokens["output_dir"])
    encoder = Encoder.open(str(run))
    assert encoder.encode_texts(["oak"]).shape == (1, 32)
    module = tmp_path / "modules/test_towers.py"
    module.write_text(module.read_text().replace("torch.manual_seed(1)", "torch.manual_seed(7)"))
    sys.modules.pop("test_towers")
    with pytest.raises(ConfigError, match="has other weights than those this model was trained on"):
        Encoder.open(str(run)).encode_texts(["oak"])


def test_a_store_with_a_chunk_cut_short_is_named(tmp_path: Path) -> None:
    fill_store(tmp_path, {"of": "test"}, 300, lambda rows: np.ones((len(rows), 3, 4), np.float32))
    store = TokenStore(tmp_path)
    assert store.read([0, 299, 256]).shape == (3, 3, 4)
    chunk = tmp_path / "chunk-000001.npy"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-8])
    with pytest.raises(IntegrityError, match=r"chunk-000001.npy: missing or not whole"):
        TokenStore(tmp_path)
    chunk.write_bytes(whole[:-8] + whole[:8])
    store = TokenStore(tmp_path)
    store.read([0, 255])
    with pytest.raises(IntegrityError, match=r"chunk-000001.npy: damaged; run `dalip tokens` again"):
        store.read([0, 299])
    asked: list[Any] = []
    fill_store(tmp_path, {"of": "test"}, 300, lambda rows: asked.append(rows) or np.ones((44, 3, 4), np.float32))
    assert asked == [range(256, 300)], "only what is damaged is made anew"
    assert chunk.read_bytes() == whole
    fill_store(tmp_path, {"of": "test"}, 300, lambda rows: pytest.fail("nothing is computed again"))
    with (tmp_path / "SHA256SUMS").open("a") as stream:
        stream.write("0123")  # a line that a kill cut short
    chunk.unlink()
    fill_store(tmp_path, {"of": "test"}, 300, lambda rows: np.ones((44, 3, 4), np.float32))
    assert TokenStore(tmp_path).read([299]).shape == (1, 3, 4)
    chunk.unlink()
    with pytest.raises(IntegrityError, match=r"chunk-000001.npy: missing or not whole"):
        TokenStore(tmp_path)


def test_components_of_another_tower_are_made_anew(
    tokens_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first token; then the tower has other weights."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    module, folder = tmp_path / "modules/test_towers.py", tmp_path / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr(token_job, "fill_store", killed)
        assert main(["tokens", str(tokens_yaml)]) == 1
    before = (folder / "components.npz").read_bytes()
    module.write_text(module.read_text().replace("torch.manual_seed(0)", "torch.manual_seed(7)"))
    sys.modules.pop("test_towers")
    assert main(["tokens", str(tokens_yaml)]) == 0
    assert (folder / "components.npz").read_bytes() != before
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.np[yz]")}
    tokens_yaml.write_text(
        yaml.safe_dump(yaml.safe_load(tokens_yaml.read_text()) | {"output_dir": str(tmp_path / "b")})
    )
    assert main(["tokens", str(tokens_yaml)]) == 0
    assert after == {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.np[yz]")}


def test_tokens_go_nowhere_where_something_else_is(
    tokens_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tokens"
    with lock_folder(folder):
        assert main(["tokens", str(tokens_yaml)]) == 2
    assert "another command is writing here" in capsys.readouterr().err
    (folder / "architecture.json").write_text("of someone else")
    assert main(["tokens", str(tokens_yaml)]) == 2
    assert "architecture.json: is there, without tokens" in capsys.readouterr().err
    assert (folder / "architecture.json").read_text() == "of someone else"


def test_principal_components_keep_the_directions_of_the_largest_variance() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 2)) * [3.0, 1.0]
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    tokens = (hidden @ turn[:2] + 5.0).astype(np.float32)
    mean, basis = principal_components(tokens, 2)
    np.testing.assert_allclose((tokens - mean) @ basis @ basis.T + mean, tokens, atol=1e-4)
    assert abs(basis[:, 0] @ turn[0]) > 0.99
