"""What holds for every test: a test's name is the same each time it is collected."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument: packed bytes hold the second they were packed in, and workers compare names."""
    return argname if isinstance(val, bytes) else None
