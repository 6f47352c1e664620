"""Processes that measure pictures: none meets another's bytes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from pipeline.pictures import image
from pipeline.pictures.settings import ImageSettings

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))


def test_processes_that_were_forked_keep_their_pictures_apart() -> None:
    small = ImageSettings(size_px=128)  # every photo is encoded anew
    work = [(photo.read_bytes(), small) for photo in PHOTOS] * 4
    expected = [image.measure_image(*each) for each in work]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(image.measure_image, work, chunksize=1) == expected
