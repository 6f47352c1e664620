"""Which errors of disks, stores and web servers may pass, and the one way to try again. No other module lists them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from manifests.errors import AwayError, RetryableError, words_of
from manifests.masking import hide_secrets
from manifests.stores.clients import is_remote

T = TypeVar("T")

WAITS_SECONDS = (0.5, 2.0, 6.0, 12.0)
"""Between tries. Client libraries repeat requests too, and `run.max_attempts` repeats a part of a build."""

_CLIENT_LIBRARIES = {
    "aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx2", "requests", "urllib3",
}  # fmt: skip
_PASSING_STATUSES = {401, 403, 408, 409, 425, 429}  # and all from 500 on; credentials may be renewed


def is_storage_error(error: Exception) -> bool:
    """Return true for an error of the operating system, or of a library of object stores, which may be no OSError."""
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    of_duckdb = "_duckdb" in libraries and "Could not " in str(error)  # its words for a fault of the disk
    return isinstance(error, OSError) or of_duckdb or not _CLIENT_LIBRARIES.isdisjoint(libraries)


def no_room(error: BaseException, folder: str = "") -> str | None:
    """Why there is no room for a file (disk, quota, limit of size), and the first cure; None for any other error."""
    reasons = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    by_words = (number for number in reasons if os.strerror(number) in str(error))  # of libraries without an errno
    number = error.errno if isinstance(error, OSError) and error.errno in reasons else next(by_words, None)
    if number is None:
        return None
    place, mend = getattr(error, "filename", None) or folder or words_of(error), "Make room"
    disk = os.statvfs(folder) if folder and Path(folder).is_dir() else None
    if number == errno.EDQUOT:
        why = "the user's share of the disk (quota) is used up"
    elif number == errno.EFBIG:
        why, mend = "a file would be larger than this process may write", "Raise the limit (ulimit -f)"
    elif disk and disk.f_files and not disk.f_favail:
        why, mend = "the disk can hold no more files (its inodes are used up)", "Remove files that nobody needs"
    else:
        why = "the disk is full" + (f" ({disk.f_bavail * disk.f_frsize / 1e6:,.0f} MB free)" if disk else "")
    return f"{why}: {place}. {mend}"


def is_damage(error: Exception) -> bool:
    """Return true for what DuckDB and Arrow say of a file whose bytes make no sense.

    A wrong query is something else.
    """
    of_duckdb = ("Error", "IOException", "FatalException", "SerializationException", "InvalidInputException")
    kinds = {"_duckdb": of_duckdb, "pyarrow": ("ArrowInvalid",)}
    return type(error).__name__ in kinds.get(type(error).__module__.partition(".")[0], ())


def is_stop(error: BaseException) -> bool:
    """Return true for a Ctrl-C. DuckDB turns one that falls into a query into a RuntimeError."""
    return isinstance(error, KeyboardInterrupt) or (type(error) is RuntimeError and str(error) == "Query interrupted")


def may_pass(error: Exception) -> bool:
    """Return whether another try may help. It does not where a store says that a file is missing, or there already."""
    if isinstance(error, RetryableError):
        return True
    if isinstance(error, FileNotFoundError | FileExistsError):
        return False
    status = status_of(error)
    return is_storage_error(error) if status is None else status >= 500 or status in _PASSING_STATUSES


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error or of its cause; None where the client does not tell it."""
    passed: list[BaseException] = []
    while error is not None and all(error is not other for other in passed):
        passed.append(error)
        for value in (getattr(getattr(error, "response", None), "status_code", None), getattr(error, "status", None)):
            if isinstance(value, int):
                return value
        error = error.__cause__
    return None


def check_passing(path: str, error: Exception) -> None:
    """Tell a fault of a store from a missing file; called where reading `path` raised `error`.

    Raises: RetryableError when the store does not give what it has: that says nothing about the file.
    """
    if is_remote(path) and is_storage_error(error) and not isinstance(error, FileNotFoundError):
        raise RetryableError(f"{path} cannot be read now ({words_of(error)})") from None


def ask(path: str, question: Callable[[], T], done: str = "read") -> T:
    """Ask for a file or folder: a store again while its fault may pass, a disk once.

    Give it one request, or some that may be made again from the first.

    Raises: FileNotFoundError and FileExistsError at once; AwayError when the store does not answer after the last try.
    """
    if not is_remote(path):
        return question()

    def problem(error: Exception) -> AwayError:
        return AwayError(f"{hide_secrets(path)} cannot be {done} now ({words_of(error)})")

    return patiently(question, problem, lambda error: may_pass(error) and not no_room(error))


def patiently(
    action: Callable[[], T],
    problem: Callable[[Exception], Exception],
    passes: Callable[[Exception], bool] = may_pass,
) -> T:
    """Call `action`, and call it again after each wait while it fails for a reason that may pass.

    `problem` turns such an error into the one to raise after the last try. What it raises itself is raised at once.
    Where the action was patient itself, nothing is asked again.
    """
    for wait_seconds in (*WAITS_SECONDS, None):
        try:
            return action()
        except AwayError as error:
            raise problem(error) from error
        except Exception as error:
            if not passes(error):
                raise
            explained = problem(error)
            if wait_seconds is None:
                raise explained from error
        time.sleep(wait_seconds)
    raise AssertionError("the last try returns or raises")
