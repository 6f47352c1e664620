"""A build on two real Ray nodes and a faulty object store: it loses a raylet, its driver, then its first machine."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from building import ROOT, hash_tree, loopback, write_small_config
from command_server import Command, CommandServer
from misbehaving.answers import encode, send_picture
from misbehaving.object_store import BUCKET, Store, become_user, hash_stored, serving
from misbehaving.server import MisbehavingServer
from PIL import Image
from process_tree import below, kill
from ray_nodes import ENVIRONMENT, Cluster
from tars import tar_of

from manifests.stores.folder import PLACE_VARIABLE
from pipeline.cli import main

NUM_URLS, NUM_FILES, NUM_IN_SHARDS = 32, 16, 16
WORK = "runs/lossy"
FAULTS = ("slow_down", "reset", "unanswered", "expired_403", "truncated", "slow")


@pytest.fixture
def web() -> Iterator[MisbehavingServer]:
    act = lambda sock, request: send_picture(sock, picture(int(request.path.rpartition("/")[2])))  # noqa: E731
    with MisbehavingServer(extra={"p": act}) as server:
        yield server


@pytest.fixture
def store(web: MisbehavingServer) -> Iterator[Store]:
    """It holds a list of addresses, a folder of pictures and their texts, and two shards."""
    with serving() as found:
        fs = fsspec.filesystem("s3", **found.options)
        rows = [f"http://127.0.0.1:{web.port}/p/{n},plant number {n} of the web\n" for n in range(NUM_URLS)]
        fs.pipe_file(f"{BUCKET}/list.csv", "".join(["url,caption\n", *rows]).encode())
        for number in range(NUM_FILES):
            for name, content in sample(NUM_URLS + number):
                fs.pipe_file(f"{BUCKET}/pictures/{name}", content)
        for shard in range(2):
            numbers = range(NUM_URLS + NUM_FILES + shard, NUM_URLS + NUM_FILES + NUM_IN_SHARDS, 2)
            packed = tar_of(member for number in numbers for member in sample(number))
            fs.pipe_file(f"{BUCKET}/shards/{shard:05}.tar", packed)
        yield found


def sample(number: int) -> list[tuple[str, bytes]]:
    return [(f"{number:03}.jpg", picture(number)), (f"{number:03}.txt", f"plant number {number} of the field".encode())]


def picture(number: int) -> bytes:
    blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return encode(Image.fromarray(blocks).resize((96, 96), Image.Resampling.NEAREST), quality=80)


def write_config(folder: Path, work_dir: str, **run: Any) -> str:
    urls = {"table": f"s3://{BUCKET}/list.csv", "columns": {"url": "url", "caption": "caption"}}
    places = {
        "urls": ("plant", urls),
        "files": ("general", {"folder": {"path": f"s3://{BUCKET}/pictures", "captions": "text_file"}}),
        "shards": ("general", {"webdataset": {"path": f"s3://{BUCKET}/shards"}}),
    }
    config = write_small_config(
        folder,
        *(
            {"name": name, "domain": of, **place, "defaults": {"licence": "CC0"}}
            for name, (of, place) in places.items()
        ),
        name="lossy",
        work_dir=work_dir,
        fetch=loopback(threads=2, robots_txt=False, limits={"connections": 2}),
        mix={"ratio": {"plant": 1, "general": 1}, "heldout": {"num_samples": {"plant": 2, "general": 2}}},
        pack={"samples_per_shard": 10},
        run={"fetch_part_size": 4, "max_attempts": 6, "retry_wait_seconds": 0.1} | run,
    )
    return str(config)


class Misfortune:
    """Answers every 13th request with a fault, and lets things be lost at the n-th file of a kind that is written."""

    def __init__(self) -> None:
        self.lose: dict[tuple[str, int], Callable[[], None]] = {}
        self.written: Counter[str] = Counter()
        self._num_asked = 0
        self._lock = threading.Lock()

    def choose(self, method: str, path: str) -> str | None:
        """The fault that answers a request."""
        kind = path.removeprefix(f"/{BUCKET}/{WORK}/").partition("/")[0]
        with self._lock:
            if method == "PUT" and kind in ("pool", "releases"):
                self.written[kind] += 1
                self.lose.pop((kind, self.written[kind]), lambda: None)()
            self._num_asked += 1
            fault = FAULTS[self._num_asked // 13 % len(FAULTS)] if self._num_asked % 13 == 0 else None
        return "slow_down" if fault == "truncated" and method != "GET" else fault


@pytest.mark.slow
def test_a_build_that_loses_raylet_driver_and_first_machine_equals_an_undisturbed_one(
    store: Store, commands: CommandServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_user(store, monkeypatch)
    assert main(["build", write_config(tmp_path, str(tmp_path / "work"), executor="inline")]) == 0
    whole = hash_tree(tmp_path / "work/releases")
    assert len([name for name in whole if name.endswith(".tar")]) > 4

    misfortune = Misfortune()
    store.choose = misfortune.choose
    with start_cluster(store, tmp_path, "first", 2) as cluster:
        config = write_config(tmp_path, f"s3://{BUCKET}/{WORK}", executor="ray", ray={"address": cluster.address})
        second = cluster.nodes[1].pid
        driver = start_build(commands, config, tmp_path / "first-0")
        misfortune.lose["pool", 3] = lambda: kill([pid for pid, name in below(second).items() if "/raylet " in name])
        misfortune.lose["pool", 8] = driver.kill
        _, said = driver.communicate(timeout=1500)
        assert driver.returncode == -signal.SIGKILL, said
        assert cluster.nodes[1].wait(600), "`ray start` ends with its raylet, five files before the driver"
        assert not misfortune.written["releases"]

        driver = start_build(commands, config, tmp_path / "first-0")

        def power_fails() -> None:
            driver.kill()
            cluster.kill(cluster.nodes[0])  # the gate of the hosts is there, too

        misfortune.lose["releases", 2] = power_fails
        _, said = driver.communicate(timeout=1500)
        assert driver.returncode == -signal.SIGKILL, said
    assert not misfortune.lose

    with start_cluster(store, tmp_path, "other", 1) as cluster:
        config = write_config(tmp_path, f"s3://{BUCKET}/{WORK}", executor="ray", ray={"address": cluster.address})
        driver = start_build(commands, config, tmp_path / "other-0")
        _, said = driver.communicate(timeout=1500)
        assert driver.returncode == 0, said
    store.choose = lambda method, path: None
    assert store.injected > 20
    assert hash_stored(store, f"{WORK}/releases") == whole
    assert list((tmp_path / "first-1").glob("*/parts")), "the node that was lost had done parts"
    assert not list((tmp_path / "other-0").glob("*/parts/*")), "a node keeps nothing of its parts"


@pytest.mark.slow
def test_a_build_goes_on_though_the_first_requests_of_each_kind_fail(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is not answered, the second is refused as with a token that has run out."""
    become_user(store, monkeypatch)
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.0,) * 10)
    asked: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    def fail_at_first(method: str, path: str) -> str | None:
        kind = method, re.sub(r"\w*\d\w*", "*", path)
        with lock:
            asked[kind] += 1
            return {1: "unanswered", 2: "expired_403"}.get(asked[kind])

    store.choose = fail_at_first
    config = write_config(
        tmp_path, f"s3://{BUCKET}/{WORK}", executor="inline", max_attempts=12, retry_wait_seconds=0.001
    )
    for machine in ("first", "other"):
        monkeypatch.setenv(PLACE_VARIABLE, str(tmp_path / machine))
        asked.clear()
        assert main(["build", config]) == 0
        assert main(["verify", "--deep", f"s3://{BUCKET}/{WORK}"]) == 0
        assert sum(num > 1 for num in asked.values()) > 8


def start_cluster(store: Store, folder: Path, name: str, num_nodes: int) -> Cluster:
    """Nodes of one CPU that share nothing but the store."""
    cluster = Cluster()
    for number in range(num_nodes):
        local = {PLACE_VARIABLE: str(folder / f"{name}-{number}")}
        cluster.start(env=store.environment() | {"PYTHONPATH": str(ROOT)} | local)
    return cluster


def start_build(commands: CommandServer, config: str, local: Path) -> Command:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= ENVIRONMENT | {"PYTHONPATH": str(ROOT), PLACE_VARIABLE: str(local)}
    return commands.start("plantmix", "build", config, environment=env)
