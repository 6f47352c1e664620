"""`plantmix browse --search`: real vectors of a small trained model, asked through the process that browse starts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import termios
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browsing import build_work_folder, embed_release, newest_release
from command_server import CommandServer
from sealed import once
from starlette.testclient import TestClient
from waiting import wait_until

from manifests.contract.reader import open_reader
from manifests.errors import ConfigError, RunError
from pipeline.browse import model_search
from pipeline.browse.app import Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.model_search import ModelSearch
from pipeline.browse.snapshot import IMAGES_FILE, open_snapshot
from pipeline.commands.explain import describe_life
from training.cli import main

Open = Callable[..., TestClient]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "browsed", build_work_folder) / "work"


@pytest.fixture(scope="module")
def vectors(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embed_release(newest_release(work), tmp_path_factory.mktemp("searched"))


@pytest.fixture(autouse=True, scope="module")
def patience() -> Iterator[None]:
    """The first answer waits for torch: half a minute and more on a busy machine."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model_search, "SECONDS", 900.0)
        yield


@pytest.fixture(scope="module")
def open_pages(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """A client of the pages, with a search or without."""
    with ExitStack() as stack:
        private = tmp_path_factory.mktemp("private")
        snapshot = stack.enter_context(open_snapshot(str(work), private))
        make_index(snapshot)
        stack.enter_context(snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True))

        def make(vectors: Path | None = None, model: str | None = None) -> TestClient:
            own = tmp_path_factory.mktemp("search")
            model_search = stack.enter_context(ModelSearch(str(vectors), model, own)) if vectors else None
            pages = Pages(snapshot, "today", describe_life, EvaluationPictures(snapshot, ()), model_search)
            pages.open(ImageIndex(snapshot))
            app = make_app(pages, token="t", port=8123)
            client = TestClient(app, base_url="http://127.0.0.1:8123", follow_redirects=False)
            client.get("/", params={"open": "t"})
            return client

        yield make


@pytest.fixture(scope="module")
def client(open_pages: Open, vectors: Path) -> TestClient:
    return open_pages(vectors)


def shown(page: str) -> list[tuple[str, str]]:
    """Image and score of each tile."""
    return re.findall(r'href="/image/([0-9a-f]{32})">(?:(?!</li>).)*?score (-?[0-9.]+)', page, re.DOTALL)


def packed(work: Path) -> list[str]:
    with open_reader(str(work)) as sql:
        return [row[0] for row in sql.execute("SELECT sample_id FROM placements ORDER BY 1").fetchall()]


def test_words_find_what_the_command_finds(
    client: TestClient, vectors: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = client.get("/", params={"shows": "a ripe tomato"})
    assert page.status_code == 200
    assert main(["search", str(vectors), "--text", "a ripe tomato", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown(page.text) == [(hit["name"], f"{hit['score']:.3f}") for hit in hits]
    assert sorted(one for one, _ in shown(page.text)) == packed(work)


@pytest.mark.slow
def test_a_picture_finds_itself_and_filters_stay(client: TestClient, work: Path) -> None:
    for sample_id in packed(work):
        tiles = shown(client.get("/", params={"like": sample_id}).text)
        assert tiles[0] == (sample_id, "1.000")
        assert len(tiles) == len(packed(work))
    page = client.get("/", params={"like": sample_id, "stage": "packed", "q": "nowhere"}).text
    assert "Nothing matches" in page
    assert f"/?q=nowhere&amp;like={sample_id}" in page, "the filter can be taken away, and the search stays"
    assert f'href="/?like={sample_id}"' in client.get(f"/image/{sample_id}").text
    assert f'href="/?like={sample_id}"' in client.get("/?stage=packed").text
    with open_reader(str(work)) as sql:
        (dropped,) = sql.execute("SELECT sample_id FROM facts WHERE outcome <> 'ok' LIMIT 1").fetchone() or ("",)
    answer = client.get("/", params={"like": dropped})
    assert (answer.status_code, "no picture of that image is stored" in answer.text) == (503, True)


@pytest.mark.slow
def test_vectors_of_another_release_are_said(open_pages: Open, vectors: Path, work: Path, tmp_path: Path) -> None:
    other = tmp_path / "v.parquet"
    model = str(vectors.parent / "run")
    assert main(["embed", str(work.parent / "pictures"), "--model", model, "--out", str(other)]) == 0
    page = open_pages(other).get("/", params={"shows": "a tomato"})
    assert "None of the 21 nearest pictures of" in page.text
    assert "They are vectors of another release" in page.text
    gone = open_pages(vectors, str(tmp_path / "<nowhere>")).get("/", params={"shows": "a tomato"})
    assert gone.status_code == 503
    assert "the search process ended (exit code 2): dalip: error:" in gone.text
    assert "&lt;nowhere&gt;" in gone.text
    with pytest.raises(ConfigError, match="no vectors are there; make them with `dalip embed`"):
        ModelSearch(str(tmp_path / "nothing"), None, tmp_path)


@pytest.mark.slow
def test_without_a_model_there_is_no_box(open_pages: Open) -> None:
    client = open_pages()
    assert "What it shows" not in client.get("/").text
    page = client.get("/", params={"shows": "a tomato"})
    assert (page.status_code, "start browse with --search VECTORS" in page.text) == (503, True)


@pytest.mark.slow
def test_a_search_that_dies_is_said_and_started_again(vectors: Path, tmp_path: Path) -> None:
    with ModelSearch(str(vectors), None, tmp_path) as model_search:
        assert model_search.by_words("a tomato")
        assert model_search._running is not None
        process = model_search._running.process
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # until then it still reads; from then on nothing
        threading.Thread(target=_kill_when_asked, args=(process,)).start()
        with pytest.raises(RunError, match=r"was killed \(signal 9\); the next search starts it again"):
            model_search.by_words("a pear")
        assert model_search.by_words("a tomato"), "kept"
        assert model_search.by_words("an apple"), "asked of a new process"
        process = model_search._running.process
    assert process.poll() is not None, "it ends with browse"


def _kill_when_asked(process: Any) -> None:
    """Once its pipe holds a question."""
    waiting = array("i", [0])

    def holds_a_question() -> int:
        fcntl.ioctl(process.stdin, termios.FIONREAD, waiting)
        return waiting[0]

    wait_until(holds_a_question)
    process.kill()


@pytest.mark.slow
def test_a_killed_browse_leaves_no_search_behind(
    work: Path, vectors: Path, commands: CommandServer, tmp_path: Path
) -> None:
    others = _searches(vectors)
    places = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    browse = commands.start("plantmix", "browse", work, "--search", vectors, **places)
    wait_until(lambda: browse.said()[0], browse)
    started = _searches(vectors) - others
    browse.kill()
    browse.wait(300)
    assert len(started) == 1
    wait_until(lambda: not started & _searches(vectors))


def _searches(vectors: Path) -> set[int]:
    """Processes that serve these vectors."""
    wanted = b"\0".join([b"search", os.fsencode(vectors), b"--serve"])
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if wanted in place.read_bytes():
                found.add(int(place.parent.name))
        except OSError:
            continue
    return found
