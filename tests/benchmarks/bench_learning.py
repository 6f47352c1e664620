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
import csv
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CACHE_PX, VIEW_PX, CONTEXT = 70, 60, 20
BATCH, STEPS, WARMUP, LR, WEIGHT_DECAY = 64, 300, 25, 1e-3, 0.1
REDUCED_WIDTH = 12  # of heads 32 wide: the released 46 of 128, in proportion
EMOJI_TRAIN = ("emoji-datasource-google", "emoji-datasource-twitter")
EMOJI_TEST = "@lobehub/fluent-emoji-3d"
HELDOUT_SOURCES = ("tuxpaint-stamps-default", "gcompris-qt-data", "pysiogame", "openclipart-png")
TEMPLATES = ("a photo of {}.", "{}", "a picture of {}.")


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


# ---- pictures and captions, once


def prepare(grocery: Path, corpus: Path, work: Path) -> None:
    rows = [*_grocery_rows(grocery), *_corpus_rows(corpus)]
    work.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (len(rows), CACHE_PX, CACHE_PX, 3))
    kept = []
    for row in rows:
        picture = _decode(row.pop("path"))
        if picture is not None:
            pixels[len(kept)] = picture
            kept.append(row)
    (work / "rows.json").write_text(json.dumps(kept))
    counts: dict[str, int] = {}
    for row in kept:
        counts[row["split"]] = counts.get(row["split"], 0) + 1
    print(f"{len(kept)} of {len(rows)} pictures: {counts}")


def _grocery_rows(folder: Path) -> list[dict[str, Any]]:
    with (folder / "classes.csv").open(encoding="utf-8") as stream:
        classes = list(csv.DictReader(stream))
    about = {}
    for entry in classes:
        text = (folder / entry["Product Description Path (str)"].lstrip("/")).read_text(
            encoding="utf-8", errors="replace"
        )
        lines = [line.removeprefix("Description:").strip() for line in text.splitlines() if "Description:" in line]
        about[entry["Class Name (str)"]] = (entry["Coarse Class Name (str)"], lines[0] if lines else "")
    rows = []
    for split in ("train", "val"):
        for line in (folder / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            path = line.split(",")[0]
            group, name = path.split("/")[1], path.split("/")[-2]
            coarse, prose = about[name]
            words, kind = _words(name), _words(coarse)
            texts = [f"a photo of {words}, a kind of {kind}", words, f"{words} {kind}"]
            rows.append({
                "path": str(folder / path),
                "split": ("special" if group != "Packages" else "cartons") + ("_train" if split == "train" else "_val"),
                "texts": texts + ([prose] if prose else []),
                "label": words,
            })  # fmt: skip
    return rows


def _corpus_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows, near = [], random.Random(0)
    for entry in pq.read_table(folder / "pairs.parquet").to_pylist():
        if entry["domain"] != "general" or entry["tier"] != "core" or not entry["caption"] or entry["error"]:
            continue
        source = entry["source_package"]
        split = "general_train"
        if source == EMOJI_TEST:
            split = "emoji_val"
        elif source in HELDOUT_SOURCES and near.random() < 0.1:
            split = "general_val"
        rows.append({
            "path": str(folder / entry["url_path"]), "split": split, "texts": [entry["caption"]],
            "label": entry["caption"], "phash": int(entry["phash"], 16), "sha256": entry["sha256"],
        })  # fmt: skip
    train = np.array([row["phash"] for row in rows if row["split"] == "general_train"], dtype=np.uint64)
    seen: set[str] = set()
    kept = []
    for row in rows:
        phash, digest = row.pop("phash"), row.pop("sha256")
        if row["split"].endswith("_val"):
            close = np.bitwise_count(train ^ np.uint64(phash)).min() <= 8
            if row["label"] in seen or (row["split"] == "general_val" and close):
                continue
            seen.add(row["label"])
        elif digest in seen:
            continue
        seen.add(digest)
        kept.append(row)
    return kept


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


def _decode(path: str) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, picture).convert("RGB")
    side = max(flat.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(flat, ((side - flat.size[0]) // 2, (side - flat.size[1]) // 2))
    return np.asarray(square.resize((CACHE_PX, CACHE_PX), Image.Resampling.BICUBIC))


# ---- one run


class Data:
    """Decoded pictures and tokens of every row, by split.

    Token ids are numbered anew, in their order, so that the embedding holds only ids that occur: a dense gradient of
    49,408 rows would take longer than the model.
    """

    def __init__(self, work: Path) -> None:
        import open_clip
        import torch

        self.pixels = np.load(work / "pixels.npy", mmap_mode="r")
        self.rows = json.loads((work / "rows.json").read_text())
        self._tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        tokens = [self._tokenizer(row["texts"]) for row in self.rows]
        named = [self._tokenizer([t.format(row["label"]) for t in TEMPLATES]) for row in self.rows]
        self.vocabulary = torch.unique(torch.cat(tokens + named))
        self.tokens = [torch.searchsorted(self.vocabulary, ids) for ids in tokens]
        self.by_split: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            self.by_split.setdefault(row["split"], []).append(number)

    def encode(self, texts: list[str]) -> Any:
        """Token ids (B, context) of texts whose tokens all occur in the data."""
        import torch

        return torch.searchsorted(self.vocabulary, self._tokenizer(texts))

    def views(self, rows: list[int], rng: np.random.Generator | None) -> Any:
        """uint8 (B, 3, 60, 60): a random crop and mirror of each, or the middle."""
        import torch

        slack = CACHE_PX - VIEW_PX
        views = np.empty((len(rows), VIEW_PX, VIEW_PX, 3), np.uint8)
        for i, row in enumerate(rows):
            top, left, mirror = (slack // 2, slack // 2, False) if rng is None else (
                int(rng.integers(slack + 1)), int(rng.integers(slack + 1)), bool(rng.integers(2)))  # fmt: skip
            view = self.pixels[row, top : top + VIEW_PX, left : left + VIEW_PX]
            views[i] = view[:, ::-1] if mirror else view
        return torch.from_numpy(views).permute(0, 3, 1, 2)


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


if __name__ == "__main__":
    main()
