"""Ask a service on the network again after a fault that may pass: a store, or the Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from manifests.errors import RetryableError, words_of
from manifests.storage import is_remote, is_storage_error, read_chunks

T = TypeVar("T")

_READ_AGAIN_SECONDS = (0.5, 2.0)


def read_if_there(path: str) -> bytes | None:
    """The content of a small file; None where there is none. No listing that is kept of a store is asked.

    Raises: RetryableError when the store stays away.
    """

    def passing(error: Exception) -> RetryableError | None:
        fails = is_remote(path) and may_pass(error)
        return RetryableError(f"{path} cannot be read now ({words_of(error)})") if fails else None

    try:
        return patiently(lambda: b"".join(read_chunks(path)), _READ_AGAIN_SECONDS, passing)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


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
