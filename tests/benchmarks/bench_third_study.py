"""The study of tests/benchmarks/protocols/third-study.md: what of DALIP is second order, and what is Brownian?

    python tests/benchmarks/bench_third_study.py prepare GROCERY CORPUS EMOJIONE --work DIR
    python tests/benchmarks/bench_third_study.py seal OPENMOJI FXEMOJI --work DIR --sealed OTHER
    python tests/benchmarks/bench_third_study.py run --work DIR                      # tuning, then every final run
    python tests/benchmarks/bench_third_study.py run --work DIR --only NAME --check  # one run against its record
    python tests/benchmarks/bench_third_study.py progress                            # what is done, hours that are left
    python tests/benchmarks/bench_third_study.py power --sizes OPENMOJI FXEMOJI      # numbers of names; before judging
    python tests/benchmarks/bench_third_study.py judge --work DIR --sealed OTHER     # whole seeds, each once
    python tests/benchmarks/bench_third_study.py statistics                          # from the committed files alone

GROCERY is the Grocery Store dataset (train/, val/, train.txt, val.txt, classes.csv), CORPUS a folder of captioned
pictures with a pairs.parquet, the other three unpacked packages of npm: emojione 2.2.7, openmoji 17.0.0 and
@iconify-json/fxemoji 1.2.2. The packages of study_towers.py, and for `seal` resvg-py, must be importable. A finished
run is a line of results/third-study.jsonl, its weights a file in DIR; several processes share the runs. A judged run is
a line of results/third-study-sealed.jsonl. No command but `seal` and `judge` is told where the sealed pictures lie.
The records go from machine to machine, the weights do not: `judge` takes the seeds whose weights lie in DIR, and
`statistics` waits until every seed is judged.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import study_training
from study_records import ROOT, Records, commit, compare, machine
from study_training import Checkpoint, Run, best_temperature, log_losses, make_all, similarities
from third_study_material import SEALED, VALIDATION, NamedMaterial, prepare, seal
from third_study_statistics import PRIMARY, power, power_before, report

sys.path.insert(0, str(ROOT))

RESULTS = Records(Path(__file__).parent / "results/third-study.jsonl")
SEALED_RESULTS = Records(Path(__file__).parent / "results/third-study-sealed.jsonl")  # `judge` alone writes it
ARMS = {"f": None} | {
    head: head for head in ("mean", "max", "token_mlp", "covariance", "uncentred", "brownian")
}  # to the head of each
RATES, LENGTHS = (3e-4, 5.5e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3), (250, 500, 1_000, 2_000)
TUNING_SEEDS, TRIED_AGAIN, FINAL_SEEDS = (900, 901), 6, tuple(range(20))


# ---- runs


def first_tuning() -> Iterator[Run]:
    """Every cell of every arm, with the first seed."""
    for steps in LENGTHS:
        for rate in RATES:
            yield from (Run(arm, TUNING_SEEDS[0], rate, steps) for arm in ARMS)


def second_tuning() -> Iterator[Run]:
    """The TRIED_AGAIN best cells of each arm, with the second seed; of equal ones those of the fewest steps."""
    losses = tuning_losses()
    for arm in ARMS:
        ours = sorted((losses[one], one.steps, one.rate) for one in first_tuning() if one.arm == arm)
        yield from (Run(arm, TUNING_SEEDS[1], rate, steps) for _, steps, rate in ours[:TRIED_AGAIN])


def tuned() -> dict[str, tuple[float, int, float]]:
    """Of each arm, among the cells with both seeds, the least mean loss on validation, its steps and its rate."""
    losses = tuning_losses()
    found: dict[str, list[tuple[float, int, float]]] = {arm: [] for arm in ARMS}
    for one in second_tuning():
        both = float(np.mean([losses[replace(one, seed=seed)] for seed in TUNING_SEEDS]))
        found[one.arm].append((both, one.steps, one.rate))
    return {arm: min(cells) for arm, cells in found.items()}


def tuning_losses() -> dict[Run, float]:
    """The loss on validation of every tuning run that is done."""
    kept = RESULTS.of("tuning-*")
    return {Run(each["arm"], each["seed"], each["rate"], each["steps"]): each["val_loss"] for each in kept}


def final_runs() -> Iterator[Run]:
    best = tuned()
    for seed in FINAL_SEEDS:
        yield from (Run(arm, seed, rate, steps, "final") for arm, (_, steps, rate) in best.items())


PLANS = (first_tuning, second_tuning, final_runs)  # each reads the records of those before


def missing() -> tuple[str, list[Run]]:
    """The first plan with runs that have no record, and these; none when every run is done."""
    for plan in PLANS:
        if left := study_training.without_record(plan, RESULTS):
            return plan.__name__, left
    return "", []


def train(
    one: Run, material: NamedMaterial, head: str | None, checkpoint: Checkpoint | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train; returns the model, and what is kept of the run. A final run looks at validation at each quarter.

    `head` is that of its arm. A run that was killed goes on from its checkpoint.
    """
    checkpoint = checkpoint or Checkpoint(commit())
    model = study_training.build(one, head, material.config)
    notes = checkpoint.notes
    notes |= {"began": datetime.now(UTC).isoformat(timespec="seconds"), "looks": []}

    def look(step: int) -> None:
        if step == one.steps or (one.purpose == "final" and step % (one.steps // 4) == 0):
            notes["looks"].append(on_validation(model.eval(), material))

    losses = study_training.train(one, model, material, look, checkpoint)
    looks, of_each = notes["looks"], notes["looks"][-1]["of_each"]
    return model, {
        "arm": one.arm, "seed": one.seed, "rate": one.rate, "steps": one.steps, "purpose": one.purpose,
        "val_loss": looks[-1]["loss"],
        "quarters": [{name: value for name, value in each.items() if name != "of_each"} for each in looks],
        "train_loss": round(float(np.mean(losses[-one.steps // 10 :])), 4),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights": digest(model), "rows": material.digest, "commit": commit(), "machine": machine(),
        "began": notes["began"], "cpu_seconds": round(checkpoint.cpu_seconds, 1),
    } | ({"of_each": of_each} if one.arm in {arm for pair in PRIMARY for arm in pair} else {})  # fmt: skip


def on_validation(model: Any, material: NamedMaterial) -> dict[str, Any]:
    """Mean log-loss of the two vendors at the temperature that fits them best, that and top 1 of each, each picture's.

    Those of pictures are hundredths of a nat.
    """
    splits = {vendor: similarities(model, material, vendor) for vendor in VALIDATION}
    temperature = best_temperature(splits.values())
    losses = {vendor: log_losses(*both, temperature) for vendor, both in splits.items()}
    return {
        "loss": round(float(np.mean([each.mean() for each in losses.values()])), 5),
        "temperature": round(temperature, 4),
        "loss_of": {vendor: round(float(each.mean()), 5) for vendor, each in losses.items()},
        "top1_of": {v: round(float((cosines.argmax(1) == own).mean()), 5) for v, (cosines, own) in splits.items()},
        "of_each": {vendor: np.rint(100 * each).astype(int).tolist() for vendor, each in losses.items()},
    }  # fmt: skip


def digest(model: Any) -> str:
    """sha256 of the trained weights, by name."""
    said = hashlib.sha256()
    for name, parameter in model.named_parameters():
        said.update(name.encode() + parameter.detach().numpy().tobytes())
    return said.hexdigest()


def run(work: Path, minutes: float) -> None:
    """Every run that is not done, until the minutes are over."""
    import torch

    torch.set_num_threads(1)
    material = NamedMaterial(work)
    if "names" not in RESULTS.names():
        RESULTS.add("names", material.codes(VALIDATION))

    def make(one: Run) -> None:
        model, record = train(one, material, ARMS[one.arm])
        if one.purpose == "final":
            keep_weights(model, weights_of(work, one))
        RESULTS.add(one.name, record)
        print(one.name, record["cpu_seconds"], "CPU s", record["val_loss"], flush=True)

    make_all(PLANS, RESULTS, work / "claims", make, minutes)


def keep_weights(model: Any, path: Path) -> None:
    """Write the trained weights, by name."""
    import torch

    path.parent.mkdir(exist_ok=True)
    torch.save({name: each.detach() for name, each in model.named_parameters()}, path)


def check(work: Path, name: str) -> None:
    """Make one run again, and compare it with its record."""
    make_again(RESULTS, ARMS, work, name)


def make_again(records: Records, heads: Mapping[str, str | None], work: Path, name: str) -> None:
    """Make one run of these records again, compare it with its record, and exit: 0 where it is the same."""
    import torch

    torch.set_num_threads(1)
    kept = records.one(name)
    one = Run(*(kept[key] for key in ("arm", "seed", "rate", "steps", "purpose")))
    _, made = train(one, NamedMaterial(work), heads[one.arm])
    print(f"loss on validation {made['val_loss']}, recorded {kept['val_loss']}")
    compare(name, made, kept, ("rows", "weights", "val_loss", "train_loss", "quarters", "commit", "machine"))


def progress() -> None:
    """How many runs are done, and the CPU hours that the others take at the seconds a step of those of their arm."""
    done = RESULTS.of("*-*")
    a_step = {}
    for arm in ARMS:
        ours = [each for each in done if each["arm"] == arm]
        a_step[arm] = sum(each["cpu_seconds"] for each in ours) / max(1, sum(each["steps"] for each in ours))
        print(f"{arm}: {len(ours)} runs, {1000 * a_step[arm]:.0f} CPU s for 1,000 steps")
    plan, left = missing()
    hours = sum(one.steps * a_step[one.arm] for one in left) / 3600
    print(f"{len(done)} runs are done; of {plan or 'nothing'} {len(left)} are left, {hours:.2f} CPU hours")
    # what comes behind, if each arm's six best cells have 1,250 steps in the mean and its best 1,000
    behind = {"first_tuning": 1_250 * TRIED_AGAIN + 1_000 * len(FINAL_SEEDS), "second_tuning": 1_000 * len(FINAL_SEEDS)}
    print(f"behind them about {behind.get(plan, 0) * sum(a_step.values()) / 3600:.1f} CPU hours")
    if plan in ("final_runs", ""):
        for arm, (loss, steps, rate) in tuned().items():
            print(f"{arm}: {steps} steps at {rate:g}, loss on validation {loss:.3f}")


# ---- judging


def judge(work: Path, sealed: Path) -> None:
    """Open the sealed pictures: the log-loss and the place of each name, for every run of the seeds that are ready.

    A seed is ready when each arm's final run has its record, and its weights in `work`. No run is judged twice.
    """
    plan, left = missing()
    if plan in ("first_tuning", "second_tuning"):
        raise SystemExit(f"{len(left)} runs of {plan} are not done, the sealed pictures stay sealed")
    ready = ready_to_judge(work)
    if not ready:
        raise SystemExit("no seed has the weights of all its runs here, or all such are judged; nothing was opened")
    judge_runs(ready, RESULTS, SEALED_RESULTS, ARMS, work, sealed)


def judge_runs(
    ready: Sequence[Run], records: Records, judged: Records, heads: Mapping[str, str | None], work: Path, sealed: Path
) -> None:
    """Add to `judged` the log-loss and the place of each name, for each of the runs."""
    import torch

    torch.set_num_threads(1)
    material, opened = NamedMaterial(work), NamedMaterial(sealed)
    names = opened.codes(SEALED) | {"rows": opened.digest}
    if "names" not in judged.names():
        judged.add("names", names)
    elif judged.one("names") != names:
        raise SystemExit(f"the pictures in {sealed} are not those that were judged before")
    if "nearest" not in judged.names():
        nearest = {
            vendor: nearest_names(material, opened if vendor in SEALED else material, vendor)
            for vendor in (*VALIDATION, *SEALED)
        }
        temperature = best_temperature(nearest[vendor] for vendor in VALIDATION)
        judged.add("nearest", {"arm": "nearest"} | _of_pictures({v: nearest[v] for v in SEALED}, temperature))
    for one in ready:
        record = records.one(one.name)
        model = study_training.build(one, heads[one.arm], material.config)
        weights = torch.load(weights_of(work, one), weights_only=True)
        model.load_state_dict(weights, strict=False)  # what is missing is no parameter: the reduction, which is fixed
        if digest(model) != record["weights"]:
            raise SystemExit(f"{one.name}: the weights are not those of its record")
        splits = {vendor: similarities(model.eval(), opened, vendor) for vendor in SEALED}
        source = {"arm": one.arm, "seed": one.seed, "commit": commit(), "machine": machine()}
        judged.add(one.name, source | _of_pictures(splits, record["quarters"][-1]["temperature"]))
        print(one.name, flush=True)


def weights_of(work: Path, one: Run) -> Path:
    return work / "weights" / f"{one.name}.pt"


def unjudged() -> list[Run]:
    judged = SEALED_RESULTS.names()
    return [one for one in final_runs() if one.name not in judged]


def ready_to_judge(work: Path) -> list[Run]:
    """The runs not judged yet, of each seed whose runs all have a record, and weights here."""
    recorded, left = RESULTS.names(), unjudged()
    lost = {one.seed for one in left if one.name not in recorded or not weights_of(work, one).is_file()}
    return [one for one in left if one.seed not in lost]


def statistics() -> None:
    """Print the table, once every final run is judged."""
    if left := unjudged():
        raise SystemExit(f"{len(left)} final runs are not judged; there is no table before all are")
    print(report(RESULTS, SEALED_RESULTS))


def _of_pictures(splits: dict[str, tuple[np.ndarray, np.ndarray]], temperature: float) -> dict[str, Any]:
    return {
        vendor: {
            "losses": [round(float(value), 4) for value in log_losses(cosines, own, temperature)],
            "hits": "".join(str(int(hit)) for hit in cosines.argmax(1) == own),
        }
        for vendor, (cosines, own) in splits.items()
    }


def nearest_names(material: NamedMaterial, judged: NamedMaterial, vendor: str) -> tuple[np.ndarray, np.ndarray]:
    """Without training: the cosine of the frozen pooled feature with the nearest training emoji of each name."""
    rows = judged.of_split(vendor)
    own = [judged.rows[row]["texts"][0] for row in rows]
    names = sorted(set(own))
    drawn = [row for row in material.of_split("general") if material.rows[row].get("hexcode")]

    def pooled(of: NamedMaterial, numbers: list[int]) -> np.ndarray:
        features = np.array([of.images([number])[0, 0].numpy() for number in numbers], np.float64)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    each = pooled(judged, rows) @ pooled(material, drawn).T
    cosines = np.full((len(rows), len(names)), -1.0)
    for column, row in enumerate(drawn):
        if (name := material.rows[row]["texts"][0]) in names:
            place = names.index(name)
            cosines[:, place] = np.maximum(cosines[:, place], each[:, column])
    return cosines, np.array([names.index(name) for name in own])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    paths = {"prepare": ("grocery", "corpus", "emojione"), "seal": ("openmoji", "fxemoji")}
    for name in ("prepare", "seal", "run", "progress", "power", "judge", "statistics"):
        command = commands.add_parser(name)
        for path in paths.get(name, ()):
            command.add_argument(path, type=Path)
        if name in ("prepare", "seal", "run", "judge"):
            command.add_argument("--work", type=Path, required=True)
        if name in ("seal", "judge"):
            command.add_argument("--sealed", type=Path, required=True)
    commands.choices["run"].add_argument("--minutes", type=float, default=1e6)
    commands.choices["run"].add_argument("--only", metavar="NAME", help="with --check: make this run again")
    commands.choices["run"].add_argument("--check", action="store_true", help="compare it with its record")
    commands.choices["power"].add_argument("--sizes", type=int, nargs=2, required=True, help="names of each vendor")
    commands.choices["power"].add_argument("--before", action="store_true", help="from the second study's spread")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.grocery, args.corpus, args.emojione, args.work)
    elif args.command == "seal":
        seal(args.openmoji, args.fxemoji, args.work, args.sealed)
    elif args.command == "run" and (args.only or args.check):
        check(args.work, args.only)
    elif args.command == "run":
        run(args.work, args.minutes)
    elif args.command == "progress":
        progress()
    elif args.command == "power":
        if args.before:
            print(power_before(Records(Path(__file__).parent / "results/dalip-vs-clip.jsonl"), args.sizes))
        else:
            best = {arm: Run(arm, 0, rate, steps) for arm, (_, steps, rate) in tuned().items()}
            print(power(RESULTS, best, args.sizes))
    elif args.command == "judge":
        judge(args.work, args.sealed)
    else:
        statistics()


if __name__ == "__main__":
    main()
