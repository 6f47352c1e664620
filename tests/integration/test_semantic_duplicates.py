"""Semantic duplicates with a real open_clip model of random weights: embedded once, compared within clusters."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import photos_config
from running import do_part
from tiny_clip import MODEL, save_weights

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.errors import ConfigError
from manifests.stores import storage
from pipeline.answers.preflight import check_config
from pipeline.config import BuildConfig
from pipeline.engine.runner import Runner
from pipeline.flow import FLOW
from pipeline.judging.matching.semantic import assign, close_pairs, train_centroids, unit
from pipeline.stages.dedup.stage import STAGE
from pipeline.store.files import Named, RowGroup
from pipeline.store.pool import PoolWriter

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))


@pytest.mark.parametrize("num_clusters", [1, 5])
def test_pairs_equal_a_double_loop_within_clusters(num_clusters: int) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(np.repeat(rng.normal(size=(20, 16)), 60, axis=0) + 0.25 * rng.normal(size=(1200, 16)))
    labels = assign(vectors, train_centroids(vectors, num_clusters, 0))
    assert len(np.unique(labels)) == num_clusters
    found = set()
    for i, j, cosine in close_pairs(vectors, labels, 0.95):
        assert np.allclose(cosine, (vectors[i] * vectors[j]).sum(axis=1), atol=1e-6)
        found |= set(zip(np.minimum(i, j).tolist(), np.maximum(i, j).tolist(), strict=True))
    exact = np.where(labels[:, None] == labels, vectors.astype(float) @ vectors.T.astype(float), -1)
    surely, perhaps = (set(zip(*np.nonzero(np.triu(exact >= 0.95 + more, 1)), strict=True)) for more in (1e-6, -1e-6))
    assert surely <= found <= perhaps, "a float32 product may round a cosine to either side of the threshold"
    assert len(found) > 500


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights"))


def config_of(folder: Path, work: Path, weights: Path, **semantic: Any) -> BuildConfig:
    model = {"model": str(MODEL), "pretrained": str(weights)}
    return photos_config(folder, work, dedup={"semantic": {**model, **semantic}})


def build(config: BuildConfig) -> dict[str, int]:
    check_config(config)
    with Catalog.open(config.work_dir) as catalog:
        return dict(Runner(config, FLOW, catalog).run(last="select").stages["select"].funnel.reasons)


@pytest.mark.slow
def test_a_build_embeds_once_and_drops_what_is_close(tmp_path: Path, weights: Path) -> None:
    folder, work = tmp_path / "pictures", tmp_path / "work"
    folder.mkdir()
    for photo in PHOTOS[:8]:
        shutil.copy(photo, folder)
    build(config_of(folder, work, weights, threshold=0.9999))
    with open_reader(str(work)) as sql:
        files = sql.execute("SELECT path FROM files WHERE table_name = 'embeddings'").fetchall()
        rows = sql.execute(f"SELECT * FROM read_parquet('{work / files[0][0]}') ORDER BY 1").fetchall()
    vectors = unit(np.stack([np.frombuffer(row[1], np.float16) for row in rows]))
    cosine = vectors @ vectors.T
    *_, fourth, third, _, _ = np.sort(cosine[np.triu_indices(8, 1)]).tolist()
    assert third - fourth > 1e-5, "or rounding decides whether the fourth pair is close"
    threshold = (third + fourth) / 2  # three pairs are this close

    reasons = build(config_of(folder, work, weights, threshold=threshold))
    assert 1 <= reasons["semantic_duplicate"] <= 3
    with open_reader(str(work)) as sql:
        pairs = sql.execute("SELECT pixels_a, pixels_b FROM semantic_pairs").fetchall()
        told = sql.execute("SELECT value FROM decisions WHERE reason = 'semantic_duplicate'").fetchall()
    names = [row[0] for row in rows]
    close = {(names[i], names[j]) for i, j in itertools.combinations(range(8), 2) if cosine[i, j] >= threshold}
    assert set(pairs) == close
    assert all(value.startswith("cosine 0.9") for (value,) in told)

    shutil.copy(PHOTOS[8], folder)  # one more picture: one more embedding
    build(config_of(folder, work, weights, threshold=threshold))
    with open_reader(str(work)) as sql:
        sizes = sql.execute("SELECT num_rows FROM files WHERE table_name = 'embeddings' ORDER BY 1").fetchall()
    assert sizes == [(1,), (8,)]


def test_rows_of_a_part_are_read_out_of_a_store(tmp_path: Path, weights: Path) -> None:
    """On another machine of a cluster the list of pictures lies in the store alone."""
    body = PHOTOS[0].read_bytes()
    (tmp_path / "pool").mkdir()
    with PoolWriter(tmp_path / "pool" / "a.tar") as pool:
        pool.add("0" * 32, body)
        ((offset, length),) = pool.finish().values()
    sha256 = hashlib.sha256(body).hexdigest()
    stored = {"pool_file": "a.tar", "offset": offset, "length": length, "stored_sha256": sha256}
    todo = "memory://embed/todo.parquet"
    fs, inner = storage.filesystem(todo)
    with fs.open(inner, "wb") as stream:
        pq.write_table(pa.Table.from_pylist([{"pixels_sha256": "p", **stored}]), stream)
    how = config_of(tmp_path, tmp_path, weights).dedup.semantic
    of_model = {"model": Named(str(MODEL), "m"), "weights": Named(str(weights), "w")}
    (file,) = do_part(STAGE, "embed", tmp_path, how=how, rows=RowGroup(todo, 0, "c"), **of_model).files
    assert file.num_rows == 1


def test_a_model_that_cannot_be_had_is_named(tmp_path: Path, weights: Path) -> None:
    config = config_of(PHOTOS[0].parent, tmp_path / "work", weights, model="ViT-of-nowhere")
    with pytest.raises(ConfigError, match=r"dedup\.semantic\.model: open_clip knows no model 'ViT-of-nowhere'"):
        check_config(config)


@pytest.mark.slow
def test_pictures_that_left_teach_the_clusters_nothing(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that lost some pictures and got others knows what a clean build of the same pictures knows."""
    monkeypatch.setattr("pipeline.config.IMAGES_PER_CLUSTER", 3)
    folder = tmp_path / "pictures"
    for photos in (PHOTOS[:10], PHOTOS[4:]):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for photo in photos:
            shutil.copy(photo, folder)
        grown = config_of(folder, tmp_path / "grown", weights, threshold=0.9, batch_size=8)
        build(grown)
    build(grown.model_copy(update={"work_dir": str(tmp_path / "clean")}))
    assert learnt(tmp_path / "grown") == learnt(tmp_path / "clean")
    assert len(learnt(tmp_path / "clean")["centroids"]) > 2
    assert learnt(tmp_path / "clean")["semantic_pairs"]


def learnt(work: Path) -> dict[str, list[Any]]:
    """What the last build has of clusters, pairs and decisions."""
    with Catalog.open(str(work)) as catalog:
        ((dedup,),) = catalog._connection.execute(
            "SELECT fingerprint FROM current_stages WHERE stage = 'dedup'"
        ).fetchall()
        ((centroids,),) = [part.files for part in catalog.parts_of(dedup, "cluster")]
    with open_reader(str(work)) as sql:
        return {
            "centroids": sql.execute(f"FROM read_parquet('{work / centroids.path}')").fetchall(),
            "semantic_pairs": sql.execute("FROM semantic_pairs ORDER BY ALL").fetchall(),
            "decisions": sql.execute("FROM decisions ORDER BY sample_id").fetchall(),
        }
