"""What holds for every test: its name is the same each time it is collected, and a busy machine may be slow."""

from hypothesis import settings

settings.register_profile("plantmix", deadline=None)
settings.load_profile("plantmix")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: packed bytes hold the second they were packed in, and workers compare names."""
    return argname if isinstance(val, bytes) else None
