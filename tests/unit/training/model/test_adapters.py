"""What of a tower trains: its last blocks, or adapters in them; merged weights compute what adapted ones did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from tiny_clip import TEXT, VISION, hugging_face_text, tiny
from torch import Tensor

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
from training.config import ComputeSettings, OptimiserSettings, TrainSettings
from training.model import towers
from training.model.adapters import add_adapters, merged, tower_blocks
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.model.presets import ModelSettings
from training.run import state
from training.run.memory import Memory, memory_of
from training.run.optimiser import build_optimiser

ROOT = Path(__file__).parents[4]
SIDES = ("image", "text")
KINDS = ("plain", "custom", "average", "timm", "bert")
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 64}


def model_of(folder: Path, kind: str, preset: str = "clip") -> DalipModel:
    """A model with towers of three blocks (12 of timm's, 2 of BERT's)."""
    torch.manual_seed(0)
    name, vision, text = f"adapted-{kind}-{preset}", VISION | {"layers": 3}, TEXT | {"layers": 3}
    if kind == "bert":
        place = hugging_face_text(folder, "bert")
        text = {"hf_model_name": place, "hf_tokenizer_name": place, "hf_pooler_type": "cls_pooler",
                "hf_proj_type": "linear", "hf_model_pretrained": False, "context_length": 12}  # fmt: skip
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return build_model(ModelSettings.model_validate({"preset": preset, "architecture": str(path)}))
    extra: dict[str, Any] = {"custom": {"custom_text": True, "text": text | {"embed_cls": True}}}.get(
        kind, {"text": text}
    )
    vision |= {"average": {"pool_type": "avg", "final_ln_after_pool": True}, "resnet": RESNET}.get(kind, {})
    if kind == "timm":
        vision = {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 224,
        }
    path = tiny(folder, name, vision=vision, **extra)
    second = {} if preset == "clip" else {"second_order": {"heads": 2, "reduced_width": 4}}
    return build_model(ModelSettings.model_validate({"preset": preset, "architecture": path, **second}))


def batch(model: DalipModel, size: int = 3) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, 3, *towers.image_size_px(model.clip), generator=torch.Generator().manual_seed(0))
    return images, model.tokenizer(["a leaf", "the flower of an iris by the water", "oak"] * (size // 3))


def adapted(model: DalipModel, rank: int = 4, **layers: Any) -> DalipModel:
    """With adapters as a training leaves them: B is no longer 0."""
    for side in SIDES:
        model.lock_tower(side)
        add_adapters(model.clip, side, rank, layers.get("layers", ("attn", "mlp")))
    for name, parameter in model.named_parameters():
        if name.endswith(".0.up"):
            parameter.data.normal_(std=0.1)
    return model


def features(model: DalipModel) -> dict[str, Tensor]:
    torch.manual_seed(1)  # BERT has a dropout
    with torch.no_grad():
        output: dict[str, Tensor] = model(*batch(model))
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapted_ones_did(tmp_path: Path, kind: str) -> None:
    model, plain = model_of(tmp_path, kind), model_of(tmp_path, kind)
    before = features(plain.eval())
    adapted(model)
    plain.load_state_dict(merged(model.state_dict()))  # of all the names of a model without adapters
    for mode in (True, False):
        one, two = features(model.train(mode)), features(plain.train(mode))
        for name, value in one.items():
            assert (value - two[name]).abs().max() <= 1e-5, name
    assert (two["image_features"] - before["image_features"]).abs().max() > 1e-3
    assert (two["text_features"] - before["text_features"]).abs().max() > 1e-3


def test_an_adapted_model_begins_as_the_model(tmp_path: Path) -> None:
    model = model_of(tmp_path, "plain").eval()
    before = features(model)
    for side in SIDES:
        add_adapters(model.clip, side, 4, ("attn", "mlp"))
    after = features(model)
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-6) for name in before)
    blocks = [block for side in SIDES for block in tower_blocks(model.clip, side)]
    assert all(torch.equal(b.mlp.c_fc.weight, b.mlp.c_fc.parametrizations.weight.original) for b in blocks)


def test_what_else_is_parametrised_keeps_its_names() -> None:
    """Weights of others may be, in another way."""
    state = {"a.parametrizations.weight.original0": torch.ones(2), "a.parametrizations.weight.original1": torch.ones(2)}
    assert merged(state) == state


@pytest.mark.parametrize(
    ("layers", "names"), [(("attn",), {"attn"}), (("mlp",), {"mlp"}), (("attn", "mlp"), {"attn", "mlp"})]
)
def test_layers_have_adapters_by_name(tmp_path: Path, layers: tuple[str, ...], names: set[str]) -> None:
    model = adapted(model_of(tmp_path, "plain"), layers=layers)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and name != "clip.logit_scale"]
    assert {name.split(".resblocks.")[1].split(".")[1] for name in trained} == names
    assert all(name.endswith((".up", ".down")) for name in trained)
    assert len(trained) == 2 * 3 * 2 * 2 * len(names), "two matrices of each kind in three blocks of two towers"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["clip", "dalip"])
def test_the_last_blocks_train_and_what_comes_behind_them(tmp_path: Path, kind: str, preset: str) -> None:
    """Every parameter that trains has a gradient; in front of them nothing has one."""
    model = model_of(tmp_path, kind, preset).train()
    for side in SIDES:
        model.lock_tower(side, 1)
    output = model(*batch(model))
    total = sum((value * torch.linspace(-1, 1, value.shape[-1])).sum() for value in output.values() if value.ndim)
    (total + output["logit_scale"]).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    for side in SIDES:
        *front, last = tower_blocks(model.clip, side)
        assert not any(p.requires_grad for block in front for p in block.parameters())
        assert all(p.requires_grad for p in last.parameters())
    words = {"embed", "token", "conv1", "ln_pre"}
    frozen = {n for n, _ in model.named_parameters()} - trained
    assert all(any(word in n for word in words) or "blocks." in n or "layer." in n or "cls_emb" in n for n in frozen), (
        frozen
    )
    behind = {"plain": {"clip.visual.proj", "clip.visual.ln_post.weight", "clip.text_projection", "clip.ln_final.bias"},
              "timm": {"clip.visual.head.proj.weight", "clip.visual.trunk.norm.weight"},
              "bert": {"clip.text.proj.weight"}}.get(kind, set())  # fmt: skip
    assert behind <= trained


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # open_clip's call
@pytest.mark.parametrize("kind", ["plain", "bert", pytest.param("timm", marks=pytest.mark.slow)])
def test_gradients_of_a_part_are_the_same_with_checkpointing(tmp_path: Path, kind: str) -> None:
    grads = []
    for checkpoints in (False, True):
        model = adapted(model_of(tmp_path, kind)).train()
        if checkpoints:
            model.clip.set_grad_checkpointing()
        torch.manual_seed(1)  # BERT has a dropout
        output = model(*batch(model))
        (output["image_features"][0].sum() + output["text_features"][0].sum()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert sum(name.endswith(".down") for name in grads[0]) > 20
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


def test_an_adapter_is_not_rounded_under_autocast(tmp_path: Path) -> None:
    model = adapted(model_of(tmp_path, "plain"))
    layer = model.clip.visual.transformer.resblocks[0].mlp.c_fc
    whole = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, whole)


@pytest.mark.parametrize(
    ("kind", "work", "words"),
    [
        ("plain", lambda m: m.lock_tower("image", 4), "lock.image_blocks is 4, the image tower has 3 blocks"),
        ("bert", lambda m: m.lock_tower("text", 3), "lock.text_blocks is 3, the text tower has 2 blocks"),
        ("resnet", lambda m: m.lock_tower("image", 1), "lock.image_blocks: the image tower has no attention blocks"),
        ("resnet", lambda m: add_adapters(m.clip, "image", 4, ("attn",)), "adapters: the image tower has no attention"),
        ("plain", lambda m: add_adapters(m.clip, "text", 32, ("attn",)), "adapters.rank is 32, the text tower has"),
    ],
)
def test_what_cannot_be_trained_in_part_is_said(tmp_path: Path, kind: str, work: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        work(model_of(tmp_path, kind))


def of_vit_l(preset: str) -> DalipModel:
    """ViT-L/14 without a number in it."""
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-L-14"))
        return DalipModel(clip, ModelSettings.model_validate({"preset": preset, "architecture": "ViT-L-14"}))


def memory(model: DalipModel, **compute: Any) -> Memory:
    return memory_of(model, ComputeSettings.model_validate(compute), 32, 1)


@pytest.mark.parametrize(("preset", "most"), [("clip", 0.02), ("dalip", 0.03)])
def test_the_optimiser_of_adapters_takes_little_of_the_full_one(preset: str, most: float) -> None:
    model = of_vit_l(preset)
    full = memory(model)
    with torch.device("meta"):
        part = memory(adapted(model, rank=8))
    assert full.optimiser_bytes == 2 * full.parameter_bytes > 3.4e9
    assert part.optimiser_bytes < most * full.optimiser_bytes
    assert part.gradient_bytes * 2 == part.optimiser_bytes


def row_of(setting: str) -> str:
    """A row of the recipe's table, for 64 pairs in bf16."""
    model = of_vit_l("dalip")
    values = {"release": "r", "output_dir": "o", "schedule": {"steps": 1}, **(yaml.safe_load(setting) or {})}
    state._set_up_towers(model, parse_settings(values, TrainSettings, where="test"))
    computes = [{"precision": "bf16", "grad_checkpointing": checkpoints} for checkpoints in (False, True)]
    plain, spared = (memory_of(model, ComputeSettings.model_validate(compute), 64, 1) for compute in computes)
    counted = plain.parameter_bytes + plain.gradient_bytes + plain.optimiser_bytes
    numbers = (plain.activation_bytes, spared.activation_bytes)
    cells = [f"{sum(plain.trained.values()) / 1e6:.1f}", *(f"{(num or 0) / 1e9:.1f} GB" for num in (counted, *numbers))]
    return f"| {f'`{setting}`' if setting else 'neither `adapters` nor `lock`'} | {' | '.join(cells)} |"


def test_the_recipe_for_24_gb_says_what_the_arithmetic_gives() -> None:
    page = (ROOT / "configs/recipes/vit-l-24gb/README.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| (`|neither)", line)]
    assert len(rows) == 4
    for line in rows:
        assert line == row_of("".join(re.findall(r"^\| `(.+?)` \|", line)))


def test_the_memory_that_is_said_is_that_of_a_step(tmp_path: Path) -> None:
    """Parameters, gradients and moments to the byte, beside the step counters of AdamW."""
    model = adapted(model_of(tmp_path, "plain", "dalip"))
    said, optimiser = memory(model), build_optimiser(model, OptimiserSettings())
    output = model(*batch(model))
    sum((value * torch.linspace(-1, 1, value.shape[-1])).sum() for value in output.values() if value.ndim).backward()
    model.clip.logit_scale.grad = torch.ones_like(model.clip.logit_scale)
    optimiser.step()
    kept = [t for state in optimiser.state.values() for name, t in state.items() if name != "step"]
    assert said.optimiser_bytes == sum(t.numel() * t.element_size() for t in kept)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert said.gradient_bytes == sum(g.numel() * g.element_size() for g in grads)
    assert said.parameters == sum(p.numel() for p in model.parameters())
    assert sum(said.trained.values()) * 4 == said.gradient_bytes
    assert memory_of(model, ComputeSettings(), 32, 2).gradient_bytes == 2 * said.gradient_bytes


def kept_bytes(model: DalipModel) -> int:
    """What autograd keeps of a forward pass beside the parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*batch(model, 24))
    return sum(kept.values())


@pytest.mark.parametrize("part", ["whole", "blocks", "adapters", "locked"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(tmp_path: Path, part: str) -> None:
    model = model_of(tmp_path, "plain").train()
    for side in SIDES:
        if part in ("blocks", "locked"):
            model.lock_tower(side, 1 if part == "blocks" else None)
    model = adapted(model) if part == "adapters" else model
    estimate = memory_of(model, ComputeSettings(), 24, 1).activation_bytes
    if part == "locked":
        assert estimate == 0
    else:
        assert estimate == pytest.approx(kept_bytes(model), rel=0.35)
