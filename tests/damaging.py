"""A small whole build over a loopback web, a takedown's version of its release, and damage to any file of it."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from building import loopback, write_small_config
from PIL import Image

from pipeline.cli import main
from pipeline.demo import server as demo_server

NUM_PICTURES = 24


@contextmanager
def counting_web(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the pictures below `folder`; gives the root and a list that every request line is added to."""
    requests: list[str] = []
    with pytest.MonkeyPatch.context() as patch, demo_server.serving(folder) as server:
        patch.setattr(demo_server._Handler, "log_request", lambda handler, *_: requests.append(handler.requestline))
        yield f"http://127.0.0.1:{server.port}/", requests


def make_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(NUM_PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 90), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def write_config(folder: Path, root: str, samples_per_shard: int = 8) -> Path:
    """A config whose work folder is `folder`/work; the last two addresses are dead."""
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["url", "caption"])
        numbers = range(NUM_PICTURES + 2)
        writer.writerows([f"{root}{number}.png", f"a square of many colours, number {number}"] for number in numbers)
    source = {
        "name": "list",
        "domain": "plant",
        "table": str(folder / "list.csv"),
        "columns": {"url": "url", "caption": "caption"},
        "defaults": {"licence": "CC0-1.0"},
    }
    return write_small_config(
        folder,
        source,
        fetch=loopback(robots_txt=False, limits={"requests_per_second": 500}),
        caption={"rules": [{}]},
        mix={"ratio": {"plant": 1}, "heldout": {"num_samples": {"plant": 4}}},
        pack={"samples_per_shard": samples_per_shard},
        run={"fetch_part_size": 10},
    )


def build_small(folder: Path, root: str) -> Path:
    """Build, take one picture down, build again without it, and give the work folder: it holds three releases."""
    config = write_config(folder, root)
    assert main(["--quiet", "build", str(config)]) == 0
    work = folder / "work"
    assert main(["takedown", str(work), "--url", f"{root}3.png", "--reason", "a test"]) == 0
    assert main(["--quiet", "build", str(config)]) == 0
    return work


def kinds_of(work: Path) -> dict[str, list[Path]]:
    """Every file of a work folder, by kind."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        parts = path.relative_to(work).parts
        if parts[0] == "releases" and len(parts) > 2:
            takedown = "takedown " if _is_cut(work / "releases" / parts[1]) else ""
            kind = f"{takedown}{'shard' if path.suffix == '.tar' else path.name}"
        elif parts[0] == "tables":
            is_fetched = parts[1] == "fetch" and not path.name.startswith("facts")
            is_arranged = parts[1] == "pack" and "-" in path.name  # the others say where each sample lies in a shard
            kind = "table fetched" if is_fetched else "table arranged" if is_arranged else f"table {parts[1]}"
        else:
            kind = "pool" if parts[0] == "pool" else path.name.rpartition("LATEST")[1] or path.name
        kinds.setdefault(kind, []).append(path)
    return kinds


def _is_cut(release: Path) -> bool:
    record = release / "release.json"  # a killed build has not come to it
    return record.exists() and b'"takedowns"' in record.read_bytes()


def flip_bit(path: Path, rng: random.Random) -> None:
    """Flip one bit as a bad disk does: the time of the file stays."""
    import os

    before = path.stat()
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.unlink()  # a hard link elsewhere keeps the sound bytes
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def contents(work: Path, *left_out: str) -> dict[str, bytes]:
    """The content of every file but those whose name begins so."""
    return {
        str(path.relative_to(work)): path.read_bytes()
        for path in sorted(work.rglob("*"))
        if path.is_file() and not path.name.startswith(left_out)
    }
