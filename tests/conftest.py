"""What holds for every test: its name is the same each time it is collected, and a busy machine may be slow."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Small matrices: more threads of BLAS and torch than one wait for each other and for those of the tests beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from command_server import CommandServer, end_all, serving_commands
from hypothesis import settings
from patient_ray import be_patient

from manifests.stores import faults

settings.register_profile("plantmix", deadline=None)
settings.load_profile("plantmix")

# A small build waits for the disk 170 times, and no test takes its power away. Processes that a test starts do wait.
os.fsync = lambda descriptor: None

# A store that stays away is asked as often as ever, without 20 s of waiting. Processes that a test starts do wait.
faults.WAITS_SECONDS = (0.01, 0.02, 0.05, 0.1)

# Ray puts sockets there, whose paths may have 107 bytes
os.environ.setdefault("RAY_TMPDIR", "/tmp")
be_patient()


def pytest_collection() -> None:
    """While tests are collected nothing is thrown away: to look for it took 8 of 21 s, in each worker."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported stays: no later search for garbage walks through it."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every process of the run puts what no test names; it goes with the folders of the tests."""
    folder = tmp_path_factory.getbasetemp() / "t"
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


@pytest.fixture(scope="session")
def commands(temporary_folder: Path) -> Iterator[CommandServer]:
    """Starts `plantmix` and `dalip` as processes that need not import anything first."""
    with serving_commands(os.environ) as server:
        yield server


@pytest.fixture(autouse=True)
def no_command_outlives_its_test() -> Iterator[None]:
    yield
    end_all()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: packed bytes hold the second they were packed in, and workers compare names."""
    return argname if isinstance(val, bytes) else None
