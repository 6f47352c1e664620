"""What a person sees of a running step: one line in a log; on a terminal a view that log lines stand above."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections import Counter

import pytest

import pipeline.runner.progress
from manifests.records import Funnel
from pipeline.cli import set_up_logging
from pipeline.fetching.tally import Tally
from pipeline.runner.progress import Progress, Watch, pace


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_of(written: str) -> list[str]:
    """The lines that a terminal shows after `written`; knows just what the view uses."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|([^\x1b])", written):
        if code.endswith("A"):
            row -= int(code[:-1] or 1)
        elif code == "2K":
            lines[row] = ""
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif text == "\r":
            column = 0
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def fetching() -> Progress:
    progress = Progress("fetch download", "images", 900)
    progress.advance(300, Funnel(300, 280, {"http_404": 17, "corrupt_image": 3}))
    return progress


@pytest.mark.parametrize("columns", ["80", "140"])
@pytest.mark.parametrize("no_color", [True, False])
def test_log_lines_stand_above_the_live_view(columns: str, no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    set_up_logging(verbose=False)
    with Watch(fetching(), 10, lambda: None, lambda figures: None):
        time.sleep(0.7)  # the view is drawn each half second
        logging.getLogger("plantmix.test").warning("a line of the log [bold]as it is[/bold]")
        time.sleep(0.7)
        running = terminal.getvalue()
    seen = screen_of(running)
    assert seen[0] == "a line of the log [bold]as it is[/bold]"
    assert re.fullmatch(r"running +fetch download: 300 of 900 images, \d+/s, about \d+ s left", seen[1])
    assert seen[2].split(maxsplit=1) == ["dropped", "17 http_404, 3 corrupt_image"]
    assert re.fullmatch(r"memory +[\d.]+ of [\d.]+ GiB in use on this machine", seen[3])
    assert len(seen) == 4
    assert not re.search(r"\x1b\[[0-9;]*(?:3|4|9|10)[0-7][;m]|\x1b\[[0-9;]*38;", running), "no colours"
    assert screen_of(terminal.getvalue()) == [seen[0]], "the view goes, the log stays"


def test_a_line_says_only_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Progress("fetch local", "images", 435).line() == "fetch local: 0 of 435 images"
    progress = Progress("fetch download", "images", 10)
    progress.report(Tally(Counter({"ok": 2, "http_404": 3}), Counter({"a.org": 3})))
    told = ", dropped: 3 http_404; hosts that fail: a.org (3)"
    monkeypatch.setattr(pipeline.runner.progress, "_RATE_FROM_SECONDS", 0)
    assert progress.line() == f"fetch download: 5 of 10 images{told}", "the first rows give no rate"
    progress.report(Tally(Counter({"ok": 4, "http_404": 3}), Counter({"a.org": 3})))
    assert progress.line().endswith(f" left{told}")


def test_a_host_that_sent_a_sound_picture_does_not_fail() -> None:
    tally = Tally()
    for outcome in ("ok", "image_too_small", "too_many_pixels", "aspect_too_extreme", "http_404"):
        tally.add(outcome, "a.org")
    assert tally.worst_hosts == {"a.org": 1}


def test_a_log_hears_at_once_of_the_first_row_that_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the two seconds of the first line nor the interval are waited for; they are an hour here."""
    monkeypatch.setattr(pipeline.runner.progress, "_FIRST_LINE_SECONDS", 3600)
    caplog.set_level(logging.INFO, "plantmix.progress")
    progress, tally, looks = Progress("fetch download", "images", 9), Tally(), threading.Semaphore(0)

    def look() -> None:
        tally.add("ok", "a.org")
        progress.report(tally)
        looks.release()

    with Watch(progress, 3600, look, lambda figures: None):
        assert all(looks.acquire(timeout=30) for _ in range(3))
    assert caplog.messages == ["fetch download: 1 of 9 images"]


def test_pace() -> None:
    assert pace(0, None) == ""
    assert pace(0.25, 7300) == ", 0.2/s, about 2 h 01 min left"
    assert pace(1234.5, 61) == ", 1,234/s, about 1 min 01 s left"
