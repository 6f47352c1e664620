"""Answers of a model for each picture of evaluation sets: the rows that `dalip table` compares.

Kept as one Parquet file a model, so that nothing is computed twice and others can be sent it. A set's protocol is the
hash of its pictures, its answers, and the prompts of its classes: figures of two protocols are not compared. Gives up
with ConfigError on a file of something else, and with RunError on a broken picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from manifests.errors import ConfigError
from manifests.stores.storage import publish, temp_path
from training.config import EvalSetSettings
from training.evaluation import metrics
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import encode_pictures, evaluation_device
from training.evaluation.outside_sets import class_prompts, class_similarities
from training.evaluation.set_layouts import EvalSet
from training.evaluation.trained_model import TrainedModel

_MODEL_KEY = b"dalip-answers"
_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("protocol", pa.string()),
        ("picture", pa.string()),  # its name in the set
        ("class", pa.int32()),  # the number of the right one
        ("answer", pa.int32()),
        ("hit", pa.float64()),  # among t tied answers a right one counts 1 / t
    ]
)


class Answers(NamedTuple):
    """Answers of one model on one set, in the order of the pictures."""

    protocol: str
    pictures: list[str]
    classes: NDArray[np.int32]
    answers: NDArray[np.int32]
    hits: NDArray[np.float64]


def protocol_of(item: EvalSetSettings, eval_set: EvalSet) -> str:
    """Twelve hex digits of the pictures, the right classes, and every prompt of every class."""
    names, templates = class_prompts(item, eval_set)
    digest = hashlib.sha256(eval_set.fingerprint().encode())
    for name in names:
        digest.update(repr([template(name) for template in templates]).encode())
    return digest.hexdigest()[:12]


def answers_of(
    trained: TrainedModel, sets: Mapping[str, tuple[EvalSetSettings, EvalSet, str]], path: Path
) -> dict[str, Answers]:
    """Return the answers of a model on sets with their protocols, by the model's best features: f, or f and z together.

    What the file holds of the same model and protocol is taken from there; the file is written anew after each set.

    Raises: RunError for a broken picture or features that are not finite.
    """
    fingerprint = Encoder(trained).fingerprint
    model = trained.model.to(evaluation_device(trained.settings))
    known = read_answers(path) if path.exists() else ("", dict[str, Answers]())
    kept, answers = known[1] if known[0] == fingerprint else {}, dict[str, Answers]()
    for name, (item, eval_set, protocol) in sets.items():
        if name in kept and kept[name].protocol == protocol:
            answers[name] = kept[name]
            continue
        where = f"eval.sets '{name}'"
        images = encode_pictures(model, eval_set.items, trained.settings, where)
        similarities = class_similarities(model, images, *class_prompts(item, eval_set), trained.settings, where)
        similarity_NK = list(similarities.values())[-1]
        labels_N = torch.tensor(eval_set.labels)
        right_NK = labels_N[:, None] == torch.arange(similarity_NK.shape[1])
        answers[name] = Answers(
            protocol,
            [picture.name for picture in eval_set.items],
            labels_N.numpy().astype(np.int32),
            similarity_NK.argmax(1).numpy().astype(np.int32),
            metrics.places_of(similarity_NK, right_NK).hits(1).numpy(),
        )
        _write(path, fingerprint, kept | answers)
    return answers


def read_answers(path: Path) -> tuple[str, dict[str, Answers]]:
    """Return the fingerprint of the model, and its answers by set.

    Raises: ConfigError for a file that `dalip table` did not write.
    """
    try:
        table = pq.read_table(path)
        if table.schema.remove_metadata() != _SCHEMA or _MODEL_KEY not in (table.schema.metadata or {}):
            raise ValueError
    except (OSError, ValueError, pa.ArrowException):
        raise ConfigError(
            f"{path}: holds no answers of `dalip table`; name a model, or OUT/answers/NAME.parquet"
        ) from None
    found = {}
    for name in pc.unique(table["set"]).to_pylist():
        rows = table.filter(pc.equal(table["set"], name))
        columns = (rows[column].to_numpy() for column in ("class", "answer", "hit"))
        found[name] = Answers(rows["protocol"][0].as_py(), rows["picture"].to_pylist(), *columns)
    return table.schema.metadata[_MODEL_KEY].decode(), found


def _write(path: Path, fingerprint: str, answers: Mapping[str, Answers]) -> None:
    schema = _SCHEMA.with_metadata({_MODEL_KEY: fingerprint.encode()})
    tables = [
        pa.table([[name] * len(rows.hits), [rows.protocol] * len(rows.hits), *rows[1:]], schema=schema)
        for name, rows in answers.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(str(path))
    pq.write_table(pa.concat_tables([schema.empty_table(), *tables]), temp)
    publish(temp, str(path))
