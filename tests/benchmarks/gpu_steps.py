"""What gpu_check.py measures: the golden values, a step of ours and of open_clip's trainer, and a killed run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PRESETS = ("clip", "dalip", "released")
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5, "bf16": 1e-2}  # of the largest value; see the precision of each type
GRADIENT_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 1e-1}  # norm of the error over norm of the gradient, a tensor
_SPEED = tuple(side + how for how in ("", ", compiled") for side in (*PRESETS, "open_clip"))
_PARTS = ("adapters", "distil")  # low-rank adapters in both towers; a student of stored vectors
PLAN = {
    "golden": tuple(TOLERANCE),
    "run": ("undisturbed", "killed and resumed"),
    "ViT-B-32": (*_SPEED, *_PARTS),
    "ViT-B-16": _SPEED,
}
APART = 4.0  # a resumed run may be this many times as far from an undisturbed one as a second undisturbed one is
SIZES = {  # steps not counted, steps counted, steps of a run, step of the kill, samples in its shards
    False: SimpleNamespace(warmup=10, counted=30, steps=80, kill=50, checkpoint=20, samples=4096, photo_px=480),
    True: SimpleNamespace(warmup=1, counted=2, steps=24, kill=3, checkpoint=2, samples=48, photo_px=40),
}


class Context(SimpleNamespace):
    """What a step knows: the device, the batch, whether this is the twin, a folder for scratch files."""

    device: Any
    batch: int
    twin: bool
    scratch: Path

    @property
    def sizes(self) -> SimpleNamespace:
        return SIZES[self.twin]

    def wait(self) -> None:
        """Until the card has done what it was given."""
        if self.device.type == "cuda":
            importlib.import_module("torch").cuda.synchronize()


# -- golden values


def golden(context: Context, precision: str) -> dict[str, Any]:
    """Largest errors, each over the largest value; gradients are compared with those of the CPU in float64."""
    torch = importlib.import_module("torch")
    from golden import golden_arrays

    dtype = torch.float64 if precision == "fp64" else torch.float32
    values, gradients = values_and_gradients(context.device, dtype, precision)
    exact = golden_arrays()
    row = {
        f"{name}_error": float((value - exact[stored]).abs().max() / exact[stored].abs().max())
        for (name, stored), value in values.items()
    }
    _, by_name = values_and_gradients(torch.device("cpu"), torch.float64, "fp64")
    far = {name: float((gradients[name] - right).norm() / right.norm()) for name, right in by_name.items()}
    worst = max(far, key=lambda name: math.inf if math.isnan(far[name]) else far[name])
    right = all(value <= TOLERANCE[precision] for value in row.values()) and far[worst] <= GRADIENT_TOLERANCE[precision]
    return row | {
        "within": TOLERANCE[precision], "gradient_error": far[worst], "gradient": worst,
        "gradient_within": GRADIENT_TOLERANCE[precision], "right": right,
    }  # fmt: skip


def values_and_gradients(device: Any, dtype: Any, precision: str) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """Golden values by name and name of the array, and gradients of all that goes in; in float64 on the CPU."""
    torch = importlib.import_module("torch")
    from golden import SIDES, golden_arrays, golden_branch, golden_features, golden_tokens

    from training.model.precision import autocast
    from training.model.presets import LossSettings
    from training.tasks.task import make_task

    arrays, values, gradients = golden_arrays(), {}, {}
    for side in SIDES:
        branch = golden_branch(side, arrays).to(device, dtype)
        inputs = [part.to(device, dtype).requires_grad_() for part in golden_tokens(side, arrays)]
        with autocast("bf16" if precision == "bf16" else "fp32", device):
            statistics = branch.statistics(*inputs)
        slope = torch.cos(torch.arange(statistics.numel(), dtype=torch.float64)).reshape(statistics.shape)
        statistics.backward(slope.to(device, statistics.dtype))
        values[side, f"{side}_second_order"] = statistics.detach().cpu().double()
        leaves = dict(zip(("anchor", "tokens"), inputs, strict=True)) | dict(branch.named_parameters())
        gradients |= {f"{side} {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    features = {name: value.to(device, dtype).requires_grad_() for name, value in golden_features(arrays).items()}
    settings = LossSettings(form="sum_of_losses", first_order_weight=float(arrays["loss_alpha"]))
    with autocast("bf16" if precision == "bf16" else "fp32", device):
        loss = make_task(settings)(features, {})["loss"]
    loss.backward()
    values["loss", "loss_value"] = loss.detach().cpu().double()
    gradients |= {f"loss {name}": leaf.grad for name, leaf in features.items()}
    return values, {name: gradient.cpu().double() for name, gradient in gradients.items()}


# -- a step, ours and open_clip's


class Counted(Exception):  # noqa: N818 - no error
    """The counted steps are done."""


class OneBatch:
    """The same batch again and again. The clock starts behind the warm-up, and stops when one more is asked for."""

    def __init__(self, batch: Any, context: Context, *, ends: bool) -> None:
        """With `ends` the iteration ends as a loader does, else by `Counted`."""
        self.batch, self.context, self.ends = batch, context, ends
        self.num_batches = context.sizes.warmup + context.sizes.counted
        self.num_samples = self.num_batches * context.batch
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        cuda = importlib.import_module("torch").cuda
        started = 0.0
        for number in range(self.num_batches):
            if number == self.context.sizes.warmup:
                self.context.wait()
                if self.context.device.type == "cuda":
                    cuda.reset_peak_memory_stats()
                started = time.perf_counter()
            yield self.batch
        self.context.wait()
        self.seconds = time.perf_counter() - started
        if not self.ends:
            raise Counted

    def row(self) -> dict[str, Any]:
        """What was measured."""
        cuda = importlib.import_module("torch").cuda
        peak = cuda.max_memory_allocated() / 2**20 if self.context.device.type == "cuda" else None
        return {
            "samples_per_second": round(self.context.sizes.counted * self.context.batch / self.seconds, 1),
            "peak_mib": peak and round(peak),
        }


def captions(number: int) -> list[str]:
    """Of 4 to 40 words."""
    words = ("leaf", "stem", "petal", "a", "the", "of", "with", "red", "small", "by", "water", "grass", "in", "garden")
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=draw.randint(4, 40))) for _ in range(number)]


def architecture(context: Context, name: str) -> str:
    """Name of the model, or a tiny one's file in the twin."""
    if not context.twin:
        return name
    from release_writer import TINY_ARCHITECTURE

    path = context.scratch / f"twin-{name[-2:]}.json"
    vision = TINY_ARCHITECTURE["vision_cfg"] | {"patch_size": int(name[-2:]) // 2}
    path.write_text(json.dumps(TINY_ARCHITECTURE | {"vision_cfg": vision}))
    return str(path)


def speed(context: Context, model: str, row: str) -> dict[str, Any]:
    """One row; the settings of torch are those of before again, since open_clip's trainer changes them."""
    torch = importlib.import_module("torch")
    side, _, compiled = row.partition(", ")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    try:
        step = open_clip_step if side == "open_clip" else our_step
        return step(context, architecture(context, model), side, bool(compiled))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = before
        torch._dynamo.reset()


def our_step(context: Context, model: str, side: str, compiled: bool) -> dict[str, Any]:
    """`run_steps` itself, on one batch; beside the peak the memory that the log of a run says by arithmetic."""
    torch = importlib.import_module("torch")
    from release_writer import drawn_samples, write_release
    from vector_tables import random_vectors, write_vectors

    from training.config import TrainSettings
    from training.data import loader
    from training.data.columns import text_labels
    from training.data.shards import open_pool
    from training.model.architecture import architecture_config
    from training.record.log import RunLog
    from training.run import loop
    from training.run.distributed import this_rank
    from training.run.memory import memory_of
    from training.run.state import Progress, build_trainer

    release = context.scratch / "release"
    if not release.exists():
        write_release(release, drawn_samples(context.batch, 0), shard_size=100)
    preset, part = ("clip", side) if side in _PARTS else (side, None)
    small = {"second_order": {"heads": 2, "reduced_width": 4}} if context.twin and preset != "clip" else {}
    sections: dict[str, Any] = {}
    if part == "adapters":
        sections["adapters"] = {"rank": 2 if context.twin else 16}
    elif part == "distil":
        vectors = random_vectors(str(release), architecture_config(model)["embed_dim"], ["train"])
        path = write_vectors(context.scratch / "vectors.parquet", vectors)
        sections["loss"] = {"form": "distil", "teacher": {"vectors": str(path)}}
    settings = TrainSettings.model_validate(
        {
            **sections,
            "release": str(release),
            "output_dir": str(context.scratch / "no-run"),
            "model": {"preset": preset, "architecture": model, **small},
            "data": {"batch_size": context.batch, "num_workers": 0, "cache_dir": str(context.scratch / "cache")},
            "schedule": {"steps": 10**6, "warmup_steps": 100},
            "compute": {"device": context.device.type, "precision": "bf16", "compile": compiled},
            "checkpoint": {"every_steps": 10**6},
        }
    )
    trainer = build_trainer(
        settings, open_pool(loader.open_releases(str(release)), "train"), this_rank(context.device.type)
    )
    size = trainer.model.preprocess_settings.size
    side_px = size if isinstance(size, int) else size[0]
    images = torch.randint(256, (context.batch, 3, side_px, side_px), dtype=torch.uint8)
    rows = torch.arange(context.batch)
    texts = captions(context.batch)
    batch = loader.Batch(images, trainer.model.tokenizer(texts), rows, [], torch.zeros_like(rows), text_labels(texts))
    if context.device.type == "cuda":  # as the trainer's loader gives them
        batch = batch._replace(images=batch.images.pin_memory(), tokens=batch.tokens.pin_memory())
    batches = OneBatch(batch, context, ends=False)
    with contextlib.suppress(Counted), _attribute(loop.loader, "train_loader", lambda *_, **__: batches):
        # A loss that is not finite ends the steps with an error, and its batch lies in this folder.
        run: Any = SimpleNamespace(folder=Path(settings.output_dir))
        run.folder.mkdir(exist_ok=True)
        loop.run_steps(trainer, Progress(), threading.Event(), RunLog(None, 1e9), run)
    memory = memory_of(trainer.model, settings.compute, context.batch, 1)
    by_arithmetic = memory.parameter_bytes + memory.gradient_bytes + memory.optimiser_bytes
    estimate = by_arithmetic + memory.activation_bytes if memory.activation_bytes is not None else None
    return batches.row() | {"estimated_mib": estimate and round(estimate / 2**20)}


def open_clip_step(context: Context, model: str, _: str, compiled: bool) -> dict[str, Any]:
    """open_clip_train's `main`, with one batch for its data."""
    torch = importlib.import_module("torch")
    open_clip, trainer = importlib.import_module("open_clip"), importlib.import_module("open_clip_train.main")
    if context.twin:
        open_clip.add_model_config(Path(model))
        model = Path(model).stem
    size = open_clip.get_model_config(model)["vision_cfg"]["image_size"]
    texts = open_clip.get_tokenizer(model)(captions(context.batch))
    batches = OneBatch((torch.randn(context.batch, 3, size, size), texts), context, ends=True)
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    arguments = [
        "--dataset-type", "synthetic", "--train-num-samples", str(batches.num_samples), "--model", model,
        "--batch-size", str(context.batch), "--epochs", "1", "--lr", "0.0005", "--wd", "0.2", "--warmup", "100",
        "--precision", "amp_bf16", "--device", context.device.type, "--workers", "0", "--logs", "none",
        "--log-every-n-steps", "1000000", *(["--torchcompile"] if compiled else []),
    ]  # fmt: skip
    with _attribute(trainer, "get_data", lambda *_, **__: data), contextlib.chdir(context.scratch):
        trainer.main([*arguments, "--name", f"{time.time_ns()}"])
    return batches.row()


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# -- a run


def run(context: Context, row: str) -> dict[str, Any]:
    """Rate and wait for data of an undisturbed run; or how far from it is one that was killed and started again.

    A GPU may add in another order each time. So the killed run may be as far away as a second undisturbed one is, or
    `APART` times as far; where two undisturbed ones have the same bits, it must have them too.
    """
    sizes, num_workers = context.sizes, 1 if context.twin else max(1, min(16, (os.cpu_count() or 2) - 1))
    make_shards(context)
    whole, again, killed = (context.scratch / name for name in ("whole", "again", "killed"))
    model = {"preset": "dalip", "architecture": architecture(context, "ViT-B-32")}
    if context.twin:
        model["second_order"] = {"heads": 2, "reduced_width": 4}
    config = {
        "model": model,
        "data": {"shards": str(context.scratch / "shards"), "batch_size": context.batch, "num_workers": num_workers,
                 "cache_dir": str(context.scratch / "cache")},
        "schedule": {"steps": sizes.steps, "warmup_steps": 2},
        "compute": {"device": context.device.type, "precision": "bf16"},
        "checkpoint": {"every_steps": sizes.checkpoint, "keep": 1},
        "log": {"every_steps": 1},
    }  # fmt: skip
    train(config, whole)  # a finished one is used again
    if row == "undisturbed":
        finite = all(math.isfinite(loss) for loss in logged(whole, "loss"))
        waited = waiting(whole, sizes.warmup)
        return {"steps": sizes.steps, "num_workers": num_workers, **waited, "right": finite}
    process = start(config, killed)
    while process.poll() is None and logged_steps(killed) < sizes.kill:
        time.sleep(0.005)
    process.kill()
    process.wait()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run that was to be killed ended with {process.returncode}")
    train(config, killed)
    resumed = undisturbed = differences(whole, killed)
    if resumed["losses_apart"] or resumed["weights_apart"]:
        train(config, again)
        undisturbed = differences(whole, again)
    figures = {"killed_at": sizes.kill, **resumed, "undisturbed": undisturbed}
    return figures | {"right": resumes_right(resumed, undisturbed)}


def resumes_right(resumed: dict[str, Any], undisturbed: dict[str, Any]) -> bool:
    """Whether a resumed run is no farther from an undisturbed one than chance explains; false for nan."""
    near = all(resumed[key] <= APART * undisturbed[key] for key in ("losses_apart", "weights_apart"))
    return near and bool(resumed["same_samples"])


def make_shards(context: Context) -> None:
    """Tars of JPEG photos of coarse noise; one of 64 is drawn for each sample."""
    from foreign_tars import write_tar
    from PIL import Image

    sizes, photos = context.sizes, list[bytes]()
    for number in range(64):
        noise = Image.frombytes("RGB", (24, 24), random.Random(number).randbytes(24 * 24 * 3))
        stream = io.BytesIO()
        noise.resize((sizes.photo_px, sizes.photo_px), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        photos.append(stream.getvalue())
    texts = captions(sizes.samples)
    for start_at in range(0, sizes.samples, 1024):
        rows = range(start_at, min(start_at + 1024, sizes.samples))
        samples = [(f"{row:06d}", {"jpg": photos[row % 64], "txt": f"{row} {texts[row]}".encode()}) for row in rows]
        write_tar(context.scratch / f"shards/{start_at:06d}.tar", samples)


def start(config: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """`dalip train` in a process of its own; what it says goes where this process's words go."""
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config | {"output_dir": str(folder)}))  # JSON is YAML too
    command = [sys.executable, "-m", "training.cli", "train", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, stderr=sys.stderr)


def train(config: dict[str, Any], folder: Path) -> None:
    if code := start(config, folder).wait():
        raise RuntimeError(f"dalip train ended with {code}")


def logged_steps(folder: Path) -> int:
    """The last whole line of a run's log."""
    try:
        lines = (folder / "log.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def waiting(folder: Path, warmup: int) -> dict[str, float]:
    """Rate and share of waiting behind the warm-up, of the totals that the log has."""
    from training.record.log import read_log

    lines = read_log(folder / "log.jsonl", "step")
    first, last = lines[min(warmup, len(lines) - 2)], lines[-1]
    seconds = [line["samples_seen"] / line["samples_per_second"] for line in (first, last)]
    waited = [line["data_wait_share"] * spent for line, spent in zip((first, last), seconds, strict=True)]
    spent = max(seconds[1] - seconds[0], 1e-9)
    rate = (last["samples_seen"] - first["samples_seen"]) / spent
    return {"samples_per_second": round(rate, 1), "data_wait_share": round((waited[1] - waited[0]) / spent, 3)}


def logged(folder: Path, key: str) -> list[float]:
    """A figure of every step."""
    from training.record.log import read_log

    return [line[key] for line in read_log(folder / "log.jsonl", "step")]


def differences(one: Path, other: Path) -> dict[str, Any]:
    """Whether two runs saw the same samples, and how far their losses and weights are apart; nan where one is nan."""
    torch = importlib.import_module("torch")
    losses, samples = ([logged(folder, key) for folder in (one, other)] for key in ("loss", "samples_seen"))
    weights = [torch.load(folder / "model.pt", weights_only=True)["state_dict"] for folder in (one, other)]
    apart = [(weights[0][name].double() - value).abs().max() for name, value in weights[1].items() if value.numel()]
    loss_apart = torch.tensor(losses, dtype=torch.float64).diff(dim=0).abs().max()
    same = samples[0] == samples[1]
    return {"same_samples": same, "losses_apart": float(loss_apart), "weights_apart": float(torch.stack(apart).max())}


def measure_row(context: Context, step: str, row: str) -> dict[str, Any]:
    """One row of a step of PLAN."""
    if step == "golden":
        return golden(context, row)
    return run(context, row) if step == "run" else speed(context, step, row)
