"""Samples per second of our loader beside open_clip's own, same shards, augmentation and number of workers.

    python tests/benchmarks/bench_loader.py IMAGE_FOLDER [--cases 640:224,348:96,348:224,348:384] [--workers 1]

A case is SHORT_SIDE_OF_PHOTOS:INPUT in pixels. Packs the photos of a folder, resized to that side, into a small release
in a temporary folder, then times both loaders in turn, each in a process of its own, from the second batch to the last.
Wall clock, so the machine has to be idle; processor time a sample beside it. Then once more with a consumer that is
busy elsewhere for --step-ms a batch, as one with a GPU is: which share of its time does it wait for data? Ours hands
bytes over, which the trainer normalises on its device: that counts in the rate and not as waiting.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", default="640:224,348:96,348:224,348:384", help="photo:input, comma between")
    parser.add_argument("--photos", type=int, default=160)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=int, default=300)
    options = parser.parse_args()
    # Before the processes fork, so that importing is in nobody's figures.
    importlib.import_module("open_clip_train.data")
    importlib.import_module("training.data.loader")
    for case in options.cases.split(","):
        options.photo_px, options.size = map(int, case.split(":"))
        with tempfile.TemporaryDirectory() as temp:
            print(_row(options, _pack(options, Path(temp))), flush=True)


def _row(options: argparse.Namespace, release: Path) -> str:
    """One line of the table: the case, rates with their range, the ratio of each round, processor time, data wait."""
    rounds = [(_in_child(_ours, options, release, 0.0), _in_child(_open_clip, options, release, 0.0))
              for _ in range(options.rounds)]  # fmt: skip
    waits = [_in_child(work, options, release, options.step_ms / 1000)[2] for work in (_ours, _open_clip)]
    rates = [sorted(one[side][0] for one in rounds) for side in (0, 1)]
    ratios = sorted(ours[0] / theirs[0] for ours, theirs in rounds)
    costs = [statistics.median(one[side][1] for one in rounds) for side in (0, 1)]
    shown = [f"{statistics.median(values):.0f} ({values[0]:.0f} to {values[-1]:.0f})" for values in rates]
    return (
        f"| {options.photo_px} ({options.photo_px / options.size:.1f}x the input) | {options.size} | {shown[0]} "
        f"| {shown[1]} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {costs[0]:.2f} "
        f"| {costs[1]:.2f} | {waits[0]:.0%} | {waits[1]:.0%} |"
    )


def _pack(options: argparse.Namespace, folder: Path) -> Path:
    from PIL import Image

    sys.path.insert(0, str(Path(__file__).parents[1]))
    writer = importlib.import_module("release_writer")
    samples = []
    for number, path in enumerate(sorted(options.folder.rglob("*.jpg"))[: options.photos]):
        content = path.read_bytes()
        if options.photo_px:
            with Image.open(io.BytesIO(content)) as picture:
                scale = options.photo_px / min(picture.size)
                size = (round(picture.width * scale), round(picture.height * scale))
                stream = io.BytesIO()
                picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
            content = stream.getvalue()
        samples.append(writer.Sample(str(number), content, f"a photo of {path.parent.name}"))
    result: Path = writer.write_release(folder / "release", samples, shard_size=160)
    return result


def _in_child(work: Any, options: argparse.Namespace, release: Path, step: float) -> tuple[float, float, float]:
    """Samples a second, ms of processor a sample (workers included) and share of waiting, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        rate, num_samples, wait = work(options, release, step)
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        os.write(write, json.dumps([rate, 1000 * used / num_samples, wait]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        content = stream.read()
    os.waitpid(child, 0)
    rate, cost, wait = json.loads(content)
    return rate, cost, wait


def _clock(batches: Iterable[Any], take: Callable[[Any], int], step: float) -> tuple[float, int, float]:
    """Samples a second from the second batch on, samples in all, and the share of that time spent waiting.

    `take` does what the consumer itself must do to a batch, and says how many samples it holds.
    """
    counted = total = 0
    waited = started = before = 0.0
    for number, batch in enumerate(batches):
        now = time.perf_counter()
        taken = take(batch)
        if number == 1:
            started = now
        elif number > 1:
            counted += taken
            waited += now - before
        total += taken
        time.sleep(step)
        before = time.perf_counter()
    seconds = before - started
    return counted / seconds, total, waited / seconds


def _ours(options: argparse.Namespace, release: Path, step: float) -> tuple[float, int, float]:
    import open_clip
    from open_clip.transform import PreprocessCfg

    from manifests.contract.release import Release
    from training.data import loader
    from training.data.images import normalise
    from training.data.sampling import BatchPlan
    from training.data.shards import open_pool

    preprocess = PreprocessCfg(size=options.size)
    model = SimpleNamespace(preprocess_settings=preprocess, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    pool = open_pool([Release.open(str(release))], "train")
    settings = loader.DataSettings(batch_size=BATCH, num_workers=options.workers)
    order = loader.build_order(pool, settings, str(release), seed=0)
    chosen = range(options.passes * len(pool) // BATCH)
    batches = loader.train_loader(pool, order, BatchPlan(BATCH, 1, 0), chosen, settings, model, pin=False)

    def take(batch: Any) -> int:
        return len(normalise(batch.images, preprocess.mean, preprocess.std))

    return _clock(loader.iterate(batches), take, step)


def _open_clip(options: argparse.Namespace, release: Path, step: float) -> tuple[float, int, float]:
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    shards = sorted((release / "shards").glob("*.tar"))
    num_samples = options.passes * min(options.photos, sum(1 for _ in options.folder.rglob("*.jpg")))
    arguments = SimpleNamespace(
        train_data="::".join(map(str, shards)), train_data_upsampling_factors=None, dataset_resampled=False,
        train_num_samples=num_samples, seed=0, workers=options.workers, batch_size=BATCH, world_size=1,
    )  # fmt: skip
    info = get_wds_dataset(
        arguments, image_transform(options.size, True), True, tokenizer=open_clip.get_tokenizer("ViT-B-32")
    )
    return _clock(info.dataloader, lambda batch: len(batch[0]), step)


if __name__ == "__main__":
    main()
