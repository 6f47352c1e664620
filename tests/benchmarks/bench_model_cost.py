"""What the second-order branches cost: presets `released` and `dalip` beside plain open_clip, in one run on the CPU.

A step is forward, loss, backward and AdamW on the same batch. The presets take turns, each turn beginning with another
one; a ratio is the median over turns of the ratio within a turn, with the 95 % interval of that median from drawing the
turns anew. Wall-clock time, so the machine has to be idle. Peak memory is that of a process of its own for each preset.

    python tests/benchmarks/bench_model_cost.py [--cases ViT-B-32:4,ViT-B-16:2] [--turns 30]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import open_clip
import torch

from training.model.build import build_model
from training.model.loss import LossSettings, make_loss
from training.model.presets import ModelSettings

PRESETS: dict[str, dict[str, object]] = {
    "clip": {"preset": "clip"},
    "released": {"preset": "released"},
    "dalip": {"preset": "dalip"},
}
CAPTIONS = ["Iris tectorum, commonly known as Wall iris.", "a photo of a red flower by the river in the early morning"]


class Runner:
    """One preset on one batch; `open_clip` is the library's own model and loss."""

    def __init__(self, name: str, architecture: str, batch: int) -> None:
        torch.manual_seed(0)
        self.plain = name == "open_clip"
        if self.plain:
            self.model = open_clip.create_model(architecture, output_dict=True).train()
        else:
            settings = ModelSettings.model_validate(PRESETS[name] | {"architecture": architecture})
            self.model = build_model(settings).train()
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.images = torch.randn(batch, 3, 224, 224)
        self.tokens = open_clip.tokenize([CAPTIONS[index % 2] for index in range(batch)])
        self.loss = open_clip.ClipLoss()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def step(self) -> tuple[float, float]:
        """Seconds of forward, loss and backward, and of the update."""
        self.optimiser.zero_grad(set_to_none=True)
        start = time.perf_counter()
        output = self.model(self.images, self.tokens)
        if self.plain:
            loss = self.loss(output["image_features"], output["text_features"], output["logit_scale"])
        else:
            loss = make_loss(LossSettings())(output)["loss"]
        loss.backward()
        middle = time.perf_counter()
        self.optimiser.step()
        return middle - start, time.perf_counter() - middle


def own_peak_mib() -> int:
    """VmHWM of this process: the peak that getrusage gives is inherited from the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def peak_mib(name: str, architecture: str, batch: int, threads: int) -> int:
    """Of two steps in a process of its own."""
    what = json.dumps([name, architecture, batch])
    command = [sys.executable, __file__, "--threads", str(threads), "--peak-of", what]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def median_interval(values: list[float], rounds: int = 4000) -> tuple[float, float, float]:
    """Median and its 95 % interval, by drawing the values anew with replacement."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (rounds, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return statistics.median(values), float(low), float(high)


def measure(architecture: str, batch: int, names: list[str], num_turns: int, threads: int) -> list[str]:
    runners = {name: Runner(name, architecture, batch) for name in names}
    turns: list[dict[str, tuple[float, float]]] = []
    for turn in range(-2, num_turns):
        first = turn % len(names)
        seconds = {name: runners[name].step() for name in names[first:] + names[:first]}
        print({name: round(sum(parts), 3) for name, parts in seconds.items()}, file=sys.stderr, flush=True)
        if turn >= 0:
            turns.append(seconds)
    sizes = {name: runner.num_parameters for name, runner in runners.items()}
    runners.clear()
    lines = []
    for name in names:
        work, update = (1e3 * statistics.median(turn[name][part] for turn in turns) for part in (0, 1))
        ratio, low, high = median_interval([sum(turn[name]) / sum(turn[names[0]]) for turn in turns])
        lines.append(
            f"| {architecture} | {batch} | {name} | {sizes[name]:,} | {work:.0f} | {update:.0f} "
            f"| {ratio:.3f} ({low:.3f} to {high:.3f}) | {peak_mib(name, architecture, batch, threads):,} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--cases", default="ViT-B-32:4,ViT-B-16:2", help="architecture:batch, comma between")
    parser.add_argument("--presets", default="open_clip;released;dalip", help="semicolon between")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        runner = Runner(*json.loads(arguments.peak_of))
        runner.step()
        runner.step()
        print(own_peak_mib())
        return
    options = f" --cases {arguments.cases} --presets '{arguments.presets}' --turns {arguments.turns}"
    lines = [
        "# Cost of the second-order branches",
        "",
        f"{date.today()}, torch {torch.__version__}, {arguments.threads} thread(s), {platform.machine()}, float32, "
        f"{arguments.turns} turns, wall clock, medians. Ratios of whole steps over the first row, within a turn.",
        f"Command: `python tests/benchmarks/bench_model_cost.py{options} --threads {arguments.threads}`.",
        "",
        "| architecture | batch | preset | parameters | forward + backward ms | AdamW ms | step over open_clip (95 %) "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in arguments.cases.split(","):
        architecture, batch = case.split(":")
        names = arguments.presets.split(";")
        lines += measure(architecture, int(batch), names, arguments.turns, arguments.threads)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
