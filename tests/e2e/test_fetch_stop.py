"""Ctrl-C and a scheduler's signals amid a fetch: what is downloaded is stored, the build leaves soon, and no picture is
asked twice.

Also what a build says while it fetches: figures come while the only part runs, and they are right.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import done, hash_tree, list_source, loopback, release_of, write_small_config
from command_server import CommandServer
from misbehaving.answers import encode, pixels, send, send_picture
from misbehaving.server import MisbehavingServer
from waiting import be_slow, look_again, wait_until

from pipeline.cli import main

NUM, CONNECTIONS = 240, 6
EXECUTORS = {
    "inline": {"executor": "inline", "fetch_part_size": 150},
    "processes": {"executor": "processes", "num_workers": 2, "fetch_part_size": 60},
    "ray": {"executor": "ray", "num_workers": 2, "fetch_part_size": 60},
}


class Web:
    """Small pictures on the loopback, each after a moment; every 20th is missing."""

    def __init__(self) -> None:
        self.server = MisbehavingServer(extra={"p": self._answer})
        self.lock = threading.Lock()
        self.num_sent = 0

    def _answer(self, sock: Any, request: Any) -> None:
        number = int(request.path.rpartition("/")[2])
        be_slow(0.03)
        if number % 20 == 0:
            send(sock, "404 Not Found")
        else:
            send_picture(sock, encode(pixels(48, 40 + number % 13, number), quality=80))
        with self.lock:
            self.num_sent += 1

    def asked(self) -> collections.Counter[str]:
        """How often each picture was asked since the last look."""
        found = collections.Counter(request.path for request in self.server.log if request.path.startswith("/p/"))
        self.server.log.clear()
        self.num_sent = 0
        return found


@pytest.fixture(scope="module")
def served() -> Iterator[Web]:
    made = Web()
    with made.server:
        yield made


@pytest.fixture
def web(served: Web, uninterrupted: dict[str, str]) -> Web:
    """The web, and nobody has asked it for anything yet."""
    served.asked()
    return served


def write_config(folder: Path, web: Web, **run: Any) -> Path:
    folder.mkdir()
    source = list_source(folder, [f"http://127.0.0.1:{web.server.port}/p/{n}" for n in range(NUM)])
    fetch = loopback(threads=CONNECTIONS, retries=2, limits={"requests_per_second": 60, "connections": CONNECTIONS})
    run = {"progress_seconds": 1, **run}
    return write_small_config(folder, source, fetch=fetch, dedup={"radius": 0}, run=run)


@pytest.fixture(scope="module")
def uninterrupted(served: Web, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done("build", write_config(folder, served, **EXECUTORS["inline"]))
    assert served.asked() == {f"/p/{n}": 1 for n in range(NUM)}
    return hash_tree(release_of(folder / "work"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "signals"), [("processes", (signal.SIGTERM, signal.SIGINT)), ("ray", (signal.SIGINT, signal.SIGUSR1))]
)
def test_stopped_again_and_again(
    web: Web,
    commands: CommandServer,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    executor: str,
    signals: tuple[int, ...],
) -> None:
    rng = random.Random(executor)
    config = write_config(tmp_path / "run", web, **EXECUTORS[executor])
    for number in signals:
        before = len(web.server.log)
        build = commands.start("plantmix", "build", config)
        num = before + rng.randint(5, 60)
        wait_until(lambda num=num: len(web.server.log) >= num, build)
        # a terminal's goes to the whole group, a scheduler's to all of a job; but a SIGUSR1 to Ray would end it
        send_to = os.kill if number == signal.SIGUSR1 else os.killpg
        send_to(build.pid, number)
        said = "".join(build.communicate(timeout=600))
        assert build.returncode == 1, said
        assert "what is committed stays" in said
        assert "Traceback" not in said
    done("build", config)
    assert web.asked() == {f"/p/{n}": 1 for n in range(NUM)}, "no picture was asked twice"
    assert hash_tree(release_of(tmp_path / "run/work")) == uninterrupted
    assert not list((tmp_path / "run/work").rglob("*.tmp-*"))


def test_a_signal_while_a_command_is_still_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["build", "own.yaml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "plantmix: stopped; what is committed stays, run the same command to go on"
    ]


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(web: Web, commands: CommandServer, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run", web, **EXECUTORS["inline"])
    build = commands.start("plantmix", "build", config)
    wait_until(lambda: len(web.server.log) >= 20, build)
    build.send_signal(signal.SIGINT)
    build.send_signal(signal.SIGTERM)  # not the same again: two of one number may arrive as one
    assert build.wait(600) == 1
    assert len(web.server.log) < NUM, "it left amid its pictures"


@pytest.mark.slow
def test_pieces_are_committed_while_a_part_runs_and_status_is_right(
    web: Web, commands: CommandServer, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run", web, executor="inline", fetch_part_seconds=0.7)
    status_file = tmp_path / "run" / "work" / "status.json"
    seen: list[tuple[int, int, int, dict[str, Any]]] = []
    build = commands.start("plantmix", "build", config)
    wait_until(lambda: web.server.log, build)
    while build.poll() is None:
        sent_before = web.num_sent
        status = json.loads(status_file.read_text())
        running = status["running"]
        if running and running["step"] == "fetch download" and running["total"]:
            seen.append((sent_before, web.num_sent, status["stages"]["fetch"]["num_parts"], running))
        look_again(0.05)
    said = "".join(build.said())
    assert build.returncode == 0, said
    assert "fetch download: " in said
    assert " left, dropped: " in said, "outcomes so far"
    assert " http_404; hosts that fail: 127.0.0.1:" in said
    for _, sent, _, running in seen:
        assert running["done"] <= sent + CONNECTIONS
        assert running["total"] == NUM
    nums_done = [running["done"] for *_, running in seen]
    assert nums_done == sorted(nums_done)
    assert len(set(nums_done)) > 2, "it moves while the only part runs"
    assert max(num_parts for _, _, num_parts, _ in seen) >= 2, "pieces are committed as time goes by"
    assert web.asked() == {f"/p/{n}": 1 for n in range(NUM)}
    assert hash_tree(release_of(tmp_path / "run/work")) == uninterrupted
