"""Shards of a release in a real S3 server: one request each, checked, within a bound, the bytes of a local copy."""

from __future__ import annotations

import asyncio
import functools
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import release_writer as writer
from misbehaving.object_store import BUCKET, Store, become_user, serving
from waiting import let_pass

from manifests.contract.release import Release
from manifests.errors import ConfigError, IntegrityError, RetryableError
from manifests.stores.cache import ShardCache
from manifests.stores.ranges import read_range
from training.data.loader import SampleDataset, build_order, iterate, open_releases
from training.data.loader import _loader as make_loader
from training.data.loader import _read_ahead as read_ahead
from training.data.sampling import BatchPlan, BatchSampler
from training.data.settings import DataSettings, TextSettings
from training.data.shards import SamplePool, ShardReader, open_pool

NUM = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    folder = writer.write_release(tmp_path_factory.mktemp("cache") / "toy", writer.drawn_samples(NUM, 0), shard_size=12)
    with serving() as store:
        fsspec.filesystem("s3", **store.options).put(str(folder), f"{BUCKET}/toy", recursive=True)
        yield store, folder


@pytest.fixture
def store(served: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch) -> Store:
    become_user(served[0], monkeypatch)
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.02, 0.05))
    return served[0]


def shard_requests(store: Store) -> Counter[str]:
    found = Counter(path.partition("?")[0] for method, path in store.requests if path.partition("?")[0].endswith("tar"))
    store.requests.clear()
    return found


def remote_pool() -> SamplePool:
    return open_pool([Release.open(f"s3://{BUCKET}/toy")], "train")


def texts_of(release: str, data: DataSettings, epochs: int, num_ranks: int = 1) -> list[list[object]]:
    """What a loader gives over some epochs, as plain values: rows, bytes of the pictures, texts."""
    pool = open_pool(open_releases(release), "train")
    order, plan = build_order(pool, data, release, 7), BatchPlan(data.batch_size // num_ranks, num_ranks, 0)
    sampler = BatchSampler(order, plan, range(epochs * NUM // data.batch_size))
    dataset = SampleDataset(pool, _Bytes(), _as_text, TextSettings(), 7, order.strata, data.cache)
    batches = iterate(make_loader(dataset, read_ahead(pool, sampler, data), data, pin=False))
    return [[batch.rows.tolist(), batch.images.tolist(), batch.tokens] for batch in batches]


class _Bytes:
    """In the place of a view: the hash of a picture's bytes."""

    def __call__(self, content: bytes) -> object:
        import hashlib

        import torch

        return torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)


def _as_text(texts: list[str]) -> list[str]:
    return texts


@pytest.mark.parametrize("num_workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_one_request_a_shard_and_none_in_the_second_epoch(
    store: Store, served: tuple[Store, Path], tmp_path: Path, num_workers: int
) -> None:
    data = DataSettings(batch_size=8, num_workers=num_workers, shuffle_window=24, cache_dir=str(tmp_path / "local"))
    here = texts_of(str(served[1]), data, 2)
    assert not shard_requests(store)
    assert texts_of(f"s3://{BUCKET}/toy", data, 2) == here, "the same samples in the same order, the same bytes"
    assert sorted(shard_requests(store).values()) == [1] * 10, "two epochs over ten shards"
    assert texts_of(f"s3://{BUCKET}/toy", data, 1) == here[: len(here) // 2]
    assert not shard_requests(store), "another run on this machine"


def test_a_forked_worker_leaves_the_connections_of_its_parent_alone(store: Store) -> None:
    address = f"s3://{BUCKET}/toy/release.json"
    read_range(address, 0, 1)  # its connection is kept
    worker = multiprocessing.get_context("fork").Process(target=_use_and_collect, args=(address,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    begun = time.monotonic()
    read_range(address, 0, 1)
    assert time.monotonic() - begun < 40, "the answer came, and this process was not told"


def _use_and_collect(address: str) -> None:
    """In a worker: a client of its own takes the place of the parent's, which is collected on the loop of this one."""

    async def collect() -> None:
        gc.collect()
        await asyncio.to_thread(let_pass, 0.3)  # whatever that began

    read_range(address, 0, 1)
    fsspec.asyn.sync(fsspec.asyn.get_loop(), collect)


@pytest.mark.parametrize("fault", ["expired_403", "slow_down", "reset", "truncated", "slow"])
@pytest.mark.slow
def test_passing_faults_cost_no_sample(store: Store, served: tuple[Store, Path], tmp_path: Path, fault: str) -> None:
    failed: set[str] = set()

    def first_of_each(method: str, path: str) -> str | None:
        if not path.endswith(".tar") or path in failed:
            return None
        failed.add(path)
        return fault

    store.choose = first_of_each
    local = open_pool([Release.open(str(served[1]))], "train")
    reader = ShardReader(remote_pool(), ShardCache(str(tmp_path), 1))
    assert reader.read(range(NUM), with_texts=True) == ShardReader(local).read(range(NUM), with_texts=True)
    assert len(failed) == 10
    assert max(shard_requests(store).values()) <= 3
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_a_store_that_stays_away_is_one_line(store: Store, tmp_path: Path) -> None:
    store.choose = lambda method, path: "slow_down" if path.endswith(".tar") else None
    with pytest.raises(RetryableError, match=r"s3://bucket/toy/shards/toy-000000.tar cannot be read \(.*same command"):
        ShardReader(remote_pool(), ShardCache(str(tmp_path), 1)).read([0], False)


def test_other_bytes_than_the_record_says_are_never_used(
    store: Store, served: tuple[Store, Path], tmp_path: Path
) -> None:
    fs, name = fsspec.filesystem("s3", **store.options), f"{BUCKET}/toy/shards/toy-000003.tar"
    whole = fs.cat_file(name)
    fs.pipe_file(name, whole[:-1] + b"x")
    try:
        with pytest.raises(IntegrityError, match=r"toy-000003.tar has other content than when the release was sealed"):
            ShardReader(remote_pool(), ShardCache(str(tmp_path), 1)).read(range(NUM), False)
    finally:
        fs.pipe_file(name, whole)


def test_the_folder_stays_within_its_bound_and_the_oldest_go(store: Store, tmp_path: Path) -> None:
    pool = remote_pool()
    bound = sum(file.num_bytes for file in pool.files[:4]) + 100
    reader = ShardReader(pool, cache := ShardCache(str(tmp_path), bound / 1e9))
    for shard in (0, 1, 2, 0, 3, 4, 0, 5):
        reader.read([12 * shard], False)
        assert sum(file.stat().st_size for file in cache.folder.glob("*.tar")) <= bound
    asked = shard_requests(store)
    assert asked[f"/{BUCKET}/toy/shards/toy-000000.tar"] == 1, "what is used stays"
    assert sum(asked.values()) == 6
    assert not cache.has(pool.files[1])
    reader.read([0], False)  # a reader lets go of removed files when it reads next
    open_files = [str(file.resolve()) for file in Path("/proc/self/fd").iterdir()]
    assert not any("(deleted)" in file and str(tmp_path) in file for file in open_files)
    with pytest.raises(ConfigError, match=r"more than data.cache_gb = .*raise it"):
        ShardReader(pool, ShardCache(str(tmp_path / "other"), 1e-6)).read([0], False)


@pytest.mark.slow
def test_processes_of_a_machine_share_one_request(store: Store, tmp_path: Path) -> None:
    store.choose = lambda method, path: "slow" if path.endswith(".tar") else None
    code = (
        "import sys; from training.data.shards import *; from manifests.stores.cache import ShardCache\n"
        f"pool = open_pool([Release.open('s3://{BUCKET}/toy')], 'train')\n"
        f"print(len(ShardReader(pool, ShardCache({str(tmp_path)!r}, 1)).read(range({NUM}), False)))"
    )
    start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    processes = [start([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.communicate(timeout=200)[0].strip() for process in processes] == [str(NUM)] * 3
    assert sorted(shard_requests(store).values()) == [1] * 10


@pytest.mark.parametrize("how", ["a byte", "cut short", "of an earlier version"])
def test_a_shard_that_changed_in_the_cache_is_compared_and_heals(store: Store, tmp_path: Path, how: str) -> None:
    pool = remote_pool()
    cache = ShardCache(str(tmp_path), 1)
    whole = ShardReader(pool, cache).read(range(NUM), True)
    shard_requests(store)
    assert ShardReader(pool, ShardCache(str(tmp_path), 1)).read(range(NUM), True) == whole
    assert not shard_requests(store), "a shard that is as it was is neither fetched nor compared"
    path = cache.folder / f"{pool.files[3].sha256}.tar"
    content = path.read_bytes()
    path.write_bytes({"a byte": content[:700] + b"?" + content[701:], "cut short": content[:5000]}.get(how, content))
    assert not cache.has(pool.files[3])
    assert ShardReader(pool, ShardCache(str(tmp_path), 1)).read(range(NUM), True) == whole
    assert sum(shard_requests(store).values()) == (how != "of an earlier version"), "a whole one is not fetched again"
    assert cache.has(pool.files[3])
