"""The arms of the study `dalip-vs-clip`, and one training run of one arm.

Everything fixed here is part of tests/benchmarks/protocols/dalip-vs-clip.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BATCH = {"scratch": 64, "lit": 256}
STEPS = {"scratch": 300, "lit": 1500}  # of arm 6; the other arms get the same CPU seconds
TUNING_STEPS = {"scratch": 300, "lit": 500}
MOST_STEPS = 2  # times those of arm 6, however cheap an arm is
RATES = (3e-4, 1e-3, 3e-3)
WARMUP_SHARE, WEIGHT_DECAY = 1 / 12, 0.1
TUNING_SEEDS = (900, 901)
FINAL_SEEDS = tuple(range(10))
MORE_SEEDS = tuple(range(10, 20))  # only if the stopping rule says so
FEWER_SEEDS = {"4-attention": 6, "7-released": 6}  # seeds; shown without a test, see Deviations in the protocol
EMBED_DIM = {"scratch": 128, "lit": 256}
REDUCED_WIDTH = {"scratch": 12, "lit": 23}  # of heads 32 and 64 wide: the released 46 of 128, in proportion


@dataclass(frozen=True)
class Arm:
    """One kind of model."""

    name: str
    title: str
    preset: str
    statistic: str = "brownian"
    times_wider: int = 1


ARMS = {
    arm.name: arm
    for arm in (
        Arm("1-f", "f alone", "clip"),
        Arm("2-wide", "f twice as wide", "clip", times_wider=2),
        Arm("3-mean", "f and a mean-pool head with z's parameters", "dalip", "mean"),
        Arm("4-max", "f and a max-pool head with z's parameters", "dalip", "max"),
        Arm("4-attention", "f and an attention-pool head with z's parameters", "dalip", "attention"),
        Arm("5-covariance", "f and the square root of covariance", "dalip", "covariance"),
        Arm("6-dalip", "f and MBDC", "dalip"),
        Arm("7-released", "preset released, start mended", "released"),
        Arm("8-pooled", "two f heads", "dalip", "pooled"),
    )
}
ARMS_OF = {"lit": tuple(ARMS), "scratch": ("1-f", "3-mean", "5-covariance", "6-dalip")}


class Regime(Protocol):
    """Data and towers of one of the two regimes, `scratch` or `lit`."""

    name: str
    by_split: dict[str, list[int]]
    rows: list[dict[str, Any]]

    def architecture(self, times_wider: int) -> Path:
        """A model file of the towers, with an embedding so many times as wide."""

    def pictures(self, rows: list[int], rng: np.random.Generator | None) -> Any:
        """What `encode_image` takes; random views with `rng`, else the middle."""

    def texts(self, rows: list[int], rng: np.random.Generator) -> Any:
        """What `encode_text` takes: one of the texts of each row, drawn."""

    def encode_texts(self, texts: list[str]) -> Any:
        """What `encode_text` takes, of any texts."""


def build(arm: Arm, regime: Regime, seed: int) -> Any:
    import torch
    from study_heads import HEADS

    from training.model.build import build_model
    from training.model.presets import ModelSettings

    values: dict[str, Any] = {"preset": arm.preset, "architecture": str(regime.architecture(arm.times_wider))}
    if arm.preset != "clip":
        values["second_order"] = {"reduced_width": REDUCED_WIDTH[regime.name], "heads": 4}
    torch.manual_seed(seed)
    return build_model(ModelSettings.model_validate(values), HEADS[arm.statistic])


class Training:
    """A run of one arm: `step` as often as wanted."""

    def __init__(self, arm: Arm, regime: Regime, seed: int, rate: float, steps: int) -> None:
        from training.config import OptimiserSettings, ScheduleSettings
        from training.model.loss import LossSettings, loss_of_preset, make_loss
        from training.run.optimiser import build_optimiser

        self.model, self.regime, self.seed, self.rate, self.steps = build(arm, regime, seed), regime, seed, rate, steps
        self.loss = make_loss(loss_of_preset(LossSettings(), arm.preset))
        self.optimiser = build_optimiser(self.model, OptimiserSettings(lr=rate, weight_decay=WEIGHT_DECAY))
        self.schedule = ScheduleSettings(steps=steps, warmup_steps=round(WARMUP_SHARE * steps))
        order = np.random.default_rng([seed, 1])
        special, general = regime.by_split["special_train"], regime.by_split["general_train"]
        self.streams = [_endless(special, order), _endless(general + regime.by_split["cartons_train"], order)]
        self.views = np.random.default_rng([seed, 2])
        self.model.train()
        self.done = 0

    def step(self) -> float:
        import torch

        from training.run.optimiser import lr_ratio_at, set_lr

        half = BATCH[self.regime.name] // 2
        rows = [next(stream) for stream in self.streams for _ in range(half)]
        images, texts = self.regime.pictures(rows, self.views), self.regime.texts(rows, self.views)
        set_lr(self.optimiser, self.rate * lr_ratio_at(self.done, self.steps, self.schedule))
        torch.manual_seed(1_000_003 * self.seed + self.done)  # dropout
        parts = self.loss(self.model(images, texts))
        self.optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.loss.bound(self.model)
        self.done += 1
        return float(parts["loss"].detach())


def train_run(arm: Arm, regime: Regime, seed: int, rate: float, steps: int) -> tuple[Any, dict[str, Any]]:
    """Train; returns the model in evaluation mode, and what is kept of the run."""
    started, wall = time.process_time(), time.time()
    training = Training(arm, regime, seed, rate, steps)
    losses = [training.step() for _ in range(steps)]
    model = training.model.eval()
    return model, {
        "arm": arm.name, "regime": regime.name, "seed": seed, "rate": rate, "steps": steps,
        "cpu_seconds": round(time.process_time() - started, 1), "seconds": round(time.time() - wall, 1),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "final_loss": round(float(np.mean(losses[-max(1, steps // 10) :])), 4),
        "scale": round(float(model.clip.logit_scale.detach().exp()), 3),
    }  # fmt: skip


def measure_costs(regime: Regime, rounds: int = 12) -> dict[str, float]:
    """CPU seconds of a step of each arm: the median of `rounds`, the arms taking turns on the same batches."""
    runs = {name: Training(ARMS[name], regime, 950, 1e-3, 10_000) for name in ARMS_OF[regime.name]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, training in runs.items():
            started = time.process_time()
            training.step()
            if turn >= 2:  # the first ones allocate memory
                seconds[name].append(time.process_time() - started)
    return {name: round(float(np.median(values)), 4) for name, values in seconds.items()}


def steps_of(arm: str, regime: str, costs: dict[str, float]) -> int:
    """Steps that cost as many CPU seconds as those of arm 6, to tens, and at most `MOST_STEPS` times as many."""
    full = STEPS[regime]
    return min(MOST_STEPS * full, round(full * costs["6-dalip"] / costs[arm] / 10) * 10)


def vectors(model: Any, side: str, inputs: Any) -> Any:
    """f, or f and z as one vector of length 1; float32 (N, C or 2C)."""
    import torch

    with torch.no_grad():
        if model.second_order is None:
            return torch.cat([getattr(model, f"encode_{side}")(part) for part in inputs.split(256)])
        found = [getattr(model, f"encode_{side}_both")(part) for part in inputs.split(256)]
        return torch.cat([torch.cat([f, z], dim=1) / 2**0.5 for f, z in found])


def _endless(rows: list[int], rng: np.random.Generator) -> Any:
    while True:
        yield from (rows[i] for i in rng.permutation(len(rows)))
