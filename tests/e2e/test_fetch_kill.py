"""kill -9 of a worker, the driver, the whole Ray amid a fetch of 800 pictures: nothing lost, no byte another."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import done, hash_tree, list_source, loopback, release_of, write_small_config
from command_server import CommandServer
from misbehaving.answers import encode, send_picture
from misbehaving.numbered import NumberedPictures
from PIL import Image
from process_tree import below, is_running, kill
from waiting import look_again, wait_until

NUM, PART, NUM_WORKERS = 800, 50, 2
KILL_AFTER = 300  # requests
PARTS_IN_FLIGHT = 2 * NUM_WORKERS  # a worker begins its next part before the driver has committed the last one


class Web(NumberedPictures):
    """Small ones, made before anyone asks. While `goes_on` is not set, none is sent after `KILL_AFTER` requests."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()
        blocks = np.random.default_rng(0).integers(0, 256, (NUM, 6, 6, 3), dtype=np.uint8)
        self._bodies = [
            encode(Image.fromarray(block).resize((48, 48), Image.Resampling.NEAREST), quality=80) for block in blocks
        ]

    def answer(self, sock: Any, number: int) -> None:
        if len(self.log) >= KILL_AFTER:
            self.goes_on.wait()
        send_picture(sock, self._bodies[number])


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as made:
        yield made


def write_config(folder: Path, web: Web, **run: Any) -> Path:
    folder.mkdir()
    source = list_source(folder, web.urls(NUM))
    fetch = loopback(threads=8, retries=2, total_timeout_seconds=20, limits={"connections": 16})
    run = {"executor": "ray", "num_workers": NUM_WORKERS, "fetch_part_size": PART, **run}
    return write_small_config(folder, source, fetch=fetch, dedup={"radius": 0}, run=run)


def all_files(folder: Path) -> dict[str, str]:
    """Hashes of the facts, of the pool, and of the release."""
    work = folder / "work"
    return {
        **{f"facts/{name}": value for name, value in hash_tree(work / "tables/fetch").items()},
        **{f"pool/{name}": value for name, value in hash_tree(work / "pool").items()},
        **{f"release/{name}": value for name, value in hash_tree(release_of(work)).items()},
    }


@pytest.fixture(scope="module")
def uninterrupted(web: Web, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done("build", write_config(folder, web, executor="inline"))
    assert web.newly_asked() == dict.fromkeys(range(NUM), 1)
    files = all_files(folder)
    assert sum(name.startswith("pool/") for name in files) == NUM // PART
    return files


def workers_below(driver: int) -> list[int]:
    """Workers of Ray that do a part, or all workers that are processes of the driver."""
    started = below(driver)
    of_ray = [pid for pid, command in started.items() if command.startswith("ray::_do_in_folder")]
    return of_ray or [pid for pid, command in started.items() if "process_worker" in command]


def kill_a_worker(driver: int) -> None:
    workers = workers_below(driver)
    assert workers
    kill(workers[:1])


def kill_the_driver(driver: int) -> None:
    kill([driver])


def kill_the_whole_ray(driver: int) -> None:
    kill(list(below(driver)))


def build_and_kill(commands: CommandServer, config: Path, web: Web, way: Callable[[int], None]) -> tuple[int, str]:
    """Start a build, do harm in the middle of its fetch; gives how the driver ended and what it said."""
    web.goes_on.clear()
    try:
        build = commands.start("plantmix", "build", config)
        wait_until(lambda: len(web.log) >= KILL_AFTER and workers_below(build.pid), build)
        started = below(build.pid)
        way(build.pid)
    finally:
        web.goes_on.set()
    said = "".join(build.communicate(timeout=600))
    deadline = time.monotonic() + 200  # Ray's processes leave with their driver
    while any(map(is_running, started)) and time.monotonic() < deadline:
        look_again(0.1)
    kill(list(filter(is_running, started)))
    return build.wait(0), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "way", "code", "most_twice"),
    [
        ("ray", kill_a_worker, 0, PART),
        ("ray", kill_the_whole_ray, 1, PARTS_IN_FLIGHT * PART),
        ("processes", kill_a_worker, 0, PART),
        ("processes", kill_the_driver, -signal.SIGKILL, PARTS_IN_FLIGHT * PART),
    ],
)
def test_killed_amid_a_fetch(
    web: Web,
    commands: CommandServer,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    executor: str,
    way: Callable[[int], None],
    code: int,
    most_twice: int,
) -> None:
    config = write_config(tmp_path / "run", web, executor=executor)
    web.newly_asked()
    ended, said = build_and_kill(commands, config, web, way)
    assert ended == code, said
    if code == 1:
        assert "run the same command again" in said
        assert "Traceback" not in said
    done("build", config)
    counts = web.newly_asked()
    assert len(counts) == NUM, "every picture was asked"
    assert max(counts.values()) <= 2
    assert sum(num - 1 for num in counts.values()) <= most_twice, "none twice but those of the parts in flight"
    assert all_files(tmp_path / "run") == uninterrupted
