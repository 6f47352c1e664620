"""What a scheduler says and gives: signals are heard by every command, and cores are those of the job."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from manifests.command_line import run_command
from manifests.services.scheduling import STOP_SIGNALS, handling, num_cores


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_command_that_is_told_to_stop_says_how_to_go_on(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        os.kill(os.getpid(), number)
        threading.Event().wait(600)
        return 0

    before = signal.getsignal(number)
    assert run_command("plantmix", command, "stopped; run the same command to go on") == 1
    assert capsys.readouterr().err == "plantmix: stopped; run the same command to go on\n"
    assert signal.getsignal(number) == before


def test_another_thread_changes_no_handler() -> None:
    before, seen = signal.getsignal(signal.SIGUSR1), []

    def work() -> None:
        with handling(signal.SIG_IGN, signal.SIGUSR1):
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_cores_are_those_that_the_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)
