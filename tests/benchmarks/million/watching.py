"""Run a command, and note by stage what its whole tree of processes takes: seconds, CPU, memory, disk.

Memory is the sum of Pss over all processes, sampled twice a second: shared pages count once, files in the page cache do
not. CPU is that of all processes, those that have ended included. The stage is what `status.json` of a work folder
says at the time of a sample, so short stages get what is left of a sample's length.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from process_tree import below

ROOT = Path(__file__).parents[3]
PLANTMIX = [sys.executable, "-m", "pipeline.cli"]
_SAMPLE_SECONDS = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """What a stage or a whole command took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    disk_mb: float | None = None

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in vars(self).items() if value is not None}


@dataclass
class Watched:
    """A command that has ended."""

    code: int
    out: str
    err: str
    whole: Usage
    steps: dict[str, Usage] = field(default_factory=dict)

    def last_line(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]


def run(
    arguments: list[str],
    work: Path | None = None,
    act: Callable[[subprocess.Popen[str], str, float], object] = lambda *_: None,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    sample_seconds: float = _SAMPLE_SECONDS,
) -> Watched:
    """Run a command to its end.

    `act` is called at each sample with the process, the step of `work` that runs, and the seconds since the last one.
    """
    steps: dict[str, Usage] = {}
    name = str(log or Path(os.environ.get("TMPDIR", "/tmp")) / f"million-{os.getpid()}")
    with Path(f"{name}.out").open("w+") as out, Path(f"{name}.err").open("w+") as err:
        started = before = time.monotonic()
        ended_before = _of_children()
        process = subprocess.Popen(
            arguments, stdout=out, stderr=err, text=True, cwd=ROOT, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        watch = _Tree(process.pid)
        step = "start"
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(sample_seconds)
            now = time.monotonic()
            usage = steps.setdefault(step, Usage())
            passed, before = now - before, now
            usage.seconds += passed
            watch.look(usage)
            if process.returncode is not None:
                break
            new = step_of(work) if work else step
            if new != step and work is not None and new.split()[0] != step.split()[0]:
                usage.disk_mb = disk_mb(work)
            step = new
            act(process, step, passed)
        for stream in (out, err):
            stream.seek(0)
        cpu_seconds = max(watch.seen, _of_children() - ended_before)
        whole = Usage(now - started, cpu_seconds, max(each.peak_mib for each in steps.values()))
        if work is not None:
            steps[step].disk_mb = whole.disk_mb = disk_mb(work)
        return Watched(process.returncode, out.read(), err.read(), whole, steps)


def _of_children() -> float:
    """CPU of all processes that this one has waited for, and of those that they had waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def done(arguments: list[str], **more: Any) -> Watched:
    """The same of a command that must succeed."""
    ended = run(arguments, **more)
    if ended.code:
        raise SystemExit(f"{' '.join(arguments)[:300]} ended with {ended.code}:\n{ended.err[-3000:]}")
    return ended


class _Tree:
    """Processes below one, and what they have taken. The CPU of one that ended and was waited for is its parent's."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._used: dict[int, float] = {}
        self.seen = 0.0

    def look(self, usage: Usage) -> None:
        """Add the CPU since the last look, and note the memory of now."""
        pss = 0
        for pid in (self._pid, *below(self._pid)):
            with suppress(OSError, IndexError):  # it may end at any time
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._used[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
                pss += int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split(maxsplit=1)[0])
        before, self.seen = self.seen, sum(self._used.values())
        usage.cpu_seconds += self.seen - before
        usage.peak_mib = max(usage.peak_mib, pss / 1024)


def step_of(work: Path) -> str:
    """The stage and step that runs in a work folder."""
    try:
        running = json.loads((work / "status.json").read_text())["running"]
    except (OSError, ValueError, KeyError):
        return "start"
    return str(running["step"]) if running else "between"


def disk_mb(folder: Path) -> float:
    """Bytes on disk of all files below a folder; hard links count once."""
    files: dict[int, int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                stat = os.stat(os.path.join(path, name))  # noqa: PTH116, PTH118
                files[stat.st_ino] = stat.st_blocks * 512
    return sum(files.values()) / 1e6


class Background(threading.Thread):
    """Memory and CPU of a process that this one started and talks to, such as a server of pages."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._tree, self._ended = _Tree(pid), threading.Event()
        self.usage = Usage()
        self.start()

    def run(self) -> None:
        started = time.monotonic()
        while True:
            self._tree.look(self.usage)
            self.usage.seconds = time.monotonic() - started
            if self._ended.wait(_SAMPLE_SECONDS):
                return

    def end(self) -> Usage:
        self._ended.set()
        self.join()
        return self.usage
