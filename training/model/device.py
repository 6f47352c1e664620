"""Where a network runs: on the GPU, or on a CPU that keeps the memory of a step for the next one."""

from __future__ import annotations

import ctypes

import torch

from manifests.errors import ConfigError

_OF_MALLOC = ((-3, 32 << 20), (-1, (1 << 31) - 1))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of glibc; the most they take


def pick_device(name: str, number: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; of several GPUs the current one, or that of process `number`.

    Raises: ConfigError for a GPU that is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no GPU here; use cpu or auto")
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda" if number is None else f"cuda:{number % torch.cuda.device_count()}")
    _keep_freed_memory()
    return torch.device("cpu")


def _keep_freed_memory() -> None:
    """Keep glibc from giving large blocks back to the system, which would fault their pages in again at each step.

    That took a tenth of the CPU of a training of vit-tiny-demo. The process is not larger for it.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        for option, num_bytes in _OF_MALLOC:
            mallopt(option, num_bytes)
