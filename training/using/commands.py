"""The commands that use a trained model: predict, embed, index, search, blend, table. Each has a parser and a function.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from manifests.errors import ConfigError
from manifests.services.printable import shown

AddCommand = Callable[[str, str, str, Any], argparse.ArgumentParser]

_RANKS = ("species", "genus", "family", "order", "class", "phylum", "kingdom")
_TEXTS = ("asis", "common", "scientific", "taxonomic", "scientific_common", "taxonomic_common")
_PREDICT_EXAMPLE = """\
example:
  dalip predict pictures/ --model runs/dalip --taxa releases/plantmix-0001 --out answers.csv
  dalip predict photos.csv --model my-model --taxa releases/plantmix-0001 --threshold 0.8 --out answers.parquet
  dalip predict photos/ --model my-model --taxa releases/plantmix-0001 --within Fagales --out answers.csv
  dalip predict shards/*.tar --model my-model --labels labels.txt --out answers.csv

Run it again after any interruption: it goes on, and the table is the same to the byte."""
_EMBED_EXAMPLE = """\
example:
  dalip embed pictures/ --model runs/dalip --out vectors.parquet
  dalip embed releases/plantmix-0001 --model runs/dalip --features f --out vectors.parquet

Run it again after any interruption: it goes on, and the table is the same to the byte."""

_BLEND_EXAMPLE = """\
example:
  dalip blend runs/before runs/after --alpha 0:1:0.1 --out blended --expert plant --general general
  dalip blend openai-folder runs/plants --settings sets.yaml --release releases/plantmix-0001 --out blended

The first model is alpha 0. The chosen alpha has the largest geometric mean of the expert's and the general figure; a
validation loss counts by its inverse; of equal alphas the smallest. Report the chosen model on data that it was not
chosen by. Run it again after any interruption: alphas that were measured are kept."""
_TABLE_EXAMPLE = """\
example:
  dalip table runs/clip runs/dalip --sets configs/evaluation/published.yaml --out table
  dalip table OpenCLIP=runs/clip DALIP=runs/dalip theirs.parquet --sets sets.yaml --out table

The first model is compared with each other one, picture by picture, and a model that has the name of a published one
with its figures. Sets that are not there are named and left out. Run it again after any interruption: answers that are
there are kept."""
_SEARCH_EXAMPLE = """\
example:
  dalip search vectors.parquet --text "a red flower with five petals"
  dalip search vectors.parquet --image leaf.jpg --top 20 --json
  dalip search vectors.parquet --serve   # a line of JSON in, {"text": ...} or {"image": ...}; a line of JSON out

The first search writes VECTORS.search.arrow beside the vectors, 2 bytes a number; later ones read it."""


MODEL_HELP = "run, folder of `dalip export`, `dalip import` or open_clip, file of weights, or hf-hub:OWNER/NAME"


def add_architecture(argument: Callable[..., Any]) -> None:
    """Add `--architecture`, which every command has that takes a file of weights for a model."""
    argument(
        "--architecture", metavar="NAME", help="of a file of weights that does not say it: open_clip's name, or a .json"
    )


def _add_model(argument: Callable[..., Any]) -> None:
    argument("--model", metavar="MODEL", required=True, help=MODEL_HELP)
    add_architecture(argument)
    _add_device(argument)
    argument("--features", choices=("f", "z", "both"), help="default: all that the model has")


def _add_device(argument: Callable[..., Any]) -> None:
    argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU where there is one")


def _add_reading(argument: Callable[..., Any]) -> None:
    argument("--batch-size", type=_from_one, default=64, metavar="N", help="pictures at a time (64)")
    argument(
        "--num-workers", type=int, default=0, metavar="N",
        help="processes that read and decode pictures (default: 0, this one)",
    )  # fmt: skip


def _add_predict(add: AddCommand) -> None:
    parser = add("predict", "Tell what pictures show, and how sure that is.", _PREDICT_EXAMPLE, _predict)
    argument = parser.add_argument
    argument(
        "images", metavar="IMAGES", nargs="+",
        help="pictures, folders, tables with a column of paths (csv, tsv, Parquet), webdataset shards (.tar, "
        "'{00..09}.tar', s3://, hf://, https://), releases, work folders (their newest release)",
    )  # fmt: skip
    _add_model(argument)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", metavar="FILE", help="a label a line, or a csv: label, and its ranks where known")
    what.add_argument("--taxa", metavar="RELEASE", help="the taxa of a release, and its held-out split to calibrate on")
    argument("--rank", choices=_RANKS, default="species", help="of the labels (default: species)")
    argument(
        "--within", metavar="NAME|FILE",
        help="only labels within a taxon at any rank, as Fagales, or a checklist: a name a line, or a csv, tsv, xlsx",
    )  # fmt: skip
    argument("--calibrate", metavar="RELEASE", help="with --labels: release to calibrate on")
    argument("--field", metavar="NAME", help="column of its samples, or extra.KEY, that holds the labels")
    argument("--out", metavar="FILE", required=True, help="table to write: .csv or .parquet")
    argument("--top", type=_from_one, default=5, metavar="K", help="labels of a picture (default: 5)")
    argument(
        "--threshold", type=_share, default=0.0, metavar="P",
        help="the answer is a label, else a taxon above it, that is at least so likely, else 'not sure' (default: 0)",
    )  # fmt: skip
    argument(
        "--template", action="append", metavar="TEXT", help="prompt with one {}; repeat it for several, or: openai"
    )
    argument("--text", choices=_TEXTS, default="asis", help="what a taxon is called in the prompt")
    _add_reading(argument)


def _predict(options: argparse.Namespace) -> int:
    from manifests.contract.release import Release
    from training.evaluation.encoder import Encoder
    from training.using.labels import labels_of_release, read_labels
    from training.using.pictures import list_pictures
    from training.using.predict import Classifier, PredictOptions, predict_table

    if options.field and not (options.calibrate or options.taxa):
        raise ConfigError("--field names the labels of the release to calibrate on: give --calibrate RELEASE too")
    if options.calibrate and options.taxa:
        raise ConfigError("--taxa calibrates on its own release: leave --calibrate out")
    path = options.taxa or options.calibrate
    release = Release.open(path) if path else None
    labels = (
        labels_of_release(release, options.rank)
        if options.taxa and release is not None
        else read_labels(options.labels, options.rank)
    )
    labels, notes = labels.within(options.within, "--within") if options.within is not None else (labels, [])
    listing = list_pictures(options.images)
    for note in (*notes, *listing.notes):
        print(shown(note))
    encoder = Encoder.open(options.model, options.device, options.architecture)
    predict_options = PredictOptions(
        tuple(options.template or PredictOptions.templates), options.text, options.features, options.top,
        options.threshold, options.batch_size, options.num_workers,
    )  # fmt: skip
    on = None if release is None else (release, options.field or f"taxon_{options.rank}")
    record, reused = predict_table(Classifier(encoder, labels, predict_options), listing, options.out, on)
    calibration = record["notes"]["calibration"]
    if "why_not_within" in calibration:
        print(f"the scale is that of all labels, not of those within: {calibration['why_not_within']}")
    if "error_after" in calibration:
        print(
            f"calibrated on {calibration['num_pictures']:,} held-out pictures (right: {calibration['accuracy']:.1%}): "
            f"expected calibration error {calibration['error_before']:.3f} before, "
            f"{calibration['error_after']:.3f} after; scale {encoder.logit_scale:.4g} -> {calibration['scale']:.4g}"
        )
    else:
        print(f"not calibrated, the scale {calibration['scale']:.4g} is that of the training: {calibration['why_not']}")
    _print_end(options.out, record, reused, f"{len(labels.names):,} labels")
    return 0


def _add_embed(add: AddCommand) -> None:
    argument = add("embed", "Write one vector per picture.", _EMBED_EXAMPLE, _embed).add_argument
    argument("images", metavar="IMAGES", nargs="+", help="as for `dalip predict`")
    _add_model(argument)
    argument("--out", metavar="FILE.parquet", required=True, help="table to write")
    _add_reading(argument)


def _embed(options: argparse.Namespace) -> int:
    from training.evaluation.encoder import Encoder
    from training.using.embed import embed_pictures
    from training.using.pictures import list_pictures

    listing = list_pictures(options.images)
    for note in listing.notes:
        print(note)
    encoder = Encoder.open(options.model, options.device, options.architecture)
    record, reused = embed_pictures(
        encoder, listing, options.out, options.features, options.batch_size, options.num_workers
    )
    _print_end(options.out, record, reused, f"{record['width']} numbers each, features {record['features']}")
    return 0


def _add_search(add: AddCommand) -> None:
    parser = add("search", "Find what is most like a text or a picture.", _SEARCH_EXAMPLE, _search)
    argument = parser.add_argument
    argument("vectors", metavar="VECTORS", help="table of `dalip embed`, or folder of such tables of one model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="a text in words, as a caption would have it")
    what.add_argument("--image", metavar="FILE", help="a picture")
    what.add_argument("--serve", action="store_true", help="answer queries from standard input until it ends")
    argument("--model", metavar="MODEL", help="default: where the model was when the vectors were made")
    add_architecture(argument)
    _add_device(argument)
    argument("--top", type=_from_one, default=10, metavar="K", help="hits (default: 10)")
    argument("--json", action="store_true", help="a line of JSON instead of a table")


def _search(options: argparse.Namespace) -> int:
    from training.using.nearest import StoredVectors
    from training.using.search import Searcher

    vectors = StoredVectors.open(options.vectors)
    searcher = Searcher.open(vectors, options.model, options.device, options.architecture)
    for note in searcher.notes():
        print(shown(f"dalip: {note}"), file=sys.stderr, flush=True)
    if options.serve:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a line that is no UTF-8 costs one answer
        searcher.serve(sys.stdin, lambda line: print(line, flush=True), options.top)
        return 0
    hits = searcher.find(text=options.text, image=options.image, top=options.top)
    more = searcher.describe(hits)
    if options.json:
        print(json.dumps([hit._asdict() | of_hit for hit, of_hit in zip(hits, more, strict=True)], ensure_ascii=False))
        return 0
    for number, (hit, of_hit) in enumerate(zip(hits, more, strict=True), start=1):
        print("\n              ".join([f"{number:4d}  {hit.score:.4f}  {hit.name}", *filter(None, of_hit.values())]))
    return 0


def _print_end(out: str, record: dict[str, Any], reused: bool, what: str) -> None:
    faults = record["num_faults"]
    print(
        f"{'finished before, reused' if reused else 'written'}: {out}, {record['num_rows']:,} rows, "
        f"{faults:,} of them with an error; {what}"
    )


def _from_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, given {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, given {text}")
    return value


def _add_blend(add: AddCommand) -> None:
    argument = add(
        "blend", "Average the weights of two models, and choose the best average.", _BLEND_EXAMPLE, _blend
    ).add_argument
    argument("start", metavar="START", help=f"that the training began with: {MODEL_HELP}")
    argument("end", metavar="END", help="that it ended with, as START; says what is measured")
    add_architecture(argument)
    argument("--out", metavar="FOLDER", required=True, help="folder of the model to write")
    argument("--alpha", metavar="FROM:TO:STEP", default="0:1:0.1", help="shares of END (default: 0:1:0.1)")
    for name in ("expert", "general"):
        argument(f"--{name}", metavar="NAME", help="group of eval.sets, or domain of the split")
    argument("--release", metavar="PATH", help="release to measure on instead of END's")
    argument("--split", metavar="NAME", help="split of the release (default: END's eval.split)")
    argument("--settings", metavar="FILE", help="YAML with what to measure instead of END's eval")


def _blend(options: argparse.Namespace) -> int:
    from training.evaluation.blend import PLOT_FILE, RULE, TABLE_FILE, blend, parse_alphas
    from training.evaluation.trained_model import is_weights_file, open_trained_model
    from training.record.run_files import refuse_within_run

    alphas = parse_alphas(options.alpha)
    refuse_within_run(options.out)
    start, end = (
        open_trained_model(name, architecture=options.architecture if is_weights_file(name) else None)
        for name in (options.start, options.end)
    )
    end = end.measured_by(options.settings)
    names = {name: getattr(options, name) for name in ("expert", "general", "release", "split")}
    best, code = blend(start, end, options.out, alphas, say=lambda line: print(line, flush=True), **names)
    print(f"chosen: alpha {best.alpha:g}, by {RULE}")
    print(f"model: {options.out}; {code}")
    print(f"table: {options.out}/{TABLE_FILE}, plot: {options.out}/{PLOT_FILE}")
    return 0


def _add_table(add: AddCommand) -> None:
    argument = add(
        "table", "Put models side by side on evaluation sets, with the published figures.", _TABLE_EXAMPLE, _table
    ).add_argument
    help_text = f"{MODEL_HELP}; or OUT/answers/NAME.parquet of another table; NAME= gives the name of its row"
    argument("models", metavar="[NAME=]MODEL", nargs="*", help=help_text)
    argument("--sets", metavar="FILE", required=True, help="YAML with sets and published figures, as of `dalip eval`")
    argument("--out", metavar="FOLDER", required=True, help="folder to write")


def _table(options: argparse.Namespace) -> int:
    from training.evaluation.table import make_table
    from training.record.run_files import refuse_within_run

    refuse_within_run(options.out)
    for line in make_table(options.models, options.sets, options.out, lambda line: print(line, flush=True)):
        print(line)
    print(f"table: {options.out}/table.md, by class: {options.out}/classes.csv, mistaken: {options.out}/confusion.csv")
    return 0


COMMANDS = (_add_predict, _add_embed, _add_search, _add_blend, _add_table)
"""What adds each parser."""
