"""Does a small picture tower learn what a teacher knows, from the teacher's stored vectors alone?

    python tests/benchmarks/bench_distil.py run GROCERY --work DIR --seeds 5   # goes on where it was stopped
    python tests/benchmarks/bench_distil.py report

GROCERY is the train and val folders of the Grocery Store data set (Klasson et al. 2019, MIT). Of its 81 classes 20 are
held out: no model sees a picture or a name of them. The towers are frozen, those of `study_towers`: EfficientNet-Lite2
and MiniLM. The teacher trains a matrix behind 768 directions of the picture's feature, and one behind the text's. The
student has a third of the teacher's picture side: 256 directions. With a teacher it learns the teacher's vectors and
takes its text side; without, it learns pairs as the teacher did. Steps, batch and rate are those that suited plain f in
the second study, and are the same for all. Everything runs by the commands of `dalip` and `plantmix`.

The frozen tower is run once a picture: `lite2` keeps what it gave below --work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy import stats
from study_records import Records
from study_towers import efficientnet_lite2
from torch import Tensor

from training.model.backbones import Backbone, Rows

HERE = Path(__file__).parent
RESULTS = Records(HERE / "results/distil.jsonl")
KEPT = "BENCH_DISTIL_KEPT"  # the folder of what the tower gave
NUM_HELD_OUT, WIDTHS = 20, {"teacher": 768, "student": 256}
ARMS = ("teacher", "with_teacher", "alone")
TRAINING = {
    "data": {"batch_size": 128, "num_workers": 0},
    "optimiser": {"lr": 0.001, "weight_decay": 0.1},
    "schedule": {"steps": 1000, "warmup_steps": 83},
}


def lite2() -> Backbone:
    """EfficientNet-Lite2; a view that it has seen is read from a file."""
    tower, folder = efficientnet_lite2(), Path(os.environ[KEPT])

    def forward(pictures: Tensor) -> Rows:
        paths = [folder / f"{hashlib.sha256(view.contiguous().numpy().tobytes()).hexdigest()}.npy" for view in pictures]
        if new := [i for i, path in enumerate(paths) if not path.is_file()]:
            pooled, tokens, _ = tower.forward(pictures[new])
            for i, row in zip(new, torch.cat([pooled.unsqueeze(1), tokens], dim=1).half().numpy(), strict=True):
                part = paths[i].with_suffix(".part.npy")
                np.save(part, row)
                part.rename(paths[i])
        rows = torch.from_numpy(np.stack([np.load(path) for path in paths])).float()
        return rows[:, 0], rows[:, 1:], None

    return Backbone(tower.network, forward, tower.preprocess)


def run(grocery: Path, work: Path, seeds: int) -> None:
    """Lay out the pictures, build, store tokens; then the three arms of each seed."""
    lay_out(grocery, work)
    build = {
        "name": "grocery", "work_dir": "build",
        "sources": [{"name": "photos", "domain": "plant",
                     "folder": {"path": "known/train", "captions": "folder_name"}}],
        "fetch": {"image": {"size_px": 348}},
        "caption": {"rules": [{"preset": "plant", "min_chars": 2}]},
        "select": {"licences": {"allow": ["known", "unknown"]}},
        "mix": {"ratio": {"plant": 1}},
    }  # fmt: skip
    call(work, "pipeline.cli", "build", write(work, "build", build))
    for name, width in WIDTHS.items():
        tokens = {
            "release": "build", "output_dir": f"tokens-{name}", "splits": ["train"], "embed_dim": 256,
            "image": {"tower": "bench_distil:lite2", "width": width}, "text": {"tower": "study_towers:minilm"},
        }  # fmt: skip
        call(work, "training.cli", "tokens", write(work, f"tokens-{name}", tokens))
    for seed in range(seeds):
        for arm in ARMS:
            if f"{arm}-{seed}" not in RESULTS.names():
                RESULTS.add(f"{arm}-{seed}", train(work, arm, seed))
                print(f"{arm}-{seed}", flush=True)


def lay_out(grocery: Path, work: Path) -> None:
    """known/train, known/val and held_out below the work folder: a folder for each name."""
    (work / "kept").mkdir(parents=True, exist_ok=True)
    if (work / "held_out").is_dir():
        return
    folders = sorted({path.parent for path in (grocery / "train").rglob("*.jpg")}, key=lambda folder: folder.name)
    held_out = set(np.random.default_rng(0).permutation(len(folders))[:NUM_HELD_OUT].tolist())
    for i, folder in enumerate(folders):
        for split in ("train", "val"):
            for file in sorted((grocery / split / folder.relative_to(grocery / "train")).glob("*.jpg")):
                group = work / ("held_out.part" if i in held_out else f"known/{split}") / folder.name.replace("-", " ")
                group.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, group)
    (work / "held_out.part").rename(work / "held_out")


def train(work: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train an arm, ask it for the names, and give the figures."""
    kind = "teacher" if arm == "teacher" else "student"
    tokens, folder, teacher = f"tokens-{kind}", f"{arm}-{seed}", f"teacher-{seed}"
    model = {"preset": "clip", "architecture": f"{tokens}/architecture.json"}
    config: dict[str, Any] = {"release": "build", "output_dir": folder, "seed": seed, "model": model, **TRAINING}
    config["data"] = config["data"] | {"tokens": tokens}
    names = [{"name": name, "path": path, "templates": ["{}", "a photo of {}"]}
             for name, path in (("held_out", "held_out"), ("known", "known/val"))]  # fmt: skip
    config["eval"] = {"split": None, "sets": names}
    if arm == "with_teacher":
        vectors = f"vectors-{seed}.parquet"
        call(work, "training.cli", "embed", "build", "--model", teacher, "--features", "f", "--out", vectors)
        model["pretrained"] = teacher
        config["loss"] = {"form": "distil", "teacher": {"vectors": vectors}}
    call(work, "training.cli", "train", write(work, folder, config))
    call(work, "training.cli", "eval", folder, "--out", f"{folder}.json")
    report = json.loads((work / f"{folder}.json").read_text())
    events = [json.loads(line) for line in (work / folder / "log.jsonl").read_text().splitlines()]
    memory = next(event["memory"] for event in events if event["event"] == "start")
    sets = {
        item["name"]: {"figures": item["zero_shot"]["f"], "num_classes": item["num_classes"]} for item in report["sets"]
    }
    return {"trained": memory["trained"], "sets": sets, "last": [e for e in events if e["event"] == "step"][-1]}


def write(work: Path, name: str, config: dict[str, Any]) -> str:
    """A config as a file of the work folder."""
    (work / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return f"{name}.yaml"


def call(work: Path, module: str, *words: str) -> None:
    """A command of the work folder, with this folder's towers."""
    known = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = os.environ | {"PYTHONPATH": known, KEPT: str(work.resolve() / "kept"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-P", "-m", module, *words], cwd=work, env=given, check=True)


def report() -> None:
    """The table, and the share of the teacher's zero-shot above chance that the student keeps."""
    for name in ("held_out", "known"):
        of_arm = {arm: [record["sets"][name] for record in RESULTS.of(f"{arm}-*")] for arm in ARMS}
        chance = 1 / of_arm["teacher"][0]["num_classes"]
        values = {arm: np.array([one["figures"]["mean_per_class"]["value"] for one in of_arm[arm]]) for arm in ARMS}
        figures = [one["figures"]["mean_per_class"] for one in of_arm["teacher"]]
        errors = np.array([(figure["high"] - figure["low"]) / 2 / 1.96 for figure in figures])
        print(f"{name}: {of_arm['teacher'][0]['num_classes']} classes, chance {chance:.1%}")
        print(f"  teacher above chance by {((values['teacher'] - chance) / errors).min():.1f} standard errors at least")
        for arm in ARMS:
            print(f"  {arm}: {values[arm].mean():.1%} ({', '.join(f'{v:.1%}' for v in values[arm])})")
        gain = values["with_teacher"] - values["alone"]
        half = half_width(gain)
        print(f"  with_teacher less alone: {gain.mean():+.1%} ({gain.mean() - half:+.1%} to {gain.mean() + half:+.1%})")
        above = values["teacher"] - chance
        for arm in ARMS[1:]:
            if above.min() <= 0:
                print(f"  {arm} keeps no share: the teacher is not above chance in each seed")
                continue
            kept = (values[arm] - chance) / above
            half = half_width(kept)
            print(f"  {arm} keeps {kept.mean():.1%} ({kept.mean() - half:.1%} to {kept.mean() + half:.1%})")


def half_width(values: np.ndarray) -> float:
    """Of the 95 % interval of the mean over seeds, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("grocery", type=Path)
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--seeds", type=int, default=5)
    commands.add_parser("report")
    args = parser.parse_args()
    report() if args.command == "report" else run(args.grocery, args.work, args.seeds)


if __name__ == "__main__":
    main()
