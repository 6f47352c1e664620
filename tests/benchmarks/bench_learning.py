"""Does it learn? Plain CLIP, `released` and `dalip` on real photos, and the open questions a small run can answer.

    python tests/benchmarks/bench_learning.py prepare GROCERY CORPUS --work DIR
    python tests/benchmarks/bench_learning.py run --work DIR --minutes 9      # again and again until nothing is left
    python tests/benchmarks/bench_learning.py report --work DIR

GROCERY is the Grocery Store dataset (Klasson et al., WACV 2019: train/ and val/ with train.txt, val.txt,
classes.csv), CORPUS a folder of captioned pictures with a pairs.parquet (columns url_path, caption, domain,
source_package, tier, phash). `prepare` decodes every picture once into one small file, so that runs wait for the
model alone. A run is one setting with one seed: the product's model, loss, optimiser and schedule, equal steps and
equal data order for every setting of a seed. `report` writes results/learning.md and learning.png.

Special domain: fruit and vegetables (varieties), judged on the val photos, which come from other shops. General
domain: cartons, drawings, small photos and emoji of two vendors; judged on val cartons, on a third vendor's emoji,
and on held-out pictures that are further than pHash distance 8 from every training picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from learning_pictures import CONTEXT, TEMPLATES, VIEW_PX, Data, prepare

BATCH, STEPS, WARMUP, LR, WEIGHT_DECAY = 64, 300, 25, 1e-3, 0.1
REDUCED_WIDTH = 12  # of heads 32 wide: the released 46 of 128, in proportion


@dataclass(frozen=True)
class Setting:
    """What differs from preset `dalip` (or which other preset), and with how many seeds it runs."""

    name: str
    preset: str
    seeds: int
    second_order: dict[str, Any]
    loss: dict[str, Any]
    question: str


def settings_list() -> list[Setting]:
    def change(name: str, question: str, loss: dict[str, Any] | None = None, **second: Any) -> Setting:
        return Setting(name, "dalip", 3, second, loss or {}, question)

    return [
        Setting("clip", "clip", 5, {}, {}, ""),
        Setting("released", "released", 5, {}, {"logit_scale_max": None}, ""),
        Setting("dalip", "dalip", 5, {}, {}, ""),
        change("padding kept", "padding in the text statistics", text_padding="keep"),
        change("own temperature", "temperature of z", temperature="own"),
        change("similarities", "form of the loss", {"form": "sum_of_similarities"}),
        change("batch norm", "norm of the image branch", image_norm="batch"),
        change("token dropout", "dropout axis of the text branch", text_dropout_axis="token"),
        change("no dropout", "dropout", dropout=0.0),
        change("full projection", "last layers", projection="full"),
        change("f counts 0.75", "weight of f in the loss", {"first_order_weight": 0.75}),
    ]


# ---- one run


def train_one(setting: Setting, seed: int, work: Path, data: Data, steps: int) -> dict[str, Any]:
    import torch

    from training.config import OptimiserSettings, ScheduleSettings
    from training.images import normalise
    from training.loss import LossSettings, contrastive_loss
    from training.model import ModelSettings, build_model
    from training.optimiser import build_optimiser, lr_ratio_at, set_lr

    model_settings = {"preset": setting.preset, "architecture": str(_architecture(work, len(data.vocabulary)))}
    if setting.preset != "clip":
        model_settings["second_order"] = {"reduced_width": REDUCED_WIDTH, **setting.second_order}
    torch.manual_seed(seed)
    model = build_model(ModelSettings.model_validate(model_settings))
    loss_settings = LossSettings.model_validate(setting.loss)
    optimiser = build_optimiser(model, OptimiserSettings(lr=LR, weight_decay=WEIGHT_DECAY))
    schedule = ScheduleSettings(steps=steps, warmup_steps=WARMUP)
    preprocess = model.preprocess_settings
    special = data.by_split["special_train"]
    general = data.by_split["general_train"] + data.by_split["cartons_train"]
    order, views = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    streams = [_endless(special, order), _endless(general, order)]
    model.train()
    started = time.perf_counter()
    losses = []
    for step in range(steps):
        rows = [next(streams[0]) for _ in range(BATCH // 2)] + [next(streams[1]) for _ in range(BATCH // 2)]
        pixels = normalise(data.views(rows, views), preprocess.mean, preprocess.std)
        tokens = torch.stack([data.tokens[row][int(views.integers(len(data.tokens[row])))] for row in rows])
        set_lr(optimiser, LR * lr_ratio_at(step, steps, schedule))
        torch.manual_seed(1_000_003 * seed + step)
        loss = contrastive_loss(model(pixels, tokens), loss_settings)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if loss_settings.logit_scale_max is not None:
            model.clamp_logit_scale(loss_settings.logit_scale_max)
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - started
    return {
        "setting": setting.name, "seed": seed, "steps": steps, "seconds": round(seconds, 1),
        "final_loss": float(np.mean(losses[-max(1, steps // 10) :])), "load": os.getloadavg()[0],
        "scale": float(model.clip.logit_scale.detach().exp()), "hits": judge(model, data, loss_settings),
    }  # fmt: skip


def _endless(rows: list[int], rng: np.random.Generator) -> Any:
    while True:
        yield from (rows[i] for i in rng.permutation(len(rows)))


def judge(model: Any, data: Data, loss: Any) -> dict[str, dict[str, list[int]]]:
    """For f, z and both: per task, 1 or 0 for each trial."""
    import torch
    from torch.nn.functional import normalize

    model.eval()
    kinds = ("f",) if model.second_order is None else ("f", "z", "both")
    weight = loss.first_order_weight

    def encode(side: str, inputs: Any) -> dict[str, Any]:
        call = model.encode_image if side == "image" else model.encode_text
        parts = [call(part, second_order=True) if len(kinds) > 1 else (call(part),) for part in inputs.split(256)]
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(("f", "z")[: len(parts[0])])}

    def similar(images: dict[str, Any], texts: dict[str, Any], kind: str) -> Any:
        if kind != "both":
            return images[kind] @ texts[kind].t()
        return weight * images["f"] @ texts["f"].t() + (1 - weight) * images["z"] @ texts["z"].t()

    def pictures(rows: list[int]) -> Any:
        from training.images import normalise

        preprocess = model.preprocess_settings
        return normalise(data.views(rows, None), preprocess.mean, preprocess.std)

    hits: dict[str, dict[str, list[int]]] = {kind: {} for kind in kinds}
    with torch.no_grad():
        for split, templates in (("special_val", TEMPLATES), ("cartons_val", TEMPLATES), ("emoji_val", ("{}",)),
                                 ("general_val", ("{}",))):  # fmt: skip
            rows = data.by_split[split]
            names = sorted({data.rows[row]["label"] for row in rows})
            encoded = [encode("text", data.encode([t.format(name) for name in names])) for t in templates]
            texts = {kind: normalize(sum(e[kind] for e in encoded), dim=-1) for kind in encoded[0]}
            images = encode("image", pictures(rows))
            target = torch.tensor([names.index(data.rows[row]["label"]) for row in rows])
            for kind in kinds:
                values = similar(images, texts, kind)
                rank = (values >= values.gather(1, target[:, None])).sum(1) - 1
                back = [int(target[values[:, u].argmax()] == u) for u in range(len(names))]
                hits[kind][f"{split}@1"] = (rank < 1).int().tolist()
                hits[kind][f"{split}@5"] = (rank < 5).int().tolist()
                hits[kind][f"{split} text to image@1"] = back
    return hits


def _architecture(work: Path, vocab: int) -> Path:
    path = work / "vit-small-cpu.json"
    if not path.is_file():
        path.write_text(json.dumps({
            "embed_dim": 128,
            "vision_cfg": {"image_size": VIEW_PX, "layers": 4, "width": 128, "head_width": 32, "patch_size": 10},
            "text_cfg": {"context_length": CONTEXT, "vocab_size": vocab, "width": 128, "heads": 4, "layers": 2},
        }))  # fmt: skip
    return path


def run(work: Path, minutes: float, steps: int, only: list[str]) -> None:
    """Two processes of one thread each: on 2 busy cores that wastes less than two threads waiting for each other."""
    import multiprocessing

    (work / "runs").mkdir(exist_ok=True)
    settings = settings_list()
    # the presets' first three seeds, then two seeds of every question, then the rest
    todo = [(0 if not setting.question and seed < 3 else 1 + (seed >= 2), seed, number)
            for number, setting in enumerate(settings) for seed in range(setting.seeds)]  # fmt: skip
    left = [
        (settings[number], seed)
        for _, seed, number in sorted(todo)
        if not _run_file(work, settings[number], seed).is_file() and (not only or settings[number].name in only)
    ]
    stop = time.time() + 60 * minutes
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work_through, args=(left[i::2], work, steps, stop)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    open_runs = [item for item in left if not _run_file(work, *item).is_file()]
    print("nothing is left" if not open_runs else f"{len(open_runs)} runs are left; run again to go on")


def _run_file(work: Path, setting: Setting, seed: int) -> Path:
    return work / "runs" / f"{setting.name.replace(' ', '_')}-{seed}.json"


def _work_through(items: list[tuple[Setting, int]], work: Path, steps: int, stop: float) -> None:
    import torch

    torch.set_num_threads(1)
    data, longest = Data(work), 0.0
    for setting, seed in items:
        if time.time() + 1.05 * longest > stop:
            return
        started = time.time()
        result = train_one(setting, seed, work, data, steps)
        longest = max(longest, time.time() - started)
        path = _run_file(work, setting, seed)
        path.with_suffix(".part").write_text(json.dumps(result))
        path.with_suffix(".part").replace(path)
        shown = {
            kind: {task: round(float(np.mean(h)), 3) for task, h in tasks.items()}
            for kind, tasks in result["hits"].items()
        }
        print(setting.name, seed, f"{result['seconds']} s", round(result["final_loss"], 3), shown, flush=True)


# ---- the report

TASKS = (
    ("special_val@1", "varieties, zero-shot, top 1", "special"),
    ("special_val@5", "varieties, zero-shot, top 5", "special"),
    ("special_val text to image@1", "variety finds a photo", "special"),
    ("cartons_val@1", "cartons, zero-shot, top 1", "general"),
    ("emoji_val@5", "third vendor's emoji, image to text, top 5", "general"),
    ("general_val@5", "held-out pictures, image to text, top 5", "general"),
)
Hits = dict[str, dict[str, np.ndarray]]  # kind -> task -> (seeds, trials)


def report(work: Path, out: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((work / "runs").glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["setting"], []).append(result)
    every = [result for results in found.values() for result in results]
    hits = {name: _stack(results) for name, results in found.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    loads = [result["load"] for result in every]
    lines = [
        "# Learning: plain CLIP, released, dalip", "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, {platform.machine()}, 2 cores shared with other "
        f"work (load {min(loads):.1f} to {max(loads):.1f}). Command: see tests/benchmarks/bench_learning.py.", "",
        *_about(work, every), "",
        "## The three presets", "", *_preset_table(hits, _chance(work)), "",
        "## Open questions: each changed alone in `dalip`", "", *_question_table(hits), "",
    ]  # fmt: skip
    _plot(hits, out.with_suffix(".png"))
    out.write_text("\n".join(lines))
    print("\n".join(lines))


def _stack(results: list[dict[str, Any]]) -> Hits:
    kinds = results[0]["hits"]
    return {kind: {task: np.array([r["hits"][kind][task] for r in results]) for task in kinds[kind]} for kind in kinds}


def _about(work: Path, every: list[dict[str, Any]]) -> list[str]:
    counts: dict[str, int] = {}
    for row in json.loads((work / "rows.json").read_text()):
        counts[row["split"]] = counts.get(row["split"], 0) + 1
    steps = every[0]["steps"]
    return [
        f"Training pictures: {counts['special_train']:,} photos of fruit and vegetables, "
        f"{counts['cartons_train']:,} of cartons, {counts['general_train']:,} drawings, small photos and emoji of two "
        f"vendors; half of every batch is special. ViT of {VIEW_PX} px (36 patches), width 128, 4 + 2 layers, reduced "
        f"width {REDUCED_WIDTH} of heads 32 wide. {steps} steps of {BATCH}, lr {LR:g}, the same batches for every "
        f"setting of a seed. Judged on {counts['special_val']} photos of "
        f"{len(set(_labels(work, 'special_val')))} varieties, "
        f"{counts['cartons_val']} cartons, {counts['emoji_val']:,} emoji, {counts['general_val']} held-out pictures. A "
        "small run says what learns faster at this size, not what is better after 13 M samples. Intervals are of 95 %, "
        "over seeds and pictures.",
    ]


def _labels(work: Path, split: str) -> list[str]:
    return [row["label"] for row in json.loads((work / "rows.json").read_text()) if row["split"] == split]


def _mean_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of (seeds, trials) and its 95 % interval, seeds and trials both drawn anew."""
    seeds, trials = values.shape
    means = [values[np.ix_(rng.integers(0, seeds, seeds), rng.integers(0, trials, trials))].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def _difference(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """The same of the paired difference: equal seeds, equal trials."""
    both = min(len(ours), len(theirs))
    return _mean_interval(ours[:both].astype(float) - theirs[:both], rng)


def _cell(three: tuple[float, float, float], sign: str = "") -> str:
    value, low, high = (100 * number for number in three)
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


def _chance(work: Path) -> dict[str, float]:
    """What guessing reaches in each task."""
    chances = {}
    for task, _, _ in TASKS:
        split, _, k = task.partition("@")
        labels = _labels(work, split.removesuffix(" text to image"))
        num_classes = len(set(labels))
        chances[task] = 1 / num_classes if "text to image" in task else min(1.0, int(k) / num_classes)
    return chances


def _preset_table(hits: dict[str, Hits], chance: dict[str, float]) -> list[str]:
    rng = np.random.default_rng(0)
    head = ["setting, features at test", "seeds", *(f"{about}, %" for _, about, _ in TASKS), "general mean, %"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in ("clip", "released", "dalip"):
        for kind, tasks in hits[name].items():
            seeds = len(tasks["special_val@1"])
            cells = [_cell(_mean_interval(tasks[task], rng)) for task, _, _ in TASKS]
            general = np.mean([tasks[task].mean() for task, _, group in TASKS if group == "general"])
            lines.append(f"| {name}, {kind} | {seeds} | " + " | ".join(cells) + f" | {100 * general:.1f} |")
    lines.append("| chance | | " + " | ".join(f"{100 * chance[task]:.1f}" for task, _, _ in TASKS) + " | |")
    head = ["setting", *(about for _, about, _ in TASKS)]
    lines += ["", "Paired difference to plain CLIP (points):", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in ("released", "dalip"):
        for kind, tasks in hits[name].items():
            cells = [_cell(_difference(tasks[task], hits["clip"]["f"][task], rng), "+") for task, _, _ in TASKS]
            lines.append(f"| {name}, {kind} | " + " | ".join(cells) + " |")
    return lines


def _question_table(hits: dict[str, Hits]) -> list[str]:
    rng = np.random.default_rng(1)
    base = hits["dalip"]
    lines = [
        "Paired difference to `dalip` of the same seeds, in points; the mean of all six tasks beside it.", "",
        "| changed | question | seeds | at test | " + " | ".join(about for _, about, _ in TASKS) + " | mean |",
        "|---" * (len(TASKS) + 5) + "|",
    ]  # fmt: skip
    for setting in settings_list():
        if not setting.question or setting.name not in hits:
            continue
        for kind, tasks in hits[setting.name].items():
            pairs = [(tasks[task], base[kind][task]) for task, _, _ in TASKS]
            seeds = min(len(pairs[0][0]), len(pairs[0][1]))
            cells = [_cell(_difference(ours, theirs, rng), "+") for ours, theirs in pairs]
            mean = np.mean([ours[:seeds].mean() - theirs[:seeds].mean() for ours, theirs in pairs])
            lines.append(
                f"| {setting.name} | {setting.question} | {seeds} | {kind} | "
                + " | ".join(cells)
                + f" | {100 * mean:+.2f} |"
            )
    return lines


def _plot(hits: dict[str, Hits], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(2)
    shown = [("clip", "f"), ("released", "f"), ("released", "both"), ("dalip", "f"), ("dalip", "both")]
    colours = ["#666666", "#c77d11", "#e8b96a", "#1b6e3c", "#7fbf94"]
    figure, axes = plt.subplots(1, len(TASKS), figsize=(15, 3.8), constrained_layout=True)
    for axis, (task, about, _) in zip(axes, TASKS, strict=True):
        for place, ((name, kind), colour) in enumerate(zip(shown, colours, strict=True)):
            value, low, high = _mean_interval(hits[name][kind][task], rng)
            axis.bar(place, 100 * value, color=colour, label=f"{name}, {kind}")
            axis.errorbar(place, 100 * value, [[100 * (value - low)], [100 * (high - value)]], color="black", capsize=3)
        axis.set_title(about.replace(", ", ",\n", 1), fontsize=9)
        axis.set_xticks([])
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("% right, 95 % interval")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "report"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        if name == "prepare":
            command.add_argument("grocery", type=Path)
            command.add_argument("corpus", type=Path)
        if name == "run":
            command.add_argument("--minutes", type=float, default=9.0)
            command.add_argument("--steps", type=int, default=STEPS)
            command.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.command == "prepare":
        prepare(options.grocery, options.corpus, options.work)
    elif options.command == "run":
        run(options.work, options.minutes, options.steps, options.only)
    else:
        report(options.work, Path(__file__).parent / "results/learning.md")


if __name__ == "__main__":
    main()
