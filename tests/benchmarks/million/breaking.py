"""The same build, killed again and again and once on a full disk: its release must be the undisturbed one.

The work folder lies on a file system of its own, in a file that takes only the room that is used. Moments are drawn
with a seed from the undisturbed build: so many seconds into a step. kill -9 goes to the build and all its processes at
once. For the full disk another file takes all room that is left, until the build has given up by itself.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from process_tree import below, kill

from million.watching import PLANTMIX, run

_WRITING = ("fetch download", "pack write")  # steps that soon meet a full disk
_LEFT_BYTES = 1 << 20


class Moment(NamedTuple):
    """When a build is disturbed: `seconds` into a step, or at once where a later one runs."""

    step: str
    seconds: float
    is_full_disk: bool = False


def draw_moments(steps: dict[str, float], num_kills: int, seed: int) -> list[Moment]:
    """Moments in the order of a build whose steps took so many seconds; one more than kills, for the full disk."""
    rng = random.Random(seed)
    names = [name for name in steps if name not in ("start", "between")]
    length = sum(steps[name] for name in names)
    points = [(rng.uniform(0, length), False) for _ in range(num_kills)]
    writing = rng.choices(_WRITING, [steps.get(name, 0.0) for name in _WRITING])[0]
    begins = sum(steps[name] for name in names[: names.index(writing)])
    points.append((begins + rng.uniform(0, steps[writing]), True))
    moments: list[Moment] = []
    before = ("", 0.0)  # a step goes on where it was killed
    for point, is_full_disk in sorted(points):
        start = 0.0
        for name in names:
            if point < start + steps[name] or name == names[-1]:
                into = point - start
                moments.append(Moment(name, into - (before[1] if before[0] == name else 0.0), is_full_disk))
                before = (name, into)
                break
            start += steps[name]
    return moments


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path | None]:
    """An empty file system of so many bytes, or None where this machine lets nobody mount one."""
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as stream:
        stream.truncate(num_bytes)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop,discard", str(image), str(mounted)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        image.unlink()
        yield None
        return
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        image.unlink()


def disturb(config: Path, work: Path, moments: list[Moment], order: list[str], disk: Path | None) -> dict[str, Any]:
    """Build to the end, disturbed at each moment. What each life ended with, and what all of them took."""
    lives: list[dict[str, Any]] = []
    waiting = [moment for moment in moments if disk or not moment.is_full_disk]
    total = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": 0.0}
    while True:
        life = _Life(waiting[0] if waiting else None, order, disk)
        ended = run([*PLANTMIX, "build", str(config)], work=work, act=life.look, sample_seconds=0.1)
        life.end()
        usage = ended.whole
        total["seconds"] += usage.seconds
        total["cpu_seconds"] += usage.cpu_seconds
        total["peak_mib"] = max(total["peak_mib"], usage.peak_mib)
        lives.append({"ended": life.what or "by itself", "step": life.step, "code": ended.code})
        if life.what == "full disk":
            lives[-1]["said"] = ended.last_line()
        if not life.what or ended.code == 0:
            if ended.code:
                raise SystemExit(f"the build ended with {ended.code} after {len(lives)} lives:\n{ended.err[-3000:]}")
            break
        waiting.pop(0)
    rounded = {name: round(value, 2) for name, value in total.items()}
    num_killed = sum(life["ended"] == "killed" for life in lives)
    return {**rounded, "num_killed": num_killed, "full_disk": disk is not None, "lives": lives}


class _Life:
    """One start of the build, until it is disturbed or done."""

    def __init__(self, moment: Moment | None, order: list[str], disk: Path | None) -> None:
        self._moment, self._order, self._disk = moment, order, disk
        self._seen = 0.0  # seconds of the step that were seen
        self.what, self.step = "", ""

    def look(self, process: subprocess.Popen[str], step: str, seconds: float) -> None:
        """Disturb the build when its moment has come."""
        if self._moment is None or self.what or step not in self._order:
            return
        at, wanted = self._order.index(step), self._order.index(self._moment.step)
        self._seen += seconds if at == wanted else 0.0
        if at < wanted or (at == wanted and self._seen < self._moment.seconds):
            return
        self.step = step
        if not self._moment.is_full_disk:
            self.what = "killed"
            kill([process.pid, *below(process.pid)])
        elif self._disk is not None:
            self.what = "full disk"
            free = os.statvfs(self._disk)
            with (self._disk / "ballast").open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, max(1, free.f_bavail * free.f_frsize - _LEFT_BYTES))

    def end(self) -> None:
        """Give the room back."""
        if self._disk is not None:
            (self._disk / "ballast").unlink(missing_ok=True)
