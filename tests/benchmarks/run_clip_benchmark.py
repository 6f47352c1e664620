"""An exported model under clip_benchmark itself, and under `dalip eval`: the same figures on the same evaluation set.

    python -m venv /path/of/venv && /path/of/venv/bin/pip install clip_benchmark requests "numpy<2"
    python tests/benchmarks/run_clip_benchmark.py RUN --benchmark-python /path/of/venv/bin/python [--out FILE.md]

clip_benchmark 1.6.2 imports requests without naming it and breaks on numpy 2 (float of an array of one), so it gets an
environment of its own. RUN is the folder of a trained
run whose release has a held-out split; that split is written as an evaluation set in clip_benchmark's layout, with the
values of --field as classes. Ends with exit code 1 when a figure differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from datetime import date
from pathlib import Path

import yaml

from manifests.release import Release
from training.config import read_train_settings
from training.data.columns import SampleColumns
from training.data.shards import ShardReader, open_pool

_TOLERANCE = 1e-6
_TEMPLATES = ("a picture of {c}.", "{c}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--benchmark-python", type=Path, required=True)
    parser.add_argument("--field", default="extra.category")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        num_pictures, num_classes = write_set(options.run, options.field, folder / "set")
        ours = by_dalip(options.run, folder)
        theirs = by_clip_benchmark(options.run, options.benchmark_python, folder)
    lines = [
        "# An exported model under clip_benchmark",
        "",
        f"{date.today()}; {num_pictures} held-out pictures, {num_classes} classes, first-order features, the export in",
        "the Hugging Face layout. clip_benchmark ran by itself, in an environment of its own:",
        f"{versions(options.benchmark_python)}.",
        "Command: `python tests/benchmarks/run_clip_benchmark.py RUN --benchmark-python VENV/bin/python`.",
        "",
        "| figure | clip_benchmark | dalip eval |",
        "|---|---|---|",
        *(f"| {name} | {theirs[name]:.6f} | {ours[name]:.6f} |" for name in ours),
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(abs(theirs[name] - ours[name]) > _TOLERANCE for name in ours):
        sys.exit("the figures differ")


def write_set(run: Path, field: str, folder: Path) -> tuple[int, int]:
    """The held-out split of a run's release in clip_benchmark's layout; number of pictures and of classes."""
    settings = read_train_settings(str(run))
    assert isinstance(settings.release, str)
    split = settings.eval.split
    assert split is not None
    release = Release.open(settings.release)
    pool = open_pool([release], split)
    values = SampleColumns(release, split).values(field)
    rows = [row for row, value in enumerate(values) if value not in (None, "")]
    classes = sorted({str(values[row]) for row in rows})
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for row, (image, _, _) in zip(rows, ShardReader(pool).read(rows, with_texts=False), strict=True):
            for ending, content in (("jpg", image), ("cls", str(classes.index(str(values[row]))).encode())):
                info = tarfile.TarInfo(f"s{row:07d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(_TEMPLATES) + "\n")
    return len(rows), len(classes)


def by_dalip(run: Path, folder: Path) -> dict[str, float]:
    wanted = {"split": None, "sets": [{"name": "set", "path": str(folder / "set")}]}
    (folder / "eval.yaml").write_text(yaml.safe_dump(wanted))
    command = [sys.executable, "-m", "training.cli", "eval", str(run), "--settings", str(folder / "eval.yaml"),
               "--out", str(folder / "ours.json")]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    figures = json.loads((folder / "ours.json").read_text())["sets"][0]["zero_shot"]["f"]
    return {"acc1": figures["top1"]["value"], "acc5": figures["top5"]["value"],
            "mean_per_class_recall": figures["mean_per_class"]["value"]}  # fmt: skip


def by_clip_benchmark(run: Path, python: Path, folder: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "training.cli",
        "export",
        str(run),
        str(folder / "export"),
        "--format",
        "huggingface",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command = [
        str(python), "-m", "clip_benchmark.cli", "eval", "--dataset", "wds/set", "--dataset_root", str(folder / "set"),
        "--task", "zeroshot_classification", "--model", f"local-dir:{folder / 'export'}", "--pretrained", "none",
        "--batch_size", "32", "--num_workers", "0", "--no_amp", "--output", str(folder / "theirs.json"),
    ]  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env=clean, stdout=subprocess.DEVNULL)
    metrics: dict[str, float] = json.loads((folder / "theirs.json").read_text())["metrics"]
    return metrics


def versions(python: Path) -> str:
    code = "from importlib.metadata import version as v; print(', '.join(f'{n} {v(n)}' for n in " \
           "('clip_benchmark', 'open_clip_torch', 'webdataset', 'torch')))"  # fmt: skip
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
