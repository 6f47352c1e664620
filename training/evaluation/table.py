"""`dalip table`: models side by side on the same pictures, and a paper's figures beside them.

The first model is compared with each other one, picture by picture; the interval of a difference takes the classes as
drawn. A paper says no answers, only shares, so its figures are compared by the sizes of the sets alone, as if the hits
were independent. A difference is told from none where its interval leaves out 0. Intervals are of 95 %, each for
itself: of twenty, one leaves out the truth.

Writes a folder: table.md, table.csv, table.png, classes.csv (each class), confusion.csv (each pair that was mistaken)
and answers/NAME.parquet. Gives up with ConfigError on sets that are not there, two models of one name, and answers of
another protocol.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from manifests.contract.release import require_output
from manifests.contract.settings import read_settings
from manifests.drawing.panels import draw_png
from manifests.errors import ConfigError
from manifests.services.packages import require
from manifests.stores.storage import write_file
from training.config import BOOTSTRAP_ROUNDS, EvalSetSettings, EvalSettings, PublishedSettings
from training.evaluation import metrics
from training.evaluation.answers import Answers, answers_of, protocol_of, read_answers
from training.evaluation.outside_sets import class_prompts, open_sets
from training.evaluation.report import marks_panel
from training.evaluation.set_layouts import EvalSet
from training.evaluation.trained_model import open_trained_model

AGREES = 0.02  # a figure and a paper's agree where their difference, with its interval, is within two points
_Z = 1.96
_TITLE = "Zero-shot top 1 in %. Each interval is of 95 % and for itself."
_COLUMNS = {
    "table.csv": ("model", "set", "top1", "low", "high", "pictures", "protocol"),
    "classes.csv": ("model", "set", "class", "pictures", "top1"),
    "confusion.csv": ("model", "set", "class", "answer", "pictures"),
}
_BEGINNINGS = {"table.md": _TITLE.encode(), "table.png": b"\x89PNG"} | {
    name: ",".join(columns).encode() for name, columns in _COLUMNS.items()
}
"""Of what this writes, so that it replaces nothing else."""
_Sets = dict[str, tuple[EvalSetSettings, EvalSet, str]]  # with the protocol


class Difference(NamedTuple):
    """The difference of two shares on a set or on a group of sets, with its interval."""

    value: float
    low: float
    high: float

    def verdict(self) -> str:
        """Which is better, or that it cannot be told."""
        if self.low > 0 or self.high < 0:
            return "better" if self.value > 0 else "worse"
        return "cannot be told"

    def agreement(self) -> str:
        """Return whether a figure agrees with one that was published."""
        if max(abs(self.low), abs(self.high)) <= AGREES:
            return "agrees"
        return "differs" if self.low > 0 or self.high < 0 else "cannot be told at this size"

    def __str__(self) -> str:
        return f"{self.value * 100:+.1f} ({self.low * 100:+.1f} to {self.high * 100:+.1f})"


_Tables = dict[str, list[tuple[str, str, Difference, str]]]  # by title: who, on what, the difference, the verdict


def make_table(models: Sequence[str], sets: str, out: str, say: Callable[[str], None]) -> list[str]:
    """Compare models, each MODEL or NAME=MODEL, on the sets of a settings file; returns the lines of table.md.

    Raises: ConfigError before a model runs; RunError for a broken picture.
    """
    require("a picture", "matplotlib")
    settings = read_settings(sets, EvalSettings)
    named = _names(models)
    there = tuple(item for item in settings.sets if Path(item.path).exists())
    gone = [item for item in settings.sets if item not in there] if named else []
    notes = [f"{item.name} is not there ({item.path}), so it is left out" for item in gone]
    if not settings.sets or (named and not there):
        raise ConfigError(f"{sets}: none of its {len(settings.sets)} sets is there; put one at its path")
    for file, begins in _BEGINNINGS.items():
        require_output(str(Path(out) / file), _begins_with(begins))
    opened: _Sets = {}
    for item, eval_set in zip(there, open_sets(there), strict=True) if named else ():
        if eval_set.kind == "classification":
            opened[item.name] = item, eval_set, protocol_of(item, eval_set)
            notes += [f"{item.name}: {note}" for note in eval_set.notes]
        else:
            notes.append(f"{item.name} has captions and no classes, so it is left out")
    answers = {}
    for name, model in named.items():
        say(f"{name}: {model}")
        answers[name] = _answers(name, model, settings, opened, Path(out))
    groups = _groups(settings.sets, opened if named else None)
    lines = list(_markdown(answers, opened, groups, settings.published, notes))
    _write(Path(out), answers, opened, groups, lines)
    return lines


def paired(one: Mapping[str, Answers], other: Mapping[str, Answers], sets: Sequence[str]) -> Difference:
    """Return the first model less the other.

    Mean over sets of the difference of their shares of hits on the same pictures.

    Classes are taken as drawn, with their pictures: with e the sum over a class of each difference less the mean, the
    variance of a set's mean over N pictures of K classes is K / (K - 1) times the sum of e squared, over N squared.
    Resampling classes and pictures within them would count the spread within classes twice: where that is most of it,
    such an interval of 95 % covers 98 to 99 %.

    Source: Cochran 1977, "Sampling Techniques", section 9A.3 (ratio to size, units in clusters); Satterthwaite 1946 for
    the degrees of freedom of a sum.
    """
    values, variances, freedoms, is_known = [], [], [], True
    for name in sets:
        hits_N, classes_N = one[name].hits - other[name].hits, one[name].classes
        values.append(float(hits_N.mean()))
        of_class = np.bincount(classes_N, hits_N - hits_N.mean())
        num = len(np.unique(classes_N))
        is_known &= num > 1  # of one class nobody knows how far classes differ
        freedoms.append(max(num - 1, 1))
        variances.append(num / freedoms[-1] * float((of_class**2).sum()) / len(hits_N) ** 2)
    variance = sum(variances)
    freedom = variance**2 / sum(v**2 / free for v, free in zip(variances, freedoms, strict=True)) if variance else 1.0
    spread = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance) / len(sets) if is_known else 1.0
    value = float(np.mean(values))
    return Difference(value, value - spread, value + spread)


def by_sizes(one: Sequence[float], other: Sequence[float], pictures: Sequence[int]) -> Difference:
    """Return the first less the other.

    Mean over sets of the difference of two shares, as if all hits were independent.
    """
    value = float(np.mean(one) - np.mean(other))
    variance = sum((p * (1 - p) + q * (1 - q)) / n for p, q, n in zip(one, other, pictures, strict=True))
    spread = _Z * math.sqrt(variance) / len(pictures)
    return Difference(value, value - spread, value + spread)


def _begins_with(beginning: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(beginning)


def _names(models: Sequence[str]) -> dict[str, str]:
    named = dict[str, str]()
    for given in models:
        name, equals, model = given.partition("=")
        if not equals or "/" in name:
            name, model = Path(given.rstrip("/")).name.removesuffix(".parquet"), given
        if name in named:
            raise ConfigError(f"two models are called '{name}': {named[name]} and {model}; write NAME=MODEL")
        named[name] = model
    return named


def _answers(name: str, model: str, settings: EvalSettings, sets: _Sets, out: Path) -> dict[str, Answers]:
    if not model.endswith(".parquet"):
        trained = open_trained_model(model)
        trained = replace(trained, settings=trained.settings.model_copy(update={"eval": settings}))
        return answers_of(trained, sets, out / "answers" / f"{name}.parquet")
    _, answers = read_answers(Path(model))
    for key, (_, eval_set, protocol) in sets.items():
        if key not in answers:
            raise ConfigError(f"{model}: has no answers on {key}; it has {', '.join(answers)}")
        if (theirs := answers[key].protocol) != protocol:
            raise ConfigError(
                f"{model}: its answers on {key} are of protocol {theirs}, and the set here is {protocol}: other "
                "pictures, names or prompts, so they are not compared"
            )
        rows, num_classes = answers[key], len(eval_set.classes)
        if (
            rows.classes.tolist() != list(eval_set.labels)
            or not ((rows.answers >= 0) & (rows.answers < num_classes)).all()
        ):
            raise ConfigError(f"{model}: its rows on {key} are not those of the set's pictures and classes")
    return {key: answers[key] for key in sets}


def _groups(items: Sequence[EvalSetSettings], opened: _Sets | None) -> dict[str, list[str]]:
    """Return sets by group.

    Only the existing ones where `opened` is given, and all of them where there are several groups.
    """
    groups = defaultdict(list)
    for item in items:
        if opened is None or item.name in opened:
            groups[item.group or ""].append(item.name)
    named = {f"mean of {group}" if group else "mean of the rest": names for group, names in groups.items()}
    return named | ({"mean": [name for names in groups.values() for name in names]} if len(named) > 1 else {})


# -- what is written


def _markdown(
    answers: Mapping[str, Mapping[str, Answers]],
    sets: _Sets,
    groups: Mapping[str, Sequence[str]],
    published: PublishedSettings | None,
    notes: Sequence[str],
) -> Iterator[str]:
    papers = published.top1 if published else {}
    columns = [column for group, names in groups.items() if group != "mean" for column in (*names, group)]
    columns += ["mean"] if "mean" in groups else []

    def row(name: str, values: Iterable[str]) -> str:
        return f"| {' | '.join([name, *values])} |"

    def shares(of: Mapping[str, float]) -> list[str]:
        means = {group: [of[name] for name in names if name in of] for group, names in groups.items()}
        whole = {group: np.mean(values) for group, values in means.items() if len(values) == len(groups[group])}
        return [
            f"{value:.1%}"[:-1] if (value := whole.get(column, of.get(column))) is not None else ""
            for column in columns
        ]

    yield _TITLE
    yield ""
    yield row("model", columns)
    yield f"|---|{'---:|' * len(columns)}"
    for model, of_sets in answers.items():
        yield row(model, shares({name: float(rows.hits.mean()) for name, rows in of_sets.items()}))
    for paper, top1 in papers.items():
        yield row(f"{paper}, published", shares({name: value / 100 for name, value in top1.items()}))
    if sets:
        protocols = {name: protocol for name, (_, _, protocol) in sets.items()}
        yield row("pictures", [f"{len(sets[c][1].items):,}" if c in sets else "" for c in columns])
        yield row("protocol", [protocols.get(column, "") for column in columns])
    yield from _comparisons(answers, groups, published)
    if notes:
        yield ""
        yield from (f"- {note}" for note in notes)


def _comparisons(
    answers: Mapping[str, Mapping[str, Answers]],
    groups: Mapping[str, Sequence[str]],
    published: PublishedSettings | None,
) -> Iterator[str]:
    """Tables of differences: of the models, of the paper's figures among themselves, and of both."""
    tables: _Tables = {}
    of_sets = {name: [name] for names in groups.values() for name in names}
    first = next(iter(answers), None)
    for model in list(answers)[1:]:
        rows = tables.setdefault("Differences in points, on the same pictures", [])
        for where, names in (of_sets | dict(groups)).items():
            difference = paired(answers[model], answers[str(first)], names)
            rows.append((f"{model} less {first}", where, difference, difference.verdict()))
    if published is not None:
        tables |= _with_paper(answers, groups, published)
    for title, rows in tables.items():
        yield from ("", title, "", "| | on | difference (interval) | |", "|---|---|---:|---|")
        yield from (f"| {who} | {where} | {difference} | {verdict} |" for who, where, difference, verdict in rows)


def _with_paper(
    answers: Mapping[str, Mapping[str, Answers]], groups: Mapping[str, Sequence[str]], published: PublishedSettings
) -> _Tables:
    """Differences of a paper's figures among themselves, and of measured ones from them."""
    tables: _Tables = {}
    papers = {paper: {name: share / 100 for name, share in top1.items()} for paper, top1 in published.top1.items()}
    (base, first), *others = papers.items()
    of_sets = {name: [name] for names in groups.values() for name in names}

    def less(one: Mapping[str, float], other: Mapping[str, float], names: Sequence[str]) -> Difference:
        sizes = [published.pictures[name] for name in names]
        return by_sizes([one[name] for name in names], [other[name] for name in names], sizes)

    for paper, shares in others:
        title = f"Published differences in points, by the sizes of the sets alone ({published.source})"
        for where, names in (of_sets | dict(groups)).items():
            if set(names) <= shares.keys() & first.keys():
                difference = less(shares, first, names)
                tables.setdefault(title, []).append((f"{paper} less {base}", where, difference, difference.verdict()))
    for model in [model for model in answers if model in papers]:
        measured = {name: float(rows.hits.mean()) for name, rows in answers[model].items()}
        for name in [name for name in measured if name in papers[model]]:
            difference = less(measured, papers[model], [name])
            row = (model, name, difference, difference.agreement())
            tables.setdefault("Measured less published, in points, by the sizes of the sets alone", []).append(row)
    return tables


def _write(
    out: Path,
    answers: Mapping[str, Mapping[str, Answers]],
    sets: _Sets,
    groups: Mapping[str, Sequence[str]],
    lines: Sequence[str],
) -> None:
    figures: dict[str, dict[str, metrics.Figure]] = {}
    classes: list[tuple[Any, ...]] = []
    confusion: list[tuple[Any, ...]] = []
    for model, of_sets in answers.items():
        for name, rows in of_sets.items():
            item, eval_set, _ = sets[name]
            labels = class_prompts(item, eval_set)[0]
            figures.setdefault(name, {})[model] = metrics.top1_figure(
                rows.hits, rows.classes, len(labels), BOOTSTRAP_ROUNDS
            )[0]
            for number, label in enumerate(labels):
                if (own := rows.classes == number).any():
                    classes.append((model, name, label, int(own.sum()), f"{rows.hits[own].mean():.4f}"))
            wrong = rows.classes != rows.answers
            pairs = Counter(zip(rows.classes[wrong].tolist(), rows.answers[wrong].tolist(), strict=True))
            for (right, answer), num in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0])):
                confusion.append((model, name, labels[right], labels[answer], num))
    shares = [
        (model, name, *(f"{figure[key]:.4f}" for key in ("value", "low", "high")), figure["trials"], sets[name][2])
        for name, by_model in figures.items()
        for model, figure in by_model.items()
    ]
    write_file(str(out / "table.md"), ("\n".join(lines) + "\n").encode())
    for (file, columns), rows_of_file in zip(_COLUMNS.items(), (shares, classes, confusion), strict=True):
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows_of_file])
        write_file(str(out / file), stream.getvalue().encode())
    if figures:
        marks = {model: [(name, "", by_model[model], "") for name, by_model in figures.items()] for model in answers}
        write_file(str(out / "table.png"), draw_png([marks_panel("zero-shot top 1", marks)]))
