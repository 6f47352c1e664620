"""Does it learn? Plain CLIP, `released` and `dalip` on real photos, and the open questions a small run can answer.

    python tests/benchmarks/bench_learning.py prepare GROCERY CORPUS --work DIR
    python tests/benchmarks/bench_learning.py run screening --work DIR --minutes 4   # again until nothing is left
    python tests/benchmarks/bench_learning.py run final --work DIR --minutes 4       # the same
    python tests/benchmarks/bench_learning.py start --work DIR                       # seconds: before the first step
    python tests/benchmarks/bench_learning.py report --work DIR

GROCERY is the Grocery Store dataset (Klasson et al., WACV 2019: train/ and val/ with train.txt, val.txt,
classes.csv), CORPUS a folder of captioned pictures with a pairs.parquet (columns url_path, caption, domain,
source_package, tier, phash). `prepare` decodes every picture once into one small file, so that runs wait for the
model alone. A run is one setting with one seed: the product's model, loss, optimiser and schedule, equal steps and
equal data order for every setting of a seed. A finished run is kept; several processes may work side by side.
`report` writes learning.md and learning.png into WORK; results/learning.md is a shorter page made of it.

Special domain: fruit and vegetables (varieties), judged on the val photos, which come from other shops. General
domain: cartons, drawings, small photos and emoji of two vendors; judged on val cartons, on a third vendor's emoji,
and on held-out pictures that are further than pHash distance 8 from every training picture.

`screening` chose the preset, `final` judges it. They share no seed and no picture to judge on: screening keeps every
tenth training picture back and judges on those.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from learning_pictures import CONTEXT, TEMPLATES, VIEW_PX, Data, prepare
from learning_report import report
from learning_start import look

Stage = Literal["screening", "final"]
BATCH, STEPS, WARMUP, LR, WEIGHT_DECAY = 64, 300, 25, 1e-3, 0.1
WIDTH, LAYERS = 128, (3, 2)  # of the image tower and the text tower
REDUCED_WIDTH = 12  # of heads 32 wide: the released 46 of 128, in proportion
FIRST_SEED = {"screening": 100, "final": 10}

# What screening starts from, written out so that it stays the same when the preset changes.
SCREENED = {
    "dropout": 0.0, "text_padding": "mask", "image_norm": "layer", "text_norm": "layer", "projection": "single",
}  # fmt: skip
SCREENED_LOSS = {"form": "sum_of_losses", "first_order_weight": 0.5}


@dataclass(frozen=True)
class Setting:
    """A preset with changes, the question they answer, and with how many seeds it runs."""

    name: str
    preset: str
    seeds: int
    second_order: dict[str, Any]
    loss: dict[str, Any]
    question: str = ""
    scale: float | None = None  # in place of CLIP's initial 1 / 0.07, which 300 steps hardly move


def settings_list(stage: Stage) -> list[Setting]:
    if stage == "screening":

        def screen(name: str, seeds: int = 1, loss: dict[str, Any] | None = None, **second: Any) -> Setting:
            return Setting(name, "dalip", seeds, SCREENED | second, SCREENED_LOSS | (loss or {}))

        return [
            screen("no dropout", 6),
            Setting("clip", "clip", 6, {}, {}),
            screen("dropout 0.5", dropout=0.5),
            screen("anchor weights behind the norm"),
            screen("batch norm", image_norm="batch"),
            screen("f counts 0.75", loss={"first_order_weight": 0.75}),
            screen("similarities", 6, loss={"form": "sum_of_similarities"}),
            Setting("clip, scale 7", "clip", 1, {}, {}, scale=7.0),
            Setting("clip, scale 28", "clip", 1, {}, {}, scale=28.0),
            screen("similarities, f 0.75", loss={"form": "sum_of_similarities", "first_order_weight": 0.75}),
            screen("similarities, batch norm", loss={"form": "sum_of_similarities"}, image_norm="batch"),
        ]

    def change(name: str, question: str, loss: dict[str, Any] | None = None, seeds: int = 3, **second: Any) -> Setting:
        return Setting(name, "dalip", seeds, second, loss or {}, question)

    return [
        Setting("clip", "clip", 5, {}, {}),
        Setting("released", "released", 5, {}, {}),
        Setting("dalip", "dalip", 5, {}, {}),
        change("sum of losses", "form of the loss", {"form": "sum_of_losses"}, 5),
        change("padding kept", "padding in the text statistics", text_padding="keep"),
        change("batch norm", "norm of the image branch", image_norm="batch"),
        change("dropout 0.5", "dropout", dropout=0.5),
    ]


# ---- one run


def train_one(setting: Setting, seed: int, work: Path, data: Data, steps: int) -> dict[str, Any]:
    import torch

    from training.config import OptimiserSettings, ScheduleSettings
    from training.data.images import normalise
    from training.model.build import build_model
    from training.model.loss import LossSettings, loss_of_preset, make_loss
    from training.model.presets import ModelSettings
    from training.run.optimiser import build_optimiser, lr_ratio_at, set_lr

    model_settings = {"preset": setting.preset, "architecture": str(_architecture(work, len(data.vocabulary)))}
    if setting.preset != "clip":
        model_settings["second_order"] = {"reduced_width": REDUCED_WIDTH, **setting.second_order}
    torch.manual_seed(seed)
    model = build_model(ModelSettings.model_validate(model_settings))
    if setting.name == "anchor weights behind the norm":
        weigh_behind_norm(model)
    if setting.scale is not None:
        model.clip.logit_scale.data.fill_(math.log(setting.scale))
    loss_settings = loss_of_preset(LossSettings.model_validate(setting.loss), setting.preset)
    loss = make_loss(loss_settings)
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
        parts = loss(model(pixels, tokens))
        optimiser.zero_grad(set_to_none=True)
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        loss.bound(model)
        losses.append([float(parts[part].detach()) for part in parts])
    seconds = time.perf_counter() - started
    final_losses = np.mean(losses[-max(1, steps // 10) :], axis=0)
    return {
        "setting": setting.name, "seed": seed, "steps": steps, "seconds": round(seconds, 1),
        "final_losses": dict(zip(parts, final_losses.tolist(), strict=True)), "load": os.getloadavg()[0],
        "scale": float(model.clip.logit_scale.detach().exp()), "hits": judge(model, data, loss_settings),
    }  # fmt: skip


def weigh_behind_norm(model: Any) -> None:
    """Step 2's weights, times the number of tokens, behind the norm of step 3: layer norm would undo them before it."""
    from training.model import mbdc

    def statistics(branch: Any, anchor: Any, tokens: Any, mask: Any = None) -> Any:
        tokens = branch.token_projection(tokens).unflatten(-1, (branch.shape.heads, -1))
        anchor = branch.token_projection(anchor).unflatten(-1, (branch.shape.heads, -1))
        num_tokens = tokens.new_tensor([tokens.shape[1]]) if mask is None else mask.sum(dim=1)
        weights = mbdc.anchor_weights(anchor, tokens, mask) * num_tokens[:, None, None]
        normal = branch.norm(mbdc.weigh_and_reduce(anchor, tokens, branch.reduce.weight, mask))
        kept = None if mask is None else mask[:, :, None, None].float()
        return mbdc.rectify_and_compare(normal * weights.unsqueeze(-1), kept, None if mask is None else num_tokens)

    for branch in (model.image_branch, model.text_branch):
        branch.statistics = statistics.__get__(branch)


def _endless(rows: list[int], rng: np.random.Generator) -> Any:
    while True:
        yield from (rows[i] for i in rng.permutation(len(rows)))


def judge(model: Any, data: Data, loss: Any) -> dict[str, dict[str, list[int]]]:
    """For f, z and both: per task, 1 or 0 for each trial."""
    import torch
    from torch.nn.functional import normalize

    from training.data.images import normalise

    model.eval()
    kinds = ("f",) if model.second_order is None else ("f", "z", "both")
    weight = loss.first_order_weight
    preprocess = model.preprocess_settings

    def encode(side: str, inputs: Any) -> dict[str, Any]:
        first, both = getattr(model, f"encode_{side}"), getattr(model, f"encode_{side}_both")
        parts = [both(part) if len(kinds) > 1 else (first(part),) for part in inputs.split(256)]
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(("f", "z")[: len(parts[0])])}

    def similar(images: dict[str, Any], texts: dict[str, Any], kind: str) -> Any:
        if kind != "both":
            return images[kind] @ texts[kind].t()
        return weight * images["f"] @ texts["f"].t() + (1 - weight) * images["z"] @ texts["z"].t()

    hits: dict[str, dict[str, list[int]]] = {kind: {} for kind in kinds}
    with torch.no_grad():
        for split, templates in (("special_val", TEMPLATES), ("cartons_val", TEMPLATES), ("emoji_val", ("{}",)),
                                 ("general_val", ("{}",))):  # fmt: skip
            rows = data.by_split.get(split, [])
            if not rows:
                continue
            names = sorted({data.rows[row]["label"] for row in rows})
            encoded = [encode("text", data.encode([t.format(name) for name in names])) for t in templates]
            texts = {kind: normalize(sum(e[kind] for e in encoded), dim=-1) for kind in encoded[0]}
            images = encode("image", normalise(data.views(rows, None), preprocess.mean, preprocess.std))
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
    path = work / f"vit-{WIDTH}-{LAYERS[0]}-{LAYERS[1]}-{CONTEXT}-{vocab}.json"
    vision = {"image_size": VIEW_PX, "layers": LAYERS[0], "width": WIDTH, "head_width": 32, "patch_size": 10}
    text = {"context_length": CONTEXT, "vocab_size": vocab, "width": WIDTH, "heads": WIDTH // 32, "layers": LAYERS[1]}
    if not path.is_file():
        path.write_text(json.dumps({"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}))
    return path


# ---- many runs


def run(stage: Stage, work: Path, minutes: float, steps: int, only: list[str]) -> None:
    """One process of one thread, seed after seed; what another process has in hand is passed over."""
    import torch

    torch.set_num_threads(1)
    folder = work / stage
    folder.mkdir(exist_ok=True)
    settings = [setting for setting in settings_list(stage) if not only or setting.name in only]
    most = max(setting.seeds for setting in settings)
    # the presets' first three seeds, three of every question, then the rest
    todo = [(setting, FIRST_SEED[stage] + turn) for turn in range(most) for setting in settings if turn < setting.seeds]
    todo.sort(key=lambda item: (item[1] - FIRST_SEED[stage] >= 3, bool(item[0].question)))
    stop, longest, data = time.time() + 60 * minutes, 0.0, None
    for setting, seed in todo:
        path = folder / f"{setting.name.replace(' ', '_')}-{seed}.json"
        with path.with_suffix(".lock").open("w") as lock:
            if not _claim(lock) or path.is_file():
                continue
            if time.time() + 1.05 * longest > stop:
                print(f"time is up before {setting.name}, seed {seed}; run again to go on")
                return
            started = time.time()
            data = data or Data(work, keep_back=stage == "screening")
            result = train_one(setting, seed, work, data, steps)
            longest = max(longest, time.time() - started)
            path.with_suffix(".part").write_text(json.dumps(result))
            path.with_suffix(".part").replace(path)
        shown = {kind: {task: round(float(np.mean(h)), 3) for task, h in tasks.items()}
                 for kind, tasks in result["hits"].items()}  # fmt: skip
        print(setting.name, seed, f"{result['seconds']} s", result["final_losses"], shown, flush=True)
    print("nothing is left")


def _claim(lock: Any) -> bool:
    """Hold a run's lock; the system lets go of it when the process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "start", "report"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        if name == "prepare":
            command.add_argument("grocery", type=Path)
            command.add_argument("corpus", type=Path)
        if name == "run":
            command.add_argument("stage", choices=["screening", "final"])
            command.add_argument("--minutes", type=float, default=4.0)
            command.add_argument("--steps", type=int, default=STEPS)
            command.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.grocery, options.corpus, options.work)
    elif options.command == "run":
        run(options.stage, options.work, options.minutes, options.steps, options.only)
    elif options.command == "start":
        data = Data(options.work)
        look(options.work, data, str(_architecture(options.work, len(data.vocabulary))), REDUCED_WIDTH)
    else:
        report(options.work, options.work / "learning.md")


if __name__ == "__main__":
    main()
