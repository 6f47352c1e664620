"""The losses: golden value, both forms, two ranks against one, and accumulation against the large batch."""

from __future__ import annotations

import gc
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from double_loop import expected_loss
from torch import Tensor, nn
from torch.nn import functional

from training.config import TrainSettings
from training.model.branch import BranchShape, SecondOrderBranch
from training.model.large_batches import accumulate_backward, gather_with_gradient
from training.model.presets import LossSettings
from training.tasks.task import make_task

GOLDEN = Path(__file__).parent / "mbdc_golden.npz"
SETTINGS = [
    LossSettings(form="sum_of_losses"),
    LossSettings(form="sum_of_similarities", first_order_weight=0.3),
    LossSettings(first_order_weight=1.0),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_weighted_sum_of_losses_equals_the_golden_value(dtype: torch.dtype, tolerance: float) -> None:
    with np.load(GOLDEN) as arrays:
        get = {
            name: torch.from_numpy(np.asarray(arrays[f"loss_{name}"]))
            for name in ("f_image", "f_text", "z_image", "z_text", "scale", "alpha", "value")
        }
    features = {
        "image_features": get["f_image"].to(dtype),
        "text_features": get["f_text"].to(dtype),
        "image_second_order": get["z_image"].to(dtype),
        "text_second_order": get["z_text"].to(dtype),
        "logit_scale": get["scale"].to(dtype),
    }
    settings = LossSettings(form="sum_of_losses", first_order_weight=get["alpha"].item())
    losses = make_task(settings)(features, {})
    assert abs(losses["loss"].item() / get["value"].item() - 1) <= tolerance


def features_of(size: int, width: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("image_features", "text_features", "image_second_order", "text_second_order")
    features = {
        name: functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=-1)
        for name in names
    }
    return features | {"logit_scale": torch.tensor(7.0).double()}


def test_the_loss_follows_the_preset_where_a_config_leaves_it_open() -> None:
    def loss_of(preset: str, **loss: object) -> LossSettings:
        values = {"release": "r", "output_dir": "o", "schedule": {"steps": 1}, "loss": loss}
        return TrainSettings.model_validate(values | {"model": {"preset": preset}}).loss

    released = LossSettings(form="sum_of_losses", first_order_weight=0.5, logit_scale_max=None)
    assert loss_of("released") == released
    assert loss_of("dalip") == loss_of("clip") == LossSettings()
    kept = loss_of("released", form="sum_of_similarities", logit_scale_max=50.0)
    assert kept == LossSettings(form="sum_of_similarities", first_order_weight=0.5, logit_scale_max=50.0)
    # what a run stores names every value, and reads back as it was
    assert loss_of("released", **released.model_dump()) == released


def test_without_second_order_features_the_loss_is_that_of_f_alone() -> None:
    features = features_of(4)
    plain = {k: features[k] for k in ("image_features", "text_features", "logit_scale")}
    losses = make_task(LossSettings())(plain, {})
    assert set(losses) == {"loss", "first_order_loss"}
    assert losses["loss"] == losses["first_order_loss"]
    expected = make_task(LossSettings())(features, {})["first_order_loss"].item()
    assert math.isclose(losses["loss"].item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", SETTINGS)
def test_similarities_and_loss_are_those_of_float32_under_autocast(settings: LossSettings, dtype: torch.dtype) -> None:
    def loss_and_gradient(features: dict[str, Tensor], *, autocast: bool) -> tuple[Tensor, Tensor]:
        leaf = features["image_features"].clone().requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            loss = make_task(settings)(features | {"image_features": leaf}, {})["loss"]
        return loss, torch.autograd.grad(loss, leaf)[0]

    exact = {name: value.float() for name, value in features_of(32, width=64).items()}
    exact["logit_scale"] = torch.tensor(100.0)
    loss, gradient = loss_and_gradient(exact, autocast=False)
    autocast_loss, autocast_gradient = loss_and_gradient(exact, autocast=True)
    assert torch.allclose(loss, autocast_loss, rtol=1e-6, atol=0)
    assert (gradient - autocast_gradient).abs().max() <= 1e-5 * gradient.abs().max()
    rounded = {name: value if "scale" in name else value.to(dtype) for name, value in exact.items()}
    of_rounded = make_task(settings)(rounded, {})["loss"]
    as_float = make_task(settings)({k: v.float() for k, v in rounded.items()}, {})["loss"]
    assert torch.allclose(of_rounded, as_float, rtol=1e-6, atol=0)


def test_equal_features_give_the_loss_of_chance_and_autocast_keeps_float32() -> None:
    same = functional.normalize(torch.ones(8, 4), dim=-1)
    features = {"image_features": same, "text_features": same, "logit_scale": torch.tensor(10.0)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_task(LossSettings())(features, {})["loss"]
    assert loss.dtype == torch.float32
    assert abs(loss.item() - math.log(8)) < 1e-2


class Toy(nn.Module):
    """Two small towers with the real branches; answers as `DalipModel.forward` does."""

    def __init__(self, norm: str = "layer", dropout: float = 0.0) -> None:
        super().__init__()
        shape = BranchShape(12, 2, 4, norm, dropout, "channel", "single")
        self.image, self.text = nn.Linear(12, 12), nn.Linear(12, 12)
        self.image_branch, self.text_branch = SecondOrderBranch(shape), SecondOrderBranch(shape)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        output = {}
        for side, x in (("image", images), ("text", texts)):
            x = getattr(self, side)(x)
            z = getattr(self, f"{side}_branch")(x[:, 0], x[:, 1:])
            output[f"{side}_features"] = functional.normalize(x[:, 0], dim=-1)
            output[f"{side}_second_order"] = functional.normalize(z, dim=-1)
        return output | {"logit_scale": self.scale.exp()}


def toy_batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(size, 5, 12, generator=generator, dtype=torch.float64) for _ in range(2))


def toy(**values: object) -> Toy:
    torch.manual_seed(0)
    return Toy(**values).double().train()


RANK_CASES = [
    (SETTINGS[0], 1),
    (SETTINGS[1], 1),
    (SETTINGS[0], 2),
    (LossSettings(same_label="masked"), 1),
    (LossSettings(same_label="positive"), 2),
    (LossSettings(form="sum_of_losses", same_label="positive"), 1),
    (LossSettings(form="sum_of_losses", same_label="masked"), 2),
]
LABELS = torch.tensor([5, 6, 5, 8, 6, 5, 8, 9])


def rank_main(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        for number, (settings, num_chunks) in enumerate(RANK_CASES):
            rank_step(rank, world, f"{store}.{number}", settings, num_chunks)
        dist.barrier()
        gc.collect()  # the model first, then its group: a reducer that outlives the group aborts now and then
    finally:
        dist.destroy_process_group()


def rank_step(rank: int, world: int, store: str, settings: LossSettings, num_chunks: int) -> None:
    torch.set_num_threads(1)
    model = nn.parallel.DistributedDataParallel(toy())
    images, texts = (part.chunk(world)[rank] for part in toy_batch(8))
    labels = {"labels": LABELS.chunk(world)[rank]}
    if num_chunks == 1:
        losses = make_task(settings)(model(images, texts), labels)
        losses["loss"].backward()
    else:
        pieces = list(zip(images.chunk(num_chunks), texts.chunk(num_chunks), strict=True))
        losses = accumulate_backward(
            lambda i: model(*pieces[i]), num_chunks, partial(make_task(settings), columns=labels), no_sync=model.no_sync
        )
    mean = torch.stack([losses["loss"].detach(), losses["same_label_share"].double()])
    dist.all_reduce(mean)
    gathered = gather_with_gradient(torch.full((1, 2), float(rank)))
    if rank == 0:
        grads = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save({"loss": mean / world, "grads": grads, "gathered": gathered}, f"{store}.out")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every case in one pair of processes: starting them takes most of the time."""
    store = str(tmp_path_factory.mktemp("ranks") / "store")
    torch.multiprocessing.spawn(rank_main, (2, store), nprocs=2)
    return store


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(RANK_CASES)))
def test_two_processes_equal_one(store: str, case: int) -> None:
    settings, _ = RANK_CASES[case]
    two = torch.load(f"{store}.{case}.out")
    model = toy()
    loss = expected_loss(model(*toy_batch(8)), settings, LABELS)
    loss.backward()
    share = ((LABELS[:, None] == LABELS).sum().item() - 8) / (8 * 7)
    assert two["gathered"].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert two["loss"].tolist() == pytest.approx([loss.item(), share], abs=1e-6)
    for name, parameter in model.named_parameters():
        assert (two["grads"][name] - parameter.grad).abs().max().item() < 1e-6, name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_accumulated_gradients_equal_the_large_batch(settings: LossSettings, num_chunks: int) -> None:
    images, texts = toy_batch(8)
    whole, pieces = toy(), toy()
    expected = make_task(settings)(whole(images, texts), {})
    expected["loss"].backward()
    chunks = list(zip(images.chunk(num_chunks), texts.chunk(num_chunks), strict=True))
    losses = accumulate_backward(
        lambda index: pieces(*chunks[index]), num_chunks, partial(make_task(settings), columns={})
    )
    assert losses["loss"].item() == pytest.approx(expected["loss"].item(), abs=1e-12)
    for (name, a), b in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        other = torch.zeros_like(a) if b.grad is None else b.grad
        mine = torch.zeros_like(a) if a.grad is None else a.grad
        assert (mine - other).abs().max().item() < 1e-10, name


def test_accumulation_repeats_the_dropout_and_counts_statistics_once() -> None:
    images, texts = toy_batch(8)
    chunks = list(zip(images.chunk(2), texts.chunk(2), strict=True))
    model, plain = toy(norm="batch", dropout=0.5), toy(norm="batch", dropout=0.5)
    seen: list[dict[str, Tensor]] = []

    def forward(index: int) -> dict[str, Tensor]:
        output = model(*chunks[index])
        seen.append({name: value.detach() for name, value in output.items()})
        return output

    torch.manual_seed(5)
    accumulate_backward(forward, 2, partial(make_task(LossSettings()), columns={}), modules=[model])
    after = torch.rand(1)
    for first, second in ((seen[0], seen[2]), (seen[1], seen[3])):
        assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-12) for name in first)
    torch.manual_seed(5)
    with torch.no_grad():
        for chunk in chunks:
            plain(*chunk)
    assert torch.equal(after, torch.rand(1))
    for name, buffer in plain.named_buffers():
        assert torch.allclose(buffer, dict(model.named_buffers())[name], rtol=0, atol=1e-12), name
    assert all(part.track for part in model.modules() if hasattr(part, "track"))
