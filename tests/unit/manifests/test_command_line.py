"""How a command ends: both command lines have one answer."""

from __future__ import annotations

import errno
import sys
from importlib import import_module

import pyarrow as pa
import pytest

from manifests.command_line import run_command
from manifests.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("no such key at https://u:pw@a.example/x"), 2, "dalip: error: no such key at https://a.example/x"),
        (KeyboardInterrupt(), 1, "dalip: interrupted"),
        (RuntimeError("Query interrupted"), 1, "dalip: interrupted"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "dalip: error: /x: Permission denied; what ",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "dalip: error: the disk is full: /x. Make room, t"),
        (pa.ArrowInvalid("no magic bytes"), 1, "dalip: error: no magic bytes; a file of the work folder or release is"),
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn"),
            2,
            "dalip: error: this needs sklearn, which ",
        ),
    ],
)
def test_an_error_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert run_command("dalip", fail, "interrupted") == code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_an_error_that_nobody_expects_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("dalip", lambda: 1 // 0, "interrupted")
    with pytest.raises(ModuleNotFoundError):
        run_command("dalip", lambda: import_module("pipeline.nowhere") is None, "interrupted")


def test_what_is_printed_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("dalip", lambda: print("a\x1b[2Jb") or 0, "interrupted") == 0
    assert capsys.readouterr().out == "a\\u001b[2Jb\n"
    assert sys.stdout is not None
