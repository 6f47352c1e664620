"""Samples per second of the whole trainer beside that of open_clip: same shards, model, batch and loader processes.

    python tests/benchmarks/bench_trainer.py RELEASE [--model configs/models/vit-tiny-demo.json] [--batch 64]
        [--turn 30] [--rounds 8] [--threads 2]

RELEASE is a sealed release. Both train a plain CLIP (preset `clip`, no validation, no checkpoint), each in processes of
its own, and take turns: while one side trains, all processes of the other are stopped (SIGSTOP). So a machine that is
faster in one minute than in the next is so for both, and no loader works ahead while the other side is counted. A
turn has one step that does not count, then `--turn` that do; both sides have done WARMUP steps before. Prints, over
all rounds, the median and range of each side's rate, of the ratio, and of the processor time a sample of all processes
of a side. Wall clock, so the machine has to be idle.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP = 10
MANY = 1_000_000  # steps: both sides train until they are ended
SIDES = ("ours", "open_clip")


class Side:
    """One trainer, stopped unless it has its turn."""

    def __init__(self, name: str, scratch: str) -> None:
        self.marks, marking = os.pipe()
        command = [sys.executable, __file__, *sys.argv[1:], "--child", name, "--marks", str(marking)]
        self.said = Path(scratch, f"{name}.log")
        with self.said.open("w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                command, pass_fds=(marking,), env=os.environ | {"TMPDIR": scratch}, start_new_session=True,
                stdout=said, stderr=said,
            )  # fmt: skip
        os.close(marking)

    def steps(self, number: int) -> None:
        """Wait until so many more steps are done."""
        for _ in range(number):
            if not os.read(self.marks, 1):
                code, end = self.process.wait(), self.said.read_text(encoding="utf-8")[-3000:]
                raise SystemExit(f"{end}\na trainer ended early, with code {code}: {self.process.args}")

    def turn(self, number: int) -> tuple[float, float]:
        """Wall and processor seconds of so many steps, after one that was begun before."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.steps(1)
        started, spent = time.perf_counter(), self.spent()
        self.steps(number)
        found = time.perf_counter() - started, self.spent() - spent
        os.killpg(self.process.pid, signal.SIGSTOP)
        return found

    def spent(self) -> float:
        """Processor seconds so far of every process of this side."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the two
            if int(fields[2]) == self.process.pid:  # its process group
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Kill every process of this side."""
        with contextlib.suppress(ProcessLookupError):  # all of them ended early
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--model", default="configs/models/vit-tiny-demo.json")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turn", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--marks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        {"ours": ours, "open_clip": open_clip}[options.child](options)
        return
    sides: dict[str, Side] = {}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name in SIDES:
                sides[name] = Side(name, scratch)
                sides[name].steps(WARMUP)
                os.killpg(sides[name].process.pid, signal.SIGSTOP)
            for number in range(options.rounds):
                for name in SIDES if number % 2 else SIDES[::-1]:
                    found[name].append(sides[name].turn(options.turn))
        finally:
            for side in sides.values():
                side.end()
    report(options, found)


def report(options: argparse.Namespace, found: dict[str, list[tuple[float, float]]]) -> None:
    """A row of a table."""
    samples = options.turn * options.batch
    rates = {name: [samples / wall for wall, _ in turns] for name, turns in found.items()}
    ratios = [one / other for one, other in zip(rates["ours"], rates["open_clip"], strict=True)]
    cells = [_spread(rates[name], 1) for name in SIDES] + [_spread(ratios, 3)]
    cells += [_spread([1000 * cpu / samples for _, cpu in found[name]], 1) for name in SIDES]
    print(f"| {Path(options.model).stem} | {options.batch} | {options.rounds} | " + " | ".join(cells) + " |")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ours(options: argparse.Namespace) -> None:
    loop: Any = importlib.import_module("training.run.loop")
    config = importlib.import_module("training.config")
    inner = loop._log_step

    def noted(*arguments: Any) -> None:
        inner(*arguments)
        os.write(options.marks, b".")

    loop._log_step = noted
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "release": str(options.release),
            "output_dir": folder + "/run",
            "model": {"preset": "clip", "architecture": options.model},
            "data": {"batch_size": options.batch, "num_workers": 1},
            "optimiser": {"lr": 0.0005, "weight_decay": 0.2},
            "schedule": {"steps": MANY, "warmup_steps": 10},
            "compute": {"device": "cpu", "num_threads": options.threads},
            "checkpoint": {"every_steps": MANY},
            "log": {"every_steps": 1},
        }
        loop.train(config.TrainSettings.model_validate(settings))


def open_clip(options: argparse.Namespace) -> None:
    torch = importlib.import_module("torch")
    torch.set_num_threads(options.threads)

    class Mark(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Train Epoch" in record.getMessage():
                os.write(options.marks, b".")

    name = options.model
    if Path(name).suffix == ".json":
        importlib.import_module("open_clip").add_model_config(Path(name))
        name = Path(name).stem
    logging.getLogger().addHandler(Mark())
    shards = sorted(str(path) for path in (options.release / "shards").glob("*.tar"))
    train = importlib.import_module("open_clip_train.main").main
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "train-data": "::".join(shards), "dataset-type": "webdataset", "dataset-resampled": None,
            "train-num-samples": str(MANY * options.batch), "batch-size": str(options.batch),
            "workers": "1", "model": name, "epochs": "1", "lr": "0.0005", "wd": "0.2", "warmup": "10",
            "precision": "fp32", "device": "cpu", "log-every-n-steps": "1", "logs": folder, "save-frequency": "1",
        }  # fmt: skip
        train([part for key, value in arguments.items() for part in (f"--{key}", value) if part is not None])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
