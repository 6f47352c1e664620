"""Every error we raise on purpose; each class is a policy, not a place.

    PlantMixError
    ├── ConfigError       stop before any work, write nothing, exit code 2
    ├── RetryableError    run this part again, a bounded number of times
    │   ├── AwayError         a store was asked for as long as it makes sense, and did not answer
    │   └── LostNodeError     run this part again, and do not count the try
    ├── PartError         fail this part, finish the others, exit code 1
    ├── RunError          the run cannot go on, what is committed stays, exit code 1
    └── IntegrityError    stop at once and touch nothing more, exit code 1

What happens to one image is an outcome in a table, never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence

from manifests.masking import hide_secrets


class PlantMixError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(PlantMixError):
    """The user's input is wrong: raised before any work, nothing has been written."""

    exit_code = 2


class RetryableError(PlantMixError):
    """A passing fault of one part (a lost worker, a full network buffer): run the part again."""


class AwayError(RetryableError):
    """A store did not answer after the last of several tries; its cause is what the client said."""


class LostNodeError(RetryableError):
    """The machine that ran a part went away, which says nothing against the part."""


class PartError(PlantMixError):
    """One part cannot be done; the others are finished and the run exits with 1."""


class RunError(PlantMixError):
    """The run cannot go on from here; what is committed stays."""


class IntegrityError(PlantMixError):
    """Stored data contradict their record: stop at once and touch nothing more."""


class DamageError(IntegrityError):
    """Published files that do not hold what was recorded."""

    def __reduce__(self) -> tuple[type[DamageError], tuple[str, tuple[str, ...]]]:
        return DamageError, (self.workdir, self.paths)  # workers of a cluster send it

    def __init__(self, workdir: str, paths: Sequence[str]) -> None:
        """`paths` are relative to the work folder."""
        self.workdir, self.paths = workdir, tuple(paths)
        super().__init__(
            f"{describe_paths(paths)}: not what was recorded; the disk or another program changed a published file. "
            f"`plantmix repair {workdir}` restores what is damaged"
        )


def describe_paths(paths: Sequence[str]) -> str:
    """Return the first path, and how many more there are."""
    return paths[0] + (f" and {len(paths) - 1:,} more files" if len(paths) > 1 else "")


def words_of(error: BaseException) -> str:
    """Return an error on one line of bounded length, without the secrets of addresses; a library's with its kind."""
    words = f"{hide_secrets(' '.join(str(error).split())):.300}"
    return words if isinstance(error, PlantMixError) else f"{type(error).__name__}: {words}"


class NoRangesError(ConfigError, ValueError):
    """The server gives a file whole or not at all."""


def no_ranges(address: str) -> NoRangesError:
    """Return the error of a server that does not send a part of a file."""
    cure = "its server sends files whole, not in ranges; download it, and name the local file"
    return NoRangesError(f"{hide_secrets(address)}: {cure}")
