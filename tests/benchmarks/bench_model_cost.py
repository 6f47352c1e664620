"""What the second-order branches cost: presets `released` and `dalip` beside plain CLIP, in one run on the CPU.

A step is forward, loss, backward and AdamW, on the same batch, the presets in turns; the ratio is the median of the
ratios within each turn. Peak memory is of a process of its own for each preset.

    python tests/benchmarks/bench_model_cost.py [--threads 2] [--out tests/benchmarks/results/model_cost.md]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import open_clip
import torch

from training.loss import LossSettings, contrastive_loss
from training.model import ModelSettings, build_model

PRESETS: dict[str, dict[str, object]] = {
    "clip": {"preset": "clip"},
    "released": {"preset": "released"},
    "dalip": {"preset": "dalip"},
    "dalip, full projection": {"preset": "dalip", "second_order": {"projection": "full"}},
    "dalip, low rank 128": {"preset": "dalip", "second_order": {"projection": "low_rank"}},
    "dalip, before projection": {"preset": "dalip", "second_order": {"placement": "before_projection"}},
}
CAPTIONS = ["Iris tectorum, commonly known as Wall iris.", "a photo of a red flower by the river in the early morning"]


class Runner:
    """One preset with its optimiser; `open_clip` is the library's own model and loss."""

    def __init__(self, name: str, architecture: str, batch: int) -> None:
        torch.manual_seed(0)
        self.plain = name == "open_clip"
        if self.plain:
            self.model = open_clip.create_model(architecture, output_dict=True).train()
        else:
            settings = ModelSettings.model_validate(PRESETS[name] | {"architecture": architecture})
            self.model = build_model(settings).train()
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.images = torch.randn(batch, 3, 224, 224)
        self.tokens = open_clip.tokenize([CAPTIONS[index % 2] for index in range(batch)])
        self.loss = open_clip.ClipLoss()

    def step(self) -> tuple[float, float]:
        """Seconds of forward, loss and backward; seconds of the optimiser."""
        start = time.perf_counter()
        output = self.model(self.images, self.tokens)
        if self.plain:
            loss = self.loss(output["image_features"], output["text_features"], output["logit_scale"])
        else:
            loss = contrastive_loss(output, LossSettings())["loss"]
        loss.backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return middle - start, time.perf_counter() - middle


def peak_mib(name: str, architecture: str, batch: int, threads: int) -> int:
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(threads),
        "--memory-of",
        json.dumps([name, architecture, batch]),
    ]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(finished.stdout.split()[-1])


def measure(architecture: str, batch: int, names: list[str], repeats: int, threads: int) -> list[str]:
    runners = {name: Runner(name, architecture, batch) for name in names}
    turns: list[dict[str, tuple[float, float]]] = []
    for turn in range(repeats + 1):
        seconds = {name: runner.step() for name, runner in runners.items()}
        if turn:
            turns.append(seconds)
    sizes = {name: runner.num_parameters for name, runner in runners.items()}
    runners.clear()
    lines = []
    for name in names:
        work = statistics.median(turn[name][0] for turn in turns)
        update = statistics.median(turn[name][1] for turn in turns)
        ratio = statistics.median(turn[name][0] / turn["clip"][0] for turn in turns)
        whole = statistics.median(sum(turn[name]) / sum(turn["clip"]) for turn in turns)
        memory = peak_mib(name, architecture, batch, threads)
        lines.append(
            f"| {architecture} | {batch} | {name} | {sizes[name]:,} | {work:.3f} | {update:.3f} "
            f"| {ratio:.3f} | {whole:.3f} | {memory:,} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default="ViT-B-32:32,ViT-B-16:16", help="architecture:batch, comma between")
    parser.add_argument("--presets", default="open_clip;clip;released;dalip", help="semicolon between")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        runner = Runner(*json.loads(arguments.memory_of))
        runner.step()
        runner.step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    lines = [
        "# Cost of the second-order branches",
        "",
        f"{date.today()}, torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}, float32, "
        f"median of {arguments.repeats} turns. Ratios are over `clip`, within a turn.",
        f"Command: `python tests/benchmarks/bench_model_cost.py {' '.join(sys.argv[1:])}`.",
        "",
        "| architecture | batch | preset | parameters | forward + backward s | AdamW s | ratio forward + backward "
        "| ratio whole step | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in arguments.cases.split(","):
        architecture, batch = case.split(":")
        names = arguments.presets.split(";")
        lines += measure(architecture, int(batch), names, arguments.repeats, arguments.threads)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
