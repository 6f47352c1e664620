"""What it means to do a part, and the simplest way to do many: one after another, in this process.

An error of a part comes back as a value. The driver alone decides what it means.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import PartError, PlantMixError, RetryableError
from pipeline.runner.work import Execution, Part, PartResult

Work = Callable[[Any, Execution[Any]], PartResult]


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
    """A job as its worker left it: a result, or the error that ended it."""

    job: Job
    result: PartResult | None
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs jobs somewhere and yields each as it ends, in any order."""

    def run(self, work: Work, jobs: Sequence[Job], gpus: float | None = None) -> Iterator[Done]:
        """Yield every job once. With `gpus` they run in workers that stay, each with so many GPUs."""

    def share(self, make: Callable[[], Any]) -> Any:
        """Make one object that all parts talk to, wherever they run, and return a handle on it."""

    def close(self) -> None:
        """Release what the executor holds."""


class InlineExecutor:
    """The same plan without Ray, one part after another in this process."""

    def run(self, work: Work, jobs: Sequence[Job], gpus: float | None = None) -> Iterator[Done]:
        """Yield every job once, in plan order."""
        for job in jobs:
            yield do_job(work, job)

    def share(self, make: Callable[[], Any]) -> Any:
        """The object itself: there is only this process."""
        return make()

    def close(self) -> None:
        """Nothing to release."""


def do_job(work: Work, job: Job) -> Done:
    """Run one job in a worker."""
    started = time.monotonic()
    try:
        result = work(job.part.inputs, job.execution)
    except PlantMixError as error:
        return Done(job, None, error, time.monotonic() - started)
    except OSError as error:  # a full disk or a lost mount is not a defect of the program
        return Done(job, None, RetryableError(f"{type(error).__name__}: {error}"), time.monotonic() - started)
    except Exception as error:  # a defect that one part meets must not cost the others their work
        return Done(job, None, PartError(_describe_defect(error)), time.monotonic() - started)
    return Done(job, result, None, time.monotonic() - started)


def _describe_defect(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}); "
        "unexpected; please report it with this line"
    )
