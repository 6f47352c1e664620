"""The steps of dedup that find semantic duplicates: embed every image once, cluster, compare within clusters.

Off unless the config says `dedup.semantic`. Reads facts and the pool through an open_clip model. Writes `embeddings`
(one row a distinct picture, stored once for model and weights, whichever build asks) and `semantic_pairs`. A picture
already embedded is not embedded again; another threshold compares again. Embeddings are floating-point: their last bits
may depend on machine and history, so byte-identity of releases holds for the same embeddings.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage, tables
from manifests.errors import ConfigError
from manifests.records import PartRecord, fingerprint
from pipeline.config import SemanticSettings
from pipeline.matching.semantic import Vectors, assign, close_pairs, train_centroids, unit
from pipeline.runner.work import BuildContext, Part, PartResult, Step
from pipeline.scoring.clip import ClipScorer
from pipeline.stages.score import content_of
from pipeline.store.pool import PoolReader
from pipeline.store.sql import open_scratch, view_parquet
from pipeline.store.writing import TableWriter, write_groups, write_table

VERSION = 1
PART_ROWS = 2_000
SAMPLES_PER_CLUSTER = 256  # of which k-means learns a cluster, at most
EMBEDDINGS = pa.schema([("pixels_sha256", pa.string()), ("embedding", pa.binary())])  # float16, length 1
_CENTROIDS = pa.schema([("centroid", pa.binary())])  # float32


def check_semantic(settings: SemanticSettings) -> None:
    """Make sure that model and library can be had, before any work.

    Raises: ConfigError.
    """
    _scorer(settings).check()
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "dedup.semantic: scikit-learn is not installed; pip install 'plantmix[semantic]' or take it out"
        )


def _scorer(settings: SemanticSettings) -> ClipScorer:
    return ClipScorer(settings.model, settings.pretrained, device=settings.device, where="dedup.semantic")


@lru_cache(maxsize=1)
def _loaded(settings: SemanticSettings) -> ClipScorer:
    scorer = _scorer(settings)
    scorer.load()
    return scorer


def embed(payload: dict[str, Any]) -> PartResult:
    """Embeddings of one row group of pictures."""
    from PIL import Image

    settings: SemanticSettings = payload["settings"]
    scorer = _loaded(settings)
    rows = pq.ParquetFile(payload["todo"]).read_row_group(payload["row_group"]).to_pylist()
    found: list[bytes] = []
    with PoolReader(payload["workdir"]) as pool:
        for start in range(0, len(rows), settings.batch_size):
            some = rows[start : start + settings.batch_size]
            images = [Image.open(io.BytesIO(pool.read(r["pool_file"], r["offset"], r["length"]))) for r in some]
            found += [vector.tobytes() for vector in scorer.embed(images).astype(np.float16)]
    table = pa.table({"pixels_sha256": [row["pixels_sha256"] for row in rows], "embedding": found}, schema=EMBEDDINGS)
    path = f"tables/dedup/embeddings-{payload['stem']}.parquet"
    return PartResult((write_table(payload["workdir"], "embeddings", path, table, EMBEDDINGS),))


def _plan_embed(context: BuildContext) -> Sequence[Part]:
    """Distinct pictures that no part of this model has embedded."""
    settings = context.config.dedup.semantic
    if settings is None:
        return []
    done = [path for part in _embedded(context) for path in context.paths(part, "embeddings")]
    folder = storage.join(context.workdir, "scratch")
    storage.make_folder(folder)
    todo = storage.join(folder, "embed-todo.parquet")
    with open_scratch(context.execution()) as sql:
        view_parquet(sql, "facts", context.files("fetch", "facts"))
        if done:
            view_parquet(sql, "embeddings", done)
        else:
            sql.register("embeddings", EMBEDDINGS.empty_table())
        sql.execute(
            "CREATE TABLE todo AS SELECT *, row_number() OVER (ORDER BY pixels_sha256) - 1 AS place FROM ("
            'SELECT DISTINCT ON (pixels_sha256) pixels_sha256, pool_file, "offset", length FROM facts '
            "WHERE outcome = 'ok' ORDER BY pixels_sha256, sample_id) ANTI JOIN embeddings USING (pixels_sha256)"
        )
        keys = sql.execute(
            f"SELECT place // {PART_ROWS}, count(*), to_hex(bit_xor(md5_number(pixels_sha256))) FROM todo "
            "GROUP BY 1 ORDER BY 1"
        ).fetchall()
        reader = sql.sql("SELECT * EXCLUDE (place) FROM todo ORDER BY place").to_arrow_reader(PART_ROWS)
        write_groups(todo, reader, PART_ROWS)
    recipe = _recipe(context)
    parts = []
    for row_group, num_rows, rows_key in keys:
        key = fingerprint({"recipe": recipe, "rows": rows_key, "num_rows": num_rows})
        payload = {
            "todo": todo,
            "row_group": row_group,
            "settings": settings,
            "stem": key[:16],
            **context.execution(),
        }
        parts.append(Part(key, payload, recipe, num_rows))
    return parts


def _recipe(context: BuildContext) -> str:
    settings = context.config.dedup.semantic
    assert settings is not None
    named = {"model": content_of(context, settings.model), "weights": content_of(context, settings.pretrained)}
    return fingerprint({"semantic": VERSION, **named})


def _embedded(context: BuildContext) -> Sequence[PartRecord]:
    if context.config.dedup.semantic is None:
        return []
    return list(context.catalog.parts_like("dedup", "embed", _recipe(context)))


def _read(files: Sequence[str], alive: frozenset[str] | None = None) -> Iterator[tuple[list[str], Vectors]]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(PART_ROWS):
            names = batch["pixels_sha256"].to_pylist()
            vectors = np.frombuffer(b"".join(batch["embedding"].to_pylist()), np.float16).reshape(len(names), -1)
            if alive is not None:
                here = [place for place, name in enumerate(names) if name in alive]
                names, vectors = [names[place] for place in here], vectors[here]
            yield names, unit(vectors)


def cluster(payload: dict[str, Any]) -> PartResult:
    """Centroids learnt from an even sample of all embeddings."""
    num = payload["num_images"]
    num_clusters = max(1, num // payload["images_per_cluster"])
    step = max(1, num // (num_clusters * SAMPLES_PER_CLUSTER))
    sample = np.concatenate([vectors[::step] for _, vectors in _read(payload["embeddings"])])
    centroids = train_centroids(sample, num_clusters, payload["seed"])
    table = pa.table({"centroid": [row.tobytes() for row in centroids]}, schema=_CENTROIDS)
    path = f"tables/dedup/centroids-{payload['stem']}.parquet"
    return PartResult(
        (write_table(payload["workdir"], "centroids", path, table, _CENTROIDS),), None, {"num_clusters": len(centroids)}
    )


def _plan_cluster(context: BuildContext) -> Sequence[Part]:
    settings = context.config.dedup.semantic
    files = [file for part in context.own_parts("embed") for file in part.files]
    if settings is None or not files:
        return []
    identity = {
        "version": VERSION,
        "embeddings": [file.sha256 for file in files],
        "images_per_cluster": settings.images_per_cluster,
        "seed": settings.seed,
    }
    key = fingerprint(identity)
    payload = {
        "embeddings": context.own_files("embed", "embeddings"),
        "num_images": sum(file.num_rows for file in files),
        "images_per_cluster": settings.images_per_cluster,
        "seed": settings.seed,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def compare(payload: dict[str, Any]) -> PartResult:
    """Pairs within a range of clusters."""
    first, last = payload["clusters"]
    held = pq.read_table(payload["centroids"])["centroid"].to_pylist()
    centroids = np.frombuffer(b"".join(held), np.float32).reshape(len(held), -1)
    names: list[str] = []
    kept: list[Vectors] = [np.empty((0, centroids.shape[1]), np.float32)]
    labels: list[Any] = [np.empty(0, np.int32)]
    with open_scratch(payload) as sql:
        view_parquet(sql, "facts", payload["facts"])
        rows = sql.execute("SELECT DISTINCT pixels_sha256 FROM facts WHERE outcome = 'ok'").fetchall()
    alive = frozenset(row[0] for row in rows)
    for some, vectors in _read(payload["embeddings"], alive):
        label = assign(vectors, centroids)
        here = np.flatnonzero((label >= first) & (label < last))
        names += [some[place] for place in here.tolist()]
        kept.append(vectors[here])
        labels.append(label[here])
    path = f"tables/dedup/semantic-{payload['stem']}.parquet"
    writer = TableWriter(payload["workdir"], "semantic_pairs", path, tables.SEMANTIC_PAIRS)
    found: list[tuple[str, str, float]] = []
    for i, j, cosine in close_pairs(np.concatenate(kept), np.concatenate(labels), payload["threshold"]):
        found += [
            (min(names[a], names[b]), max(names[a], names[b]), float(value))
            for a, b, value in zip(i.tolist(), j.tolist(), cosine.tolist(), strict=True)
        ]
    columns = [list(column) for column in zip(*sorted(found), strict=True)] or [[], [], []]
    writer.write(pa.table(columns, names=tables.SEMANTIC_PAIRS.names).cast(tables.SEMANTIC_PAIRS))
    return PartResult((writer.close(),), None, {"num_images": len(names)})


def _plan_compare(context: BuildContext) -> Sequence[Part]:
    settings = context.config.dedup.semantic
    clustered = context.own_parts("cluster")
    if settings is None or not clustered:
        return []
    (centred,) = clustered
    num_clusters = centred.notes["num_clusters"]
    embeddings = [file for part in context.own_parts("embed") for file in part.files]
    num_bytes = 4 * sum(file.num_bytes for file in embeddings)  # float32 in place of float16, and room to work in
    num_parts = min(num_clusters, max(1, round(num_bytes / (context.config.run.memory_gb * 5e8))))
    borders = [num_clusters * number // num_parts for number in range(num_parts + 1)]
    parts = []
    for clusters in itertools.pairwise(borders):
        identity = {"threshold": settings.threshold, "centroids": centred.key, "clusters": clusters}
        key = fingerprint({**identity, "facts": context.sealed["fetch"].notes["content"]})
        payload = {
            "facts": context.files("fetch", "facts"),
            "embeddings": context.own_files("embed", "embeddings"),
            "centroids": context.own_files("cluster", "centroids")[0],
            "clusters": clusters,
            "threshold": settings.threshold,
            "stem": key[:16],
            **context.execution(),
        }
        parts.append(Part(key, payload))
    return parts


def identity(context: BuildContext) -> dict[str, Any]:
    """What semantic pairs depend on beside the facts; nothing while they are off."""
    settings = context.config.dedup.semantic
    if settings is None:
        return {}
    named = {name: getattr(settings, name) for name in ("threshold", "images_per_cluster", "seed")}
    return {"semantic": {**named, "recipe": _recipe(context)}}


EMBED = Step("embed", _plan_embed, embed, "images", committed=_embedded)
CLUSTER = Step("cluster", _plan_cluster, cluster)
COMPARE = Step("compare", _plan_compare, compare)
