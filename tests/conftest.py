"""What holds for every test: its name is the same each time it is collected, and a busy machine may be slow."""

import os

from hypothesis import settings

settings.register_profile("plantmix", deadline=None)
settings.load_profile("plantmix")

# A small build waits for the disk 170 times, and no test takes its power away. Processes that a test starts do wait.
os.fsync = lambda descriptor: None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: packed bytes hold the second they were packed in, and workers compare names."""
    return argname if isinstance(val, bytes) else None
