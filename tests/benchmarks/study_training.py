"""What the studies of second-order heads share: a run, its model, its training, and the log-loss of names.

Reads tokens through `Material`, writes nothing. A study gives its arms, its look at validation, and its records.
"""

from __future__ import annotations

import fcntl
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
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


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p, in the order given."""
    corrected, most = [0.0] * len(ps), 0.0
    for rank, number in enumerate(np.argsort(ps)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = most
    return corrected


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


@dataclass
class Checkpoint:
    """A file from which a killed run goes on with the same numbers, to the last bit; without a path there is none.

    It holds model, optimiser, losses, CPU seconds and `notes`, what the caller has kept of the run so far. What is
    drawn for a step follows from the seed, so it is drawn again. A file of other code is not used: the run begins anew.
    """

    commit: str
    path: Path | None = None
    every_steps: int = 500
    notes: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.process_time)
    seconds_before: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the run, those before it was killed included."""
        return self.seconds_before + time.process_time() - self.started

    def restore(self, model: Any, optimiser: Any) -> list[float]:
        """Return the losses of the steps that are done; none where there is no file of this code."""
        import torch

        kept = torch.load(self.path, weights_only=True) if self.path and self.path.is_file() else {}
        if kept.get("commit") != self.commit:
            return []
        self.seconds_before = kept["cpu_seconds"]
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        self.notes.update(kept["notes"])
        losses: list[float] = kept["losses"]
        return losses

    def remove(self) -> None:
        """Delete the file of a run that has its record."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def keep(self, model: Any, optimiser: Any, losses: list[float]) -> None:
        """Write the file, as a whole or not at all, once `every_steps` steps."""
        import torch

        from manifests.stores.storage import publish_bytes

        if not self.path or len(losses) % self.every_steps:
            return
        content = io.BytesIO()
        torch.save({
            "commit": self.commit, "cpu_seconds": self.cpu_seconds, "notes": self.notes, "losses": losses,
            "model": model.state_dict(), "optimiser": optimiser.state_dict(),
        }, content)  # fmt: skip
        publish_bytes(str(self.path), content.getvalue())


def train(one: Run, model: Any, material: Material, look: Callable[[int], None], checkpoint: Checkpoint) -> list[float]:
    """Train; calls `look` behind each step with the number of steps done. Returns the loss of each batch."""
    import torch

    from training.config import OptimiserSettings, ScheduleSettings
    from training.model.presets import LossSettings
    from training.run.optimiser import build_optimiser, lr_ratio_at, set_lr
    from training.tasks.task import make_task

    loss = make_task(LossSettings())
    optimiser = build_optimiser(model, OptimiserSettings(lr=one.rate, weight_decay=WEIGHT_DECAY))
    schedule = ScheduleSettings(steps=one.steps, warmup_steps=round(WARMUP_SHARE * one.steps))
    losses = checkpoint.restore(model, optimiser)
    for step, (rows, texts) in islice(enumerate(_batches(one, material)), len(losses), one.steps):
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
        checkpoint.keep(model, optimiser, losses)
    return losses


def _batches(one: Run, material: Material) -> Iterator[tuple[list[int], list[str]]]:
    """The rows of each step, and a text for each of them."""
    order = np.random.default_rng([one.seed, 1])
    streams = [_endless(material.of_split(split), order) for split in ("special", "general")]
    while True:
        rows = [next(stream) for stream in streams for _ in range(BATCH // 2)]
        yield rows, [str(order.choice(material.rows[row]["texts"])) for row in rows]


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
