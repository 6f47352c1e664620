"""One small work folder for all tests of the pages, and a client that is signed in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import build_work_folder
from starlette.testclient import TestClient

from pipeline.browse.app import Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.snapshot import IMAGES_FILE, open_snapshot
from pipeline.commands.explain import describe_life

PORT = 8123
TOKEN = "the-right-token"


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_work_folder(tmp_path_factory.mktemp("browsed"))


@contextmanager
def open_image_index(folder: Path, private: Path) -> Iterator[ImageIndex]:
    with open_snapshot(str(folder), private) as snapshot:
        make_index(snapshot)
        with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
            yield ImageIndex(snapshot)


def make_client(image_index: ImageIndex, *, signed_in: bool = True, evaluation: Sequence[str] = ()) -> TestClient:
    pages = Pages(image_index.snapshot, "today", describe_life, EvaluationPictures(image_index.snapshot, evaluation))
    pages.open(image_index)
    app = make_app(pages, token=TOKEN, port=PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", follow_redirects=False)
    if signed_in:
        assert client.get("/", params={"open": TOKEN}).status_code == 303
    return client


@pytest.fixture(scope="session")
def image_index(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    with open_image_index(work, tmp_path_factory.mktemp("private")) as found:
        yield found


@pytest.fixture
def client(image_index: ImageIndex) -> TestClient:
    return make_client(image_index)


@pytest.fixture
def client_with(image_index: ImageIndex) -> Callable[..., TestClient]:
    return functools.partial(make_client, image_index)


@pytest.fixture
def stranger(image_index: ImageIndex) -> TestClient:
    return make_client(image_index, signed_in=False)


@pytest.fixture(scope="session")
def release_client(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    newest = work / "releases" / (work / "releases/LATEST").read_text(encoding="utf-8").strip()
    with open_image_index(newest, tmp_path_factory.mktemp("private")) as found:
        yield make_client(found)
