"""Run a command of `plantmix` or `dalip` to its exit code and, after an error, one readable line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from manifests.errors import PlantMixError, RunError
from manifests.services import packages
from manifests.services.printable import PrintableStream, shown
from manifests.services.scheduling import STOP_SIGNALS, handling, interrupt
from manifests.stores import faults

_WHEN_MENDED = "what is committed stays, run the same command again when it is mended"
_DAMAGED = "a file of the work folder or release is damaged: `plantmix verify` names it, and what mends it"


def run_command(program: str, command: Callable[[], int], when_stopped: str) -> int:
    """Run a command and return its exit code. `when_stopped` is printed after Ctrl-C or STOP_SIGNALS.

    Raises: an error that nobody expects.
    """
    try:
        with handling(interrupt, *STOP_SIGNALS), contextlib.redirect_stdout(PrintableStream(sys.stdout)):
            return command()
    except BrokenPipeError:  # whoever read the output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or faults.is_stop(error):
            print(f"{program}: {when_stopped}", file=sys.stderr)
            return 1
        explained = error if isinstance(error, PlantMixError) else _explain(error)
        print(shown(f"{program}: error: {explained}"), file=sys.stderr)
        return explained.exit_code


def _explain(error: Exception) -> PlantMixError:
    """Return one line on a missing package, a plug-in, a full disk, a lost mount, a permission, a damaged file.

    Raises: the error itself where it is none of these.
    """
    if isinstance(error, ModuleNotFoundError):
        return packages.explain(error)
    if mistake := packages.mistake_in(error):
        return mistake
    if why := faults.no_room(error):
        return RunError(f"{why}, then run the same command again")
    text = f"{' '.join(str(error).split()):.500}"
    if isinstance(error, OSError):
        text = (f"{error.filename}: " if error.filename else "") + f"{error.strerror or error}"
    elif faults.is_damage(error):
        return RunError(f"{text}; {_DAMAGED}")
    if faults.is_storage_error(error):
        return RunError(f"{text}; {_WHEN_MENDED}")
    raise error
