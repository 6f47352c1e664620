"""Is this trainer right on a GPU, and how fast: golden values, a step beside open_clip's own, the loader, one kill -9.

    make gpu-check          # python tests/benchmarks/gpu_check.py [--out data/gpu-check.jsonl] [--batch 256] [--twin]

Four steps, each in a process of its own that ends within 8 minutes, all within 15. A row is written to --out as soon as
it is measured, with card, driver, versions, commit and date. So a check that was stopped goes on when it is run again;
another card, commit or batch begins anew. No network: weights are random, pictures and shards are made here.

golden    the second-order branch and the loss, in float64, float32 and bfloat16, by the golden values of the tests;
          their gradients, by those of the CPU in float64
run       `dalip train` on webdataset shards: its share of waiting for data; then a run that is killed with SIGKILL and
          started again. It must be as near to an undisturbed one as a second undisturbed one is.
ViT-B-32, ViT-B-16   samples a second and peak memory of a step in bfloat16: presets clip, dalip, released in the
          trainer's own loop, and open_clip in open_clip_train's own; each as it is and compiled. One batch is used
          again and again, so no loader counts. Ten steps are not counted. The clock waits for the card at both ends.
          open_clip_train sets TF32 and cudnn.benchmark for itself; ours has what torch has. Of ViT-B-32 also low-rank
          adapters in both towers, and a student of stored vectors. Beside our peaks stands the memory that the log of
          a run says before its first step.

Compiled rows need a C compiler and Python.h, which Triton builds with; where one is missing, that is said first and the
other rows are measured. With --twin, or on a machine without an NVIDIA GPU, a twin runs on the CPU: a tiny model and a
few steps, nothing compiled. The twin shows that the script works; its figures say nothing. A GPU that torch cannot use
is an error (exit code 2).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.gpu_steps import PLAN, ROOT, TESTS, Context, measure_row

STEP_SECONDS, ALL_SECONDS = 480.0, 900.0


# -- before anything is measured


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, "unknown" where it does not say; None on a machine without an NVIDIA GPU."""
    if shutil.which("nvidia-smi") or any(Path("/dev").glob("nvidia[0-9]*")):
        return _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"])
    return None


def unusable_gpu(driver: str) -> str:
    """Why torch has no CUDA on a machine that has a GPU, and what to do."""
    torch = importlib.import_module("torch")
    wheel = f"torch {torch.__version__}, built " + (
        f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    )
    try:
        torch.cuda.init()
        why = "no reason given"
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().splitlines()[0]
    return (
        f"error: this machine has an NVIDIA GPU (driver {driver}), which this wheel cannot use ({wheel}): {why}\n"
        "install a newer driver, or the wheel for this driver (https://pytorch.org/get-started/locally); "
        "--twin checks the script on the CPU"
    )


def missing_for_triton() -> list[str]:
    """What a compiled row would fail for: Triton builds its launcher with a C compiler, against Python.h."""
    compiler = os.environ.get("CC") or "gcc"
    missing = [] if shutil.which(compiler) or shutil.which("clang") else [f"a C compiler ({compiler})"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return missing if header.is_file() else [*missing, str(header)]


# -- steps in processes, rows in a file


def child(options: argparse.Namespace) -> None:
    """Measure some rows of a step; each goes to standard output as a line of JSON, all else to the error stream."""
    rows_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch = importlib.import_module("torch")
    for folder in (str(TESTS), str(ROOT)):
        sys.path.insert(0, folder)
    device = torch.device("cpu" if options.twin else "cuda")
    if options.twin:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(device=device, batch=options.batch, twin=options.twin, scratch=Path(scratch))
        for name in options.rows:
            started = time.perf_counter()
            left_mib = torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else 0.0
            try:
                measured = measure_row(context, options.step, name)
            except Exception as error:  # out of memory, say: the other rows can still be measured
                print(f"{options.step}, {name}: {error!r}", file=sys.stderr, flush=True)
                measured = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            if left_mib > 64:  # of an earlier row: the peak counts it too
                measured["left_mib"] = round(left_mib)
            measured["seconds"] = round(time.perf_counter() - started, 1)
            print(json.dumps({"row": name} | measured), file=rows_to, flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where and of what the figures are; a row of another machine does not count."""
    torch = importlib.import_module("torch")
    card = driver = None
    if not options.twin:
        card, cuda = torch.cuda.get_device_name(0), torch.version.cuda
        driver = f"{nvidia_driver()}, CUDA {cuda}"
    changed = "+changes" if _said(["git", "status", "--porcelain", "--untracked-files=no"]) else ""
    return {
        "card": card or f"CPU twin: {platform.machine()}", "driver": driver, "torch": torch.__version__,
        "open_clip": importlib.import_module("open_clip").__version__, "python": platform.python_version(),
        "commit": _said(["git", "rev-parse", "--short=8", "HEAD"]) + changed, "batch": options.batch,
        "cores": os.cpu_count(),
    }  # fmt: skip


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(step: str, rows: list[str], options: argparse.Namespace, limit: float, write: Any) -> None:
    """Run the process of a step, and write its rows as they come; it is killed when its time is over."""
    twin = ["--twin"] if options.twin else []
    command = [sys.executable, __file__, *twin, "--batch", str(options.batch), "--step", step, "--rows", *rows]
    # The twin compiles nothing: that takes minutes without a GPU.
    more = {"TORCHDYNAMO_DISABLE": "1"} if options.twin else {}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), "HF_HUB_OFFLINE": "1"} | more
    with (
        options.out.with_suffix(".log").open("a") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=environment, start_new_session=True
        ) as process,
    ):
        over = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
        over.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                write(json.loads(line) | {"step": step})
        except BaseException:  # Ctrl-C, say
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            over.cancel()
    if process.returncode:
        print(f"{step}: ended with {process.returncode}; see {options.out.with_suffix('.log')}", flush=True)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a file. A line that was cut off is ended, so that the next one begins anew."""
    if not path.exists():
        return
    content = path.read_text(encoding="utf-8")
    if content and not content.endswith("\n"):
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n")
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def table(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """What goes into tests/benchmarks/results/training.md."""
    yield "| step | row | figures |\n|---|---|---|"
    for step, names in PLAN.items():
        for name in names:
            row = rows.get((step, name), {})
            figures = {key: value for key, value in row.items() if key not in ("step", "row", "machine", "date")}
            yield f"| {step} | {name} | " + ", ".join(f"{key} {value}" for key, value in figures.items()) + " |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data/gpu-check.jsonl")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--twin", action="store_true", help="on the CPU at small size, as without a GPU")
    parser.add_argument("--step", choices=PLAN, help=argparse.SUPPRESS)
    parser.add_argument("--rows", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=PLAN, nargs="+", default=list(PLAN), help="steps (default: all)")
    options = parser.parse_args(arguments)
    if options.step:
        child(options)
        return 0
    if not options.twin and not importlib.import_module("torch").cuda.is_available():
        if (driver := nvidia_driver()) is not None:
            print(unusable_gpu(driver), file=sys.stderr)
            return 2
        options.twin = True
    if options.twin:
        print("the twin on the CPU, a tiny model and a few steps; its figures say nothing of a GPU")
    lacks = [] if options.twin else missing_for_triton()
    if lacks:
        print(
            f"compiled rows are left out, Triton needs {' and '.join(lacks)} (packages gcc and python3-dev)", flush=True
        )
    options.batch = options.batch or (8 if options.twin else 256)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    here = machine(options)
    measured = [row for row in read_rows(options.out) if row["machine"] == here and "error" not in row]
    rows = {(row["step"], row["row"]): row for row in measured}

    def write(row: dict[str, Any]) -> None:
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows[row["step"], row["row"]] = row = row | {"date": date, "machine": here}
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        print(f"{row['step']}, {row['row']}: {row.get('error') or 'measured'} ({row['seconds']} s)", flush=True)

    print(json.dumps(here), flush=True)
    started = time.monotonic()
    for step in options.only:
        left = ALL_SECONDS - (time.monotonic() - started)
        missing = [name for name in PLAN[step] if (step, name) not in rows]
        if lacks:
            missing = [name for name in missing if not name.endswith("compiled")]
        if missing and left > 0:
            measure(step, missing, options, min(STEP_SECONDS, left), write)
    print("\n".join(table(rows)))
    missing = [f"{step}, {name}" for step in options.only for name in PLAN[step] if (step, name) not in rows]
    bad = [f"{step}, {name}" for (step, name), row in rows.items() if "error" in row or row.get("right") is False]
    if missing:
        print(f"not measured yet: {'; '.join(missing)}: run the same command to go on")
    if bad:
        print(f"wrong or failed: {'; '.join(bad)}: see {options.out}")
    return 1 if missing or bad else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
