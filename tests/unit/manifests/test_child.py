"""A child process leaves the process that began it as it was."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

import pytest

from manifests.services.child import Child


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
