"""A file that may not grow, a disk without inodes, a disk that fails: one line that says which file and what to do."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import folder_source, release_of, write_small_config
from misbehaving.answers import encode, pixels

from manifests.errors import ConfigError
from manifests.stores import storage
from manifests.stores.faults import no_room
from pipeline.cli import main
from training import cli as dalip
from training.using.embed import METADATA_KEY


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """As `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_config(folder: Path) -> str:
    (folder / "pics").mkdir()
    for number in range(24):
        (folder / f"pics/{number}.jpg").write_bytes(encode(pixels(300, 260, number), quality=100))
    source = folder_source(folder / "pics", caption="a leaf")
    return str(write_small_config(folder, source, run={"retry_wait_seconds": 0}))


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    with largest_file(20_000):  # the catalogue's log
        assert main(["build", config, "--to", "fetch"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("plantmix: error: ")
    assert "File too large; " in last
    assert last.endswith(("run the same command again", "when it is mended"))
    assert main(["build", config, "--to", "ingest"]) == 0
    with largest_file(200_000):  # the pool; the log is a fifth of that
        assert main(["build", config, "--to", "fetch"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert "a file would be larger than this process may write: " in last
    assert "Raise the limit (ulimit -f)" in last
    assert main(["build", config, "--to", "fetch"]) == 0


def test_a_small_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(9000))
    with largest_file(5000), pytest.raises(ConfigError, match=r"figures\.json: cannot be written: File too large"):
        storage.write_file(str(tmp_path / "out/figures.json"), bytes(9000))
    with largest_file(5000), pytest.raises(OSError, match="File too large"):
        storage.copy(str(tmp_path / "source"), str(tmp_path / "out/copy"))
    assert list((tmp_path / "out").iterdir()) == []


def test_vectors_for_a_search_that_do_not_fit_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, made = (
        np.random.default_rng(0).random((2000, 64), np.float32),
        {"model": "m", "features": "f", "width": 64},
    )
    columns = {"name": list(map(str, range(2000))), "error": pa.nulls(2000, pa.string()), "vector": list(vectors)}
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(made)})
    pq.write_table(table, tmp_path / "v.parquet")
    with largest_file(10_000):
        assert dalip.main(["search", str(tmp_path / "v.parquet"), "--text", "a leaf"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dalip: error: a file would be larger than this process may write: ")
    assert line.endswith("Raise the limit (ulimit -f), then run the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]


def test_inodes_and_quotas_are_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "pool/x.tar")
    disk = SimpleNamespace(f_files=100, f_favail=0, f_bavail=67_000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    said = no_room(full, str(tmp_path))
    assert said is not None
    assert said.startswith("the disk can hold no more files (its inodes are used up): pool/x.tar.")
    disk.f_favail = 5
    assert str(no_room(full, str(tmp_path))).startswith("the disk is full (67 MB free): pool/x.tar.")
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert str(no_room(quota, str(tmp_path))).startswith("the user's share of the disk (quota) is used up")
    assert no_room(OSError(errno.EIO, "Input/output error"), str(tmp_path)) is None


def test_a_disk_that_fails_names_the_file() -> None:
    memory = "/proc/self/mem"  # no file system gives its first bytes
    with pytest.raises(OSError, match=r"Errno .*: '/proc/self/mem'"):
        storage.hash_file(memory)


@pytest.mark.slow
def test_damage_that_shows_amid_a_command_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits of a table of samples and of the catalogue, which is read here and there while a build runs."""
    config = write_config(tmp_path)
    assert main(["build", config]) == 0
    work, rng = tmp_path / "work", random.Random(1)
    copy = shutil.copytree(release_of(work), tmp_path / "before")
    whole = (copy / "samples.parquet").read_bytes()
    codes = []
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole) // 2, len(whole))] ^= 1 << rng.randrange(8)
        (copy / "samples.parquet").write_bytes(damaged)
        capsys.readouterr()
        codes.append(main(["diff", str(copy), str(work)]))
        said = capsys.readouterr().err
        assert (said == "") == (codes[-1] == 0)
        assert len(said.splitlines()) == (codes[-1] != 0)
    assert 1 in codes
    catalogue = (work / "catalog.duckdb").read_bytes()
    values = yaml.safe_load(Path(config).read_text())
    for number in range(12):
        damaged = bytearray(catalogue)
        damaged[rng.randrange(12_288, len(catalogue))] ^= 1 << rng.randrange(8)  # behind the three headers
        (work / "catalog.duckdb").write_bytes(damaged)
        Path(config).write_text(yaml.safe_dump({**values, "mix": {"ratio": {"plant": 1}, "seed": number}}))
        capsys.readouterr()
        codes.append(main(["--quiet", "build", config]))
        said = capsys.readouterr().err.splitlines()
        assert codes[-1] == 0 or (len(said) == 1 and "plantmix: error: " in said[0])
        (work / "catalog.duckdb").write_bytes(catalogue)
    assert codes[60:].count(0) < 12
