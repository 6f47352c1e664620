"""`dalip embed` and `dalip search` on a trained model, and the Python API that stands beside them."""

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

from manifests.errors import ConfigError, RunError
from training import api
from training.cli import main
from training.using.embed import METADATA_KEY
from training.using.nearest import StoredVectors


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
    text = (ROOT / "configs/guide/python.md").read_text(encoding="utf-8")
    blocks = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "training.api" in code]
    assert [sum(map(bool, block.splitlines())) for block in blocks] == [5, 3]
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/my").symlink_to(run_folder)
    for name, source in (("rose.jpg", "red/circle.jpg"), ("oak.jpg", "green/cross.jpg")):
        shutil.copy(pictures / source, name)
    exec(compile("".join(blocks), "configs/guide/python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "rose.jpg" in printed
    assert "(2, 64)" in printed


def test_a_release_is_searched_by_text_and_by_picture(
    run_folder: Path, release_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    release, vectors = release_folder / "releases" / "toy-0001", tmp_path / "v.parquet"
    assert main(["embed", str(release), "--model", str(run_folder), "--out", str(vectors)]) == 0
    assert "143 rows" in capsys.readouterr().out
    category = {row["sample_id"]: json.loads(row["extra"])["category"]
                for row in pq.read_table(release / "samples.parquet").to_pylist()}  # fmt: skip
    asked = {"text": "a red square", "image": str(pictures / "red" / "square.jpg")}
    by_command = {}
    for name, value in asked.items():
        assert main(["search", str(vectors), f"--{name}", value, "--json", "--top", "5"]) == 0
        by_command[name] = json.loads(capsys.readouterr().out)
        hits = [category[hit["name"]] for hit in by_command[name]]
        assert sum("red" in hit for hit in hits) >= 3, "a quarter of the pictures is red"
        scores = [hit["score"] for hit in by_command[name]]
        assert scores == sorted(scores, reverse=True)
    assert main(["search", str(vectors), "--text", "a red square", "--top", "2"]) == 0
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
        assert main(["search", str(vectors), "--serve", "--top", "5"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plain = [[{"name": hit["name"], "score": hit["score"]} for hit in hits] for hits in by_command.values()]
    assert [answer.get("hits") for answer in answers[:2]] == plain
    assert ["error" in answer for answer in answers] == [False, False, *[True] * 8, False]


def test_a_query_by_another_model_is_refused(
    config: dict[str, Any], run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    run_once(config, output_dir=str(tmp_path / "other"), schedule={"steps": 1})
    both = tmp_path / "both"
    both.mkdir()
    out = both / "v.parquet"
    assert main(["embed", str(pictures), "--model", str(run_folder), "--out", str(out)]) == 0
    assert main(["search", str(both), "--text", "red", "--model", str(tmp_path / "other")]) == 2
    assert "its vectors are of the model" in capsys.readouterr().err
    assert main(["embed", str(pictures), "--model", str(tmp_path / "other"), "--out", str(both / "w.parquet")]) == 0
    assert main(["search", str(both), "--text", "red"]) == 2
    assert "w.parquet are of different models or features; search them apart" in capsys.readouterr().err


def _table(path: Path, vectors: np.ndarray, first: int = 0) -> None:
    width = vectors.shape[1]
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    names = pa.array([f"n{first + i}" for i in range(len(vectors))])
    table = pa.table({"name": names, "error": pa.nulls(len(vectors), pa.string()), "vector": values})
    known = {"model": "m", "features": "f", "width": width, "source": "nowhere"}
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(known)}), path)


def test_every_vector_is_looked_at_and_the_file_beside_them_is_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((3_020, 24)).astype(np.float32)
    vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    (tmp_path / "both").mkdir()
    _table(tmp_path / "both/a.parquet", vectors[:2_000])
    _table(tmp_path / "both/b.parquet", vectors[2_000:3_000], first=2_000)
    stored = StoredVectors.open(str(tmp_path / "both"))
    for query in vectors[3_000:]:
        scores = vectors[:3_000].astype(np.float16).astype(np.float64) @ query
        hits = stored.nearest(query, 5)
        assert [hit.name for hit in hits] == [f"n{row}" for row in np.argsort(-scores)[:5]]
        assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=1e-6)
    assert len(stored.nearest(vectors[0], 9_999)) == 3_000
    file = tmp_path / "both.search.arrow"
    made = file.stat().st_mtime_ns
    StoredVectors.open(f"{tmp_path}/both/")
    assert file.stat().st_mtime_ns == made, "it is made once"
    for content in (b"damaged", file.read_bytes()[:-50]):
        file.write_bytes(content)
        assert StoredVectors.open(str(tmp_path / "both")).nearest(vectors[7], 1)[0].name == "n7"
    _table(tmp_path / "both/b.parquet", vectors[3_000:], first=3_000)
    stored = StoredVectors.open(str(tmp_path / "both"))
    assert (len(stored.names), stored.nearest(vectors[3_011], 1)[0].name) == (2_020, "n3011")


def test_of_equally_near_vectors_the_first_row_comes_first(tmp_path: Path) -> None:
    _table(tmp_path / "v.parquet", np.tile(np.eye(2, dtype=np.float32), (9, 1)))
    stored = StoredVectors.open(str(tmp_path / "v.parquet"))
    assert [hit.name for hit in stored.nearest(np.array([0.0, 1.0], np.float32), 4)] == ["n1", "n3", "n5", "n7"]


def test_a_place_without_vectors_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", "s3://bucket/vectors.parquet"):
        with pytest.raises(ConfigError, match="no vectors here; name a table that `dalip embed` wrote"):
            StoredVectors.open(str(place))
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "names.parquet")  # as an index of an earlier version had
    with pytest.raises(ConfigError, match=r"names\.parquet: is no table of `dalip embed`"):
        StoredVectors.open(str(tmp_path))
    _table(tmp_path / "none.parquet", np.zeros((0, 4), np.float32))
    with pytest.raises(ConfigError, match="holds no vector"):
        StoredVectors.open(str(tmp_path / "none.parquet"))


def test_a_vector_that_is_none_is_refused(tmp_path: Path) -> None:
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
        StoredVectors.open(str(place))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    errors = pa.chunked_array([pa.array([None, None, "broken", None, "broken", None], pa.string())])
    pq.write_table(pq.read_table(place).set_column(1, "error", errors), place)
    stored = StoredVectors.open(str(place))
    assert len(stored.names) == 4
    hit = stored.nearest(vectors[3], 1)[0]
    assert (hit.name, hit.score) == ("n3", pytest.approx(1.0))
