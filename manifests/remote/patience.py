"""Ask a service on the network again after a fault that may pass: a store, or the Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from manifests.errors import RetryableError
from manifests.storage import is_storage_error

T = TypeVar("T")


def may_pass(error: Exception) -> bool:
    """Whether a store may give later what it does not give now; whether a file is there is an answer."""
    is_answer = isinstance(error, FileNotFoundError | FileExistsError)
    return isinstance(error, RetryableError) or (is_storage_error(error) and not is_answer)


def patiently(
    action: Callable[[], T], waits_seconds: Sequence[float], passing: Callable[[Exception], Exception | None]
) -> T:
    """Do something, and do it again after each wait where it failed for a reason that may pass.

    `passing` says what to raise for an error in the end, None for one that does not pass. It may raise too.
    """
    for wait_seconds in (*waits_seconds, None):
        try:
            return action()
        except Exception as error:
            problem = passing(error)
            if problem is None:
                raise
            if wait_seconds is None:
                raise problem from None
        time.sleep(wait_seconds)
    raise AssertionError("the last try returns or raises")
