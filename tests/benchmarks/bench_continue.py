"""What the recipe `continue-a-model` gives on varieties of fruit and vegetables, with and without replay, and blended.

`lay` puts the pictures where the recipe expects them, beside a copy of the configs. After `plantmix build` there, `run`
gives the commands of the page for one seed, and adds a line to the results. `show` prints the table and draws
data/continue-a-model.png.

    python tests/benchmarks/bench_continue.py lay CLONE GROCERY SEALED CORPUS
    python tests/benchmarks/bench_continue.py run CLONE --seed 0
    python tests/benchmarks/bench_continue.py show
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import yaml
from study_records import Records

from manifests.drawing.panels import Panel, draw_png
from manifests.drawing.theme import SERIES
from training.cli import main as dalip

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Records(ROOT / "tests/benchmarks/results/continue-a-model.jsonl")
RECIPE = Path("configs/recipes/continue-a-model")
HELD_OUT_VENDOR = "@lobehub/fluent-emoji-3d"
GROUPS = {"plants": "plant", "cartons": "general", "emoji": "general"}
MODELS = {
    "general-model": "before",
    "plants-only": "plants alone",
    "plants-only-blended": "plants alone, blended",
    "plants-and-replay": "a quarter replay",
    "plants-and-replay-blended": "a quarter replay, blended",
}


def words(name: str) -> str:
    """A folder's name as a caption."""
    return name.replace("-", " ").lower()


def put(source: Path, target: Path) -> None:
    """Copy a file, unless it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copyfile(source, target)


def lay(clone: Path, grocery: Path, sealed: Path, corpus: Path) -> None:
    """Varieties are the special domain; cartons and the corpus, without one vendor's emoji, are the general one.

    That vendor's emoji are asked for by name: every other name in validation, the rest in the test.
    """
    data, general = clone / "data/continue", []
    shutil.copytree(ROOT / "configs", clone / "configs", dirs_exist_ok=True)
    for part, folder in (("train", grocery / "train"), ("validation", grocery / "val"), ("test", sealed)):
        for photo in sorted(folder.rglob("*.jpg")):
            kind, name = photo.relative_to(folder).parts[0], words(photo.parent.name)
            if part == "train" and kind == "Packages":
                place = Path("cartons", photo.name)
                general.append((str(place), name))
                put(photo, data / "general" / place)
            else:
                where = "cartons" if kind == "Packages" else "plants"
                put(photo, data / ("plants" if part == "train" else f"{part}/{where}") / name / photo.name)
    table = duckdb.sql(f"SELECT url_path, caption, source_package FROM '{corpus / 'pairs.parquet'}' ORDER BY url_path")
    rows = table.fetchall()
    trained = {caption for _, caption, package in rows if package == "emoji-datasource-google"}
    asked = sorted(
        {c for _, c, package in rows if package == HELD_OUT_VENDOR and c in trained and "skin tone" not in c}
    )
    for path, caption, package in rows:
        if package != HELD_OUT_VENDOR:
            put(corpus / path, data / "general" / path)
            general.append((path, caption))
        elif caption in asked:
            part = ("validation", "test")[asked.index(caption) % 2]
            put(corpus / path, data / part / "emoji" / caption.replace("/", " ") / Path(path).name)
    with (data / "general/captions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file", "caption"), *general])


def run(clone: Path, seed: int) -> None:
    """The commands of the recipe's page, in a folder of the seed's own; the general group has two sets here."""
    own = clone / f"seed-{seed}"
    data = own / "data/continue"
    data.mkdir(parents=True, exist_ok=True)
    for name in ("build", "validation", "test"):
        if not (data / name).exists():
            (data / name).symlink_to((clone / "data/continue" / name).resolve())
    shutil.copytree(ROOT / "configs", own / "configs", dirs_exist_ok=True)
    recipe = own / RECIPE
    for name in ("general", "plants", "plants-and-replay"):
        values = yaml.safe_load((recipe / f"{name}.yaml").read_text())
        values["data"]["num_workers"] = 0
        values |= {"seed": seed, "compute": {"num_threads": 1, "device": "cpu"}}
        (recipe / f"{name}.yaml").write_text(yaml.safe_dump(values))
    for part in ("validation", "test"):
        sets = [
            {"name": name, "group": group, "path": str(data.resolve() / part / name), "templates": ["{}"]}
            for name, group in GROUPS.items()
        ]
        (recipe / f"{part}.yaml").write_text(yaml.safe_dump({"split": None, "sets": sets}))
    validation, test = (str(recipe / f"{part}.yaml") for part in ("validation", "test"))

    def command(*parts: str) -> None:
        print("$ dalip", *parts, flush=True)
        if dalip(parts):
            raise SystemExit(1)

    for name in ("general", "plants", "plants-and-replay"):
        command("train", str(recipe / f"{name}.yaml"))
    begin, record = str(data / "general-model"), {}
    for name in ("plants-only", "plants-and-replay"):
        out = str(data / f"{name}-blended")
        command("blend", begin, str(data / name), "--out", out, "--settings", validation)
        record[f"{name}-blended"] = json.loads(Path(out, "blend.json").read_text())
    figures = {}
    for name in MODELS:
        out = str(data / f"{name}-test.json")
        command("eval", str(data / name), "--settings", test, "--out", out)
        figures[name] = figures_of(json.loads(Path(out).read_text()))
    validated = {name: {"alpha": table["alpha"], "rows": table["rows"]} for name, table in record.items()}
    RECORDS.add(f"seed-{seed}", {"test": figures, "validation": validated})


def figures_of(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Top-1 accuracy by f on each set and the mean of each group."""
    sets = {item["name"]: item["zero_shot"]["f"]["top1"] for item in result["sets"]}
    return sets | {group: result["groups"][group]["f"] for group in ("plant", "general")}


def show() -> None:
    """Print means over seeds with the range of the seeds, and draw both groups against each other."""
    records = RECORDS.of("seed-*")
    chance = {name: figure["chance"] for name, figure in next(iter(records[0]["test"].values())).items()}
    print(f"{len(records)} seeds; chance {', '.join(f'{name} {value:.2%}' for name, value in chance.items())}")
    print("| model | " + " | ".join([*GROUPS, "general, mean", "alpha by seed"]) + " |")
    print("|---" * (len(GROUPS) + 3) + "|")
    for model, words_of_model in MODELS.items():
        cells, tests = [], [record["test"][model] for record in records if model in record["test"]]
        for name in (*GROUPS, "general") if tests else ():
            values = [test[name]["value"] for test in tests]
            cells.append(f"{np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})")
        alphas = [f"{r['validation'][model]['alpha']:g}" for r in records if model in r["validation"]]
        print(f"| {words_of_model} | {' | '.join(cells)} | {', '.join(alphas)} |")
    (ROOT / "data").mkdir(exist_ok=True)
    (ROOT / "data/continue-a-model.png").write_bytes(draw_png([Panel("models", partial(_draw, records), "", 5.6, 4.2)]))


def _draw(records: list[dict[str, Any]], axis: Any) -> None:
    for number, (model, words_of_model) in enumerate(MODELS.items()):
        tests = [record["test"][model] for record in records if model in record["test"]]
        points = [[test[group]["value"] * 100 for group in ("general", "plant")] for test in tests]
        if not points:
            continue
        colour = SERIES[number % len(SERIES)]
        axis.plot(*zip(*points, strict=True), "o", color=colour, markersize=3, alpha=0.6)
        axis.plot(*np.mean(points, axis=0), "o", color=colour, markersize=9, label=words_of_model)
    axis.set_xlabel("general: mean top-1 of cartons and emoji, %")
    axis.set_ylabel("varieties: top-1, %")
    axis.legend(loc="best", fontsize=7)


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lay", "run", "show"))
    parser.add_argument("clone", type=Path, nargs="?")
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "show":
        show()
    elif options.what == "lay":
        lay(options.clone, *options.folders)
    else:
        run(options.clone, options.seed)


if __name__ == "__main__":
    main()
