"""Pictures a second of `dalip predict` on one core beside plain open_clip, and how right and how true it is on held-out
pictures.

    python tests/benchmarks/bench_predict.py speed --pictures FOLDER            # ViT-B/32, random weights
    python tests/benchmarks/bench_predict.py truth --train FOLDER --steps 400   # class folders of real pictures

`speed`: bytes of files to probabilities over 1,000 labels, batches of 64, one thread, no worker, in turns. Plain
open_clip is what its README shows: its own transform, `encode_image`, normalise, softmax; with inference_mode. Seconds
are of CPU, since a busy machine stretches the others.

`truth`: a small ViT is trained on class folders, whose pictures are divided into training, calibration and test. Top-1
accuracy with Wilson's interval, expected calibration error with a bootstrap of the test pictures, before and after the
scale that the calibration pictures gave. No picture of the test was seen before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import release_writer

BATCH, NUM_LABELS = 64, 1000


def speed(options: argparse.Namespace) -> None:
    import open_clip
    from PIL import Image

    from training.config import TrainSettings
    from training.evaluation.encoder import Encoder
    from training.evaluation.trained_model import TrainedModel
    from training.model.build import build_model
    from training.model.presets import ModelSettings
    from training.using.labels import Labels
    from training.using.pictures import list_pictures
    from training.using.predict import Classifier, PredictOptions

    torch.set_num_threads(1)
    listing = list_pictures([options.pictures])
    paths = listing.table["path"].to_pylist()[: options.num]
    rows = range(len(paths))
    settings = ModelSettings(preset="clip", architecture=options.architecture)
    model = build_model(settings).eval()
    values = {"release": "", "output_dir": "x", "model": settings, "schedule": {"steps": 1}}
    encoder = Encoder(TrainedModel(model, TrainSettings.model_validate(values), Path(), "raw", "random"))
    classifier = Classifier.__new__(Classifier)
    names = tuple(f"label {i}" for i in range(NUM_LABELS))
    vectors = torch.nn.functional.normalize(torch.randn(NUM_LABELS, model.clip.visual.output_dim), dim=1)
    classifier.encoder, classifier.labels = encoder, Labels(names, (None,) * NUM_LABELS)
    classifier.options, classifier.sums, classifier.vectors_KC = PredictOptions(), (), vectors
    preprocess = open_clip.transform.image_transform_v2(model.preprocess_settings, is_train=False)

    def ours() -> torch.Tensor:
        ((_, similarity, _),) = classifier.similarities(listing, [rows])
        classifier.rows(similarity, 100.0)
        return similarity

    def plain() -> torch.Tensor:
        found = []
        with torch.inference_mode():
            for start in range(0, len(paths), BATCH):
                batch = torch.stack([preprocess(Image.open(path)) for path in paths[start : start + BATCH]])
                features = model.clip.encode_image(batch)
                features /= features.norm(dim=-1, keepdim=True)
                found.append(features @ vectors.t())
                (100.0 * found[-1]).softmax(dim=-1).topk(5)
        return torch.cat(found)

    times: dict[str, list[float]] = {"ours": [], "open_clip": []}
    results = {}
    for _ in range(options.rounds):
        for name, run in (("ours", ours), ("open_clip", plain)):
            begun = time.process_time()
            results[name] = run()
            times[name].append(len(paths) / (time.process_time() - begun))
    gap = float((results["ours"] - results["open_clip"]).abs().max())
    ratios = [one / other for one, other in zip(times["ours"], times["open_clip"], strict=True)]
    print(json.dumps({
        "pictures": len(paths), "rounds": options.rounds, "architecture": options.architecture,
        "ours_a_core_second": round(statistics.median(times["ours"]), 2),
        "open_clip_a_core_second": round(statistics.median(times["open_clip"]), 2),
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        "largest_gap_of_similarities": gap, "load": os.getloadavg()[0],
    }))  # fmt: skip


def truth(options: argparse.Namespace) -> None:
    from training_runs import make_settings

    from training.evaluation.encoder import Encoder
    from training.evaluation.metrics import middle_95, wilson_interval
    from training.run.loop import train
    from training.using.classifier import calibration_error, fit_scale
    from training.using.labels import Labels
    from training.using.pictures import list_pictures
    from training.using.predict import Classifier, PredictOptions

    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    by_class: dict[str, list[Path]] = {}
    for path in sorted(Path(options.train).rglob("*")):
        if path.suffix.lower() in (".jpg", ".png", ".webp"):
            by_class.setdefault(path.parent.name, []).append(path)
    by_class = {name: paths for name, paths in by_class.items() if len(paths) >= options.least}
    parts: dict[str, list[tuple[Path, str]]] = {"train": [], "calibration": [], "test": []}
    for name, paths in by_class.items():
        order = [paths[i] for i in rng.permutation(len(paths))]
        quarter = max(1, len(order) // 4)
        for part, chosen in (("calibration", order[:quarter]), ("test", order[quarter : 2 * quarter]),
                             ("train", order[2 * quarter :])):  # fmt: skip
            parts[part] += [(path, name) for path in chosen]
    words = {name: name.replace("-", " ").replace("_", " ") for name in by_class}
    with tempfile.TemporaryDirectory() as folder:
        samples = [
            release_writer.Sample(str(i), _jpeg(path), f"a photo of {words[name]}", category=name)
            for i, (path, name) in enumerate(parts["train"])
        ]
        release = release_writer.write_work_folder(Path(folder) / "release", samples)
        architecture = Path(folder) / "small.json"
        architecture.write_text(json.dumps({
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
        }))  # fmt: skip
        train(make_settings({
            "release": str(release), "output_dir": f"{folder}/run",
            "model": {"architecture": str(architecture)}, "data": {"batch_size": 64, "num_workers": 0,
                      "augment": {"scale": [0.4, 1.0]}},
            "optimiser": {"lr": 1e-3}, "schedule": {"steps": options.steps, "warmup_steps": 20},
            "compute": {"device": "cpu", "num_threads": options.threads},
            "checkpoint": {"every_steps": 10_000}, "eval": {"split": None},
        }))  # fmt: skip
        labels = Labels(tuple(words.values()), (None,) * len(words))
        classifier = Classifier(Encoder.open(f"{folder}/run"), labels, PredictOptions(templates=("a photo of {}",)))
        number = {name: i for i, name in enumerate(words)}
        found = {}
        for part in ("calibration", "test"):
            listing = list_pictures([str(path) for path, _ in parts[part]])
            ((_, similarity, faults),) = classifier.similarities(listing, [range(len(listing))])
            assert not any(faults)
            found[part] = similarity, torch.tensor([number[name] for _, name in parts[part]])
        scale, own = fit_scale(*found["calibration"]), classifier.encoder.logit_scale
        similarity, right = found["test"]
        hits = int((similarity.argmax(1) == right).sum())
        result: dict[str, Any] = {
            "classes": len(words), **{f"{part}_pictures": len(items) for part, items in parts.items()},
            "steps": options.steps, "top1": round(hits / len(right), 4),
            "top1_interval": [round(value, 4) for value in wilson_interval(hits, len(right))],
            "chance": round(1 / len(words), 4),
        }  # fmt: skip
        for name, value in (("before", own), ("after", scale)):
            probabilities = (similarity.double() * value).softmax(1)
            draws = [torch.from_numpy(rng.integers(0, len(right), len(right))) for _ in range(500)]
            errors = np.array([calibration_error(probabilities[rows], right[rows]) for rows in draws])
            result[name] = {
                "scale": round(value, 2), "calibration_error": round(calibration_error(probabilities, right), 4),
                "interval": [round(bound, 4) for bound in middle_95(errors)],
                "mean_probability": round(float(probabilities.max(1).values.mean()), 4),
            }  # fmt: skip
    print(json.dumps(result))


def _jpeg(path: Path) -> bytes:
    import io

    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((96, 96))
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=92)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("speed")
    part.add_argument("--pictures", default=str(Path(__file__).resolve().parents[1] / "photos"))
    part.add_argument("--num", type=int, default=128)
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--architecture", default="ViT-B-32")
    part.set_defaults(run=speed)
    part = parts.add_parser("truth")
    part.add_argument("--train", required=True, help="folders of pictures, one a class")
    part.add_argument("--steps", type=int, default=400)
    part.add_argument("--least", type=int, default=12, help="classes with fewer pictures are left out")
    part.add_argument("--threads", type=int, default=1)
    part.set_defaults(run=truth)
    options = parser.parse_args(sys.argv[1:] or ["speed"])
    options.run(options)


if __name__ == "__main__":
    main()
