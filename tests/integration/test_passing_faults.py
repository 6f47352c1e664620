"""Passing faults of hosts and object stores: tried again with a wait, then said, and never a short release."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import urllib3
import yaml
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from pipeline.cli import main

NUM = 24
EXPIRED = PermissionError("The provided token has expired.")
RESET = urllib3.exceptions.ProtocolError("Connection aborted.", ConnectionResetError(104, "Connection reset by peer"))


class Store(LocalFileSystem):
    """An object store over a local folder: it gives `num_good` pictures, then raises `fault` for `seconds`."""

    protocol = "store"
    cachable = False
    num_good = 10**9
    seconds = 0.0
    first_fault: float | None = None
    fault: Exception = EXPIRED
    num_faults = 0

    @classmethod
    def set_up(cls, fault: Exception, num_good: int, seconds: float) -> None:
        cls.fault, cls.num_good, cls.seconds = fault, num_good, seconds
        cls.num_faults, cls.first_fault = 0, None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("store://"))

    def unstrip_protocol(self, name: str) -> str:
        return f"store://{self._strip_protocol(name)}"

    def open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        if str(path).endswith(".jpg"):
            Store.num_good -= 1
            if Store.num_good < 0:
                Store.first_fault = Store.first_fault or time.monotonic()
                if time.monotonic() < Store.first_fault + Store.seconds:
                    Store.num_faults += 1
                    raise Store.fault
        return super().open(path, mode, **options)


fsspec.register_implementation("store", Store, clobber=True)


def write_config(folder: Path, **run: Any) -> Path:
    """A build of a folder of pictures in the store."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(NUM):
        body = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 96)).save(body, "JPEG")
        (pictures / f"{number:03}.jpg").write_bytes(body.getvalue())
        (pictures / f"{number:03}.txt").write_text(f"a photo of plant number {number} in the field")
    config = {
        "name": "stored",
        "work_dir": str(folder / "work"),
        "sources": [
            {
                "name": "bucket",
                "domain": "plant",
                "folder": {"path": f"store://{pictures}", "captions": "text_file"},
                "defaults": {"licence": "CC0"},
            }
        ],
        "dedup": {"radius": 0},
        "mix": {"ratio": {"plant": 1}},
        "run": {"executor": "inline", "fetch_part_size": 8, "max_attempts": 3, "retry_wait_seconds": 0.5, **run},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("fault", [EXPIRED, RESET], ids=["expired", "reset"])
def test_a_store_that_comes_back_costs_no_picture(
    tmp_path: Path, fault: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    Store.set_up(fault, num_good=10, seconds=0.9)
    assert main(["build", str(config)]) == 0
    assert Store.num_faults >= 2
    said = capsys.readouterr().err
    assert f"fetch: done, {NUM} of {NUM} kept" in said


@pytest.mark.parametrize("fault", [EXPIRED, RESET], ids=["expired", "reset"])
def test_a_store_that_stays_away_fails_its_parts_and_seals_nothing(
    tmp_path: Path, fault: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, retry_wait_seconds=0.01)
    Store.set_up(fault, num_good=10, seconds=60.0)
    assert main(["build", str(config)]) == 1
    said = capsys.readouterr().err
    assert "fetch: 2 of 3 parts failed, the others are kept" in said
    assert "store://" in said
    assert "cannot be read now" in said
    assert not (tmp_path / "work" / "releases").exists()
    Store.set_up(fault, num_good=10**9, seconds=0.0)
    assert main(["build", str(config)]) == 0, "the same command goes on"


def test_the_wait_grows_and_ends_when_asked_to_stop(tmp_path: Path) -> None:
    config = write_config(tmp_path, retry_wait_seconds=0.4)
    Store.set_up(EXPIRED, num_good=10, seconds=60.0)
    started = time.monotonic()
    assert main(["build", str(config)]) == 1
    assert time.monotonic() - started >= 0.4 + 1.2
