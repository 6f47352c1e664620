"""A child process leaves the process that began it as it was."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

import pytest
from waiting import wait_until

from manifests.services.child import Child, Command


def _say(connection: Connection) -> None:
    connection.send("here")


@pytest.mark.parametrize("script", [None, "/nowhere/script.py"])
def test_the_script_of_the_process_is_as_before(script: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    main = sys.modules["__main__"]
    monkeypatch.delattr(main, "__file__", raising=False)
    if script is not None:
        monkeypatch.setattr(main, "__file__", script, raising=False)
    before = "__file__" in vars(main), vars(main).get("__file__")
    with Child(_say):
        pass
    assert ("__file__" in vars(main), vars(main).get("__file__")) == before


def test_a_command_says_its_last_line_and_how_it_ended() -> None:
    with Command(["sh", "-c", "echo first >&2; echo last >&2; echo; echo out; exit 3"]) as command:
        assert command.output.read() == b"\nout\n"
    assert (command.end(), command.last_line) == (3, "last")
    printing = Command("echo printed; sleep 60", hears_output=True)
    wait_until(lambda: printing.last_line)
    assert (printing.end(0), printing.last_line) == (-9, "printed")
