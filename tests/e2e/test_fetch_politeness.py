"""Politeness of two workers together, proven from the servers' own logs; a broken host's rows are retried later."""

from __future__ import annotations

import bisect
import collections
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from building import done, list_source, loopback, write_small_config
from misbehaving.answers import send, send_picture
from misbehaving.server import SITE_FILES, MisbehavingServer
from waiting import be_slow

from manifests.contract.reader import open_reader

NUM_SLOW, NUM_BUSY, NUM_GOOD, NUM_BROKEN, NUM_DEAD = 100, 24, 120, 60, 60
RATE, CONNECTIONS = 20, 3
PART_SIZE = 60


class Photos:
    """Photos, each after a moment. How many are waited for at once is counted until an answer's first byte: whoever has
    the last may ask on before the thread that sent it has its turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.num_open = self.most_open = 0
        self._lock = threading.Lock()

    def __call__(self, sock: Any, request: Any) -> None:
        with self._lock:
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        be_slow(self.seconds)
        with self._lock:
            self.num_open -= 1
        self.answer(sock, request)

    def answer(self, sock: Any, request: Any) -> None:
        send_picture(sock)


class Busy(Photos):
    """One picture is answered with 429 and Retry-After: 3, once; all others come."""

    said = 0.0

    def answer(self, sock: Any, request: Any) -> None:
        if request.path.endswith("/7") and not self.said:
            self.said = time.monotonic()
            send(sock, "429 Too Many Requests", {"Retry-After": "3"})
        else:
            send_picture(sock)


class Broken:
    """Asks to be left alone for ten minutes, until somebody mends it."""

    mended = False

    def __call__(self, sock: Any, request: Any) -> None:
        if self.mended:
            send_picture(sock)
        else:
            send(sock, "503 Service Unavailable", {"Retry-After": "600"})


def write_config(folder: Path, executor: str, urls: list[str], hosts: list[dict[str, Any]]) -> Path:
    network = {"threads": 8, "retries": 1, "limits": {"connections": 8}, "robots_txt": True, "hosts": hosts}
    run = {"executor": executor, "num_workers": 2, "fetch_part_size": PART_SIZE}
    return write_small_config(folder, list_source(folder, urls), fetch=loopback(**network), run=run)


def most_in_window(times: list[float], seconds: float) -> int:
    times = sorted(times)
    return max(bisect.bisect_left(times, start + seconds) - place for place, start in enumerate(times))


def pictures(server: MisbehavingServer) -> list[Any]:
    return [request for request in server.log if request.path not in SITE_FILES]


def outcomes(work: Path) -> dict[str, collections.Counter[str]]:
    """Outcomes of each host, by port."""
    of_port: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with open_reader(str(work)) as connection:
        for host, outcome in connection.sql("SELECT host, outcome FROM facts").fetchall():
            of_port[host.rpartition(":")[2]][outcome] += 1
    return of_port


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "num_dead"), [("ray", 0), ("processes", NUM_DEAD)])
def test_two_workers_keep_every_limit_together(tmp_path: Path, executor: str, num_dead: int) -> None:
    unhurried, busy, broken = Photos(0.1), Busy(0.02), Broken()
    with (
        MisbehavingServer(extra={"p": unhurried}) as slow,
        MisbehavingServer(extra={"p": busy}) as asking,
        MisbehavingServer(extra={"p": Photos(0)}) as good,
        MisbehavingServer(extra={"p": broken}) as sick,
    ):
        num_of_port = {slow.port: NUM_SLOW, asking.port: NUM_BUSY, good.port: NUM_GOOD, sick.port: NUM_BROKEN}
        num_of_port[slow.full_port] = num_dead  # listens and never accepts
        urls = [f"http://127.0.0.1:{port}/p/{n}" for port, num in num_of_port.items() for n in range(num)]
        hosts = [
            {"pattern": f"127.0.0.1:{slow.port}", "requests_per_second": RATE, "connections": CONNECTIONS},
            {"pattern": f"127.0.0.1:{asking.port}", "requests_per_second": 50, "connections": 1},
        ]
        config = write_config(tmp_path, executor, urls, hosts)
        done("build", config, "--to", "fetch")

        times = [request.seconds for request in pictures(slow)]
        assert len(times) == NUM_SLOW
        # the log's times are arrivals: a busy machine delays some; workers that share no rate send twice as many
        assert max(times) - min(times) > (NUM_SLOW - 1) / RATE - 1
        assert most_in_window(times, 1.0) <= 1.5 * RATE
        assert 1 < unhurried.most_open <= CONNECTIONS
        # each process asks once; Ray chooses in how many processes the parts run, so a part each is the only sure bound
        num_parts = -(-len(urls) // PART_SIZE)
        assert 1 <= sum(request.path == "/robots.txt" for request in slow.log) <= num_parts

        assert busy.said
        assert not [r for r in pictures(asking) if busy.said < r.seconds < busy.said + 3.0 - 0.02]
        assert [r.path for r in pictures(asking) if r.seconds > busy.said], "asked again when the time was over"
        assert busy.most_open == 1

        of_port = outcomes(tmp_path / "work")
        assert of_port[str(slow.port)] == {"ok": NUM_SLOW}
        assert of_port[str(asking.port)] == {"ok": NUM_BUSY}
        assert of_port[str(good.port)] == {"ok": NUM_GOOD}
        dead, sick_rows = of_port[str(slow.full_port)], of_port[str(sick.port)]
        assert set(dead) <= {"connect_timeout", "host_unavailable"}
        assert set(sick_rows) == {"http_5xx", "host_unavailable"}
        assert sick_rows["http_5xx"] == len(pictures(sick)) <= 8, "left alone after the first answers"
        assert dead["connect_timeout"] < max(1, num_dead / 2), "soon left alone: not every row waits for its time-out"

        broken.mended = True
        slow.close_full_port()  # else its rows wait for their time-out once more
        num_before = {id(server): len(pictures(server)) for server in (slow, asking, good)}
        done("retry", tmp_path / "work")
        assert outcomes(tmp_path / "work")[str(sick.port)] == {"ok": NUM_BROKEN}
        assert {id(server): len(pictures(server)) for server in (slow, asking, good)} == num_before
