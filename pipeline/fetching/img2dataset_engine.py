"""img2dataset's Downloader, with our parts in its seams.

`Downloader.download_shard` takes a writer and a resizer by injection; those are ours. Its other seams are module
names that the method looks up: it gets its own copy of them, so that nothing in img2dataset itself is changed.
Reads the installed img2dataset. Gives up with RunError when that release no longer has the seams.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from manifests.errors import RunError

_PACKAGE = "img2dataset"
_ALIAS = "_plantmix_img2dataset"
_load_lock = threading.Lock()
_DOWNLOADER_PARAMETERS = (
    "sample_writer_class",
    "resizer",
    "thread_count",
    "save_caption",
    "extract_exif",
    "output_folder",
    "column_list",
    "timeout",
    "number_sample_per_shard",
    "oom_shard_count",
    "compute_hash",
    "verify_hash_type",
    "encode_format",
    "retries",
    "user_agent_token",
    "disallowed_header_directives",
)


class _Reraise:
    """Stands in for `traceback`: where the loop would print an error and go on, the error goes on instead."""

    @staticmethod
    def print_exc() -> None:
        """Called inside an except block, so a bare raise passes the error on."""
        raise


class _NoSemaphore:
    """Stands in for `Semaphore`: the loop's own limit on rows in flight; the scheduler has its own."""

    def __init__(self, value: int) -> None:
        self.value = value

    def acquire(self) -> None:
        """Never waits."""

    def release(self) -> None:
        """Nothing to release."""


def make_downloader(thread_pool: Any, **arguments: Any) -> Any:
    """A Downloader whose `download_shard` runs on our parts. Replaced, for this one object, are:

    - `ThreadPool` by `thread_pool`, a class made with a number of threads, with `imap_unordered(function, rows)`,
      `terminate` and `join`, as a context manager: our scheduler decides what is fetched when, and how;
    - `Semaphore`: its window of twice the number of threads would let one slow host hold back all others;
    - `traceback`: the loop swallows errors of resizer and writer per sample; here they end the part;
    - `write_stats`: it would write a json beside the pool.

    Raises: RunError when the installed img2dataset does not fit.
    """
    downloader = _load("downloader")
    cls = downloader.Downloader
    replaced = {
        "ThreadPool": thread_pool,
        "Semaphore": _NoSemaphore,
        "traceback": _Reraise,
        "write_stats": lambda *_: None,
    }
    method = cls.download_shard
    known = set(method.__code__.co_names) | set(_names_in(method.__code__))
    lost = sorted(name for name in replaced if name not in known)
    parameters = list(inspect.signature(cls.__init__).parameters)[1:]
    lost += [name for name in _DOWNLOADER_PARAMETERS if name not in parameters]
    if lost:
        version = importlib.metadata.version(_PACKAGE)
        raise RunError(
            f"img2dataset {version} does not fit: Downloader.download_shard has no {', '.join(lost)}; "
            "install a release that this version of PlantMix was tested with: pip install 'img2dataset==1.47.0'"
        )
    rebound = types.FunctionType(
        method.__code__, {**vars(downloader), **replaced}, method.__name__, method.__defaults__, method.__closure__
    )
    return type("Downloader", (cls,), {"download_shard": rebound})(**arguments)


def _names_in(code: types.CodeType) -> list[str]:
    """Global names used in functions nested in `code`."""
    nested = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [name for inner in nested for name in (*inner.co_names, *_names_in(inner))]


def _load(name: str) -> Any:
    """One module of img2dataset without its package's `__init__`.

    That imports everything: torch, pandas, cv2, albumentations (which asks the network for updates), wandb's
    command line; 4.3 s and 415 MB a worker, against 0.6 s and 69 MB for this module alone (2-core machine).
    """
    with _load_lock:
        if _ALIAS not in sys.modules:
            spec = importlib.util.find_spec(_PACKAGE)  # finds, does not run
            if spec is None or not spec.submodule_search_locations:
                raise RunError(
                    "img2dataset is not installed; install PlantMix with its extra: pip install -e '.[pipeline]'"
                )
            package = types.ModuleType(_ALIAS)
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[_ALIAS] = package
        with _without_wandb():
            return importlib.import_module(f"{_ALIAS}.{name}")


@contextlib.contextmanager
def _without_wandb() -> Iterator[None]:
    """The module beside the downloader imports wandb for a logger we do not use: 0.5 s and 60 MB a worker."""
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = types.ModuleType("wandb")
    try:
        yield
    finally:
        del sys.modules["wandb"]
