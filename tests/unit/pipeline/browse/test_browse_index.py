"""The index is made in a process of its own, is kept for the next session, and pages answer meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from manifests.errors import IntegrityError, RunError
from pipeline.browse.app import PAGES, Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index_process import MAX_KEPT, IndexProcess, cache_folder, keep_index
from pipeline.browse.snapshot import FACETS_FILE, IMAGES_FILE, INDEX_FOLDER, open_snapshot


def private_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_pages_answer_while_the_index_is_made_and_the_next_session_opens_it_at_once(work: Path, tmp_path: Path) -> None:
    private, cache, shares = private_folder(tmp_path / "first"), tmp_path / "cache", []
    with open_snapshot(str(work), private, cache) as snapshot:
        pages = Pages(snapshot, "today", lambda life: (), EvaluationPictures(snapshot, ()))
        client = TestClient(make_app(pages, token="t", port=1), base_url="http://127.0.0.1:1")
        client.get("/", params={"open": "t"})
        for path, _ in PAGES:
            page = client.get(path)
            assert page.headers["refresh"] == "3"
            assert "<h1>Getting ready</h1>" in page.text
        with IndexProcess(str(work), private) as index_process:
            index_process.wait(shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
            pages.open(ImageIndex(snapshot))
            assert pages.num_images == 22
            page = client.get("/")
            assert "refresh" not in page.headers
            assert "Getting ready" not in page.text
        assert keep_index(snapshot, cache) > 10_000
    assert not (cache / snapshot.key).stat().st_mode & 0o077, "captions may be private"
    with open_snapshot(str(work), private_folder(tmp_path / "second"), cache) as snapshot:
        assert snapshot.index == cache / snapshot.key
        with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
            assert ImageIndex(snapshot).codes.num_images == 22


def test_another_content_is_another_index_and_the_same_content_elsewhere_is_not(work: Path, tmp_path: Path) -> None:
    places = {
        "here": work,
        "elsewhere": shutil.copytree(work, tmp_path / "moved"),
        **{path.parent.name: path.parent for path in work.glob("releases/*/release.json")},
    }
    keys = {}
    for name, place in places.items():
        with open_snapshot(str(place), private_folder(tmp_path / f"private {name}")) as snapshot:
            keys[name] = snapshot.key
    assert keys["here"] == keys.pop("elsewhere")
    assert len(set(keys.values())) == len(keys) == 3


def test_half_an_index_is_not_taken_and_the_oldest_ones_go(work: Path, tmp_path: Path) -> None:
    private, cache = private_folder(tmp_path / "private"), tmp_path / "cache"
    with open_snapshot(str(work), private) as snapshot:
        (cache / snapshot.key).mkdir(parents=True)
        (cache / snapshot.key / IMAGES_FILE).write_bytes(b"half")
    with open_snapshot(str(work), private, cache) as snapshot:
        assert snapshot.index == private / INDEX_FOLDER
        snapshot.index.mkdir()
        for name in (IMAGES_FILE, FACETS_FILE):
            (snapshot.index / name).write_bytes(b"whole")
        for age in range(1, 5):
            (cache / f"old {age}").mkdir()
            os.utime(cache / f"old {age}", (1e9 - age, 1e9 - age))
        keep_index(snapshot, cache)
    assert {path.name for path in cache.iterdir()} == {snapshot.key, *(f"old {age}" for age in range(1, MAX_KEPT))}
    assert (cache / snapshot.key / IMAGES_FILE).read_bytes() == b"whole"


def test_what_goes_wrong_in_the_process_is_told(work: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(work, tmp_path / "broken")
    (part,) = broken.glob("tables/fetch/facts-*.parquet")
    part.unlink()
    with (
        IndexProcess(str(broken), private_folder(tmp_path / "a")) as index_process,
        pytest.raises(IntegrityError, match="facts"),
    ):
        index_process.wait(lambda share: None)
    with IndexProcess(str(work), private_folder(tmp_path / "b")) as index_process:
        os.kill(index_process.process.pid, signal.SIGKILL)  # as the kernel ends a process that takes too much memory
        with pytest.raises(RunError, match=r"was killed .* free memory"):
            index_process.wait(lambda share: None)


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "plantmix" / "browse"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "plantmix" / "browse"
