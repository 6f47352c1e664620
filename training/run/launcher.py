"""Training on a Ray cluster: Ray Train starts the processes, `loop` does in each what it does under torchrun.

Reads a config; the run's folder is what the loop writes, and `ray/` in it, by which Ray Train checks that every
machine sees the folder. The only module of this package that imports ray, which the training extra does not bring.
Gives up with ConfigError where ray is missing or the run cannot begin, and with the loop's own error when a process
fails; the same command then goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, PlantMixError, RunError
from manifests.local_ray import bound_to_loopback
from manifests.settings import parse_settings
from training.config import TrainSettings, identity_values
from training.data import loader
from training.record import checkpoint
from training.run.loop import train
from training.run.stopping import passed_on

RAY_FOLDER = "ray"
STOP_FILE = "stop-asked"  # in the run's folder while its processes are to stop
_KNOCK_SECONDS = 10.0


def train_on_ray(
    settings: TrainSettings,
    *,
    num_workers: int,
    address: str | None = None,
    resume: bool = True,
    allow_changed: bool = False,
) -> tuple[dict[str, Any], bool]:
    """`training.run.loop.train` in `num_workers` processes that Ray Train starts, a GPU each where the device is one.

    Without `address` a Ray of this machine is started for the run, on the loopback only. Releases and `output_dir` must
    lie where every machine sees them. SIGTERM to this process is passed on: they save a checkpoint and leave.

    Raises: ConfigError before any process is started; RunError, IntegrityError when one fails or all were stopped.
    """
    try:
        with bound_to_loopback(address):
            import ray
            from ray.train import RunConfig, ScalingConfig
            from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f'--launcher ray needs Ray Train ({error.name or error} is missing): pip install "ray[train]>=2.56"'
        ) from None
    folder = Path(settings.output_dir).absolute()
    identity = identity_values(settings, [release.fingerprint for release in loader.open_releases(settings.release)])
    if resume and checkpoint.inspect_run(folder, identity, allow_changed=allow_changed).kind == "finished":
        return checkpoint.read_summary(folder), True
    with checkpoint.hold_folder(folder):  # said here and at once, not by a process of another machine
        pass
    own = not ray.is_initialized()
    if own:
        _start_ray(ray, address, num_workers)
    try:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "settings": settings.model_dump(mode="json"),
                "folder": str(Path.cwd()),
                "resume": resume,
                "allow_changed": allow_changed,
                "stop_file": str(folder / STOP_FILE),
            },
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=_on_gpu(ray, settings)),
            run_config=RunConfig(name=RAY_FOLDER, storage_path=str(folder)),
        )
        with passed_on(folder / STOP_FILE):
            trainer.fit()
    except Exception as error:  # Ray wraps what a process raised in kinds of its own
        raise _own_error(error) from None
    finally:
        if own:
            ray.shutdown()
    return checkpoint.read_summary(folder), False


def each_result_on_ray(
    work: Callable[[dict[str, Any]], Any], tasks: Sequence[dict[str, Any]], settings: TrainSettings, address: str | None
) -> Iterator[tuple[int, Any]]:
    """(number of the task, what `work` gave) in the order of completion, each task in a Ray process of its own.

    A task takes `compute.num_threads` cores (1 where it is null), and a GPU where the device is one. Paths must be seen
    by every machine. Ray begins a task anew when its process is lost; a task that it gives up on has a RunError for its
    result, and the others go on.

    Raises: ConfigError where Ray is missing or does not answer; RunError when the cluster is lost.
    """
    if not tasks:
        return
    try:
        with bound_to_loopback(address):
            import ray
    except ImportError:
        raise ConfigError('--launcher ray needs Ray: pip install "ray[train]>=2.56"') from None
    own = not ray.is_initialized()
    threads = settings.compute.num_threads or 1
    if own:
        _start_ray(ray, address, threads)
    try:
        gpus = 1 if _on_gpu(ray, settings) else 0
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1)(_call_in_folder)
        waiting = {remote.remote(work, task, str(Path.cwd())): number for number, task in enumerate(tasks)}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            yield waiting.pop(ready[0]), _result_of(ray, ready[0])
    except ray.exceptions.RayError as error:
        raise _own_error(error) from None
    finally:
        if own:
            ray.shutdown()


def _result_of(ray: Any, reference: Any) -> Any:
    """What a task gave, or what became of it: its process was lost (memory, machine), or it raised."""
    try:
        return ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return _own_error(error)


def _call_in_folder(work: Callable[[dict[str, Any]], Any], task: dict[str, Any], folder: str) -> Any:
    if Path(folder).is_dir():
        os.chdir(folder)  # where the command was given: paths of the config may be relative
    return work(task)


def _train_worker(config: dict[str, Any]) -> None:
    """What every process runs; Ray Train has set RANK, WORLD_SIZE, LOCAL_RANK and joined them to a group."""
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])  # where the command was given: paths of the config may be relative
    settings = parse_settings(config["settings"], TrainSettings, where="the config")
    train(
        settings,
        resume=config["resume"],
        allow_changed=config["allow_changed"],
        stop_file=Path(config["stop_file"]),
    )


def _start_ray(ray: Any, address: str | None, num_workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        try:
            _knock(address)
            ray.init(address=address, logging_level="warning")
        except OSError as error:
            raise ConfigError(f"--ray-address {address}: no Ray cluster answers there: {error}") from None
        return
    num_cpus = max(os.cpu_count() or 1, num_workers)
    with bound_to_loopback(address):
        ray.init(num_cpus=num_cpus, include_dashboard=False, logging_level="warning")


def _knock(address: str) -> None:
    """Open the port of an address and close it again: Ray itself asks a dead one for many minutes.

    Raises: OSError when nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
            pass


def _on_gpu(ray: Any, settings: TrainSettings) -> bool:
    if settings.compute.device == "auto":
        return bool(ray.cluster_resources().get("GPU", 0))
    return settings.compute.device == "cuda"


def _own_error(error: BaseException) -> PlantMixError:
    """The error of ours within what Ray raises, or a RunError with Ray's words."""
    for inner in _within(error):
        if isinstance(inner, PlantMixError):
            return inner
    return RunError(f"the run on Ray failed: {' '.join(str(error).split())[:600]}")


def _within(error: BaseException | None) -> Iterator[BaseException]:
    if error is None:
        return
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _within(failure)
    for inner in (getattr(error, "cause", None), error.__cause__):
        if isinstance(inner, BaseException):
            yield from _within(inner)
