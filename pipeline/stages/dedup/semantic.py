"""The steps of dedup that find semantic duplicates: embed every image once, cluster, compare within clusters.

Off unless the config has `dedup.semantic`. Reads facts, and pictures of the pool through an open_clip model. Writes
`embeddings`, one row for each distinct picture, and `semantic_pairs`. A picture is embedded once for a model and its
weights, by whichever build comes first. Another threshold only compares again. Pictures that are no longer part of the
build are ignored. The last bits of an embedding may depend on the machine, so releases have equal bytes only where
they come from the same embeddings.

This file also holds the inputs of all steps of dedup.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.records import PartRecord
from manifests.services.packages import require
from pipeline import config
from pipeline.config import EvaluationSet, SemanticSettings
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, StageRun, Step
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.judging.matching.semantic import ASSIGN_ROWS, Vectors, assign, close_pairs, train_centroids, unit
from pipeline.scoring.clip import ClipScorer
from pipeline.stages.score import named_file
from pipeline.store.files import Files, Named, RowGroup
from pipeline.store.pool import STORED_COLUMNS, PoolReader
from pipeline.store.sql import cut_rows, view_parquet, view_table

PART_ROWS = 2_000
SAMPLES_PER_CLUSTER = 256  # at most; k-means learns a cluster from them
EMBEDDINGS = pa.schema([("pixels_sha256", pa.string()), ("embedding", pa.binary())])  # float16, length 1
CENTROIDS = pa.schema([("centroid", pa.binary())])  # float32


@dataclass(frozen=True)
class SetInputs:
    """One evaluation set: its settings, and hashes of all that its images depend on."""

    settings: EvaluationSet
    content: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Return the values that leaks depend on. `unreadable` is left out: it only decides whether a build stops."""
        return {
            **self.settings.identity(),
            "inputs": list(self.content),
            "radius": self.settings.radius,
            "mirrored": True,
            "match_names": self.settings.match_names,
        }


@dataclass(frozen=True)
class SemanticInputs:
    """Model and thresholds of semantic duplicates; model and weights count by the content of their files."""

    model: Named
    weights: Named
    threshold: float
    images_per_cluster: int
    seed: int


@dataclass(frozen=True)
class DedupInputs:
    """All that dedup reads. `candidates` count only when an evaluation set is matched by names."""

    facts: Files
    candidates: Files
    radius: int
    placeholder_min_count: int
    evaluation: tuple[SetInputs, ...]
    image: ImageSettings | None
    semantic: SemanticInputs | None
    num_images: int


def check_semantic(settings: SemanticSettings) -> None:
    """Check, before any work, that the model and the library can be loaded.

    Raises: ConfigError.
    """
    _scorer(settings.model, settings.pretrained, settings.device).check()
    require("dedup.semantic", "sklearn")


def _scorer(model: str, weights: str, device: str) -> ClipScorer:
    return ClipScorer(model, weights, device=device, where="dedup.semantic")


@lru_cache(maxsize=1)
def _loaded(model: str, weights: str, device: str) -> ClipScorer:
    scorer = _scorer(model, weights, device)
    scorer.load()
    return scorer


def inputs_of(context: BuildContext) -> SemanticInputs | None:
    """Return the inputs of semantic duplicates; None while they are off."""
    settings = context.config.dedup.semantic
    if settings is None:
        return None
    return SemanticInputs(
        named_file(context, settings.model),
        named_file(context, settings.pretrained),
        settings.threshold,
        config.IMAGES_PER_CLUSTER,
        config.CLUSTER_SEED,
    )


# ---- embeddings


def embed(
    _: Inputs, run: Execution[SemanticSettings | None], rows: RowGroup, model: Named, weights: Named
) -> PartResult:
    """Embeddings of one row group of distinct pictures; `run.how` names device and batch size."""
    from manifests.pictures.opening import open_stored

    assert run.how is not None
    scorer = _loaded(model.value, weights.value, run.how.device)
    pictures = rows.read().to_pylist()
    embeddings: list[bytes] = []
    with PoolReader(run.workdir) as pool:
        for start in range(0, len(pictures), run.how.batch_size):
            some = pictures[start : start + run.how.batch_size]
            images = [open_stored(stored) for stored in pool.read_rows(some)]
            images += [images[-1]] * (run.how.batch_size - len(some))  # kernels sum by the shape, see score_batch
            embeddings += [vector.tobytes() for vector in scorer.embed(images)[: len(some)].astype(np.float16)]
    table = pa.table(
        {"pixels_sha256": [row["pixels_sha256"] for row in pictures], "embedding": embeddings}, schema=EMBEDDINGS
    )
    return PartResult((run.write("embeddings", table),))


def _plan_embed(inputs: DedupInputs, run: StageRun[SemanticSettings | None]) -> list[Part[dict[str, Any]]]:
    """Distinct pictures that no part of this model has embedded."""
    semantic = inputs.semantic
    if semantic is None:
        return []
    with run.scratch() as sql:
        view_parquet(sql, "facts", inputs.facts.paths)
        view_table(sql, "embeddings", run.files_of(_embedded(inputs, run), "embeddings"), EMBEDDINGS)
        groups = cut_rows(
            sql,
            f"FROM (SELECT DISTINCT ON (pixels_sha256) pixels_sha256, {STORED_COLUMNS} FROM facts "
            "WHERE outcome = 'ok' ORDER BY pixels_sha256, sample_id) ANTI JOIN embeddings USING (pixels_sha256)",
            "pixels_sha256",
            "pixels_sha256",
            run.scratch_file("embed-todo.parquet"),
            PART_ROWS,
        )
    reuse = (semantic.model, semantic.weights)
    return [Part({"rows": rows}, reuse, num_rows) for rows, num_rows in groups]


def _embedded(inputs: DedupInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    if inputs.semantic is None:
        return []
    return run.made_of("embed", (inputs.semantic.model, inputs.semantic.weights))


def _vectors(embeddings: pa.ChunkedArray | pa.Array) -> Vectors:
    held = embeddings.to_pylist()
    return unit(np.frombuffer(b"".join(held), np.float16).reshape(len(held), -1))


_ALIVE = "SELECT DISTINCT pixels_sha256 FROM facts WHERE outcome = 'ok'"


# ---- clusters


def cluster(inputs: Inputs, run: Execution[None], images_per_cluster: int, seed: int) -> PartResult:
    """Learn centroids from an even sample of the pictures of this build, sorted by the hash of their pixels."""
    with run.views(inputs) as sql:
        sql.execute(
            f"CREATE TABLE alive AS SELECT *, row_number() OVER (ORDER BY pixels_sha256) AS place FROM ({_ALIVE})"
        )
        ((num_images,),) = sql.execute("SELECT count(*) FROM alive").fetchall()
        num_clusters = max(1, num_images // images_per_cluster)
        step = max(1, num_images // (num_clusters * SAMPLES_PER_CLUSTER))
        sample = sql.sql(
            "SELECT embedding FROM embeddings JOIN alive USING (pixels_sha256) "
            f"WHERE place % {step} = 0 ORDER BY pixels_sha256"
        ).to_arrow_table()
    centroids = train_centroids(_vectors(sample["embedding"]), num_clusters, seed)
    table = pa.table({"centroid": [row.tobytes() for row in centroids]}, schema=CENTROIDS)
    file = run.write("centroids", table)
    return PartResult((file,), None, {"num_clusters": len(centroids), "num_values": num_images * centroids.shape[1]})


# ---- pairs


def compare(inputs: Inputs, run: Execution[None], first: int, last: int, threshold: float) -> PartResult:
    """Pairs within the clusters `first` to `last` - 1. The two of a pair are sorted by the hash of their pixels."""
    held = pq.read_table(inputs["centroids"].path)["centroid"].to_pylist()
    centroids = np.frombuffer(b"".join(held), np.float32).reshape(len(held), -1)
    with run.scratch() as sql:
        inputs.view(sql, "facts")
        alive = frozenset(row[0] for row in sql.execute(_ALIVE).fetchall())
    names: list[str] = []
    kept: list[Vectors] = [np.empty((0, centroids.shape[1]), np.float32)]
    labels: list[Any] = [np.empty(0, np.int32)]
    for file in inputs["embeddings"].paths:
        for batch in pq.ParquetFile(file).iter_batches(ASSIGN_ROWS):
            vectors = _vectors(batch["embedding"])
            label = assign(vectors, centroids)
            some = batch["pixels_sha256"].to_pylist()
            mine = (label >= first) & (label < last) & np.array([name in alive for name in some])
            here = np.flatnonzero(mine)
            names += [some[index] for index in here.tolist()]
            kept.append(vectors[here])
            labels.append(label[here])
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[index] for index in order]
    writer = run.writer("semantic_pairs")
    pairs: list[tuple[str, str, float]] = []
    for i, j, cosine in close_pairs(np.concatenate(kept)[order], np.concatenate(labels)[order], threshold):
        pairs += [
            (min(names[a], names[b]), max(names[a], names[b]), float(value))
            for a, b, value in zip(i.tolist(), j.tolist(), cosine.tolist(), strict=True)
        ]
    columns = [list(column) for column in zip(*sorted(pairs), strict=True)] or [[], [], []]
    writer.write(pa.table(columns, names=tables.SEMANTIC_PAIRS.names).cast(tables.SEMANTIC_PAIRS))
    return PartResult((writer.close(),), None, {"num_images": len(names)})


def _plan_compare(inputs: DedupInputs, run: StageRun[None]) -> list[dict[str, Any]]:
    clustered = run.parts("cluster")
    if inputs.semantic is None or not clustered:
        return []
    (part,) = clustered
    num_clusters = part.notes["num_clusters"]
    num_bytes = 8 * part.notes["num_values"]  # float32, and room to work in
    num_parts = min(num_clusters, max(1, round(num_bytes / (run.settings.memory_gb * 5e8))))
    borders = [num_clusters * number // num_parts for number in range(num_parts + 1)]
    return [{"first": first, "last": last} for first, last in itertools.pairwise(borders)]


EMBED = Step(
    "embed",
    embed,
    gives=("embeddings",),
    plan=_plan_embed,
    how=lambda context: context.config.dedup.semantic,
    unit="images",
    committed=_embedded,
)
CLUSTER: Step[DedupInputs, None] = Step(
    "cluster",
    cluster,
    version=2,
    reads=("facts", "embeddings"),
    gives=("centroids",),
    plan=lambda inputs, _: [{}] if inputs.semantic and inputs.num_images else [],
)
COMPARE = Step(
    "compare",
    compare,
    version=2,
    reads=("facts", "embeddings", "centroids"),
    gives=("semantic_pairs",),
    plan=_plan_compare,
)
