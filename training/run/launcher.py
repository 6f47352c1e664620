"""Training on a Ray cluster: Ray Train starts the processes, and each does what it would do under torchrun.

Reads a config. Writes the run's folder, and in it `ray/`, in which each process looks for the token of its command: so
every machine must share the folder. This is the only module of the package that imports ray, which the training extra
does not bring. Gives up with ConfigError where ray is missing or the run cannot begin, and with the run's own error
when it cannot go on. When a process is lost, all are started again and go on from the last checkpoint,
`compute.max_failures` times.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError, PlantMixError, RetryableError, RunError, words_of
from manifests.services.local_ray import join_cluster, ray_environment
from manifests.stores.storage import filesystem, is_remote, join, read_if_there, write_file
from training.config import TrainSettings
from training.data import loader
from training.record.checkpoint import lock_folder
from training.record.run_folder import RunFolder
from training.run.loop import train
from training.run.stopping import StoppedError, signals_to_file

RAY_FOLDER = "ray"
STOP_FILE = "stop-asked"  # in the run's folder while its processes are to stop
_TOKEN_SECONDS = 30.0  # a network disk may show a new file so much later

T = TypeVar("T")


def train_on_ray(
    settings: TrainSettings,
    *,
    num_workers: int,
    address: str | None = None,
    resume: bool = True,
    allow_changed: bool = False,
) -> tuple[dict[str, Any], bool]:
    """`training.run.loop.train` in `num_workers` processes that Ray Train starts, each with a GPU if the device is one.

    Without `address` or RAY_ADDRESS (which `ray job submit` sets) a Ray of this machine is started for the run, on the
    loopback only. Every machine must see the releases and `output_dir`. On SIGTERM or Ctrl-C to this process the others
    save a checkpoint and leave. When processes are lost (killed, out of memory, with their machine) or meet a passing
    fault, all begin again from the last checkpoint.

    Raises: ConfigError before any process is started; RunError, IntegrityError when the run cannot go on, was stopped,
        or lost processes more than `compute.max_failures` times.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    ray = _import_ray(address)
    sources = loader.open_sources(settings.release, settings.data, settings.data.split, index=settings.data.index)
    fingerprints = [source.fingerprint for source in sources]
    run = RunFolder(settings, fingerprints, resume=resume, allow_changed=allow_changed)
    run.take_up()
    if run.inspect().kind == "finished":
        return run.summary(), True
    place = run.place if is_remote(run.place) else str(Path(run.place).absolute())
    storage_filesystem, storage_path = _storage_of(place)
    stop_file, token = join(place, STOP_FILE), uuid4().hex
    with lock_folder(run.folder):  # a folder in use is refused here, not by a process of another machine
        pass
    with _running_ray(ray, address, num_workers):
        if address is None and (lacking := _what_lacks(ray, settings, num_workers)):
            raise ConfigError(f"--num-workers {num_workers}: {lacking}; ask for fewer")
        write_file(join(place, RAY_FOLDER, "token"), token.encode())
        try:
            trainer = _trainer_class(ray)(
                _train_worker,
                train_loop_config={
                    "settings": settings.model_dump(mode="json"),
                    "folder": str(Path.cwd()),
                    "resume": resume,
                    "begun": run.begun_at(),
                    "allow_changed": allow_changed,
                    "place": place,
                    "token": token,
                },
                scaling_config=ray.train.ScalingConfig(num_workers=num_workers, use_gpu=_on_gpu(ray, settings)),
                run_config=ray.train.RunConfig(
                    name=RAY_FOLDER,
                    storage_path=storage_path,
                    storage_filesystem=storage_filesystem,
                    failure_config=ray.train.FailureConfig(max_failures=settings.compute.max_failures),
                    callbacks=[_restarts(ray, settings)],
                ),
            )
            _fit(trainer, stop_file, lambda: _what_lacks(ray, settings, num_workers))
        except Exception as error:  # Ray wraps what a process raised in classes of its own
            raise _unwrap(error) from None
    run = RunFolder(settings)
    run.take_up()
    return run.summary(), False


def _fit(trainer: Any, stop_file: str, what_lacks: Callable[[], str]) -> None:
    """`trainer.fit()`; on SIGTERM or Ctrl-C the processes are asked to stop, and a second Ctrl-C ends all at once.

    Where the cluster has no room for the processes, as `what_lacks` says, Ray waits for more machines; that is
    said, and a signal ends the wait.

    Raises: StoppedError when a signal ended the wait; what `fit` raises.
    """
    try:
        with signals_to_file(stop_file, is_idle=lambda: bool(what_lacks())):
            if lacking := what_lacks():
                print(f"dalip: {lacking}; waiting for more machines (Ctrl-C ends it)", file=sys.stderr, flush=True)
            trainer.fit()
    except KeyboardInterrupt:
        if lacking := what_lacks():
            raise StoppedError(f"stopped by a signal before training went on: {lacking}") from None
        raise


def _trainer_class(ray: Any) -> Any:
    class Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]  # its base is Any: Ray is imported late
        def _register_sigint_handler(self, controller: Any) -> None:
            """No handler of Ray Train's (2.60), by which Ctrl-C ends the processes without a checkpoint."""

    return Trainer


def _what_lacks(ray: Any, settings: TrainSettings, num_workers: int) -> str:
    """Why the processes cannot all run, in words; empty where Ray's machines have room for them."""
    kind = "GPUs" if _on_gpu(ray, settings) else "cores"
    num = ray.cluster_resources().get("GPU" if kind == "GPUs" else "CPU", 0)
    return "" if num >= num_workers else f"{num_workers} processes need {num_workers} {kind}, and Ray has {num:.0f}"


def each_result_on_ray(
    work: Callable[[T], Any], tasks: Sequence[T], settings: TrainSettings, address: str | None
) -> Iterator[tuple[int, Any]]:
    """(number of the task, its result) in the order of completion, each task in a Ray process of its own.

    Without `address` RAY_ADDRESS counts. A task takes `compute.num_threads` cores (1 where it is null), and a GPU if
    the device is one. Every machine must see the paths. Ray begins a task again when its process is lost. When Ray
    gives up on a task, its result is a RunError, and the others go on.

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
    """Ray with Ray Train, bound to the loopback where it will be started here.

    Raises: ConfigError where one of them is missing.
    """
    try:
        with ray_environment(address):
            import ray.train.torch
    except ImportError as error:
        raise ConfigError(
            f'--launcher ray needs Ray Train ({error.name or error} is missing): pip install "ray[train]>=2.56"'
        ) from None
    return ray


def _result_of(ray: Any, reference: Any) -> Any:
    """The result of a task, or the error when it raised or its process was lost (memory, machine)."""
    try:
        return ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return _unwrap(error)


def _storage_of(output_dir: str) -> tuple[Any, str]:
    """How Ray Train reaches the run's folder: the file system (None: the disk's) and the path in it."""
    if not is_remote(output_dir):
        return None, output_dir
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, inner = filesystem(output_dir)
    return PyFileSystem(FSSpecHandler(fs)), inner


def _restarts(ray: Any, settings: TrainSettings) -> Any:
    """What Ray Train's controller calls when processes fail: it says what follows, and ends a run that cannot go on.

    Ray Train itself would start a run again after any error. An error in this callback ends the run (Ray 2.60).
    """
    max_failures = settings.compute.max_failures

    class Restarts(ray.train.UserCallback):  # type: ignore[misc]  # its base is Any: Ray is imported late
        failures = 0

        def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
            what = _what_failed(ray, worker_exceptions)
            self.failures += 1
            if self.failures > max_failures:
                raise RunError(
                    f"{what}; compute.max_failures = {max_failures} restarts are used up. See why processes end "
                    "(memory: lower data.num_workers or raise compute.accumulate); run the same command to go on"
                )
            print(
                f"dalip: {what}; all processes start again and go on from the last checkpoint "
                f"(restart {self.failures} of {max_failures}, compute.max_failures)",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    return Restarts()


def _what_failed(ray: Any, errors: Mapping[int, Exception]) -> str:
    """Which processes were lost, or the first fault that may pass. Those left behind fail too, as a result.

    Raises: PlantMixError where one of them cannot go on, because it would happen again.
    """
    inside = {rank: list(_errors_inside(error)) for rank, error in sorted(errors.items())}
    own = [(rank, inner) for rank, causes in inside.items() for inner in causes if isinstance(inner, PlantMixError)]
    for _, error in own:
        if not isinstance(error, RetryableError):
            raise error
    lost = [
        str(rank) for rank, causes in inside.items() if any(isinstance(e, ray.exceptions.RayActorError) for e in causes)
    ]
    if lost:
        return f"a worker was lost (rank {', '.join(lost)})"
    rank, failure = own[0] if own else next((rank, causes[-1]) for rank, causes in inside.items())
    return f"a worker failed (rank {rank}, {words_of(failure)})"


def _call_in_folder(work: Callable[[T], Any], task: T, folder: str) -> Any:
    _enter(folder)
    return work(task)


def _train_worker(config: dict[str, Any]) -> None:
    """What every process runs; Ray Train has set RANK, WORLD_SIZE, LOCAL_RANK and joined them to a group."""
    _enter(config["folder"])
    settings = parse_settings(config["settings"], TrainSettings, where="the config")
    # --no-resume removes the run of before once, not what this command did before a worker was lost.
    resume = config["resume"] or RunFolder(settings).begun_at() != config["begun"]
    stop_file = join(config["place"], STOP_FILE)
    try:
        _require_shared(config["place"], config["token"])
        train(settings, resume=resume, allow_changed=config["allow_changed"], stop_file=stop_file)
    except ConfigError as error:  # the command saw nothing wrong where it was given
        raise ConfigError(f"on machine {platform.node()}: {error}") from None


def _require_shared(place: str, token: str) -> None:
    """Raises: ConfigError where this machine has another folder in the place of the run's, or none."""
    until = time.monotonic() + _TOKEN_SECONDS
    while read_if_there(join(place, RAY_FOLDER, "token")) != token.encode():
        if time.monotonic() > until:
            raise ConfigError(f"{place} is not the folder of the machine that started the run: let --output lie on a "
                              "disk that all machines share, or in a store")  # fmt: skip
        time.sleep(0.5)


def _enter(folder: str) -> None:
    """Work where the command was given, because paths of the config may be relative."""
    if Path(folder).is_dir():
        os.chdir(folder)


@contextmanager
def _running_ray(ray: Any, address: str | None, num_cpus: int) -> Iterator[None]:
    """A Ray that answers: the one of this process, the cluster at `address`, or one started here and stopped again.

    Raises: ConfigError when nothing answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        num_cpus = max(os.cpu_count() or 1, num_cpus)
        with ray_environment(address):
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
    """The error of ours inside what Ray raises, or a RunError with Ray's message."""
    for inner in _errors_inside(error):
        if isinstance(inner, PlantMixError):
            return inner
    why = " ".join(str(error).split())[:600]
    return RunError(f"the run on Ray failed: {why} Run the same command to go on from the last checkpoint")


def _errors_inside(error: BaseException | None) -> Iterator[BaseException]:
    if error is None:
        return
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _errors_inside(failure)
    for name in ("cause", "__cause__", "controller_failure", "health_check_failure"):
        if isinstance(inner := getattr(error, name, None), BaseException):
            yield from _errors_inside(inner)
