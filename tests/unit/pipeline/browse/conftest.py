"""One small work folder for all tests of the pages, and a client that is signed in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import build_work_folder
from crawling import make_client, open_image_index
from sealed import once
from starlette.testclient import TestClient

from pipeline.browse.image_index import ImageIndex


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "browsed", build_work_folder) / "work"


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
