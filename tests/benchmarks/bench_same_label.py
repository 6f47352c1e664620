"""What `loss.same_label` does to zero-shot accuracy where many pairs of a batch share a text, and what it costs a step.

A small DALIP is trained from nothing on photos of groceries (Klasson et al. 2019) whose only text is the name of their
class, once for each value of the setting and each seed, on the same batches. It is then asked for the class of the
validation photos. Nothing is chosen on them. Intervals draw seeds, classes, and photos within classes anew, and a
difference is between runs of one seed.

    python tests/benchmarks/bench_same_label.py GROCERY --seeds 5 --steps 120 --classes coarse
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.columns import hash_rows
from training.data.images import model_input
from training.evaluation.metrics import crossed_bootstrap, middle_95
from training.model.architecture import register_architecture
from training.model.build import build_model
from training.model.loss import LossSettings, make_loss
from training.model.presets import ModelSettings

ARMS = ("negative", "masked", "positive")
SIDE_PX, BATCH, LR, WARMUP = 48, 128, 2e-3, 25
ARCHITECTURE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE_PX, "layers": 2, "width": 96, "head_width": 32, "patch_size": 12},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def settings() -> ModelSettings:
    """A model so small that a run takes seconds."""
    name = register_architecture(ARCHITECTURE)
    return ModelSettings.model_validate({"architecture": name, "second_order": {"heads": 2, "reduced_width": 16}})


def read_photos(folder: Path, split: str, column: int) -> tuple[Tensor, Tensor]:
    """Photos of a split, uint8 (N, 3, 54, 54), and the number of their class, fine (1) or coarse (2)."""
    pixels, labels = [], []
    for line in (folder / f"{split}.txt").read_text().splitlines():
        path, *numbers = (part.strip() for part in line.split(","))
        with Image.open(folder / path) as photo:
            photo.draft("RGB", (108, 108))
            pixels.append(np.asarray(photo.convert("RGB").resize((54, 54), Image.Resampling.BICUBIC)))
        labels.append(int(numbers[column - 1]))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(labels)


def names_of(folder: Path, column: int) -> list[str]:
    """Names of the classes, by number."""
    with (folder / "classes.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    names = {int(row[2 * column - 1]): row[2 * column - 2].replace("-", " ").lower() for row in rows}
    return [names[number] for number in range(len(names))]


def cut(pixels: Tensor, generator: torch.Generator | None) -> Tensor:
    """A square of each photo: the middle, or a random one that may be mirrored."""
    if generator is None:
        return pixels[:, :, 3:51, 3:51]
    x, y = torch.randint(7, (2, len(pixels)), generator=generator)
    flips = torch.rand(len(pixels), generator=generator) < 0.5
    squares = [one[:, b : b + SIDE_PX, a : a + SIDE_PX] for one, a, b in zip(pixels, x, y, strict=True)]
    return torch.stack([s.flip(2) if flip else s for s, flip in zip(squares, flips, strict=True)])


def run(
    arm: str, seed: int, steps: int, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], names: list[str]
) -> tuple[np.ndarray[Any, Any], float]:
    """Hits of the validation photos under f and z together, and the mean share of same-label pairs."""
    torch.manual_seed(seed)
    model = build_model(settings())
    ids = model.tokenizer(names)
    model.clip.token_embedding.requires_grad_(False)  # 49,408 rows, of which the names use few
    loss = make_loss(LossSettings(same_label=arm))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    generator, shares = torch.Generator().manual_seed(seed), []
    model.train()
    for step in range(steps):
        lr = LR * min((step + 1) / WARMUP, 0.5 * (1 + np.cos(np.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = lr
        rows = torch.randperm(len(train[0]), generator=generator)[:BATCH]
        tokens = ids[train[1][rows]]
        images = model_input(cut(train[0][rows], generator), model.preprocess_settings)
        losses = loss({**model(images, model.cut_texts(tokens)), "labels": hash_rows(tokens)})
        optimiser.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.bound(model)
        shares.append(losses["same_label_share"].item())
    model.eval()
    with torch.no_grad():
        f, z = model.image_orders(model_input(cut(val[0], None), model.preprocess_settings))
        f_text, z_text = model.text_orders(ids)
        assert z is not None
        assert z_text is not None
        hits = (f @ f_text.t() + z @ z_text.t()).argmax(1) == val[1]
    return hits.numpy().astype(float), float(np.mean(shares))


def cost(names: list[str]) -> str:
    """CPU seconds that labels add to a step, over those of the step; 128 pairs."""
    model = build_model(settings()).train()
    tokens = model.tokenizer([names[i % len(names)] for i in range(BATCH)])
    images = torch.randn(BATCH, 3, SIDE_PX, SIDE_PX)
    plain = make_loss(LossSettings())

    def seconds(work: Any, rounds: int) -> float:
        started = time.process_time()
        for _ in range(rounds):
            work()
        return (time.process_time() - started) / rounds

    output = model(images, tokens)
    fixed = {name: value.detach().requires_grad_() for name, value in output.items()}
    of_step = seconds(lambda: plain(model(images, model.cut_texts(tokens)))["loss"].backward(), 5)
    lines = []
    for arm in ARMS:
        loss = make_loss(LossSettings(same_label=arm))
        pairs = [  # paired: the machine is shared
            seconds(lambda loss=loss: loss({**fixed, "labels": hash_rows(tokens)})["loss"].backward(), 20)
            - seconds(lambda: plain(fixed)["loss"].backward(), 20)
            for _ in range(9)
        ]
        lines.append(f"{arm} {np.median(pairs) / of_step:.2%}")
    return f"labels add, of the {of_step * 1000:.0f} ms of CPU of a step's two passes: " + ", ".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds train.txt, val.txt, classes.csv")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--classes", choices=("fine", "coarse"), default="fine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    column = 1 if options.classes == "fine" else 2
    names = names_of(options.folder, column)
    print(cost(names), flush=True)
    train, val = (read_photos(options.folder, split, column) for split in ("train", "val"))
    hits: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            of_run, share = run(arm, seed, options.steps, train, val, names)
            hits[arm].append(of_run)
            print(f"seed {seed} {arm} {of_run.mean():.1%}", flush=True)
    print(f"{len(names)} classes, {len(train[0])} photos, {len(val[0])} asked, share of pairs {share:.2%}, "
          f"chance {1 / len(names):.1%}")  # fmt: skip
    base = np.stack(hits["negative"])
    for arm in ARMS:
        values = np.stack(hits[arm])
        low, high = middle_95(crossed_bootstrap(values, val[1].numpy(), 2000)[0])
        worse, better = middle_95(crossed_bootstrap(values - base, val[1].numpy(), 2000)[0])
        print(f"{arm:<9} top-1 {values.mean():.1%} [{low:.1%}, {high:.1%}]  against negative "
              f"{(values - base).mean():+.1%} [{worse:+.1%}, {better:+.1%}]")  # fmt: skip
    print(f"CPU seconds in all: {time.process_time():.0f}")


if __name__ == "__main__":
    main()
