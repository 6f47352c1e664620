"""The processes that a command under test has started, and an end to them that they cannot soften."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def below(root: int) -> dict[int, str]:
    """Processes started by `root`, and by those, with their command lines."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended between the two
            parents[int(entry.name)], commands[int(entry.name)] = parent, command
    found: dict[int, str] = {}
    wave = {root}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave}
        found |= {pid: commands[pid] for pid in wave}
    return found


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody waits for has, though the system still lists it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pids: list[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
