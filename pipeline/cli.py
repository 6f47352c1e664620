"""The `plantmix` command line. Exits 0 when all went well, 1 when a run failed, 2 for bad usage or config.

Each command has a module of its name in pipeline/commands/, with its parser, its run and what it prints.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import logging
import sys
from collections.abc import Sequence
from functools import partial

from manifests import __version__
from manifests.command_line import run_command
from manifests.services.printable import WIPE, is_terminal, shown
from manifests.stores import storage
from manifests.stores.folder import patiently, store_of

COMMANDS = (  # in the order in which a run needs them
    "init",
    "estimate",
    "preview",
    "build",
    "status",
    "retry",
    "explain",
    "query",
    "browse",
    "report",
    "export",
    "publish",
    "mix",
    "plan",
    "verify",
    "repair",
    "diff",
    "audit",
    "takedown",
)
_TOGETHER = {"repair": "verify", "publish": "export"}  # one command goes on from the other: one module


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Every error that the program raises on purpose is printed as one readable line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    atexit.register(_leave_garbage)
    stopped = "stopped; what is committed stays, run the same command to go on"
    return run_command("plantmix", partial(_run, arguments), stopped)


def _run(arguments: Sequence[str]) -> int:
    args = build_parser(arguments).parse_args(arguments)  # imports the command, where a Ctrl-C may fall too
    set_up_logging(verbose=args.verbose, quiet=args.quiet)
    from manifests.services.arrow import without_pandas  # not for --help

    without_pandas()
    folder = getattr(args, "dir", None)
    if folder and (address := store_of(folder)):
        args.dir = _brought(address)
    return int(args.func(args))


def _leave_garbage() -> None:
    """Python would look for garbage in all modules before it leaves, for a tenth of a second."""
    if "triton" not in sys.modules:  # which complains, in 28 lines, of what nobody collected
        gc.freeze()


def _brought(address: str) -> str:
    """Return the local folder of a work folder in a store; the address itself where a release lies there."""
    from manifests.contract.release import RECORD_FILE
    from manifests.contract.session import at_hand  # takes a third of a second to import

    is_release = patiently(address, partial(storage.exists, storage.join(address, RECORD_FILE)))
    return address if is_release else at_hand(address)


def build_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the whole command line, or the one command that `arguments` names: then only its module is imported."""
    parser = argparse.ArgumentParser(
        prog="plantmix",
        description="Build mixed image-text datasets for training: URLs in, sealed webdataset releases out.",
        epilog="first steps: make demo shows a whole run; with pictures of your own: plantmix init, then estimate, "
        "build and browse. The help of each command has an example.",
    )
    parser.add_argument("--version", action="version", version=f"plantmix {__version__}")
    parser.add_argument("--verbose", action="store_true", help="time and place on every log line")
    parser.add_argument("--quiet", action="store_true", help="no progress, only warnings, errors and results")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name in [named] if named in COMMANDS else COMMANDS:
        module = importlib.import_module(f"pipeline.commands.{_TOGETHER.get(name, name)}")
        getattr(module, f"add_{name}_parser" if name in _TOGETHER else "add_parser")(commands)
    return parser


class _PrintableFormatter(logging.Formatter):
    """Log lines in which nothing that came from outside can steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _CurrentStderr(logging.Handler):
    """Prints to what standard error is now, in place of a line of progress that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        print((WIPE if is_terminal(sys.stderr) else "") + self.format(record), file=sys.stderr, flush=True)


def set_up_logging(verbose: bool, quiet: bool = False) -> None:
    """Plain lines on standard error: the message alone, or with time and place when verbose."""
    handler = _CurrentStderr()
    layout = "%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"
    handler.setFormatter(_PrintableFormatter(layout))
    root = logging.getLogger("plantmix")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
