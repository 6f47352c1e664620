"""`dalip blend`: models on the line between two, and what each knows of the expert and of the general group.

A model that was trained on from other weights gains in its domain and forgets elsewhere. Its weights, averaged with
those it began with, often keep most of both. For each alpha the weights (1 - alpha) START + alpha END are measured as
`dalip eval` does. The model of the best alpha is written as a folder, with the table and a plot of all. The table is
written after each alpha: after an interruption those in it are not measured again, as long as the weights, the
pictures and what is measured are the same.

Reads two models and what they are measured on. Gives up with ConfigError, before anything is measured, on models that
do not have the same architecture and tensors.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifests.contract.settings import differences
from manifests.drawing.panels import Panel, draw_png
from manifests.drawing.theme import INK, SERIES, WARN
from manifests.errors import ConfigError
from manifests.services.packages import require
from manifests.services.untrusted import json_object
from manifests.stores import storage
from training.config import TrainSettings
from training.data import loader
from training.data.shards import open_pool
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import evaluation_device, feature_kinds
from training.evaluation.evaluate import groups_with_loss, measure, open_judge, open_measured, seen_in_training
from training.evaluation.metrics import Figure, mean_figure
from training.evaluation.trained_model import TrainedModel
from training.evaluation.within import names_within
from training.model.architecture import architecture_config, forward_settings
from training.model.dalip import DalipModel
from training.model.exports import export_hugging_face, local_place
from training.model.presets import SecondOrderSettings
from training.record.checkpoint import lock_folder
from training.record.run_files import require_own

TABLE_FILE, PLOT_FILE = "blend.json", "blend.png"
MADE_BY = "dalip blend"
_MOST_ALPHAS = 101  # each is a whole evaluation
RULE = "the largest geometric mean of both figures; a loss counts by its inverse; of equal ones the smaller alpha"
_LEAST_LOSS = 1e-12  # below which losses count as equal


@dataclass(frozen=True)
class Row:
    """One alpha: the figure of each group, and the mean that `RULE` compares."""

    alpha: float
    expert: Figure
    general: Figure
    score: float


def parse_alphas(text: str) -> list[float]:
    """`FIRST:LAST:STEP`, or numbers with commas between them, each from 0 (START) to 1 (END); sorted.

    Raises: ConfigError.
    """
    try:
        numbers = [float(part) for part in text.split(":" if ":" in text else ",")]
        if ":" in text:
            first, last, step = numbers
            count = math.floor((last - first) / step + 1e-9) + 1
            numbers = [first + step * i for i in range(count)] if count <= _MOST_ALPHAS else []
    except (ValueError, ZeroDivisionError, OverflowError):
        numbers = []
    alphas = sorted({round(number, 10) for number in numbers})
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas) or len(alphas) > _MOST_ALPHAS:
        kinds = "FIRST:LAST:STEP or a list like 0,0.5,1"
        raise ConfigError(f"--alpha {text}: give {kinds}, of at most {_MOST_ALPHAS} numbers from 0 to 1")
    return alphas


def blend(
    start: TrainedModel,
    end: TrainedModel,
    target: str,
    alphas: Sequence[float],
    *,
    expert: str | None = None,
    general: str | None = None,
    release: str | None = None,
    split: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Row, str]:
    """Measure every alpha and write the model of the best one; returns its row, and the line that loads its CLIP.

    What is measured, and how f and z are weighed, comes from the settings of `end`. Where `start` has no second-order
    branch the blend has none either: a branch knows only the towers that it was trained on.

    Raises: ConfigError before anything is measured.
    """
    require("a plot", "matplotlib")
    folder = local_place(target)
    require_own(folder / TABLE_FILE, folder / PLOT_FILE, _is_own, MADE_BY)
    if folder.resolve() in (start.folder.resolve(), end.folder.resolve()):
        raise ConfigError(f"{target}: is one of the models to blend; choose another --out")
    model = _common_model(start, end)
    first, last = (_state_like(model, trained.model) for trained in (start, end))
    judged = end.settings.eval.model_copy(update={"retrieval": False, "few_shot": None})
    settings = end.settings.model_copy(update={"eval": judged})
    chosen, opened, sets = open_measured(end, release, split)
    of_sets = [item.group for item, opened_set in zip(settings.eval.sets, sets, strict=True)
               if item.group is not None and opened_set.kind == "classification"]  # fmt: skip
    domains = list[str]()
    if chosen is not None:
        loader.check_shards(opened, chosen)
        pool = open_pool(opened, chosen)
        with_loss = groups_with_loss(pool, loader.split_rows(pool)) if open_judge(model, pool, settings)[0] else {}
        with_task = {task.domain for task in settings.eval.zero_shot}
        domains = [name for name in pool.domains if name in with_loss or name in with_task]
    groups = _choose_groups(expert, general, list(dict.fromkeys(of_sets)), domains)
    identity = {
        "start": Encoder(start).fingerprint, "end": Encoder(end).fingerprint, "groups": groups,
        "releases": [source.fingerprint for source in opened], "split": chosen,
        "sets": [eval_set.fingerprint() for eval_set in sets], "measures": _measures(settings),
    }  # fmt: skip
    table: dict[str, Any] = {
        "made_by": MADE_BY, "start": start.source, "end": end.source, "rule": RULE, "groups": groups,
        "releases": [source.name for source in opened], "split": chosen, "identity": identity,
        "notes": [f"{m.source}: {note}" for m in (start, end) for note in seen_in_training(m, opened, chosen)],
    }  # fmt: skip
    for note in table["notes"]:
        say(note)
    model = model.to(evaluation_device(settings)).eval()
    with lock_folder(folder):
        measured = _rows_before(folder / TABLE_FILE, identity, say)
        rows: list[Row] = []
        for alpha in alphas:
            if alpha not in measured:
                model.load_state_dict(blended_state(first, last, alpha))
                result = measure(model, settings, opened, chosen, sets)
                figures = {side: _figure(result, name, feature_kinds(model)[-1]) for side, name in groups.items()}
                measured[alpha] = Row(alpha, **figures, score=math.sqrt(math.prod(map(_gain, figures.values()))))
                kept = [vars(measured[each]) for each in sorted(measured)]
                storage.publish_json(folder / TABLE_FILE, table | {"alpha": None, "rows": kept})
            rows.append(measured[alpha])
            say(_line(rows[-1], groups))
        best = max(rows, key=lambda row: (row.score, -row.alpha))
        model.load_state_dict(blended_state(first, last, best.alpha))
        code = export_hugging_face(model.cpu(), folder, end.settings.loss)
        title = f"alpha from 0, START, to 1, END; chosen: {best.alpha:g}"
        panel = Panel(title, functools.partial(_draw, rows, best, groups), "", 5.2, 4.2, 0.85)
        storage.write_file(str(folder / PLOT_FILE), draw_png([panel]))
        storage.publish_json(folder / TABLE_FILE, table | {"alpha": best.alpha, "rows": [vars(row) for row in rows]})
    return best, code


def _measures(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that a figure depends on. The place and name of a set are not among them."""
    values = settings.model_dump(mode="json", include={"eval", "loss"})
    for item in values["eval"]["sets"]:
        del item["path"], item["name"], item["split"]
    for task in values["eval"]["zero_shot"]:
        if (within := task.pop("within")) is not None:
            task["within"] = names_within(within)[1]
    return values


def _rows_before(path: Path, identity: dict[str, Any], say: Callable[[str], None]) -> dict[float, Row]:
    """Return the rows of an earlier call that measured the same; none where something differs, which is said."""
    if not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    before = table.get("identity") or {}
    if changed := [key for key, value in identity.items() if before.get(key) != value]:
        say(f"{path}: measured with other {', '.join(changed)}; all alphas are measured anew")
        return {}
    rows = {row["alpha"]: Row(**row) for row in table["rows"]}
    say(f"{len(rows)} alphas were measured before")
    return rows


def blended_state(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end of every tensor, in its own type; at 0 and 1 the very weights. Counts are END's."""
    if alpha in (0.0, 1.0):
        return dict(end if alpha else start)
    return {
        name: torch.lerp(start[name].double(), tensor.double(), alpha).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in end.items()
    }


def _common_model(start: TrainedModel, end: TrainedModel) -> DalipModel:
    """Return a model of the architecture that both have.

    Raises: ConfigError, in one line, where they differ.
    """
    names = f"{start.source} and {end.source} cannot be blended"
    ours, theirs = (trained.model for trained in (end, start))
    before, after = (forward_settings(architecture_config(model.settings.architecture)) for model in (theirs, ours))
    if changes := differences(before, after):
        raise ConfigError(f"{names}, they are different architectures: {'; '.join(changes[:3])}")
    before, after = (json.loads(json.dumps(m.clip.visual.preprocess_cfg)) | {"size": None} for m in (theirs, ours))
    if changes := differences(before, after):
        raise ConfigError(f"{names}, they prepare pictures differently: {'; '.join(changes[:3])}")
    if theirs.projectors and list(theirs.projectors) != list(ours.projectors):
        kinds = " and ".join(", ".join(model.settings.projectors) or "none" for model in (theirs, ours))
        raise ConfigError(f"{names}, their model.projectors differ: {kinds}")
    if theirs.second_order is None and ours.second_order is not None:
        plain = ours.settings.model_copy(update={"preset": "clip", "second_order": SecondOrderSettings()})
        whole, ours = ours, DalipModel(ours.clip, plain)
        ours.projectors, ours.terms = whole.projectors, whole.terms
    elif theirs.second_order != ours.second_order:
        raise ConfigError(f"{names}, their second-order branches differ: {theirs.second_order} and {ours.second_order}")
    shapes = [{name: list(tensor.shape) for name, tensor in _state_like(ours, m).items()} for m in (theirs, ours)]
    if different := [name for name in shapes[1] if shapes[0].get(name) != shapes[1][name]]:
        name = different[0]
        raise ConfigError(
            f"{names}, {len(different)} of {len(shapes[1])} tensors have other shapes; first: {name}, "
            f"{shapes[0].get(name, 'absent')} and {shapes[1][name]}"
        )
    return ours


def _state_like(model: DalipModel, source: DalipModel) -> dict[str, Tensor]:
    """Return the tensors of `source` that `model` has.

    A projection of a kind of text that it lacks is the identity, a term of a loss that of `model`.
    """
    state = {f"projectors.{kind}": torch.eye(len(matrix)) for kind, matrix in model.projectors.items()}
    state |= {f"terms.{name}": value for name, value in model.terms.items()} | source.state_dict()
    return {name: state[name].detach().cpu().clone() for name in model.state_dict() if name in state}


def _choose_groups(expert: str | None, general: str | None, of_sets: list[str], domains: list[str]) -> dict[str, str]:
    """Return the groups that were named.

    Else the two groups of sets, or the two domains, one of which is called general.

    Raises: ConfigError for names that are neither, and where they have to be given.
    """
    there = [*of_sets, *domains]
    if expert is not None and general is not None:
        if unknown := [name for name in (expert, general) if name not in there]:
            raise ConfigError(
                f"'{unknown[0]}' is neither a group of eval.sets nor a domain of the split that can be judged (by a "
                f"zero-shot task of its own, or the loss of two pairs or more); there are {', '.join(there) or 'none'}"
            )
        return {"expert": expert, "general": general}
    for names in (of_sets, domains):
        if len(names) == 2 and "general" in names and expert is general is None:
            return {"expert": next(name for name in names if name != "general"), "general": "general"}
    raise ConfigError(f"name both groups, --expert and --general; there are {', '.join(there) or 'none'}")


def _figure(result: dict[str, Any], name: str, kind: str) -> Figure:
    """Return the measure of a group.

    Zero-shot accuracy of its sets, else of the tasks of that domain, else its loss.
    """
    tasks = [task["figures"][kind]["top1"] for task in result.get("zero_shot", ()) if task["domain"] == name]
    if name in result["groups"] or tasks:
        figure = result["groups"][name][kind] if name in result["groups"] else mean_figure(tasks)
        return {**figure, "what": "zero-shot top1"}
    return {**result["validation_loss"][name], "what": "validation loss"}


def _gain(figure: Figure) -> float:
    return 1 / max(figure["value"], _LEAST_LOSS) if figure["what"] == "validation loss" else float(figure["value"])


def _line(row: Row, groups: Mapping[str, str]) -> str:
    parts = [f"alpha {row.alpha:.2f}"]
    for side, name in groups.items():
        figure = getattr(row, side)
        parts.append(f"{name} {figure['what']} {figure['value']:{'.4f' if 'loss' in figure['what'] else '.1%'}}")
    return "  ".join(parts)


def _draw(rows: Sequence[Row], best: Row, groups: Mapping[str, str], axis: Any) -> None:
    """Draw the general group to the right, the expert one up, losses reversed, so that better lies outside.

    The chosen alpha has a ring, and the 95 % intervals of both figures.
    """
    labels = (
        (best.general, groups["general"], axis.set_xlabel, axis.invert_xaxis),
        (best.expert, groups["expert"], axis.set_ylabel, axis.invert_yaxis),
    )
    x_scale, y_scale = (1 if "loss" in figure["what"] else 100 for figure, *_ in labels)
    points = [(row.general["value"] * x_scale, row.expert["value"] * y_scale) for row in rows]
    axis.plot(*zip(*points, strict=True), "-o", color=SERIES[0], markersize=4)
    for row, point in zip(rows, points, strict=True):
        axis.annotate(f"{row.alpha:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK)
    x, y = points[rows.index(best)]
    axis.plot(x, y, "o", color=WARN, markersize=9, fillstyle="none")
    axis.hlines(y, best.general["low"] * x_scale, best.general["high"] * x_scale, color=WARN, linewidth=1)
    axis.vlines(x, best.expert["low"] * y_scale, best.expert["high"] * y_scale, color=WARN, linewidth=1)
    for figure, name, set_label, invert in labels:
        set_label(f"{name}: {figure['what']}" + ("" if "loss" in figure["what"] else ", %"))
        if "loss" in figure["what"]:
            invert()


def _is_own(table: bytes) -> bool:
    return json_object(table).get("made_by") == MADE_BY


def refuse_over_blend(folder: str) -> None:
    """Raise ConfigError where a blend lies: its table would speak of weights that are gone."""
    if (table := Path(folder) / TABLE_FILE).exists():
        raise ConfigError(f"{table}: `dalip blend` wrote the model of this folder; choose another TARGET")
