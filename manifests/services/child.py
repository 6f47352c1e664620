"""A process beside this one: `Child` runs a function of ours, `Command` a program.

They are two, since they end differently. A `Child` starts anew (`spawn`): its function and arguments are pickled, its
memory can be limited, and it ends with the process that started it, however that ends. A `Command` speaks by its
streams, and ends when its input does. The workers of a build are commands too (`pipeline/engine/on_processes.py`): the
last line that one printed says why it died, and Ctrl-C must not reach it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

_HEARING_SECONDS = 5.0  # processes that a command left behind may keep its streams open
_LIBRARIES_MB, _MB_A_CORE = 1_000, 16  # what libraries reserve, and the stacks of their threads, count as taken


class Child:
    """`with` starts a process that runs `work(send, *arguments)`; at the end of `with` no process is left."""

    def __init__(self, work: Callable[..., None], *arguments: Any, memory_mb: int | None = None) -> None:
        """With `memory_mb`, what the process allocates beyond that and its libraries fails (Linux)."""
        context = multiprocessing.get_context("spawn")
        self._messages, self._sends = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(self._sends, memory_mb, work, arguments), daemon=True)

    def __enter__(self) -> Self:
        main = sys.modules["__main__"]
        script = getattr(main, "__file__", None)
        if script is not None:  # the script of the user is not run again: it may be gone, or have no guard
            main.__file__ = None
        try:
            self.process.start()
        finally:
            if script is not None:  # where there was none, one that is None would stop Ray
                main.__file__ = script
        self._sends.close()  # the process alone holds that end now, so its death is seen
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.join()
        self._messages.close()

    def receive(self, seconds: float | None = None) -> Any:
        """Return the next value that `work` sends; None when it has ended.

        Raises: what `work` raised; TimeoutError after so many seconds; EOFError when the process was killed.
        """
        if seconds is not None and (seconds <= 0 or not self._messages.poll(seconds)):
            raise TimeoutError
        try:
            message = self._messages.recv()
        except EOFError:
            self.process.join()
            raise
        if isinstance(message, Exception):
            raise message
        return message


class Command:
    """A program in a process of its own; `with` waits until it ends. The last line that it says of errors is kept."""

    def __init__(self, words: Sequence[str] | str, hears_output: bool = False, **options: Any) -> None:
        """Start the program. `words` as a text are for the shell, `options` are those of Popen.

        With `hears_output`, its output counts as its messages of errors.

        Raises: OSError when the program does not start.
        """
        errors = subprocess.STDOUT if hears_output else subprocess.PIPE
        self.process = subprocess.Popen(
            words, shell=isinstance(words, str), stdout=subprocess.PIPE, stderr=errors,
            **{"stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip
        self.output: Any = self.process.stdout
        self._last: deque[bytes] = deque(maxlen=1)
        heard = self.process.stderr or self.output
        self._hearing = threading.Thread(target=_hear, args=(heard, self._last), daemon=True)
        self._hearing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.output.close()  # it can write no more, so it ends
        self.end()

    def end(self, seconds: float | None = None) -> int:
        """Wait for its end, at most so long, then kill it. Returns its exit code, or minus the number of a signal."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._hearing.join(_HEARING_SECONDS)
        return int(self.process.returncode)

    @property
    def last_line(self) -> str:
        """The last line that it said of errors."""
        return self._last[0].decode(errors="replace").strip() if self._last else ""


def _hear(stream: Any, lines: deque[bytes]) -> None:
    with stream:
        lines.extend(line for line in stream if line.strip())


def end_with_parent() -> None:
    """Let this process end when the one that started it has ended, whatever it does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _run(sends: Connection, memory_mb: int | None, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this process
    end_with_parent()
    if memory_mb is not None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = (memory_mb + _LIBRARIES_MB + _MB_A_CORE * (os.cpu_count() or 1)) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    with contextlib.suppress(BrokenPipeError):
        try:
            work(sends.send, *arguments)
            sends.send(None)
        except Exception as error:
            sends.send(error)
