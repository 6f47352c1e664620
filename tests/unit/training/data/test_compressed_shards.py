"""Wherever shards are named, a compressed tar is one line with the command that unpacks it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import tar_of

from manifests.errors import ConfigError
from training.data.shard_groups import expand
from training.evaluation.set_layouts import open_eval_set
from training.using.pictures import list_pictures

CONTENT = tar_of([("a.jpg", b"a"), ("a.cls", b"0")])


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(CONTENT if name.endswith(".tar") else gzip.compress(CONTENT))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        lambda folder: expand([f"{folder}/1.tar.gz"]),
        lambda folder: expand([f"{folder}/{{0..1}}.tar.gz"]),
        lambda folder: expand([str(folder)]),
        lambda folder: expand([f"{folder}/*.tar*"]),
        lambda folder: list_pictures([f"{folder}/1.tar.gz"]),
        lambda folder: list_pictures([f"{folder}/{{0..1}}.tar.gz"]),
        lambda folder: open_eval_set(str(folder), "test"),
    ],
)
def test_a_compressed_tar_is_refused_with_the_line_that_unpacks_it(
    name: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = put(tmp_path / "set", "0.tar", "0.tar.gz", "1.tar.gz")
    with pytest.raises(ConfigError) as told:
        name(folder)
    said = str(told.value)
    assert "is a compressed tar, and its samples are needed in any order; unpack it (`gunzip -k " in said
    assert "\n" not in said
    assert "1.tar.gz`), and name the .tar" in said or "0.tar.gz`), and name the .tar" in said


def test_a_folder_of_nothing_else_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unpack it \(`gunzip -k"):
        list_pictures([str(put(tmp_path / "set", "0.tar.gz"))])


def test_what_was_unpacked_beside_it_is_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "set", "0.tar", "0.tar.gz")
    assert expand([str(folder)]) == [f"{folder}/0.tar"]
    assert expand([f"{folder}/0.t*"]) == [f"{folder}/0.tar"]
    (folder / "classnames.txt").write_text("rose\n")
    assert len(open_eval_set(str(folder), "test").items) == 1
    assert len(list_pictures([str(folder)])) == 1


def test_one_of_a_store_is_fetched_first() -> None:
    with pytest.raises(
        ConfigError, match=r"https://host/0\.tar\.zst: .*; fetch it, unpack it \(`zstd -d 0\.tar\.zst`\)"
    ):
        expand(["https://host/0.tar.zst"])
