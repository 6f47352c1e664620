"""Threads and processes that measure pictures: one BLAS thread for each picture, and none meets another's bytes."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - its BLAS must be there to be limited
import pytest
import threadpoolctl
import yaml
from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer

from pipeline.cli import main
from pipeline.fetching.pictures import image, phash
from pipeline.fetching.pictures.settings import ImageSettings

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
NUM_URLS = 5
NUMPYS = {pool["filepath"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def num_blas_threads() -> set[int]:
    """Of what NumPy uses; other libraries may bring their own."""
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["filepath"] in NUMPYS}


@pytest.mark.parametrize("engine", ["plantmix", pytest.param("img2dataset", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_picture_of_an_inline_build(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, photos in (("own", PHOTOS[:4]), ("set", PHOTOS[4:6])):
        (tmp_path / name).mkdir()
        for photo in photos:
            shutil.copy(photo, tmp_path / name)
    seen: list[set[int]] = []

    def measure(luminance: Any) -> tuple[int, float]:
        seen.append(num_blas_threads())
        return phash.measure_luminance(luminance)

    monkeypatch.setattr(image, "measure_luminance", measure)

    def answer(sock: Any, request: Any) -> None:
        send_picture(sock, encode(pixels(seed=int(request.path.rpartition("/")[2]))))

    with MisbehavingServer(extra={"p": answer}) as web:
        urls = [f"http://127.0.0.1:{web.port}/p/{number},plant {number} of the web\n" for number in range(NUM_URLS)]
        (tmp_path / "list.csv").write_text("".join(["url,caption\n", *urls]))
        base = {"domain": "plant", "defaults": {"licence": "CC0"}}
        columns = {"url": "url", "caption": "caption"}
        values = {
            "name": "threads",
            "work_dir": str(tmp_path / "work"),
            "sources": [
                base | {"name": "list", "table": str(tmp_path / "list.csv"), "columns": columns},
                base | {"name": "own", "folder": {"path": str(tmp_path / "own")}},
            ],
            "evaluation": [{"name": "held", "folder": {"path": str(tmp_path / "set")}}],
            "fetch": {
                "engine": engine,
                "network": {
                    "robots_txt": False,
                    "allow_private_addresses": True,
                    "contact": "nobody@example.org",
                    "consent_signals": [],
                    "profiles": [],
                    "limits": {"requests_per_second": None, "connections": 32},
                },
            },
            "mix": {"ratio": {"plant": 1}},
            "run": {"executor": "inline"},
        }
        (tmp_path / "build.yaml").write_text(yaml.safe_dump(values))
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            main(["build", str(tmp_path / "build.yaml")])
            assert num_blas_threads() == {2}
    assert len(seen) == NUM_URLS + 4 + 2  # those of an evaluation set too
    assert seen == [{1}] * len(seen)


def test_processes_that_were_forked_keep_their_pictures_apart() -> None:
    small = ImageSettings(size_px=128)  # every photo is encoded anew
    work = [(photo.read_bytes(), small) for photo in PHOTOS] * 4
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        expected = [image.measure_image(*each) for each in work]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(image.measure_image, work, chunksize=1) == expected
