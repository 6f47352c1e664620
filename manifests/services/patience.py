"""Ask a service on the network again after a fault that may pass: a store, or the Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from manifests.errors import RetryableError, words_of
from manifests.stores.storage import is_remote, is_storage_error, read_chunks

T = TypeVar("T")

_READ_AGAIN_SECONDS = (0.5, 2.0)


def read_if_there(path: str) -> bytes | None:
    """The content of a small file; None where it is missing. Asks the store itself, not a listing from before.

    Raises: RetryableError when the store does not answer after the last try.
    """

    def passing(error: Exception) -> RetryableError | None:
        fails = is_remote(path) and may_pass(error)
        return RetryableError(f"{path} cannot be read now ({words_of(error)})") if fails else None

    try:
        return patiently(lambda: b"".join(read_chunks(path)), _READ_AGAIN_SECONDS, passing)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def may_pass(error: Exception) -> bool:
    """Whether asking again may help. A store that says that a file is missing, or there already, has answered."""
    is_answer = isinstance(error, FileNotFoundError | FileExistsError) and hidden_fault(error) is None
    return isinstance(error, RetryableError) or (is_storage_error(error) and not is_answer)


def hidden_fault(error: Exception) -> Exception | None:
    """The fault of a web server that fsspec gives as a file that is not there; None where the file is not there."""
    cause = error.__cause__
    if not isinstance(cause, Exception) or not type(cause).__module__.startswith("aiohttp."):
        return None
    return cause if getattr(cause, "status", None) not in (404, 410) else None


def patiently(
    action: Callable[[], T], waits_seconds: Sequence[float], passing: Callable[[Exception], Exception | None]
) -> T:
    """Call `action`, and call it again after each wait while it fails for a reason that may pass.

    `passing` turns an error into the one that is raised after the last try. None: the error is raised at once.
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
