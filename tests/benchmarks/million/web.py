"""The web of a build: an HTTP server on 127.0.0.1 that answers out of the packed file, a port a host.

    python -m million.web FOLDER      # in tests/benchmarks; it prints one line when it is ready

One process, one thread: 60 microseconds of CPU an answer. GET /stats on the first port gives its counts and its CPU
seconds, which belong to no build. Reads FOLDER/pictures.bin, mapped into memory, and rows.parquet.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from million.rows import KIND_OF_PORT, MOOD_SECONDS, SLOW_SECONDS

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_MOODY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
_PAGE = b"<!DOCTYPE html><html><body><h1>This picture has moved</h1></body></html>"


class Site:
    """What all hosts share: the pictures, what was counted, and which rows a busy host has refused once."""

    def __init__(self, folder: Path) -> None:
        columns = pq.read_table(folder / "rows.parquet", columns=["offset", "length", "is_faulty"])
        self._offsets, self._lengths, self._faulty = (column.to_numpy() for column in columns.itercolumns())
        with (folder / "pictures.bin").open("rb") as stream:
            self._bodies = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        self._refused: set[int] = set()
        self.counts: dict[str, int] = {"requests": 0, "pictures": 0, "connections": 0}

    def answer(self, kind: str, path: bytes) -> tuple[bytes, bool]:
        """The bytes to send, and whether the connection ends behind them."""
        self.counts["requests"] += 1
        if path == b"/stats":
            body = json.dumps({**self.counts, "cpu_seconds": time.process_time()}).encode()
            return _HEAD % len(body) + body, False
        name = path[1:].removesuffix(b".jpg")
        if not name.isdigit():  # robots.txt, tdmrep.json
            return _NOT_FOUND, False
        number = int(name)
        fault = kind if self._faulty[number] else ""
        if kind == "moody" and int(time.time()) % MOOD_SECONDS == 0:
            return _MOODY, False
        if fault == "gone":
            return _NOT_FOUND, False
        if fault == "page":
            return _HEAD % len(_PAGE) + _PAGE, False
        if fault == "busy" and number not in self._refused:
            self._refused.add(number)
            return _BUSY, False
        self.counts["pictures"] += 1
        start, length = int(self._offsets[number]), int(self._lengths[number])
        shown = length // 2 if fault == "cut" else length
        return _HEAD % length + self._bodies[start : start + shown], fault == "cut"


class Connection(asyncio.Protocol):
    """One connection to one host."""

    transport: asyncio.Transport

    def __init__(self, site: Site, kind: str) -> None:
        self._site, self._kind = site, kind
        self._waiting = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._site.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        while b"\r\n\r\n" in self._waiting:
            head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
            if self._kind == "slow":
                asyncio.get_running_loop().call_later(SLOW_SECONDS, self._send, head)
            else:
                self._send(head)

    def _send(self, head: bytes) -> None:
        if self.transport.is_closing():
            return
        answer, ends = self._site.answer(self._kind, head.split(b" ", 2)[1])
        self.transport.write(answer)
        if ends or b"connection: close" in head.lower():
            self.transport.close()


async def serve(folder: Path) -> None:
    """Listen on all ports, say so, and answer until the process ends."""
    site, loop = Site(folder), asyncio.get_running_loop()
    first = json.loads((folder / "settings.json").read_text())["first_port"]
    servers = [
        await loop.create_server(lambda kind=kind: Connection(site, kind), "127.0.0.1", first + number, backlog=1024)
        for number, kind in enumerate(KIND_OF_PORT)
    ]
    print(f"{len(servers)} hosts from 127.0.0.1:{first} on", flush=True)
    await asyncio.Event().wait()


class Web:
    """A server that runs, in a process of its own."""

    def __init__(self, first_port: int) -> None:
        self._stats = f"http://127.0.0.1:{first_port}/stats"

    def stats(self) -> dict[str, float]:
        """Requests, pictures and connections so far, and its CPU seconds."""
        with urllib.request.urlopen(self._stats, timeout=60) as answer:
            told: dict[str, float] = json.loads(answer.read())
        return told


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """The server of a folder, while the context lasts."""
    import subprocess

    command = [sys.executable, "-m", "million.web", str(folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise SystemExit(f"the server of {folder} did not start; is another one on its ports?")
            yield Web(json.loads((folder / "settings.json").read_text())["first_port"])
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
