"""What a person sees of a running step: one line in a log; on a terminal a view that log lines stand above."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections import Counter

import pytest

import pipeline.engine.progress
from manifests.contract.records import Funnel
from manifests.services.printable import WIPE, pace
from pipeline.cli import set_up_logging
from pipeline.engine.progress import Progress, Watch
from pipeline.fetching.tally import Tally


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_of(written: str) -> list[str]:
    """The lines that a terminal shows after `written`; knows just what a line of progress uses."""
    return [line.rpartition(WIPE)[2] for line in written.split("\n") if line.rpartition(WIPE)[2]]


def fetching() -> Progress:
    progress = Progress("fetch download", "images", 900)
    progress.advance(300, Funnel(300, 280, {"http_404": 17, "corrupt_image": 3}))
    return progress


def await_looks(looks: threading.Semaphore) -> None:
    while looks.acquire(blocking=False):
        pass
    assert all(looks.acquire(timeout=500) for _ in range(2))


@pytest.mark.parametrize("columns", [80, 140])
def test_log_lines_stand_above_the_live_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(pipeline.engine.progress, "_RATE_FROM_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    set_up_logging(verbose=False)
    looks = threading.Semaphore(0)  # at the second look from now on, the line has been drawn once
    with Watch(fetching(), 10, looks.release, lambda figures: None):
        await_looks(looks)
        logging.getLogger("plantmix.test").warning("a line of the log [bold]as it is[/bold]")
        await_looks(looks)
        running = terminal.getvalue()
    logged, line = screen_of(running)
    assert logged == "a line of the log [bold]as it is[/bold]"
    whole = r"fetch download: 300 of 900 images, [\d,]+/s, about \d+ s left, dropped: 17 http_404, 3 corrupt_image"
    assert re.fullmatch(whole, line) if columns == 140 else re.match(whole[:40], line)
    assert len(line) < columns, "a line that is broken in two cannot be wiped"
    assert screen_of(terminal.getvalue()) == [logged], "the line goes, the log stays"


def test_a_dumb_terminal_gets_lines_as_a_log_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(pipeline.engine.progress, "_FIRST_LINE_SECONDS", 0)
    monkeypatch.setenv("TERM", "dumb")
    caplog.set_level(logging.INFO, "plantmix.progress")
    looks = threading.Semaphore(0)
    with Watch(fetching(), 3600, looks.release, lambda figures: None):
        await_looks(looks)
    assert caplog.messages[0].startswith("fetch download: 300 of 900 images")
    assert "\x1b" not in terminal.getvalue()


def test_a_line_says_only_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Progress("fetch local", "images", 435).line() == "fetch local: 0 of 435 images"
    progress = Progress("fetch download", "images", 10)
    progress.report(Tally(Counter({"ok": 2, "http_404": 3}), Counter({"a.org": 3})))
    told = ", dropped: 3 http_404; hosts that fail: a.org (3)"
    monkeypatch.setattr(pipeline.engine.progress, "_RATE_FROM_SECONDS", 0)
    assert progress.line() == f"fetch download: 5 of 10 images{told}", "the first rows give no rate"
    progress.report(Tally(Counter({"ok": 4, "http_404": 3}), Counter({"a.org": 3})))
    assert progress.line().endswith(f" left{told}")


def test_more_pieces_than_were_planned_leave_no_negative_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.engine.progress, "_RATE_FROM_SECONDS", 0)
    progress = Progress("ingest tars", "MB", 2)
    for _ in range(4):  # each is less than a megabyte, and counts as one
        progress.advance(1, None)
    assert re.fullmatch(r"ingest tars: 2 of 2 MB, [\d.,]+/s, about 0 s left", progress.line())


def test_a_host_that_sent_a_sound_picture_does_not_fail() -> None:
    tally = Tally()
    for outcome in ("ok", "image_too_small", "too_many_pixels", "aspect_too_extreme", "http_404"):
        tally.add(outcome, "a.org")
    assert tally.worst_hosts == {"a.org": 1}


def test_a_log_hears_at_once_of_the_first_row_that_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the two seconds of the first line nor the interval are waited for; they are an hour here."""
    monkeypatch.setattr(pipeline.engine.progress, "_FIRST_LINE_SECONDS", 3600)
    caplog.set_level(logging.INFO, "plantmix.progress")
    progress, tally, looks = Progress("fetch download", "images", 9), Tally(), threading.Semaphore(0)

    def look() -> None:
        tally.add("ok", "a.org")
        progress.report(tally)
        looks.release()

    with Watch(progress, 3600, look, lambda figures: None):
        await_looks(looks)
    assert caplog.messages == ["fetch download: 1 of 9 images"]


def test_pace() -> None:
    assert pace(0, None) == ""
    assert pace(0.25, 7300) == ", 0.2/s, about 2 h 01 min left"
    assert pace(1234.5, 61) == ", 1,234/s, about 1 min 01 s left"
