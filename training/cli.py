"""The `dalip` command: train, evaluate, plot, proxies, export, publish, import; `training.using` adds its own.

Heavy imports wait until a command runs, so that `--help` is quick. Exits with 0 when done, 1 when a run failed, and 2
for wrong usage or input. A user's mistake is one line, never a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from manifests import __version__
from manifests.command_line import run_command
from manifests.errors import ConfigError
from manifests.services.printable import shown
from training.using.commands import COMMANDS, MODEL_HELP, AddCommand, add_architecture

_FIRST_STEPS = """\
first steps:
  dalip train configs/training/demo.yaml      # after make demo; for data of your own, copy this file and change release
  dalip eval data/demo/runs/dalip             # figures with intervals and chance
  dalip plot data/demo/runs/dalip --out curves.png

The help of each command has examples; configs/REFERENCE.md lists every key of a config."""
_TRAIN_EXAMPLE = """\
example:
  dalip train configs/training/demo.yaml
  torchrun --nproc-per-node 8 --no-python dalip train run.yaml --release releases/plantmix-0001

Run it again after any interruption: it goes on. Run it again when it is finished: it says so."""
_EVAL_EXAMPLE = """\
example:
  dalip eval data/demo/runs/dalip
  dalip eval run.yaml --release releases/plantmix-0002 --split heldout --out figures.json
  dalip eval data/demo/runs/dalip --settings configs/evaluation/published.yaml
  dalip eval my-model --release releases/plantmix-0002     # a folder of `dalip import` or `dalip export`"""
_PLOT_EXAMPLE = """\
example:
  dalip plot runs/clip runs/released runs/dalip --out curves.png
  dalip plot runs/dalip --metric loss --metric validation --out loss.png
  dalip plot runs/clip/eval/heldout.json runs/dalip/eval/heldout.json --out compared.png"""
_PROXIES_EXAMPLE = """\
example:
  plantmix plan design --domains plant,general --budget 8 --out design.csv
  dalip proxies configs/training/proxies-demo.yaml --runs design.csv
  plantmix plan fit data/demo --out law.json

Run it again after any interruption, or with a longer list: finished runs are kept."""
_EXPORT_EXAMPLE = """\
example:
  dalip export data/demo/runs/dalip model.pt                     # or model.safetensors
  dalip export data/demo/runs/dalip my-model --format huggingface"""
_PUBLISH_EXAMPLE = """\
example:
  dalip publish data/demo/runs/dalip --to hf:my-lab/plants --dry-run

Run it again after any interruption: it goes on. The token of the Hub comes from HF_TOKEN or `hf auth login`."""
_IMPORT_EXAMPLE = """\
example:
  dalip import released.pt my-model --architecture ViT-B-16"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `dalip` command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="dalip: %(message)s")
    # Before torch loads OpenMP: idle threads sleep instead of spinning. On 2 cores shared with other work a step of the
    # demo then takes 1.5 to 2.1 s, and 3 to 11 s when they spin (2026-11).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stopped = "interrupted; run the same command to go on from the last checkpoint"
    return run_command("dalip", partial(_run, options), stopped)


def _run(options: argparse.Namespace) -> int:
    from manifests.services.arrow import without_pandas  # not for --help

    without_pandas()
    return int(options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """All commands of `dalip` and their options."""
    parser = argparse.ArgumentParser(
        prog="dalip",
        description="Train, evaluate and use DALIP, a CLIP that also aligns second-order statistics.",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dalip {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    ours = (_add_train, _add_eval, _add_plot, _add_proxies, _add_export, _add_publish, _add_import)
    for add_parser in (*ours, *COMMANDS):
        add_parser(partial(_add_command, commands))
    return parser


def _add_command(commands: Any, name: str, text: str, example: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_kind(argument: Callable[..., Any]) -> None:
    argument("--kind", metavar="NAME", help="of model.projectors, for pictures (default: the first)")


def _add_train(add: AddCommand) -> None:
    argument = add("train", "Train a model on a release.", _TRAIN_EXAMPLE, _train).add_argument
    argument("config", metavar="CONFIG", help="YAML file of the run, such as configs/training/demo.yaml")
    argument("--release", metavar="PATH", help="release, or work folder of a build, instead of the config's")
    argument("--output", metavar="DIR", help="folder of the run instead of the config's output_dir")
    argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the folder's run, or reuse a finished one (default); --no-resume trains anew in its place",
    )
    argument("--allow-changed", action="store_true", help="go on from a checkpoint of another config or release")


def _add_eval(add: AddCommand) -> None:
    argument = add(
        "eval", "Evaluate a model on a held-out split and on sets from outside.", _EVAL_EXAMPLE, _eval
    ).add_argument
    argument(
        "model",
        metavar="CONFIG|MODEL",
        help=f"{MODEL_HELP}; or the config of a run (before there is one: the pretrained weights of the config)",
    )
    add_architecture(argument)
    argument("--release", metavar="PATH", help="release to evaluate on instead of the run's")
    argument("--split", metavar="NAME", help="split of the release (default: the config's eval.split)")
    _add_kind(argument)
    argument("--output", metavar="DIR", help="folder of the run instead of the config's output_dir")
    argument("--settings", metavar="FILE", help="YAML with what to measure instead of the config's eval")
    argument("--out", metavar="FILE", help="JSON file to write (default: in the run's or model's folder, eval/)")


def _add_plot(add: AddCommand) -> None:
    argument = add(
        "plot", "Draw the curves of one or several runs, or compare evaluations.", _PLOT_EXAMPLE, _plot
    ).add_argument
    argument("runs", metavar="RUN", nargs="+", help="folder of a run, or the JSON file of a `dalip eval`")
    argument("--out", metavar="FILE", required=True, help="picture (.png) to write")
    argument("--metric", metavar="NAME", action="append", default=[], help="loss, validation, lr, ... (default: all)")


def _add_proxies(add: AddCommand) -> None:
    argument = add(
        "proxies", "Train small models over a list of mixtures, for the planner.", _PROXIES_EXAMPLE, _proxies
    ).add_argument
    argument("config", metavar="CONFIG", help="YAML config: a training config and the list of runs")
    argument("--runs", metavar="DESIGN.csv", help="list of runs instead of the config's")
    argument("--release", metavar="PATH", help="stratified release instead of the config's")
    argument("--output", metavar="DIR", help="folder of the runs instead of the config's output_dir")
    argument("--processes", type=int, metavar="N", help="runs at a time instead of the config's")
    argument("--task", type=int, metavar="N", help="do only the N-th run of the list, as a task of a job array does")
    argument("--launcher", choices=("local", "ray"), default="local", help="where the runs are done (default: local)")
    argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a running cluster; default: RAY_ADDRESS, else start Ray on this machine",
    )


def _add_export(add: AddCommand) -> None:
    text = "Write a model for open_clip, as a file or in its layout for the Hugging Face Hub."
    argument = add("export", text, _EXPORT_EXAMPLE, _export).add_argument
    argument("model", metavar="MODEL", help=MODEL_HELP)
    add_architecture(argument)
    argument("target", metavar="TARGET", help="file or folder to write")
    argument(
        "--format",
        choices=("open_clip", "huggingface"),
        default="open_clip",
        help="open_clip: one file of weights; huggingface: a folder in open_clip's layout for the Hub, not one for "
        "transformers or timm (default: open_clip)",
    )
    _add_kind(argument)


def _add_publish(add: AddCommand) -> None:
    text = "Put a model on the Hugging Face Hub, with a card."
    argument = add("publish", text, _PUBLISH_EXAMPLE, _publish).add_argument
    argument("model", metavar="MODEL", help=MODEL_HELP)
    add_architecture(argument)
    argument("--to", required=True, metavar="TARGET", help="hf:OWNER/NAME")
    argument("--public", action="store_true", help="let everyone read it (default: private)")
    argument("--dry-run", action="store_true", help="only print the files and the card")


def _add_import(add: AddCommand) -> None:
    argument = add(
        "import", "Make a model folder from a checkpoint that DALIP's authors released.", _IMPORT_EXAMPLE, _import
    ).add_argument
    argument("checkpoint", metavar="CHECKPOINT", help="file of weights in the authors' layout")
    argument("target", metavar="FOLDER", help="folder to write, for `dalip eval`, `dalip export` and model.pretrained")
    argument("--architecture", default="ViT-B-16", help="open_clip name or JSON file (default: ViT-B-16)")


def _train(options: argparse.Namespace) -> int:
    from manifests.contract.release import newest_of_several
    from manifests.contract.takedowns import say_taken_down
    from training.config import read_train_settings
    from training.data.loader import open_releases, places_of
    from training.evaluation.evaluate import check_tasks
    from training.record.run_files import MODEL_FILE

    is_first = os.environ.get("RANK", "0") == "0"  # one process prints, of those that torchrun started
    settings = read_train_settings(options.config, release=options.release, output_dir=options.output)
    check_tasks(settings)
    for line in map(newest_of_several, places_of(settings.release or ())) if is_first else ():
        if line is not None:
            print(shown(f"dalip: {line}"), file=sys.stderr, flush=True)
    for release in open_releases(settings.release or ()) if is_first else ():
        if warning := say_taken_down(release):
            print(shown(f"dalip: {warning}"), file=sys.stderr, flush=True)
    from training.run.loop import train

    summary, reused = train(settings, resume=options.resume, allow_changed=options.allow_changed)
    if is_first:
        first, final = (summary[name] for name in ("first_loss", "final_loss"))
        losses = "not known, the log of its steps is lost" if first is None else f"{first:.3f} -> {final:.3f}"
        losses += f" (chance {summary['chance_loss']:.3f})"
        print(
            f"{'finished before, reused' if reused else 'finished'}: {summary['steps']:,} steps, "
            f"{summary['samples_seen']:,} samples ({summary['epochs']:.1f} epochs) in {summary['seconds']:.0f} s, "
            f"{summary['samples_per_second']:.0f} samples/s, data wait {summary['data_wait_share']:.0%}\n"
            f"training loss: {losses}; broken samples: {summary['corrupt_samples']}\n"
            f"model: {settings.output_dir.rstrip('/')}/{MODEL_FILE}\n"
            f"run: {settings.output_dir}"
        )
    return 0


def _eval(options: argparse.Namespace) -> int:
    from training.evaluation.evaluate import evaluate_model
    from training.evaluation.report import report_lines
    from training.evaluation.trained_model import open_trained_model

    trained = open_trained_model(options.model, output_dir=options.output, architecture=options.architecture)
    if trained.named is not None and options.out is None:
        raise ConfigError(f"{options.model}: has no folder of its own for the figures; name a file with --out")
    trained = trained.measured_by(options.settings)
    if options.kind is not None:
        trained.model.use_kind(options.kind)
    result, path = evaluate_model(trained, release=options.release, split=options.split, out=options.out)
    print("\n".join(report_lines(result)))
    if trained.address is not None and options.out is None:
        print(f"in the store: {trained.address}/eval/")
    print(f"plot: {path.with_suffix('.png')}")
    print(f"figures: {path}")
    return 0


def _plot(options: argparse.Namespace) -> int:
    from training.record.curves import plot_runs
    from training.record.remote import fetch_run

    runs = [run if run.endswith(".json") else str(fetch_run(run)) for run in options.runs]
    if all(run.endswith(".json") for run in options.runs):
        from training.evaluation.report import plot_results

        for line in plot_results(options.runs, options.out):
            print(line)
    else:
        plot_runs(runs, options.out, options.metric)
    print(f"plot: {options.out}")
    return 0


def _proxies(options: argparse.Namespace) -> int:
    from training.proxies.runs import read_proxy_settings

    if options.launcher == "local" and options.ray_address:
        raise ConfigError("--ray-address goes with --launcher ray")
    settings = read_proxy_settings(
        options.config,
        runs=options.runs, release=options.release, output_dir=options.output, num_processes=options.processes,
    )  # fmt: skip
    from training.proxies.study import run_proxies

    address = (options.ray_address or "local") if options.launcher == "ray" else None
    outcome = run_proxies(settings, lambda line: print(line, flush=True), ray_address=address, task=options.task)
    num_new = len(outcome.results) - outcome.num_reused
    print(f"{num_new} runs done, {outcome.num_reused} done before and kept, {len(outcome.failed)} failed")
    if options.task is not None:
        print("the same command without --task writes the table when all tasks are done")
    elif outcome.results:
        print(f"table: {outcome.table}")
    if outcome.results and options.task is None and settings.catalogue is not None:
        print(f"catalogue: {settings.catalogue} (plantmix plan fit {settings.catalogue} --out law.json)")
    return 1 if outcome.failed else 0


def _export(options: argparse.Namespace) -> int:
    from training.evaluation.blend import refuse_over_blend
    from training.evaluation.trained_model import notes_on_takedowns, open_trained_model
    from training.model.exports import export_hugging_face, export_open_clip
    from training.record.run_files import refuse_within_run

    refuse_within_run(options.target)
    refuse_over_blend(options.target)
    trained = open_trained_model(options.model, architecture=options.architecture)
    if options.kind is not None:
        trained.model.use_kind(options.kind)
        trained.model.fold_kind(keeps_z=options.format != "open_clip")
    if options.format == "huggingface":
        code = export_hugging_face(trained.model, options.target, trained.settings.loss)
    else:
        code = export_open_clip(trained.model, options.target)
    notes = [*trained.notes, *notes_on_takedowns(trained)]
    print("\n".join([f"weights: {trained.weights} ({trained.source})", *(f"note: {note}" for note in notes)]))
    print(f"written: {options.target}; {code}")
    if options.format == "huggingface" and trained.model.second_order is not None:
        print(f'f and z as one vector: training.evaluation.encoder.Encoder.open("{options.target}")')
    return 0


def _publish(options: argparse.Namespace) -> int:
    from manifests.publishing.hub import repository_of, upload_folder
    from training.evaluation.publishing import prepare
    from training.evaluation.trained_model import open_trained_model
    from training.model.weights import CONFIG_FILE

    repository = repository_of(options.to)
    trained = open_trained_model(options.model, architecture=options.architecture)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / repository.rpartition("/")[2]
        card, notes = prepare(trained, repository, folder)
        print(f"to: {options.to}, {'public' if options.public else 'private: --public was not given'}")
        print("\n".join(f"  {file.name}: {file.stat().st_size:,} bytes" for file in sorted(folder.iterdir())))
        print("\n".join([f"weights: {trained.weights} ({trained.source})", *(f"note: {note}" for note in notes)]))
        if options.dry_run:
            print(f"\n{card}\nnothing was sent (--dry-run)")
        else:
            lines = upload_folder(str(folder), repository, "model", public=options.public, marker=CONFIG_FILE)
            print("\n".join(lines))
    return 0


def _import(options: argparse.Namespace) -> int:
    from training.model.build import load_released
    from training.model.exports import export_hugging_face
    from training.record.run_files import refuse_within_run

    refuse_within_run(options.target)
    model = load_released(options.checkpoint, options.architecture)
    export_hugging_face(model, options.target)
    print(
        f"imported {len(model.state_dict()):,} tensors: {options.target}; measure it with `dalip eval`, or use it as "
        "model.pretrained"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
