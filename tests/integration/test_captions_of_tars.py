"""Texts of a table are joined to samples of tars by a key that names one picture, and to no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import run_here, write_small_config
from foreign_tars import picture, write_tar

from manifests.contract.reader import open_reader

KEYS = (("a", "0001"), ("a", "0002"), ("b", "0001"), ("b", "0003"))


def tars_and_table(folder: Path, **source: Any) -> Path:
    for tar in ("a", "b"):
        samples = [(key, {"jpg": picture(n)}) for n, (of, key) in enumerate(KEYS) if of == tar]
        write_tar(folder / f"tars/{tar}.tar", samples)
    words = [f"a plant beside the path number {n}" for n in range(4)]
    table = {"place": [f"{tar}/{key}" for tar, key in KEYS], "key": [key for _, key in KEYS], "words": words}
    pq.write_table(pa.table(table), folder / "words.parquet")
    values = {"name": "t", "domain": "plant", "webdataset": {"path": str(folder / "tars"), **source.pop("tars", {})}}
    return write_small_config(folder, values | source)


def joined(folder: Path) -> dict[str, list[str]]:
    with open_reader(str(folder / "work")) as sql:
        (path,) = (folder / "work/tables/ingest").glob("joined*.parquet")
        rows = sql.execute(
            f"SELECT c.locator, list(j.text) FROM candidates c JOIN '{path}' j USING (sample_id) GROUP BY 1"
        ).fetchall()
    return {locator.partition("@")[0]: texts for locator, texts in rows}


@pytest.mark.parametrize("key", ["extra.__key__", "record_key"])
def test_a_key_of_two_tars_joins_nothing_and_is_named(tmp_path: Path, key: str) -> None:
    fields = {"record_key": "__key__"} if key == "record_key" else {"extra": ["__key__"]}
    captions = [{"join": str(tmp_path / "words.parquet"), "on": {key: "key"}, "text": "words", "kind": "caption"}]
    config = tars_and_table(tmp_path, tars={"fields": fields}, captions=captions)
    done = run_here("build", config, "--to", "ingest")
    assert done.returncode == 0, done.stderr
    assert joined(tmp_path) == {
        "a.tar": ["a plant beside the path number 1"],
        "b.tar": ["a plant beside the path number 3"],
    }
    num = 1 if key == "record_key" else 2  # the other one was dropped for its key
    assert f"{num} pictures got none, since their key names several (such as '0001'): join by record_key" in done.stderr
    said = run_here("estimate", config)
    assert "__key__: samples of several tars have the same, such as '0001'" in said.stdout + said.stderr


def test_the_tar_may_be_part_of_the_key(tmp_path: Path) -> None:
    captions = [
        {"join": str(tmp_path / "words.parquet"), "on": {"record_key": "place"}, "text": "words", "kind": "caption"}
    ]
    done = run_here("build", tars_and_table(tmp_path, captions=captions), "--to", "ingest")
    assert done.returncode == 0, done.stderr
    assert "0 of 4 pictures (0.0%) have no partner" in done.stderr
    assert "got none" not in done.stderr


def test_where_every_key_is_of_several_tars_the_build_stops(tmp_path: Path) -> None:
    on = {"extra.__key__": "key"}
    captions = [{"join": str(tmp_path / "words.parquet"), "on": on, "text": "words", "kind": "caption"}]
    config = tars_and_table(tmp_path, tars={"fields": {"extra": ["__key__"]}}, captions=captions)
    write_tar(tmp_path / "tars/b.tar", [(key, {"jpg": picture(n)}) for n, key in enumerate(("0001", "0002"))])
    ended = run_here("build", config, "--to", "ingest")
    assert ended.returncode == 2
    assert "every extra.__key__ of the source names several pictures (such as '0001')" in ended.stderr


def test_init_is_not_sure_of_a_key_that_tars_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars_and_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    pq.write_table(pq.read_table("words.parquet").select(["key", "words"]), "words.parquet")
    ended = run_here("init", "--domain", "plant=tars", "--captions", "words.parquet", "--out", "my.yaml")
    assert ended.returncode == 2
    assert "no column of key, words has keys of these pictures" in ended.stderr
    assert run_here("init", "--domain", "plant=tars", "--out", "my.yaml").returncode == 0
    text = Path("my.yaml").read_text()
    assert "several tars have the same, such as '0001'" in " ".join(text.replace("#", " ").split())
    assert yaml.safe_load(text)["sources"][0]["name"] == "tars"
