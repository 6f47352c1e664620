"""Whether the second-order feature z needs a projection for each kind of text, as the first-order feature f has one.

A small DALIP learns the pictures of the recipe `continue-a-model` from nothing, a quarter of them general. Each of the
two kinds has a projection of f: once as the code is, once with such a projection of z too, which begins as the
identity. The model is asked for the names of the test pictures, each set by its kind. CLONE is laid and built as for
bench_continue.py.

    python tests/benchmarks/bench_projectors.py CLONE OUT --seeds 3 --steps 250
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_continue import GROUPS
from bench_same_label import ARCHITECTURE, BATCH, LR, WARMUP
from study_records import Records
from torch import Tensor, nn

from manifests.settings import parse_settings
from training.config import TrainSettings
from training.data.images import EvalView, model_input
from training.model.build import build_model
from training.model.dalip import DalipModel
from training.run import loop, state

RECORDS = Records(Path(__file__).parent / "results/projectors.jsonl")
KINDS = ("plant", "general")
ARMS = ("f alone", "f and z")


class BothProjected(DalipModel):
    """A DalipModel whose z has a matrix for the second kind, too."""

    def forward(self, images: Tensor, text_tokens: Tensor, kinds: Tensor | None = None) -> dict[str, Tensor]:
        output = super().forward(images, text_tokens, kinds)
        assert kinds is not None
        return output | {"image_second_order": self.of_kind(output["image_second_order"], kinds)}

    def of_kind(self, z_BC: Tensor, kinds_B: Tensor) -> Tensor:
        other = nn.functional.normalize(z_BC @ self.z_matrix, dim=-1)
        return torch.where((kinds_B == 1)[:, None], other, z_BC)


def made(arm: str, keep: list[DalipModel], settings: Any) -> DalipModel:
    model = build_model(settings)
    if arm == ARMS[1]:
        model.__class__ = BothProjected
        model.z_matrix = nn.Parameter(torch.eye(int(ARCHITECTURE["embed_dim"])))
    keep.append(model)
    return model


def read_sets(clone: Path, model: DalipModel) -> dict[str, tuple[Tensor, Tensor, list[str]]]:
    """Pictures, numbers of their classes, names of the classes; by set."""
    view, sets = EvalView(model.preprocess_settings), {}
    for name in GROUPS:
        folders = sorted(path for path in (clone / "data/continue/test" / name).iterdir() if path.is_dir())
        files = [(file, number) for number, folder in enumerate(folders) for file in sorted(folder.iterdir())]
        pixels = torch.stack([view(file.read_bytes()) for file, _ in files])
        sets[name] = (pixels, torch.tensor([number for _, number in files]), [folder.name for folder in folders])
    return sets


@torch.no_grad()
def top1(model: DalipModel, sets: dict[str, tuple[Tensor, Tensor, list[str]]]) -> dict[str, dict[str, float]]:
    """Top-1 of each set by f, by z and by both."""
    model.eval()
    figures = {}
    for name, (pixels, answers, names) in sets.items():
        kind = KINDS.index(GROUPS[name])
        model.use_kind(KINDS[kind])
        parts = [model.image_orders(model_input(part, model.preprocess_settings)) for part in pixels.split(256)]
        f, z = (torch.cat(both) for both in zip(*parts, strict=True))
        if isinstance(model, BothProjected):
            z = model.of_kind(z, torch.full((len(z),), kind))
        f_text, z_text = model.text_orders(model.tokenizer(names))
        scores = {"f": f @ f_text.t(), "z": z @ z_text.t()}
        scores["f and z"] = scores["f"] + scores["z"]
        figures[name] = {by: (score.argmax(1) == answers).float().mean().item() for by, score in scores.items()}
    return figures


def main() -> None:
    """Train what is lacking, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    architecture = options.out / "bench-projectors.json"
    architecture.write_text(json.dumps(ARCHITECTURE))
    sets: dict[str, Any] = {}
    for seed in range(options.seeds):
        for arm in ARMS:
            if f"{arm}, seed {seed}" in RECORDS.names():
                continue
            second_order = {"heads": 2, "reduced_width": 16}
            values = {
                "release": str(options.clone / "data/continue/build"),
                "output_dir": str(options.out / f"{arm.replace(' ', '-')}-{seed}"),
                "seed": seed,
                "model": {"architecture": str(architecture), "second_order": second_order, "projectors": KINDS},
                "data": {"batch_size": BATCH, "num_workers": 0, "mixture": {"plant": 3, "general": 1},
                         "augment": {"scale": [0.6, 1.0]}},
                "optimiser": {"lr": LR, "weight_decay": 0.1},
                "schedule": {"steps": options.steps, "warmup_steps": WARMUP},
                "compute": {"device": "cpu", "num_threads": 1},
                "eval": {"split": None},
            }  # fmt: skip
            keep: list[DalipModel] = []
            state.build_model = partial(made, arm, keep)
            loop.train(parse_settings(values, TrainSettings, where="bench_projectors"), resume=False)
            sets = sets or read_sets(options.clone, keep[-1])
            RECORDS.add(f"{arm}, seed {seed}", top1(keep[-1], sets))
    print("| set | by | " + " | ".join(ARMS) + " | difference by seed |\n|---|---|---|---|---|")
    for name in GROUPS:
        for by in ("f", "z", "f and z"):
            each = [[record[name][by] * 100 for record in RECORDS.of(f"{arm}, seed *")] for arm in ARMS]
            differences = ", ".join(f"{b - a:+.1f}" for a, b in zip(*each, strict=True))
            print(f"| {name} | {by} | " + " | ".join(f"{np.mean(arm):.1f}%" for arm in each) + f" | {differences} |")


if __name__ == "__main__":
    main()
