"""Parts in processes of this machine, without Ray.

Python's own pools do not do: one lost worker breaks a `ProcessPoolExecutor` and hangs a `multiprocessing.Pool`, neither
passes on pieces of a part while it runs, and workers outlive a driver that is killed (tried with Python 3.11).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from manifests.errors import RetryableError
from manifests.services.child import Command
from manifests.services.scheduling import num_cores
from pipeline.engine.executing import Asked, Done, Job, never
from pipeline.engine.process_worker import Shared
from pipeline.engine.work import Work

_TICK_SECONDS = 0.5  # the longest wait before the driver checks whether it must stop
_END_SECONDS = 5.0  # a worker has so long to exit; then it is killed
_OLD_SECONDS = 30.0
"""A worker that has worked for longer does no further step. What libraries keep of a step is of no use to the next one:
behind the downloads and captions of a million pictures it was 90 MiB (2026-12-01). A new worker takes a second.
"""
# DuckDB takes a program without a file for a notebook, and would print the progress of queries. Imports leave no
# garbage; looking for some meanwhile takes a tenth of their time.
_START = (
    "import gc, json, sys; gc.disable(); sys.path[:] = json.loads(sys.argv[1]); __file__ = sys.argv[0]; "
    "from pipeline.engine.process_worker import serve; gc.freeze(); gc.enable(); "
    "serve(int(sys.argv[2]), int(sys.argv[3]))"
)


class _Worker:
    """A process that does one part at a time, and the driver's ends of two connections to it."""

    def __init__(self, threads: int, shared: Sequence[Any]) -> None:
        results, results_there = socket.socketpair()
        calls, calls_there = socket.socketpair()
        fds = (results_there.fileno(), calls_there.fileno())
        with results_there, calls_there:
            self._command = Command(
                [sys.executable, "-P", "-c", _START, json.dumps(sys.path), *map(str, fds)],
                hears_output=True,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for the driver, which asks the parts to store what they have
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
            )
        self.job: Job | None = None
        self.worked_seconds = 0.0
        self.results: Connection[Any, Any] = Connection(results.detach())
        self._calls: Connection[Any, Any] = Connection(calls.detach())
        threading.Thread(target=_answer, args=(self._calls, shared), daemon=True).start()

    def begin(self, work: Work, job: Job) -> None:
        """Send a part. If the worker is gone, its results say so."""
        self.job = job
        payload = pickle.dumps((work, job))
        with contextlib.suppress(OSError):
            self.results.send_bytes(payload)

    def receive(self) -> Done | None:
        """Its next result; None if it only says that its part has ended. Then it may be free for the next part."""
        job = self.job
        assert job is not None
        try:
            came = self.results.recv()
        except (EOFError, OSError):
            came = (None, RetryableError(f"a worker was lost ({self.end()})"), 0.0)
        done = Done(job, *came) if came else None
        self.worked_seconds += done.seconds if done else 0.0
        if done is None or done.result is None or not done.result.is_piece:
            self.job = None
        return done

    @property
    def is_gone(self) -> bool:
        return self._command.process.poll() is not None

    def end(self) -> str:
        """End the process, whatever it is doing. Returns how it ended, and its last line if it exited by itself."""
        self.results.close()  # it exits at once when it sees that
        code, words = self._command.end(_END_SECONDS), self._command.last_line
        if code >= 0:
            return f"exit code {code}" + (f": {words}" if words else "")
        name = signal.Signals(-code).name
        hint = "; the system does this when memory runs out: see run.memory_gb and run.num_workers"
        return f"ended by {name}{hint if name == 'SIGKILL' else ''}"


def _answer(calls: Connection[Any, Any], shared: Sequence[Any]) -> None:
    """Call shared objects for one worker, until it ends."""
    with contextlib.suppress(EOFError, OSError), calls:
        while True:
            number, method, arguments = calls.recv()
            try:
                calls.send((getattr(shared[number], method)(*arguments), None))
            except Exception as error:  # the part gets it, and says what it means
                calls.send((None, error))


class ProcessExecutor:
    """Runs parts side by side, in workers: processes that stay from part to part and do one at a time.

    A worker gets its next part before the driver commits the last one. A lost worker is replaced, and its part may be
    done again. Workers start when there is work for them.
    """

    def __init__(self, num_workers: int | None) -> None:
        """None: as many workers as cores. The threads of the cores are shared out among the workers."""
        cores = num_cores()
        self._num_workers = num_workers or cores
        self._threads = max(1, cores // self._num_workers)
        self._workers: list[_Worker] = []
        self._shared: list[Any] = []

    def run(
        self, work: Work, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Sequence[Done]]:
        """Yield the results of every job as they come. Where each needs a GPU, one worker does them all.

        A part that runs alone may take the memory of all workers.
        """
        if len(jobs) == 1:
            how = jobs[0].execution
            jobs = [replace(jobs[0], execution=replace(how, memory_gb=how.memory_gb * self._num_workers))]
        # a worker with a job is of a run that was left in the middle
        self._end([worker for worker in self._workers if worker.job or worker.worked_seconds > _OLD_SECONDS])
        waiting = deque(jobs)
        while True:
            if stopping():
                waiting.clear()
            self._hand_out(work, waiting, 1 if gpus else self._num_workers)
            busy = {worker.results: worker for worker in self._workers if worker.job}
            if not busy:
                return
            ready = wait(busy, _TICK_SECONDS)
            results = [worker.receive() for connection, worker in busy.items() if connection in ready]
            if not stopping():
                self._hand_out(work, waiting, 1 if gpus else self._num_workers)
            yield [done for done in results if done]

    def _hand_out(self, work: Work, waiting: deque[Job], most: int) -> None:
        """Give a part to each free worker, and to new workers up to `most` busy ones.

        As many again are started ahead: their imports are done when more work comes.
        """
        self._end([worker for worker in self._workers if not worker.job and worker.is_gone])
        while waiting and sum(worker.job is not None for worker in self._workers) < most:
            worker = next((worker for worker in self._workers if not worker.job), None)
            if worker is None:
                self._workers.append(worker := _Worker(self._threads, self._shared))
            worker.begin(work, waiting.popleft())
        num_busy = sum(worker.job is not None for worker in self._workers)
        while len(self._workers) < min(most, 2 * num_busy):
            self._workers.append(_Worker(self._threads, self._shared))

    def share(self, make: Callable[[], Any]) -> Any:
        """Make the object in this process; workers call it over their connections."""
        self._shared.append(make())
        return Shared(len(self._shared) - 1, self._shared[-1])

    def close(self) -> None:
        """End all workers."""
        self._end(self._workers)

    def _end(self, workers: Sequence[_Worker]) -> None:
        for worker in list(workers):
            worker.end()
            self._workers.remove(worker)
