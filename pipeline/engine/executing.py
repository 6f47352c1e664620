"""Do one part, and the simplest way to do many: one after another, in this process.

An error of a part comes back as a value. The driver alone decides what it means.
"""

from __future__ import annotations

import ctypes
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - its BLAS must be there to be limited
import pyarrow as pa

from manifests.errors import PartError, PlantMixError, RetryableError, RunError
from manifests.stores.faults import is_stop, is_storage_error, no_room
from pipeline.engine.away import brought_here
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import Execution, Part, PartResult, Work

Asked = Callable[[], bool]
_LONG_SECONDS = 1.0  # a part of a small build ends within it, and 50 of them would trim for a tenth of its time


@dataclass(frozen=True)
class Job:
    """A planned part on its way to a worker: its key, what it is made from, and how it runs."""

    key: str
    part: Part[Any]
    execution: Execution[Any]

    @property
    def num_rows(self) -> int:
        """Its weight in the progress display."""
        return self.part.num_rows or 1


@dataclass(frozen=True)
class Done:
    """A result of a job, or the error that ended it."""

    job: Job
    result: PartResult | None
    error: Exception | None
    seconds: float


def never() -> bool:
    """Nobody asks to stop."""
    return False


class InlineExecutor:
    """The same plan without Ray, one part after another in this process."""

    def run(
        self, work: Work, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Sequence[Done]]:
        """Yield the results of every job, in plan order; other executors yield them as they come, some at a time.

        With `gpus` those run them in workers that stay, each with so many GPUs. Once `stopping` says so, no further job
        is begun.
        """
        for job in jobs:
            if stopping():
                return
            for done in do_job(work, job):
                yield [done]

    def share(self, make: Callable[[], Any]) -> Any:
        """Return the object itself: there is only this process."""
        return make()

    def close(self) -> None:
        """Nothing to release."""


def do_job(work: Work, job: Job) -> Iterator[Done]:
    """Run one job in a worker: its result, or its pieces as they come, or the error that ended it.

    Parts run side by side, so a matrix product takes one thread. OpenBLAS would lend the small products of a pHash a
    thread for each core, and the threads wait for each other in loops: a photo took 5.2 CPU ms instead of 2.0 on two
    cores, and longer by the clock too.
    """
    began = started = time.monotonic()
    try:
        with (
            _blas(len(sys.modules)).limit(limits=1, user_api="blas"),
            brought_here(job.part.inputs, job.execution) as (inputs, execution, publish),
        ):
            values = inputs.values if isinstance(inputs, Inputs) else {}
            made = work(inputs, execution, **values)
            for result in [made] if isinstance(made, PartResult) else made:
                yield Done(job, publish(result), None, time.monotonic() - started)
                started = time.monotonic()
    except PlantMixError as error:
        yield Done(job, None, error, time.monotonic() - started)
    except Exception as error:  # a defect that one part meets must not cost the others their work
        if is_stop(error):
            raise KeyboardInterrupt from error
        yield Done(job, None, _explain(error, job), time.monotonic() - started)
    give_memory_back(began)


def give_memory_back(began: float) -> None:
    """Free pages between others that are in use, behind work that began a second ago or earlier.

    Between two parts of 10,000 pictures a worker held 360 MiB, so 190 to 250 (AMD EPYC, 2026-12-01, fetch of a
    million).
    """
    if time.monotonic() - began < _LONG_SECONDS:
        return
    pa.default_memory_pool().release_unused()
    _malloc_trim()(0)


@lru_cache(1)
def _malloc_trim() -> Callable[[int], int]:
    """Return the `malloc_trim` of the C library, or None where it has none."""
    trim: Callable[[int], int] = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    return trim


@lru_cache(1)
def _blas(num_modules: int) -> Any:
    """Return the libraries of BLAS, looked for again when more modules are loaded: to look takes 1.2 ms."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def _explain(error: Exception, job: Job) -> PlantMixError:
    """Return the error to report. A full disk, a lost mount or a silent storage is no defect of the program."""
    if not is_storage_error(error):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return PartError(
            f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}); "
            "unexpected; please report it with this line"
        )
    if why := no_room(error, job.execution.workdir):
        return RunError(  # another try would only ask all hosts again
            f"{why}, or move the work folder to a larger disk (`plantmix estimate` says how much a build needs). What "
            "is committed stays; run the same command again"
        )
    unnamed = isinstance(error, OSError) and error.errno and not error.filename  # of a read or write
    return RetryableError(f"{type(error).__name__}: {error}" + (f": {job.execution.workdir}" if unnamed else ""))
