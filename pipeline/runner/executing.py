"""What it is to do a part, and the plainest way to do many: one after another, in this process.

Gives up on nothing: an error of a part comes back as a value, so that the driver alone decides what it means.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manifests.errors import PartError, PlantMixError, RetryableError
from pipeline.runner.work import Part, PartResult, Work


@dataclass(frozen=True)
class Done:
    """A part as its worker left it: a result, or the error that ended it."""

    part: Part
    result: PartResult | None
    error: Exception | None
    seconds: float


class Executor(Protocol):
    """Runs parts somewhere and yields each as it ends, in any order."""

    def run(self, work: Work, parts: Sequence[Part], gpus: float | None = None) -> Iterator[Done]:
        """Yield every part once; `gpus` not None: in workers that stay, each with so many."""

    def share(self, make: Callable[[], Any]) -> Any:
        """Make one object and give a handle on it, to which all parts talk, wherever they run."""

    def close(self) -> None:
        """Let go of what the executor holds."""


class InlineExecutor:
    """The same plan without Ray, one part after another in this process."""

    def run(self, work: Work, parts: Sequence[Part], gpus: float | None = None) -> Iterator[Done]:
        """Yield every part once, in plan order."""
        for part in parts:
            yield do_part(work, part)

    def share(self, make: Callable[[], Any]) -> Any:
        """The object itself: there is only this process."""
        return make()

    def close(self) -> None:
        """Nothing to let go of."""


def do_part(work: Work, part: Part) -> Done:
    """Run one part in a worker; errors come back as values, so that the driver alone decides what they mean."""
    started = time.monotonic()
    try:
        result = work(part.payload)
    except PlantMixError as error:
        return Done(part, None, error, time.monotonic() - started)
    except OSError as error:  # a full disk or a lost mount is the part's misfortune, not a defect
        return Done(part, None, RetryableError(f"{type(error).__name__}: {error}"), time.monotonic() - started)
    except Exception as error:  # a defect of ours that one part runs into must not cost the others their work
        return Done(part, None, PartError(_describe_defect(error)), time.monotonic() - started)
    return Done(part, result, None, time.monotonic() - started)


def _describe_defect(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}); "
        "unexpected; if this does not say why, please report it with this line"
    )
