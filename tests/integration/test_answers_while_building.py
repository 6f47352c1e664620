"""Commands that only read answer from the last commit while a build holds the catalogue, and the build never waits."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import PLANTMIX, list_source, loopback, run_here, write_small_config
from misbehaving.numbered import NumberedPictures
from waiting import wait_until

from manifests.contract.catalog_file import JOURNAL_FILE

NUM_BEFORE, HELD_BACK = 4, 6
AS_OF = "a build is writing here; the answer is as of its last commit"


class Web(NumberedPictures):
    """One picture is answered only once it `may` go."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.asked = threading.Event(), threading.Event()

    def answer(self, sock: Any, number: int) -> None:
        if number == HELD_BACK:
            self.asked.set()
            assert self.may.wait(600)
        super().answer(sock, number)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as made:
        yield made
        made.may.set()


def write_config(folder: Path, web: Web, num: int) -> Path:
    source = list_source(folder, [web.url_of(number) for number in range(num)])
    fetch = loopback(robots_txt=False)
    return write_small_config(folder, source, fetch=fetch, run={"fetch_part_size": 1})


@pytest.fixture
def building(web: Web, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of three more pictures than a first one had: it waits for one of them."""
    assert run_here("--quiet", "build", write_config(tmp_path, web, NUM_BEFORE)).returncode == 0
    config = write_config(tmp_path, web, NUM_BEFORE + 3)
    with subprocess.Popen([*PLANTMIX, "build", str(config)], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(web.asked.is_set, process)
            wait_until((tmp_path / "work" / JOURNAL_FILE).is_file, process)
            yield process
        finally:
            web.may.set()
            process.kill()


def test_a_reader_answers_while_a_build_waits_for_a_picture(
    building: subprocess.Popen[str], web: Web, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    queried = run_here("query", work, "SELECT count(*) AS n FROM stages WHERE sealed_at IS NOT NULL", "--format", "csv")
    assert queried.returncode == 0, queried.stderr
    assert int(queried.stdout.splitlines()[1]) > 0
    explained = run_here("explain", work, web.url_of(0))
    assert (explained.returncode, AS_OF in explained.stderr) == (0, True), explained.stderr
    assert "a photo of plant number 0" in explained.stdout
    for command in (("verify", work), ("report", work), ("status", work)):
        done = run_here(*command)
        assert done.returncode == 0, (command, done.stderr)
    deep = run_here("verify", work, "--deep")
    assert deep.returncode == 1
    assert "run it when the build has ended" in deep.stderr
    assert building.poll() is None
    web.may.set()
    _, told = building.communicate(timeout=600)
    assert building.returncode == 0, told
    after = run_here("query", work, "SELECT count(*) AS n FROM facts", "--format", "csv")
    assert (after.stdout.splitlines()[1], AS_OF in after.stderr) == (str(NUM_BEFORE + 3), False)


def test_a_crash_while_others_read_loses_nothing(
    building: subprocess.Popen[str], web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    assert run_here("explain", work, web.url_of(0)).returncode == 0
    building.kill()
    building.wait()
    monkeypatch.chdir(tmp_path)
    relative = run_here("verify", "work", "--deep")
    assert relative.returncode == 0, relative.stderr
    web.may.set()
    assert run_here("--quiet", "build", tmp_path / "small.yaml").returncode == 0
    assert run_here("verify", work, "--deep").returncode == 0
