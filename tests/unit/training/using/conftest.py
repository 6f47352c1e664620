"""A small model that has learnt to tell coloured shapes apart, trained once for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import make_settings

from training.run.loop import train


@pytest.fixture(scope="session")
def run_folder(release_folder: Path, architecture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    values: dict[str, Any] = {
        "release": str(release_folder),
        "output_dir": str(folder),
        "model": {"architecture": str(architecture), "second_order": {"heads": 2, "reduced_width": 4}},
        "data": {"batch_size": 24, "num_workers": 0, "shuffle_window": 16, "augment": {"scale": [0.8, 1.0]}},
        "optimiser": {"lr": 0.002},
        "schedule": {"steps": 150, "warmup_steps": 10},
        "compute": {"device": "cpu", "num_threads": 1},
        "checkpoint": {"every_steps": 1000},
    }
    train(make_settings(values))
    return folder


@pytest.fixture(scope="session")
def pictures(release_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes that the model has not seen, as files named by what they show; and a few bad ones."""
    import release_writer

    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(release_writer.COLOURS):
        for shape in release_writer.SHAPES:
            place = folder / colour
            place.mkdir(exist_ok=True)
            (place / f"{shape}.jpg").write_bytes(release_writer.draw_picture(colour, shape, seed=1000 + number))
    whole = (folder / "red" / "circle.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return folder
