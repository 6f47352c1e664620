"""Proxy runs on a Ray cluster: each task in a Ray process of its own.

Every machine must see the paths of the tasks. This is the only module of the package that imports ray, which the
training extra does not bring. Gives up with ConfigError where ray is missing or does not answer, and with RunError when
the cluster is lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from manifests.errors import ConfigError, PlantMixError, RunError
from manifests.services.local_ray import join_cluster, ray_environment
from manifests.services.scheduling import num_cores
from training.config import TrainSettings

T = TypeVar("T")


def each_result_on_ray(
    work: Callable[[T], Any], tasks: Sequence[T], settings: TrainSettings, address: str | None
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the task, its result) in the order of completion, each task in a Ray process of its own.

    Without `address` or RAY_ADDRESS (which `ray job submit` sets) a Ray of this machine is started, on the loopback
    only. A task takes `compute.num_threads` cores (1 where it is null), and a GPU if the device is one. Ray begins a
    task again when its process is lost. When Ray gives up on a task, its result is a RunError, and the others go on.

    Raises: ConfigError where Ray is missing or does not answer; RunError when the cluster is lost.
    """
    if not tasks:
        return
    address = address or os.environ.get("RAY_ADDRESS")
    ray = _import_ray(address)
    threads = settings.compute.num_threads or 1
    with _running_ray(ray, address, threads):
        try:
            gpus = 1 if _on_gpu(ray, settings) else 0
            remote: Any = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1)(_call_in_folder)
            waiting = {remote.remote(work, task, str(Path.cwd())): number for number, task in enumerate(tasks)}
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(ready[0]), _result_of(ray, ready[0])
        except ray.exceptions.RayError as error:
            raise _unwrap(error) from None


def _import_ray(address: str | None) -> Any:
    """Ray, bound to the loopback where it will be started here.

    Raises: ConfigError where it is missing.
    """
    try:
        with ray_environment(address):
            import ray
    except ImportError as error:
        raise ConfigError(
            f'--launcher ray needs Ray ({error.name or error} is missing): pip install "ray>=2.56"'
        ) from None
    return ray


def _result_of(ray: Any, reference: Any) -> Any:
    """Return the result of a task, or the error when it raised or its process was lost (memory, machine)."""
    try:
        return ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return _unwrap(error)


def _call_in_folder(work: Callable[[T], Any], task: T, folder: str) -> Any:
    """Work where the command was given, because paths of the config may be relative."""
    if Path(folder).is_dir():
        os.chdir(folder)
    return work(task)


@contextmanager
def _running_ray(ray: Any, address: str | None, num_cpus: int) -> Iterator[None]:
    """Use a Ray that answers: the one of this process, the cluster at `address`, or one started here and stopped again.

    Raises: ConfigError when nothing answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ray_environment(address):
        if address is None:
            num_cpus = max(num_cores(), num_cpus)
            ray.init(num_cpus=num_cpus, include_dashboard=False, logging_level="warning")
        else:
            join_cluster(ray, "--ray-address", address, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


def _on_gpu(ray: Any, settings: TrainSettings) -> bool:
    if settings.compute.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0))
    return settings.compute.device == "cuda"


def _unwrap(error: BaseException) -> PlantMixError:
    """Return the error of ours inside what Ray raises, or a RunError with Ray's message."""
    for inner in _errors_inside(error):
        if isinstance(inner, PlantMixError):
            return inner
    why = " ".join(str(error).split())[:600]
    return RunError(f"the run on Ray failed: {why} Run the same command to go on from the last checkpoint")


def _errors_inside(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__
