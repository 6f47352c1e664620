"""Samples per second of our loader beside open_clip's own, same shards, augmentation and number of workers.

    python tests/benchmarks/bench_loader.py IMAGE_FOLDER [--size 224] [--photo-px 0] [--workers 1] [--rounds 3]

Packs the photos of a folder (enlarged to --photo-px on the short side if given) into a small release in a
temporary folder, then times both loaders in turn, start-up left out: the clock starts at the second batch.
Gives wall-clock rates and, as other work on the machine disturbs those, processor time a sample.
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
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photo-px", type=int, default=0)
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # Before the processes fork, so that importing is in nobody's figures.
    importlib.import_module("open_clip_train.data")
    importlib.import_module("training.data")
    with tempfile.TemporaryDirectory() as temp:
        release = _pack(options, Path(temp))
        rates: dict[str, list[tuple[float, float]]] = {"ours": [], "open_clip": []}
        for _ in range(options.rounds):
            rates["ours"].append(_in_child(_ours, options, release))
            rates["open_clip"].append(_in_child(_open_clip, options, release))
    figures = {
        name: {
            "samples_per_second": round(statistics.median(rate for rate, _ in values), 1),
            "cpu_ms_per_sample": round(statistics.median(cost for _, cost in values), 3),
        }
        for name, values in rates.items()
    }
    figures["ratio"] = {
        "wall": round(figures["ours"]["samples_per_second"] / figures["open_clip"]["samples_per_second"], 3),
        "cpu": round(figures["open_clip"]["cpu_ms_per_sample"] / figures["ours"]["cpu_ms_per_sample"], 3),
    }
    print(json.dumps({"options": vars(options) | {"folder": str(options.folder)}, **figures}))


def _pack(options: argparse.Namespace, folder: Path) -> Path:
    from PIL import Image

    writer = _load_writer()
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


def _load_writer() -> ModuleType:
    path = Path(__file__).parents[1] / "unit" / "training" / "loop" / "release_writer.py"
    spec = importlib.util.spec_from_file_location("release_writer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["release_writer"] = module
    spec.loader.exec_module(module)
    return module


def _in_child(work: Any, options: argparse.Namespace, release: Path) -> tuple[float, float]:
    """Run in a process of its own, so that processor time (workers included) is only this loader's."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        rate, num_samples = work(options, release)
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        os.write(write, json.dumps([rate, 1000 * used / num_samples]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        content = stream.read()
    os.waitpid(child, 0)
    rate, cost = json.loads(content)
    return rate, cost


def _clock(batches: Iterable[Any], size_of: Any) -> tuple[float, int]:
    counted = total = 0
    started = 0.0
    for number, batch in enumerate(batches):
        if number == 1:
            started = time.perf_counter()
        elif number > 1:
            counted += size_of(batch)
        total += size_of(batch)
    return counted / (time.perf_counter() - started), total


def _ours(options: argparse.Namespace, release: Path) -> tuple[float, int]:
    import open_clip
    from open_clip.transform import PreprocessCfg

    from manifests.release import Release
    from training import data
    from training.images import normalise
    from training.sampling import BatchPlan
    from training.shards import open_pool

    preprocess = PreprocessCfg(size=options.size)
    model = SimpleNamespace(preprocess_settings=preprocess, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    pool = open_pool([Release.open(str(release))], "train")
    settings = data.DataSettings(batch_size=BATCH, num_workers=options.workers)
    order = data.build_order(pool, settings, str(release), seed=0)
    loader = data.train_loader(pool, order, BatchPlan(BATCH, 1, 0), range(3 * len(pool) // BATCH), settings, model,
                               pin=False)  # fmt: skip
    batches = ((normalise(b.images, preprocess.mean, preprocess.std), b.tokens) for b in data.iterate(loader))
    return _clock(batches, lambda batch: len(batch[1]))


def _open_clip(options: argparse.Namespace, release: Path) -> tuple[float, int]:
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    shards = sorted((release / "shards").glob("*.tar"))
    num_samples = 3 * min(options.photos, sum(1 for _ in options.folder.rglob("*.jpg")))
    arguments = SimpleNamespace(
        train_data="::".join(map(str, shards)), train_data_upsampling_factors=None, dataset_resampled=False,
        train_num_samples=num_samples, seed=0, workers=options.workers, batch_size=BATCH, world_size=1,
    )  # fmt: skip
    info = get_wds_dataset(
        arguments, image_transform(options.size, True), True, tokenizer=open_clip.get_tokenizer("ViT-B-32")
    )
    return _clock(info.dataloader, lambda batch: len(batch[0]))


if __name__ == "__main__":
    main()
