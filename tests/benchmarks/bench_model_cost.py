"""What the second-order branches cost: presets `released` and `dalip` beside plain open_clip, in one run on the CPU.

A step is forward, loss and backward on the same batch, the presets in turns; the ratio is the median of the ratios
within each turn. One thread and CPU seconds by default, so that other work on the machine counts little. AdamW and
peak memory are measured in a process of its own for each preset.

    python tests/benchmarks/bench_model_cost.py [--out tests/benchmarks/results/model_cost.md]
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
    "dalip, after projection": {"preset": "dalip", "second_order": {"placement": "after_projection"}},
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

    def step(self) -> float:
        """CPU seconds of forward, loss and backward."""
        start = time.process_time()
        output = self.model(self.images, self.tokens)
        if self.plain:
            loss = self.loss(output["image_features"], output["text_features"], output["logit_scale"])
        else:
            loss = contrastive_loss(output, LossSettings())["loss"]
        loss.backward()
        seconds = time.process_time() - start
        self.model.zero_grad(set_to_none=False)
        return seconds


def with_optimizer(runner: Runner) -> tuple[float, int]:
    """CPU seconds of one AdamW update, and the peak memory of the process in MiB."""
    optimizer = torch.optim.AdamW(runner.model.parameters(), lr=1e-5, fused=True)
    seconds = []
    for _ in range(2):
        runner.step()
        start = time.process_time()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return min(seconds), own_peak_mib()


def own_peak_mib() -> int:
    """VmHWM of this process: the peak that getrusage gives is inherited from the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def in_own_process(name: str, architecture: str, batch: int, threads: int) -> tuple[float, int]:
    what = json.dumps([name, architecture, batch])
    command = [sys.executable, __file__, "--threads", str(threads), "--optimizer-of", what]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, mib = finished.stdout.split()[-2:]
    return float(seconds), int(mib)


def measure(architecture: str, batch: int, names: list[str], repeats: int, threads: int) -> list[str]:
    runners = {name: Runner(name, architecture, batch) for name in names}
    turns: list[dict[str, float]] = []
    for turn in range(repeats + 1):
        seconds = {name: runner.step() for name, runner in runners.items()}
        print({name: round(value, 2) for name, value in seconds.items()}, file=sys.stderr, flush=True)
        if turn:
            turns.append(seconds)
    sizes = {name: runner.num_parameters for name, runner in runners.items()}
    runners.clear()
    lines = []
    for name in names:
        work = statistics.median(turn[name] for turn in turns)
        ratios = sorted(turn[name] / turn[names[0]] for turn in turns)
        update, memory = in_own_process(name, architecture, batch, threads)
        lines.append(
            f"| {architecture} | {batch} | {name} | {sizes[name]:,} | {work:.2f} "
            f"| {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) | {update:.3f} | {memory:,} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default="ViT-B-32:16,ViT-B-16:8", help="architecture:batch, comma between")
    parser.add_argument("--presets", default="open_clip;released;dalip", help="semicolon between")
    parser.add_argument("--optimizer-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.optimizer_of:
        print(*with_optimizer(Runner(*json.loads(arguments.optimizer_of))))
        return
    options = f" --cases {arguments.cases} --presets '{arguments.presets}' --repeats {arguments.repeats}"
    lines = [
        "# Cost of the second-order branches",
        "",
        f"{date.today()}, torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}, float32, "
        f"median of {arguments.repeats} turns, CPU seconds. Ratios are over the first row, within a turn.",
        f"Command: `python tests/benchmarks/bench_model_cost.py{options} --threads {arguments.threads}`.",
        "",
        "| architecture | batch | preset | parameters | forward + backward s | ratio (range) | AdamW s | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in arguments.cases.split(","):
        architecture, batch = case.split(":")
        names = arguments.presets.split(";")
        lines += measure(architecture, int(batch), names, arguments.repeats, arguments.threads)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
