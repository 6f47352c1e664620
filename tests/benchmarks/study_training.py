"""What the studies of second-order heads share: a run, its model, its training, and the log-loss of names.

Reads tokens through `Material`, writes nothing. A study gives its arms, its look at validation, and its records.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from second_order_material import TEMPLATES, Material
from study_records import Records

BATCH, WARMUP_SHARE, WEIGHT_DECAY = 128, 1 / 12, 0.1


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    seed: int
    rate: float
    steps: int
    purpose: str = "tuning"

    @property
    def name(self) -> str:
        return f"{self.purpose}-{self.arm}-{self.seed}-{self.rate:g}-{self.steps}"


def make_all(
    plans: Iterable[Callable[[], Iterable[Run]]],
    records: Records,
    claims: Path,
    make: Callable[[Run], None],
    minutes: float,
) -> None:
    """Every run of each plan that has no record, until the minutes are over. Several processes share the runs."""
    stop = time.time() + 60 * minutes
    claims.mkdir(exist_ok=True)
    for plan in plans:
        while todo := without_record(plan, records):
            for one in todo:
                with (claims / one.name).open("w") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue  # another process makes it
                    if one.name in records.names():
                        continue
                    if time.time() > stop:
                        raise SystemExit("time is up; run again to go on")
                    make(one)
            time.sleep(2)
    print("nothing is left")


def without_record(plan: Callable[[], Iterable[Run]], records: Records) -> list[Run]:
    """The runs of a plan that are still to be made."""
    done = records.names()
    return [one for one in plan() if one.name not in done]


def build(one: Run, head: str | None, config: Path) -> Any:
    """The untrained model of a run; without a head plain CLIP."""
    import torch
    from study_heads import HEADS

    from training.model.build import build_model
    from training.model.presets import ModelSettings

    values: dict[str, Any] = {"preset": "dalip" if head else "clip", "architecture": str(config)}
    if head:
        values["second_order"] = {"reduced_width": 23, "heads": 4}
    torch.manual_seed(one.seed)
    return build_model(ModelSettings.model_validate(values), HEADS[head or "brownian"])


def train(one: Run, model: Any, material: Material, look: Callable[[int], None]) -> list[float]:
    """Train; calls `look` behind each step with the number of steps done. Returns the loss of each batch."""
    import torch

    from training.config import OptimiserSettings, ScheduleSettings
    from training.model.presets import LossSettings
    from training.run.optimiser import build_optimiser, lr_ratio_at, set_lr
    from training.tasks.task import make_task

    loss = make_task(LossSettings())
    optimiser = build_optimiser(model, OptimiserSettings(lr=one.rate, weight_decay=WEIGHT_DECAY))
    schedule = ScheduleSettings(steps=one.steps, warmup_steps=round(WARMUP_SHARE * one.steps))
    order = np.random.default_rng([one.seed, 1])
    streams = [_endless(material.of_split(split), order) for split in ("special", "general")]
    losses = []
    for step in range(one.steps):
        rows = [next(stream) for stream in streams for _ in range(BATCH // 2)]
        texts = [str(order.choice(material.rows[row]["texts"])) for row in rows]
        set_lr(optimiser, one.rate * lr_ratio_at(step, one.steps, schedule))
        torch.manual_seed(1_000_003 * one.seed + step)  # dropout
        model.train()
        parts = loss(model(material.images(rows), material.texts(texts)), {})
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.bound(model)
        losses.append(float(parts["loss"].detach()))
        look(step + 1)
    return losses


def _endless(rows: list[int], rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (rows[i] for i in rng.permutation(len(rows)))


def similarities(model: Any, material: Material, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the pictures of a split with all names of it (N, K), and the place of each picture's own name."""
    import torch
    from torch.nn.functional import normalize

    rows = material.of_split(split)
    own = [material.rows[row]["texts"][0] for row in rows]
    names = sorted(set(own))

    def vectors(orders: tuple[Any, Any]) -> Any:
        first, second = orders
        return first if second is None else torch.cat([first, second], dim=1) / 2**0.5

    with torch.no_grad():
        pictures = [vectors(model.image_orders(material.images(rows[i : i + 256]))) for i in range(0, len(rows), 256)]
        texts = sum(
            torch.cat([
                vectors(model.text_orders(material.texts([template.format(n) for n in names[i : i + 256]])))
                for i in range(0, len(names), 256)
            ])
            for template in TEMPLATES
        )  # fmt: skip
        cosines = torch.cat(pictures) @ normalize(texts, dim=-1).t()
    return cosines.numpy().astype(np.float64), np.array([names.index(name) for name in own])


def log_losses(cosines: np.ndarray, own: np.ndarray, temperature: float) -> np.ndarray:
    """The log-loss of each picture (N,): softmax over all names of its split."""
    logits = cosines * temperature
    logits -= logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(own)), own]


def best_temperature(splits: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """The temperature with the least mean log-loss, each split with the same weight."""
    from scipy.optimize import minimize_scalar

    splits = list(splits)

    def loss(log_t: float) -> float:
        return float(np.mean([log_losses(cosines, own, np.exp(log_t)).mean() for cosines, own in splits]))

    return float(np.exp(minimize_scalar(loss, bounds=(0, 7), method="bounded").x))
