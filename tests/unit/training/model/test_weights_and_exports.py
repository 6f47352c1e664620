"""Checkpoints in and out: the released layout, open_clip's, Hugging Face's, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_clip import tiny
from torch import Tensor

from manifests.errors import ConfigError
from training.cli import main
from training.data.images import EvalView, normalise
from training.evaluation.encoder import Encoder
from training.evaluation.trained_model import open_trained_model
from training.model import exports, weights
from training.model.build import build_model, load_hugging_face, load_released
from training.model.dalip import DalipModel
from training.model.presets import LossSettings, ModelSettings

HERE = Path(__file__).parent
KEYS = {  # * stands for each of the 12 blocks of a tower
    key.replace("*", str(block)): shape
    for key, shape in json.loads((HERE / "released_state_dict_keys.json").read_text(encoding="utf-8")).items()
    for block in range(12 if "*" in key else 1)
}
ROOT = Path(__file__).parents[4]


def released_state(device: str = "meta") -> dict[str, Tensor]:
    return {name: torch.empty(shape, device=device) for name, shape in KEYS.items()}


def assert_same(given: Tensor, expected: Tensor) -> None:
    """The same weights on the same input: equal but for the last digits, which may follow the place in memory."""
    assert torch.allclose(given, expected, rtol=0, atol=1e-6)


def test_every_key_of_the_released_layout_is_mapped_to_its_place_and_shape() -> None:
    renamed = weights.rename_released(released_state(), where="test")
    assert len(renamed) == len(KEYS) == 323
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16"))
        from training.model.branch import BranchShape, SecondOrderBranch

        def branch(norm: str) -> SecondOrderBranch:
            return SecondOrderBranch(BranchShape(512, 4, 46, norm, 0.5, "token", "full"))

        model = torch.nn.ModuleDict({"clip": clip, "image_branch": branch("batch"), "text_branch": branch("layer")})
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == wanted


def as_released(model: DalipModel) -> dict[str, Tensor]:
    """The model's state dict under the released code's names, made from the published key list."""
    state = model.state_dict()
    ours_to_theirs = {ours: theirs for theirs, ours in weights._RELEASED_BRANCHES.items()}
    renamed = {ours_to_theirs.get(name, name.removeprefix("clip.")): tensor for name, tensor in state.items()}
    assert set(renamed) == {n for n in KEYS if "resblocks" not in n} | {n for n in renamed if "resblocks" in n}
    convolution = "visual.vbdc.conv_dr_block.0.weight"
    return renamed | {convolution: renamed[convolution][:, :, None, None]}


def test_a_released_checkpoint_loads_and_encodes_the_same(tmp_path: Path) -> None:
    path = tiny(tmp_path, "released-tiny", embed_dim=32)
    source = build_model(ModelSettings(preset="released", architecture=path)).eval()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in as_released(source).items()}}, tmp_path / "r.pt"
    )
    loaded = load_released(tmp_path / "r.pt", architecture=path).eval()
    images, tokens = torch.randn(2, 3, 32, 32), source.tokenizer(["a leaf", "oak"])
    with torch.no_grad():
        expected, given = source(images, tokens), loaded(images, tokens)
    for name in expected:
        assert_same(given[name], expected[name])
    assert loaded.new_parameters == ()


def test_an_imported_checkpoint_is_judged_as_the_released_code_trains(tmp_path: Path) -> None:
    path = tiny(tmp_path, "released-imported")
    source = build_model(ModelSettings(preset="released", architecture=path))
    torch.save(as_released(source), tmp_path / "r.pt")
    assert main(["import", str(tmp_path / "r.pt"), str(tmp_path / "hub"), "--architecture", path]) == 0
    trained = open_trained_model(str(tmp_path / "hub"))
    assert (trained.settings.model.preset, trained.settings.loss.form) == ("released", "sum_of_losses")
    state, own = trained.model.state_dict(), source.state_dict()
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_what_does_not_fit_is_named_key_by_key(tmp_path: Path) -> None:
    path = tiny(tmp_path, "mismatch")
    model = build_model(ModelSettings(preset="released", architecture=path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = as_released(model)
    missing = {name: tensor for name, tensor in state.items() if name not in ("fc2.weight", "tbdc.ln.bias")}
    with pytest.raises(ConfigError, match=r"2 of its 21 second-order keys are missing: tbdc\.ln\.bias, fc2\.weight"):
        weights.rename_released(missing, where="x.pt")
    state["surprise"] = torch.zeros(3)
    state["ln_final.weight"] = torch.zeros(7)
    del state["ln_final.bias"]
    with pytest.raises(ConfigError) as caught:
        weights.load_state(model, weights.rename_released(state, where="x.pt"), where="x.pt")
    message = str(caught.value)
    assert "x.pt: does not fit the model, 3 keys differ" in message
    assert "missing: clip.ln_final.bias [32]" in message
    assert "unknown: clip.surprise [3]" in message
    assert "shape: clip.ln_final.weight is [7], the model has [32]" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.pt: cannot be read as a checkpoint"):
        weights.read_state(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no such checkpoint file"):
        weights.read_state(tmp_path / "y.pt")
    torch.save({"epoch": 1}, tmp_path / "z.pt")
    with pytest.raises(ConfigError, match="holds no state dict"):
        weights.read_state(tmp_path / "z.pt")


def picture(size: int) -> Image.Image:
    return Image.effect_mandelbrot((size, size), (-2, -1.5, 1, 1.5), 40).convert("RGB")


@pytest.mark.parametrize("preset", ["dalip", "second_moment", "clip"])
def test_open_clip_loads_an_exported_checkpoint_and_gives_the_same_features(tmp_path: Path, preset: str) -> None:
    path = tiny(tmp_path, f"export-{preset}")
    model = build_model(ModelSettings(preset=preset, architecture=path)).eval()
    exports.export_open_clip(model, tmp_path / "made" / "model.pt")
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["model.json", "model.pt"]
    other, _, preprocess = open_clip.create_model_and_transforms(
        f"export-{preset}", pretrained=str(tmp_path / "made" / "model.pt")
    )
    other.eval()
    images = preprocess(picture(50)).unsqueeze(0)
    tokens = model.tokenizer(["a leaf"])
    with torch.no_grad():
        assert_same(other.encode_image(images, normalize=True), model.encode_image(images))
        assert_same(other.encode_text(tokens, normalize=True), model.encode_text(tokens))
    again = build_model(ModelSettings(architecture=path, pretrained=str(tmp_path / "made" / "model.pt")))
    assert all(name.startswith(("image_branch.", "text_branch.")) for name in again.new_parameters)
    assert len(again.new_parameters) == len([n for n, _ in again.named_parameters() if "branch" in n])


@pytest.mark.parametrize("preset", ["released", "dalip", "second_moment", "clip"])
def test_the_hugging_face_layout_goes_there_and_back(tmp_path: Path, preset: str) -> None:
    path = tiny(tmp_path, f"hub-{preset}")
    model = build_model(ModelSettings(preset=preset, architecture=path)).eval()
    exports.export_hugging_face(model, tmp_path / "hub")
    names = {file.name for file in (tmp_path / "hub").iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "dalip_config.json"} <= names
    assert ("dalip_second_order.safetensors" in names) == (preset != "clip")
    other, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    images, tokens = torch.randn(2, 3, 32, 32), model.tokenizer(["a leaf", "oak"])
    with torch.no_grad():
        assert_same(other.eval().encode_image(images, normalize=True), model.encode_image(images))
        expected = model(images, tokens)
        given = load_hugging_face(tmp_path / "hub").eval()(images, tokens)
    for name in expected:
        assert_same(given[name], expected[name])


def test_one_vector_of_an_export_gives_the_two_feature_result(tmp_path: Path) -> None:
    """Of pictures of several sizes and of texts, with the weight that the model was trained by."""
    path = tiny(tmp_path, "vector")
    model = build_model(ModelSettings(architecture=path)).eval()
    exports.export_hugging_face(model, tmp_path / "hub", LossSettings(first_order_weight=0.2))
    photos = sorted((ROOT / "tests/photos").glob("*.jpg"))[:3]
    encoder, texts = Encoder.open(str(tmp_path / "hub")), ["a leaf", "an oak"]
    scores = encoder.encode_pictures(photos) @ encoder.encode_texts(texts).t()
    assert scores.shape == (3, 2)
    view = EvalView(model.preprocess_settings)
    pixels = torch.stack([view(photo.read_bytes()) for photo in photos])
    preprocess = model.preprocess_settings
    with torch.no_grad():
        f_image, z_image = model.image_orders(normalise(pixels, preprocess.mean, preprocess.std))
        f_text, z_text = model.text_orders(model.tokenizer(texts))
    torch.testing.assert_close(scores, 0.2 * f_image @ f_text.t() + 0.8 * z_image @ z_text.t(), rtol=0, atol=1e-5)
    plain = build_model(ModelSettings(preset="clip", architecture=path))
    exports.export_hugging_face(plain, tmp_path / "plain")
    assert Encoder.open(str(tmp_path / "plain")).encode_texts(texts).shape == (2, 32)


def test_a_hugging_face_folder_loads_where_the_model_file_is_gone(tmp_path: Path) -> None:
    path = tiny(tmp_path, "moved")
    exports.export_hugging_face(build_model(ModelSettings(architecture=path)), tmp_path / "hub")
    Path(path).unlink()
    (tmp_path / "hub").rename(tmp_path / "elsewhere")
    model = load_hugging_face(tmp_path / "elsewhere")
    assert model.tokenizer(["a leaf"]).shape == (1, 12)
    assert exports.export_hugging_face(model, tmp_path / "again")
    assert load_hugging_face(tmp_path / "again").settings.preset == "dalip"


def test_an_export_over_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    """A second-order part that stayed would be taken for the new model's."""
    path = tiny(tmp_path, "over")
    exports.export_hugging_face(build_model(ModelSettings(architecture=path)), tmp_path / "hub")
    exports.export_hugging_face(build_model(ModelSettings(preset="clip", architecture=path)), tmp_path / "hub")
    again = build_model(ModelSettings(architecture=path, pretrained=str(tmp_path / "hub")))
    assert {name.partition(".")[0] for name in again.new_parameters} == {"image_branch", "text_branch"}


def test_a_start_from_a_folder_or_own_checkpoint_names_what_is_new(tmp_path: Path) -> None:
    path = tiny(tmp_path, "start")
    model = build_model(ModelSettings(architecture=path))
    exports.export_hugging_face(model, tmp_path / "hub")
    torch.save({"model": model.state_dict()}, tmp_path / "own.pt")
    for source in (tmp_path / "hub", tmp_path / "own.pt"):
        same = build_model(ModelSettings(architecture=path, pretrained=str(source)))
        assert same.new_parameters == ()
        assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
        wider = ModelSettings.model_validate(
            {
                "architecture": path,
                "pretrained": str(source),
                "second_order": {"reduced_width": 7},
            }
        )
        new = set(build_model(wider).new_parameters)
        assert {"image_branch.reduce.weight", "text_branch.projection.0.weight"} <= new
        assert "image_branch.token_projection.weight" not in new
    with pytest.raises(ConfigError, match="does not fit"):
        build_model(
            ModelSettings(architecture=tiny(tmp_path, "start-wider", embed_dim=64), pretrained=str(tmp_path / "hub"))
        )
    exports.export_open_clip(model, tmp_path / "plain.pt")
    with pytest.raises(
        ConfigError, match=r"^\S*plain\.pt: does not fit \S*start-wider\.json, \d+ of \d+ tensors differ: .*$"
    ):
        build_model(
            ModelSettings(architecture=str(tmp_path / "start-wider.json"), pretrained=str(tmp_path / "plain.pt"))
        )


def test_weights_of_another_activation_are_refused_with_the_architecture_to_take(tmp_path: Path) -> None:
    """OpenAI's weights under the plain name load without an error in open_clip and compute something else."""
    with pytest.raises(ConfigError, match=r"'openai' was trained with QuickGELU, ViT-B-16 .*: ViT-B-16-quickgelu$"):
        build_model(ModelSettings(architecture="ViT-B-16", pretrained="openai"))
    quick = tiny(tmp_path, "activation-quick", quick_gelu=True)
    plain = tiny(tmp_path, "activation-plain")
    exports.export_hugging_face(build_model(ModelSettings(preset="clip", architecture=quick)), tmp_path / "hub")
    with pytest.raises(ConfigError, match=r"\(quick_gelu: true -> false\): give the folder as model.architecture too"):
        build_model(ModelSettings(preset="clip", architecture=plain, pretrained=str(tmp_path / "hub")))
    model = build_model(ModelSettings(architecture=str(tmp_path / "hub"), pretrained=str(tmp_path / "hub")))
    assert isinstance(model.clip.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_weights_of_other_heads_are_refused(tmp_path: Path) -> None:
    """The number of heads is in no weight's shape."""
    exports.export_hugging_face(build_model(ModelSettings(architecture=tiny(tmp_path, "heads-two"))), tmp_path / "hub")
    config = json.loads((tmp_path / "heads-two.json").read_text())
    config["vision_cfg"]["head_width"] = 16
    (tmp_path / "heads-four.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"vision_cfg.head_width: 32 -> 16"):
        build_model(ModelSettings(architecture=str(tmp_path / "heads-four.json"), pretrained=str(tmp_path / "hub")))


def _run_line(code: str) -> tuple[open_clip.CLIP, Callable[[Image.Image], Tensor]]:
    """What the line printed after an export gives when it is run."""
    *first, last = code.split("; ")
    scope: dict[str, Any] = {"open_clip": open_clip}
    for line in first:
        exec(line, scope)
    model, _, preprocess = eval(last, scope)
    return model.eval(), preprocess


@pytest.mark.parametrize("name", ["sized.pt", "sized.safetensors", "sized-folder"])
@pytest.mark.parametrize("architecture", ["file", "folder", "built in"])
@pytest.mark.slow
def test_an_export_of_another_size_loads_at_that_size(tmp_path: Path, name: str, architecture: str) -> None:
    """By the printed line, from each kind of architecture: same pictures in, same features out."""
    source = {"file": tiny(tmp_path, "sized-architecture"), "built in": "ViT-S-32"}.get(architecture, "")
    size: Any = (64, 32) if architecture == "built in" else 64
    if architecture == "folder":
        source = str(tmp_path / "start")
        start = build_model(ModelSettings(preset="clip", architecture=tiny(tmp_path, "sized-start")))
        exports.export_hugging_face(start, source)
    model = build_model(ModelSettings(preset="clip", architecture=source, image_size_px=size)).eval()
    export = exports.export_open_clip if "." in name else exports.export_hugging_face
    target = tmp_path / "made" / f"{architecture.replace(' ', '-')}-{name}"
    code = export(model, target)
    if "." in name:
        assert ("force_image_size" in code) == (architecture == "built in")
    other, preprocess = _run_line(code)
    images = preprocess(picture(90)).unsqueeze(0)
    assert tuple(images.shape[2:]) == (size if isinstance(size, tuple) else (size, size))
    with torch.no_grad():
        assert_same(other.encode_image(images, normalize=True), model.encode_image(images))
    if name.endswith(".safetensors"):
        assert len(safetensors.torch.load_file(target)) == len(model.clip.state_dict())


def test_what_open_clip_cannot_load_is_refused_and_nothing_written(tmp_path: Path) -> None:
    """open_clip builds a timm tower at its own size before it takes the weights."""
    values = json.loads(Path(tiny(tmp_path, "timm-native")).read_text())
    values["vision_cfg"] = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear",
                            "timm_model_pretrained": False, "image_size": 224}  # fmt: skip
    (tmp_path / "timm-tiny.json").write_text(json.dumps(values))
    settings = ModelSettings(preset="clip", architecture=str(tmp_path / "timm-tiny.json"))
    other = build_model(settings.model_copy(update={"image_size_px": 64}))
    before = sorted(tmp_path.rglob("*"))
    for export, target in ((exports.export_open_clip, "made/x.pt"), (exports.export_hugging_face, "made/hub")):
        with pytest.raises(ConfigError, match=r"64 x 64 px\): .*timm tower \(vit_tiny_patch16_224\) at its own size"):
            export(other, tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before
    native = build_model(settings)
    exports.export_open_clip(native, tmp_path / "made/x.pt")
    exports.export_hugging_face(native, tmp_path / "made/hub")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["hub", "x.json", "x.pt"]


def test_an_export_takes_nothings_place(tmp_path: Path) -> None:
    model = build_model(ModelSettings(preset="clip", architecture=tiny(tmp_path, "in-place")))
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken.json").write_text("{}")
    for export, target, words in (
        (exports.export_open_clip, tmp_path, "is a folder; name a file for an open_clip checkpoint"),
        (exports.export_hugging_face, tmp_path / "file", "is a file; name a folder"),
        (exports.export_open_clip, tmp_path / "taken.pt", "taken.json: the architecture goes into this file"),
        (exports.export_open_clip, tmp_path / "RN50.pt", "RN50: is the name of an architecture of open_clip's own"),
        (exports.export_open_clip, "s3://bucket/x.pt", "s3://bucket/x.pt: a model is exported to a local place"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=words):
            export(model, target)
        assert sorted(tmp_path.rglob("*")) == before


def test_an_export_that_would_compute_something_else_is_refused(tmp_path: Path) -> None:
    """As a change behind the architecture's back would make it: the file's model is compared, not assumed."""
    model = build_model(ModelSettings(preset="clip", architecture=tiny(tmp_path, "behind")))
    model.clip.visual.ln_post = torch.nn.LayerNorm(64, eps=0.5)
    with pytest.raises(ConfigError, match="its picture features differ from the model's; nothing is written"):
        exports.export_open_clip(model, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


# -- weights that others trained


def bioclip_folder(tmp_path: Path) -> Path:
    """As BioCLIP 2 lies on the Hub: open_clip's config, the weights twice, and the files of a tokenizer."""
    config = json.loads(Path(tiny(tmp_path, "bioclip-source")).read_text())
    folder = tmp_path / "bioclip-2"
    folder.mkdir()
    torch.manual_seed(3)
    state = open_clip.model.CLIP(**config).state_dict()
    view = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27], "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": view}))
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    for name in ("README.md", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("file", ["", "open_clip_model.safetensors", "epoch_9.pt"])
def test_a_training_begins_from_weights_in_the_layout_of_bioclip_2(tmp_path: Path, file: str) -> None:
    """The folder, its file, and what open_clip's trainer leaves: every tensor comes, and the branches are new."""
    folder = bioclip_folder(tmp_path)
    state = weights.read_state(folder / "open_clip_model.safetensors")
    trained = {"epoch": 9, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}
    torch.save(trained, folder / "epoch_9.pt")
    model = build_model(ModelSettings(architecture=str(folder), pretrained=str(folder / file)))
    assert all(torch.equal(model.clip.state_dict()[name], tensor) for name, tensor in state.items())
    assert {name.partition(".")[0] for name in model.new_parameters} == {"image_branch", "text_branch"}
    assert model.unused_tensors == ()
    assert list(model.preprocess_settings.mean) == [0.48, 0.45, 0.4]


def test_a_training_begins_from_a_clip_of_transformers(tmp_path: Path) -> None:
    """The same features as transformers computes; another activation or number of heads is refused."""
    import transformers

    torch.manual_seed(4)
    text = {"vocab_size": 49408, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 49407}  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
              "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    architecture = tiny(tmp_path, "of-transformers", quick_gelu=True)
    source = {"pretrained": str(tmp_path / "clip")}
    model = build_model(ModelSettings(preset="clip", architecture=architecture, **source)).eval()
    assert (model.new_parameters, model.unused_tensors) == ((), ())
    assert list(model.preprocess_settings.mean) == [0.5] * 3
    images, tokens = torch.randn(2, 3, 32, 32), model.tokenizer(["a leaf", "an oak in the snow"])
    with torch.no_grad():
        output = theirs(input_ids=tokens, pixel_values=images)
        assert_same(model.encode_image(images), output.image_embeds)
        assert_same(model.encode_text(tokens), output.text_embeds)
    with pytest.raises(ConfigError, match=r"another architecture than .*\(quick_gelu: true -> false\)$"):
        build_model(ModelSettings(preset="clip", architecture=tiny(tmp_path, "of-transformers-gelu"), **source))


def test_positions_of_another_picture_size_are_resized(tmp_path: Path) -> None:
    """From a folder and from an own checkpoint, as open_clip does it with its own files."""
    path = tiny(tmp_path, "resized")
    model = build_model(ModelSettings(preset="clip", architecture=path))
    exports.export_hugging_face(model, tmp_path / "hub")
    exports.export_open_clip(model, tmp_path / "plain.pt")
    torch.save({"state_dict": model.state_dict(), "preprocess": {}}, tmp_path / "own.pt")
    theirs = open_clip.create_model("resized", str(tmp_path / "plain.pt"), force_image_size=48)
    for source in ("hub", "plain.pt", "own.pt"):
        values = {"architecture": path, "pretrained": str(tmp_path / source), "image_size_px": 48}
        larger = build_model(ModelSettings.model_validate(values))
        assert torch.equal(larger.clip.visual.positional_embedding, theirs.visual.positional_embedding)


def test_a_folder_without_weights_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no open_clip_config.json \(open_clip\), .* and is no run$"):
        build_model(ModelSettings(architecture=tiny(tmp_path, "empty"), pretrained=str(tmp_path)))
    folder = bioclip_folder(tmp_path)
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"open_clip_model.safetensors: no such checkpoint file$"):
        build_model(ModelSettings(architecture=str(folder), pretrained=str(folder)))
