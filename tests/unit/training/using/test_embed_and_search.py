"""`dalip embed`, `dalip index`, `dalip search` on a trained model, and the Python API that stands beside them."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import ROOT
from PIL import Image
from training_runs import run_once

from manifests.errors import ConfigError, IntegrityError, RunError
from training import api
from training.cli import main
from training.using.embed import METADATA_KEY
from training.using.index import SearchIndex, build_index


def _vectors(path: Path) -> np.ndarray:
    table = pq.read_table(path)
    kept = table.filter(pa.compute.is_null(table["error"]))["vector"]
    return np.array(kept.to_pylist(), np.float32)


def test_vectors_of_pictures_are_those_of_the_api(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "v.parquet"
    assert main(["embed", str(pictures), "--model", str(run_folder), "--out", str(out)]) == 0
    assert "16 rows, 4 of them with an error; 64 numbers each, features both" in capsys.readouterr().out
    table = pq.read_table(out).to_pylist()
    assert [row["vector"] is None for row in table] == [row["error"] is not None for row in table]
    model = api.load(run_folder, device="cpu")
    good = [row["name"] for row in table if row["error"] is None]
    np.testing.assert_allclose(_vectors(out), api.encode_images(model, [pictures / name for name in good]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(_vectors(out), axis=1), 1, atol=1e-5)


def test_the_api_takes_files_bytes_and_pictures(run_folder: Path, pictures: Path, tmp_path: Path) -> None:
    model = api.load(run_folder, device="cpu")
    file = pictures / "red" / "circle.jpg"
    vectors = api.encode_images(model, [file, str(file), file.read_bytes(), Image.open(io.BytesIO(file.read_bytes()))])
    assert vectors.shape == (4, 64)
    assert vectors.dtype == np.float32
    assert (vectors == vectors[0]).all()
    f, z = (api.encode_images(model, [file], features=kind) for kind in ("f", "z"))
    np.testing.assert_allclose(np.concatenate([f, z], axis=1) * 0.5**0.5, vectors[:1], atol=1e-6)
    with pytest.raises(RunError, match=r"picture 1 \(.*page.jpg\) cannot be read: not_an_image: HTML"):
        api.encode_images(model, [file, pictures / "page.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")  # nobody writes into it
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        with pytest.raises(RunError, match=rf"picture 0 \(.*{name}\) cannot be read: is no regular file"):
            api.encode_images(model, [tmp_path / name])
    unknown: Any = "y"
    with pytest.raises(ConfigError, match="has no features 'y'; it has f, z, both"):
        api.encode_texts(model, ["a"], features=unknown)
    assert api.encode_images(model, []).shape == (0, 64)
    ((best, second),) = api.predict(model, [file], ["red circle", "blue cross"], templates=["a {}"], top=2)
    assert best.label == "red circle"
    assert best.probability + second.probability == pytest.approx(1)


def test_a_run_and_its_export_have_one_fingerprint(run_folder: Path, tmp_path: Path) -> None:
    assert main(["export", str(run_folder), str(tmp_path / "hub"), "--format", "huggingface"]) == 0
    run, export = api.load(run_folder, device="cpu"), api.load(tmp_path / "hub", device="cpu")
    assert run.fingerprint == export.fingerprint
    changed = shutil.copytree(tmp_path / "hub", tmp_path / "changed")
    config = json.loads((changed / "dalip_config.json").read_text())
    config["loss"]["first_order_weight"] = 0.25
    (changed / "dalip_config.json").write_text(json.dumps(config))
    assert api.load(changed, device="cpu").fingerprint != run.fingerprint


def test_the_example_of_the_guide_runs(
    run_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    text = (ROOT / "configs/GUIDE.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "training.api" in code]
    assert len(block.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(run_folder)
    for name, source in (("rose.jpg", "red/circle.jpg"), ("oak.jpg", "green/cross.jpg")):
        shutil.copy(pictures / source, name)
    exec(compile(block, "configs/GUIDE.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "rose.jpg" in printed
    assert "(2, 64)" in printed


def test_a_release_is_searched_by_text_and_by_picture(
    run_folder: Path, release_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    release, out, index = release_folder / "releases" / "toy-0001", tmp_path / "v.parquet", tmp_path / "index"
    assert main(["embed", str(release), "--model", str(run_folder), "--out", str(out)]) == 0
    assert main(["index", str(out), "--out", str(index)]) == 0
    assert "143 vectors of 64 numbers" in capsys.readouterr().out
    category = {row["sample_id"]: json.loads(row["extra"])["category"]
                for row in pq.read_table(release / "samples.parquet").to_pylist()}  # fmt: skip
    asked = {"text": "a red square", "image": str(pictures / "red" / "square.jpg")}
    by_command = {}
    for name, value in asked.items():
        assert main(["search", str(index), f"--{name}", value, "--json", "--top", "5"]) == 0
        by_command[name] = json.loads(capsys.readouterr().out)
        hits = [category[hit["name"]] for hit in by_command[name]]
        assert sum("red" in hit for hit in hits) >= 3, "a quarter of the pictures is red"
        scores = [hit["score"] for hit in by_command[name]]
        assert scores == sorted(scores, reverse=True)
    assert main(["search", str(index), "--text", "a red square", "--top", "2"]) == 0
    best = by_command["text"][0]
    row = next(
        row for row in pq.read_table(release / "samples.parquet").to_pylist() if row["sample_id"] == best["name"]
    )
    place = str(release / ("heldout" if row["split"] == "heldout" else "shards") / row["shard"] / f"{row['key']}.jpg")
    assert (best["text"], best["url"], best["path"]) == (row["text"], row["url"], place)
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert said[:4] == [f"1  {best['score']:.4f}  {best['name']}", row["text"], row["url"], place]

    lines = [json.dumps({name: value}) for name, value in asked.items()]
    lines += ["nonsense", '{"sound": "x"}', json.dumps({"image": str(pictures / "page.jpg")})]
    lines += ['{"text": 5}', '{"image": null}', '{"text": ["a"]}', "[" * 5000, "\udcff", '{"text": "\\ud800"}']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        assert main(["search", str(index), "--serve", "--top", "5"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plain = [[{"name": hit["name"], "score": hit["score"]} for hit in hits] for hits in by_command.values()]
    assert [answer.get("hits") for answer in answers[:2]] == plain
    assert ["error" in answer for answer in answers] == [False, False, *[True] * 8, False]


def test_a_query_by_another_model_is_refused(
    config: dict[str, Any], run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    run_once(config, output_dir=str(tmp_path / "other"), schedule={"steps": 1})
    out, index = tmp_path / "v.parquet", tmp_path / "index"
    assert main(["embed", str(pictures), "--model", str(run_folder), "--out", str(out)]) == 0
    assert main(["index", str(out), "--out", str(index)]) == 0
    assert main(["search", str(index), "--text", "red", "--model", str(tmp_path / "other")]) == 2
    assert "its vectors are of the model" in capsys.readouterr().err
    second = tmp_path / "w.parquet"
    assert main(["embed", str(pictures), "--model", str(tmp_path / "other"), "--out", str(second)]) == 0
    assert main(["index", str(out), str(second), "--out", str(tmp_path / "both")]) == 2
    assert "an index is of one model" in capsys.readouterr().err


def _table(path: Path, vectors: np.ndarray, first: int = 0) -> None:
    width = vectors.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    names = pa.array([f"n{first + i}" for i in range(len(vectors))])
    table = pa.table({"name": names, "error": pa.nulls(len(vectors), pa.string()), "vector": values})
    known = {"model": "m", "features": "f", "width": width, "source": "nowhere"}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(known)}), path)


def test_every_vector_is_looked_at_and_a_damaged_index_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((3_020, 24)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    _table(tmp_path / "a.parquet", vectors[:2_000])
    _table(tmp_path / "b.parquet", vectors[2_000:3_000], first=2_000)
    tables = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert build_index(tables, str(tmp_path / "index"))["num_rows"] == 3_000
    index = SearchIndex.open(str(tmp_path / "index"))
    for query in vectors[3_000:]:
        scores = vectors[:3_000] @ query
        hits = index.search(query, 5)
        assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-3)
        assert hits[0].score == pytest.approx(scores[int(hits[0].name[1:])], abs=1e-3)
    assert len(index.search(vectors[0], 9_999)) == 3_000
    record = (tmp_path / "index" / "index.json").read_text()
    for content in ("[1]", "{}", "[]", '{"format": "dalip-index/1", "num_rows": 3000}', "{"):
        (tmp_path / "index" / "index.json").write_text(content)
        with pytest.raises(IntegrityError, match="make it anew"):
            SearchIndex.open(str(tmp_path / "index"))
    (tmp_path / "index" / "index.json").write_text(record)
    (tmp_path / "index" / "names.parquet").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="the index cannot be read"):
        SearchIndex.open(str(tmp_path / "index"))
    with pytest.raises(ConfigError, match="an index is made in a new local folder"):
        build_index(tables, str(tmp_path / "index"))
    with pytest.raises(ConfigError, match="no index here"):
        SearchIndex.open(str(tmp_path))
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="no table of vectors here"):
        build_index([str(tmp_path / "other.parquet")], str(tmp_path / "new"))


def test_a_vector_that_is_none_is_refused_and_names_of_another_index_are_met(tmp_path: Path) -> None:
    """A null shifted all names behind it; with NaN a search found that row or none."""
    vectors = np.eye(6, dtype=np.float32)
    place = tmp_path / "a.parquet"
    _table(place, vectors)
    whole = pq.read_table(place)
    rows = whole["vector"].to_pylist()
    rows[2], rows[4] = None, [float("nan"), *rows[4][1:]]
    spoiled = pa.chunked_array([pa.array(rows, whole.schema.field("vector").type)])
    pq.write_table(whole.set_column(2, whole.schema.field("vector"), spoiled), place)
    words = (
        r"a\.parquet: 2 rows say no error, and have a vector that is null or not finite; first: n2\. Embed them anew"
    )
    with pytest.raises(ConfigError, match=words):
        build_index([str(place)], str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()
    errors = pa.chunked_array([pa.array([None, None, "broken", None, "broken", None], pa.string())])
    pq.write_table(pq.read_table(place).set_column(1, "error", errors), place)
    assert build_index([str(place)], str(tmp_path / "index"))["num_rows"] == 4
    hit = SearchIndex.open(str(tmp_path / "index")).search(vectors[3], 1)[0]
    assert (hit.name, hit.score) == ("n3", pytest.approx(1.0))

    _table(tmp_path / "b.parquet", vectors[:4], first=90)
    build_index([str(tmp_path / "b.parquet")], str(tmp_path / "other"))
    shutil.copy(tmp_path / "other/names.parquet", tmp_path / "index")
    with pytest.raises(IntegrityError, match="the parts of the index do not belong together; make it anew"):
        SearchIndex.open(str(tmp_path / "index"))
    record = json.loads((tmp_path / "other/index.json").read_text())
    del record["names_sha256"]
    (tmp_path / "other/index.json").write_text(json.dumps(record))
    assert SearchIndex.open(str(tmp_path / "other")).search(vectors[0], 1)[0].name == "n90", "of an earlier version"
