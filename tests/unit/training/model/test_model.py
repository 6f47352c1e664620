"""The model on open_clip's towers: exact tokens, presets, roles, freezing, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import torch
from golden import SIDES, golden_arrays, golden_branch, golden_tokens
from tiny_clip import MODEL, VISION, hugging_face_text, tiny
from torch import Tensor

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from training.model import presets
from training.model.branch import BranchShape, HeadBatchNorm, SecondOrderBranch
from training.model.build import build_model
from training.model.dalip import DalipModel, towers
from training.model.presets import ModelSettings, resolve_second_order


def settings(architecture: str, preset: str = "dalip", **second_order: object) -> ModelSettings:
    values = {"preset": preset, "architecture": architecture}
    if preset != "clip":
        values["second_order"] = {"reduced_width": 5} | second_order
    return parse_settings(values, ModelSettings, where="test")


def batch(model: DalipModel, size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    height, width = towers.image_size_px(model.clip)
    images = torch.randn(size, 3, height, width, generator=torch.Generator().manual_seed(seed))
    captions = ["a leaf", "the flower of an iris by the water", "oak", "a mushroom in the grass"]
    return images, model.tokenizer([captions[index % 4] for index in range(size)])


@pytest.mark.parametrize("side", SIDES)
def test_the_branch_equals_the_golden_values(side: str) -> None:
    arrays = golden_arrays()
    vector = golden_branch(side, arrays).statistics(*golden_tokens(side, arrays))
    assert (vector - arrays[f"{side}_second_order"]).abs().max().item() <= 1e-9


def test_the_released_preset_on_vit_b_16_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16"))
    assert sum(parameter.numel() for parameter in clip.parameters()) == 149_620_737
    released = resolve_second_order(ModelSettings(preset="released"))
    shape = {"heads": released.heads, "reduced_width": released.reduced_width, "dropout": 0.5}
    with torch.device("meta"):
        branches = [
            SecondOrderBranch(BranchShape(512, norm=n, dropout_axis="token", projection="full", **shape))
            for n in (released.image_norm, released.text_norm)
        ]
    new = sum(parameter.numel() for branch in branches for parameter in branch.parameters())
    assert 149_620_737 + new == 192_004_657


def test_first_order_features_are_exactly_those_of_open_clip(tmp_path: Path) -> None:
    for preset in ("released", "dalip", "second_moment", "clip"):
        model = build_model(settings(tiny(tmp_path, f"exact-{preset}"), preset)).eval()
        images, tokens = batch(model)
        with torch.no_grad():
            output = model(images, tokens)
            image = model.clip.encode_image(images, normalize=True)
            text = model.clip.encode_text(tokens, normalize=True)
        assert torch.allclose(output["image_features"], image, atol=1e-6)
        assert torch.allclose(output["text_features"], text, atol=1e-6)
        assert torch.allclose(output["logit_scale"], torch.tensor(1 / 0.07))
        assert ("image_second_order" in output) == (preset != "clip")
        for name, value in output.items():
            if not name.startswith("logit_scale"):
                assert torch.allclose(value.norm(dim=-1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("custom", [False, True])
def test_tokens_are_all_tokens_after_norm_and_projection(tmp_path: Path, custom: bool) -> None:
    model = build_model(settings(tiny(tmp_path, f"tokens-{custom}", custom_text=custom), "released")).eval()
    images, tokens = batch(model)
    clip = model.clip
    text = clip.text if custom else clip
    hidden: dict[str, Tensor] = {}
    hooks = [
        clip.visual.transformer.register_forward_hook(lambda *a: hidden.update(image=a[-1])),
        text.transformer.register_forward_hook(lambda *a: hidden.update(text=a[-1])),
    ]
    with torch.no_grad():
        clip.encode_image(images)
        clip.encode_text(tokens)
        for hook in hooks:
            hook.remove()
        image_all = clip.visual.ln_post(hidden["image"]) @ clip.visual.proj
        text_all = text.ln_final(hidden["text"]) @ text.text_projection
        image = towers.image_tower(clip, images)
        words = towers.text_tower(clip, tokens, mask_padding=False)
    assert torch.allclose(image.tokens, image_all[:, 1:], atol=1e-6)
    assert torch.allclose(image.feature, image_all[:, 0], atol=1e-6)
    assert torch.allclose(words.tokens, text_all, atol=1e-6)
    assert torch.allclose(words.feature, text_all[torch.arange(3), tokens.argmax(-1)], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "vision", "embed_dim", "extra"),
    [
        ("patch-dropout", {"patch_dropout": 0.5}, 32, {}),
        ("oblong", {"image_size": [32, 48]}, 32, {}),
        ("wide", {}, 48, {}),
        ("average", {"pool_type": "avg", "final_ln_after_pool": True}, 32, {}),
        ("no-ln-pre", {"no_ln_pre": True}, 32, {}),
        ("custom-text", {}, 32, {"custom_text": True, "text": {"pool_type": "last", "no_causal_mask": True}}),
        ("class-token-text", {}, 32, {"custom_text": True, "text": {"embed_cls": True}}),
        ("biased-projection", {}, 32, {"custom_text": True, "text": {"proj_bias": True}}),
        ("with-logit-bias", {}, 32, {"init_logit_bias": -10.0}),
        ("timm", {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 224}, 32, {}),
    ],
)
def test_every_kind_of_tower_trains_with_a_gradient_in_every_parameter(
    tmp_path: Path, name: str, vision: dict, embed_dim: int, extra: dict
) -> None:
    path = tiny(tmp_path, name, embed_dim=embed_dim, vision=vision, **extra)
    model = build_model(settings(path)).train()
    output = model(*batch(model))
    assert output["image_second_order"].shape == output["text_second_order"].shape == (3, embed_dim)
    total = sum((value * torch.linspace(-1, 1, value.shape[-1])).sum() for value in output.values() if value.ndim)
    (total + output["logit_scale"] + output.get("logit_bias", 0)).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("vision", "second_order", "message"),
    [
        ({"layers": [1, 1, 1, 1], "width": 32, "image_size": 64}, {}, "a ResNet has none"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, "pools by attention"),
        ({"pool_type": "none"}, {}, "pool_type 'none'"),
        ({"timm_model_name": "resnet18", "timm_pool": "avg"}, {}, "gives no usable tokens"),
        ({}, {"heads": 5}, "heads is 5, which does not divide the embedding width 32"),
    ],
)
def test_towers_without_tokens_are_refused_by_name(
    tmp_path: Path, vision: dict, second_order: dict, message: str
) -> None:
    path = tiny(tmp_path, f"refused-{message[:6].strip()}-{len(message)}", vision=vision)
    with pytest.raises(ConfigError, match=message):
        build_model(settings(path, **second_order))


def test_a_resnet_is_fine_as_plain_clip(tmp_path: Path) -> None:
    path = tiny(tmp_path, "resnet-clip", vision={"layers": [1, 1, 1, 1], "width": 32, "image_size": 64})
    model = build_model(settings(path, "clip"))
    assert set(model(*batch(model))) == {"image_features", "text_features", "logit_scale"}
    assert model.image_orders(batch(model)[0])[1] is None


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'reduced_width'"):
        parse_settings({"second_order": {"reducd_width": 3}}, ModelSettings, where="x")
    with pytest.raises(ConfigError, match="preset 'clip' has no second-order branch: remove heads"):
        parse_settings({"preset": "clip", "second_order": {"heads": 3}}, ModelSettings, where="x")
    with pytest.raises(ConfigError, match=r"'ViT-B-61' is not known to open_clip; near it: .*ViT-B-16"):
        build_model(ModelSettings(architecture="ViT-B-61"))
    with pytest.raises(ConfigError, match="No such file"):
        build_model(ModelSettings(architecture="nowhere/tiny.json"))
    with pytest.raises(ConfigError, match=r"neither a file nor a tag of ViT-B-16; its tags: .*openai"):
        build_model(ModelSettings(pretrained="laion3b"))


def test_masked_padding_does_not_move_the_text_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny(tmp_path, "padding")
    kept = build_model(settings(path, "released")).eval()
    monkeypatch.setattr(presets, "RELEASED", dataclasses.replace(presets.RELEASED, text_padding="mask"))
    masked = build_model(settings(path, "released")).eval()
    masked.load_state_dict(kept.state_dict())
    ids = kept.tokenizer(["a leaf"])
    end = int(ids.argmax())
    full = towers.text_tower(masked.clip, ids, mask_padding=True)
    assert full.mask.tolist() == [[True] * (end + 1) + [False] * (ids.shape[1] - end - 1)]
    with torch.no_grad():
        _, z = masked.text_orders(ids)
        short = masked.text_branch(full.feature, full.tokens[:, : end + 1])
        assert torch.allclose(z, torch.nn.functional.normalize(short, dim=-1), atol=1e-5)
        assert not torch.allclose(z, kept.text_orders(ids)[1], atol=1e-2)


def test_head_batch_norm_equals_one_batch_norm_called_head_after_head() -> None:
    torch.manual_seed(0)
    ours, plain = HeadBatchNorm(5), torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        ours.weight.uniform_()
        plain.weight.copy_(ours.weight)
    for _ in range(3):
        x_BMHR = torch.randn(4, 6, 3, 5) * 2 + 1
        expected = torch.stack([plain(x_BMHR[:, :, h].transpose(1, 2)).transpose(1, 2) for h in range(3)], dim=2)
        assert torch.allclose(ours(x_BMHR), expected, atol=1e-5)
    assert torch.allclose(ours.running_mean, plain.running_mean, atol=1e-6)
    assert torch.allclose(ours.running_var, plain.running_var, atol=1e-5)
    assert ours.num_batches_tracked == plain.num_batches_tracked == 9
    ours.eval()
    plain.eval()
    assert torch.allclose(ours(x_BMHR)[:, :, 0], plain(x_BMHR[:, :, 0].transpose(1, 2)).transpose(1, 2), atol=1e-5)


def test_in_training_the_dalip_preset_draws_nothing_and_knows_no_batch(tmp_path: Path) -> None:
    """No dropout, no batch statistics: what a pair gives does not depend on chance or on the pairs beside it."""
    model = build_model(settings(tiny(tmp_path, "alone"))).train()
    images, tokens = batch(model)
    whole, alone = model(images, tokens), model(images[:1], tokens[:1])
    for name in ("image_features", "image_second_order", "text_features", "text_second_order"):
        assert torch.allclose(whole[name][:1], alone[name], atol=1e-5), name
    released = build_model(settings(tiny(tmp_path, "released-alone"), "released")).train()
    images, tokens = batch(released)
    apart = released(images, tokens)["image_second_order"][:1] - released(images[:1], tokens[:1])["image_second_order"]
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize("axis", ["channel", "token"])
def test_dropout_drops_whole_channels_or_whole_tokens(axis: str) -> None:
    shape = BranchShape(8, 2, 6, "layer", 0.5, axis, "single")
    branch = SecondOrderBranch(shape).train()
    torch.manual_seed(0)
    dropped = branch._keep_factor(torch.ones(16, 7, 2, 6), None).expand(16, 7, 2, 6)
    along = 1 if axis == "channel" else 3
    assert (dropped == dropped.select(along, 0).unsqueeze(along)).all()
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert branch.eval()._keep_factor(torch.ones(1, 7, 2, 6), None) is None


def test_parameter_groups_hold_every_trainable_parameter_once_by_role(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "groups")))
    groups = model.parameter_groups()
    assert {group.role for group in groups} == {"image_tower", "text_tower", "second_order", "scale"}
    grouped = [parameter for group in groups for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert all((parameter.ndim >= 2) == group.decay for group in groups for parameter in group.parameters)
    by_name = dict(model.named_parameters())
    role_of = {id(parameter): group.role for group in groups for parameter in group.parameters}
    for name, role in (
        ("clip.logit_scale", "scale"),
        ("text_branch.reduce.weight", "second_order"),
        ("clip.visual.proj", "image_tower"),
        ("clip.text_projection", "text_tower"),
    ):
        assert role_of[id(by_name[name])] == role


def test_locked_towers_leave_only_the_branches_and_the_scale(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "lock")))
    model.lock_tower("image")
    model.lock_tower("text")
    assert {group.role for group in model.parameter_groups()} == {"second_order", "scale"}


def test_gradients_with_and_without_checkpointing_agree(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "checkpointing"), dropout=0.0)).train()
    images, tokens = batch(model)
    grads = []
    for enable in (False, True):
        model.clip.set_grad_checkpointing(enable)
        model.zero_grad()
        output = model(images, tokens)
        (output["image_second_order"][0].sum() + output["text_second_order"][0].sum()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_the_branch_is_not_run_unless_asked(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "skip"))).eval()
    calls: list[str] = []
    model.image_branch.register_forward_hook(lambda *_: calls.append("image"))
    model.text_branch.register_forward_hook(lambda *_: calls.append("text"))
    images, tokens = batch(model)
    assert model.encode_image(images).shape == model.encode_text(tokens).shape == (3, 32)
    assert calls == []
    model(images, tokens)
    assert calls == ["image", "text"]


def test_the_scale_is_clamped_between_one_and_the_maximum(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "clamp")))
    for given, kept in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            model.clip.logit_scale.fill_(given)
        model.clamp_logit_scale(100.0)
        assert torch.allclose(model.clip.logit_scale.exp(), torch.tensor(kept))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_under_autocast_are_unit_vectors_of_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build_model(settings(tiny(tmp_path, "autocast-unit"))).eval()
    images, tokens = batch(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        features = model(images, tokens)
    for name in ("image_features", "text_features", "image_second_order", "text_second_order"):
        assert features[name].dtype == torch.float32, name
        assert (features[name].norm(dim=-1) - 1).abs().max() < 1e-6, name


def test_bfloat16_autocast_gives_nearly_the_same_second_order_feature(tmp_path: Path) -> None:
    model = build_model(settings(tiny(tmp_path, "autocast"))).eval()
    images, tokens = batch(model)
    with torch.no_grad():
        exact = model(images, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images, tokens)
    for name in ("image_second_order", "text_second_order"):
        assert (exact[name] * rough[name].float()).sum(dim=-1).min() > 0.99


def test_the_demo_architecture_is_small_and_open_clip_takes_it() -> None:
    model = build_model(ModelSettings(architecture=str(MODEL)))
    assert open_clip.create_model("vit-tiny-demo").visual.image_size == (64, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) < 20e6
    assert model.tokenizer(["Iris tectorum, commonly known as Wall iris."]).shape == (1, model.clip.context_length)


@pytest.mark.parametrize(("kind", "pooler"), [("bert", "cls_pooler"), ("roberta", "mean_pooler")])
def test_a_hugging_face_text_tower_trains_and_its_padding_does_not_count(
    tmp_path: Path, kind: str, pooler: str
) -> None:
    place = hugging_face_text(tmp_path, kind)
    text = {"hf_model_name": place, "hf_tokenizer_name": place, "hf_pooler_type": pooler, "hf_proj_type": "linear",
            "hf_model_pretrained": False, "context_length": 12}  # fmt: skip
    path = tmp_path / f"hf-{kind}.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text}), encoding="utf-8")
    model = build_model(settings(str(path), dropout=0.0))
    images, tokens = batch(model)
    assert tokens.shape[1] == 12
    model.eval()
    with torch.no_grad():
        f, z = model.text_orders(tokens)
        assert torch.allclose(f, model.clip.encode_text(tokens, normalize=True), atol=1e-6)
        longer = torch.cat([tokens, torch.full((3, 5), model.clip.text.config.pad_token_id)], dim=1)
        assert torch.allclose(z, model.text_orders(longer)[1], atol=1e-5)
        short = model.cut_texts(longer)
        assert short.shape[1] < longer.shape[1]
        assert torch.allclose(z, model.text_orders(short)[1], atol=1e-5)
    output = model.train()(images, tokens)
    sum((value * torch.linspace(-1, 1, 32)).sum() for value in output.values() if value.ndim).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("clip.text.transformer.encoder.layer.0") for name in trained)
    assert {name for name, _ in model.text_branch.named_parameters()} <= {
        n.removeprefix("text_branch.") for n in trained
    }
    model.lock_tower("text")
    assert not any(p.requires_grad for n, p in model.clip.text.transformer.named_parameters() if "LayerNorm" not in n)
    assert all(p.requires_grad for p in model.text_branch.parameters())


def test_the_released_preset_starts_its_reduction_as_the_authors_code_does(tmp_path: Path) -> None:
    """A 1 x 1 convolution for pictures, a linear layer for texts: the golden weights were drawn so."""
    golden = {side: golden_arrays()[f"{side}_reduce"].double().numpy() for side in SIDES}
    path = tiny(tmp_path, "starts", embed_dim=512)
    torch.manual_seed(0)
    of_preset = {preset: build_model(settings(path, preset, reduced_width=46)) for preset in ("released", "dalip")}
    for preset, model in of_preset.items():
        image, text = (branch.reduce.weight.std().item() for branch in (model.image_branch, model.text_branch))
        start = golden["image"].std() if preset == "released" else golden["text"].std()
        assert image == pytest.approx(start, rel=0.03)
        assert text == pytest.approx(golden["text"].std(), rel=0.03)
    assert golden["image"].std() == pytest.approx((2 / 46) ** 0.5, rel=0.01)
    assert golden["text"].std() == pytest.approx((3 * 128) ** -0.5, rel=0.01)


def test_two_files_of_one_name_are_two_architectures(tmp_path: Path) -> None:
    """open_clip knows an architecture by a name alone; a process may use the files of two folders."""
    for folder, embed_dim in (("a", 16), ("b", 24), ("a", 16)):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tiny(tmp_path / folder, "one_name_of_two", embed_dim=embed_dim)
        assert build_model(settings(path, "clip")).clip.text_projection.shape[1] == embed_dim
