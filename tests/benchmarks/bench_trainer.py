"""Samples per second of the whole trainer beside that of open_clip: same shards, model, batch and loader processes.

    python tests/benchmarks/bench_trainer.py RELEASE [--model configs/models/vit-tiny-demo.json] [--batch 64]
        [--steps 60] [--rounds 3] [--threads 2]

RELEASE is a sealed release. Both train a plain CLIP (preset `clip`, no validation, no checkpoint before the last step),
in turn, each in a process of its own. Counted is the steady state: wall clock from step WARMUP to the last, without
start-up and end; beside it the processor time of the whole process tree a sample, start-up included. Wall clock, so the
machine has to be idle.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP = 10
EVERY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--model", default="configs/models/vit-tiny-demo.json")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=("ours", "open_clip"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"ours": ours, "open_clip": open_clip}[options.child](options)))
        return
    rounds = [{side: _in_child(side) for side in ("ours", "open_clip")} for _ in range(options.rounds)]
    ratios = sorted(one["ours"]["rate"] / one["open_clip"]["rate"] for one in rounds)
    cells = []
    for side in ("ours", "open_clip"):
        rates = sorted(one[side]["rate"] for one in rounds)
        cells.append(f"{statistics.median(rates):.1f} ({rates[0]:.1f} to {rates[-1]:.1f})")
    cpu = [statistics.median(one[side]["cpu"] for one in rounds) for side in ("ours", "open_clip")]
    print(
        f"| {Path(options.model).stem} | {options.batch} | {cells[0]} | {cells[1]} | {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}) | {1000 * cpu[0]:.1f} | {1000 * cpu[1]:.1f} |"
    )


def _in_child(side: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", side], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _figures(times: dict[int, float], options: argparse.Namespace) -> dict[str, float]:
    """Rate between the two steps, and processor seconds a sample of this process and all that it waited for."""
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    last = max(times)
    rate = (last - WARMUP) * options.batch / (times[last] - times[WARMUP])
    return {"rate": rate, "cpu": spent / (options.steps * options.batch)}


def ours(options: argparse.Namespace) -> dict[str, float]:
    loop: Any = importlib.import_module("training.run.loop")
    config = importlib.import_module("training.config")
    times: dict[int, float] = {}
    inner = loop._log_step

    def noted(trainer: Any, progress: Any, *rest: Any) -> None:
        times[progress.step] = time.perf_counter()
        inner(trainer, progress, *rest)

    loop._log_step = noted
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "release": str(options.release),
            "output_dir": folder + "/run",
            "model": {"preset": "clip", "architecture": options.model},
            "data": {"batch_size": options.batch, "num_workers": 1},
            "optimiser": {"lr": 0.0005, "weight_decay": 0.2},
            "schedule": {"steps": options.steps, "warmup_steps": 10},
            "compute": {"device": "cpu", "num_threads": options.threads},
            "checkpoint": {"every_steps": options.steps},
            "log": {"every_steps": EVERY},
        }
        loop.train(config.TrainSettings.model_validate(settings))
    return _figures(times, options)


def open_clip(options: argparse.Namespace) -> dict[str, float]:
    torch = importlib.import_module("torch")
    torch.set_num_threads(options.threads)
    times: dict[int, float] = {}

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Train Epoch" in record.getMessage():
                times[len(times) * EVERY + 1] = time.perf_counter()

    name = options.model
    if Path(name).suffix == ".json":
        importlib.import_module("open_clip").add_model_config(Path(name))
        name = Path(name).stem
    logging.getLogger().addHandler(Clock())
    shards = sorted(str(path) for path in (options.release / "shards").glob("*.tar"))
    train = importlib.import_module("open_clip_train.main").main
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "train-data": "::".join(shards), "dataset-type": "webdataset", "dataset-resampled": None,
            "train-num-samples": str(options.steps * options.batch), "batch-size": str(options.batch),
            "workers": "1", "model": name, "epochs": "1", "lr": "0.0005", "wd": "0.2", "warmup": "10",
            "precision": "fp32", "device": "cpu", "log-every-n-steps": str(EVERY), "logs": folder,
            "save-frequency": "1",
        }  # fmt: skip
        train([part for key, value in arguments.items() for part in (f"--{key}", value) if part is not None])
    # its lines come after steps 1, 6, 11 ...; the last line, after the last step, is counted as one of them
    steps = sorted(times)
    times[options.steps] = times.pop(steps[-1])
    times[WARMUP] = times[WARMUP + 1]
    offset = (options.steps - WARMUP) / (options.steps - WARMUP - 1)
    times[WARMUP] = times[options.steps] - (times[options.steps] - times[WARMUP + 1]) * offset
    return _figures(times, options)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
