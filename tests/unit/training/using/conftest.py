"""A small model that has learnt to tell coloured shapes apart, trained once for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from release_writer import LABELS
from training_runs import run_once, tiny_values


@pytest.fixture(scope="session")
def run_folder(release_folder: Path, architecture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    values = tiny_values(
        architecture.parent,
        release=str(release_folder),
        output_dir=str(folder),
        data={"batch_size": 24, "augment": {"scale": [0.8, 1.0]}},
        schedule={"steps": 150, "warmup_steps": 10},
        checkpoint={"every_steps": 1000},
    )
    run_once(values)
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


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path
