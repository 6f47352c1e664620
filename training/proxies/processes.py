"""Work through a list of tasks in processes of this machine, which end with the process that started them.

A single task, or one task at a time, runs in this process. Otherwise processes are spawned, so that none inherits
torch's threads. Results come as they are ready. Gives up with RunError when a process dies without one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from manifests.errors import RunError
from manifests.services.child import end_with_parent

T = TypeVar("T")


def each_result(
    work: Callable[[T], Any], tasks: Sequence[T], num_processes: int, num_threads: int
) -> Iterator[tuple[int, Any]]:
    """(number of the task, result) in the order of completion.

    Raises: RunError when a process was killed; tasks that are done stay done.
    """
    num_processes = min(num_processes, len(tasks))
    if num_processes <= 1:
        yield from enumerate(map(work, tasks))
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # inherited: idle threads of these processes must not spin
    executor = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_process,
        initargs=(num_threads,),
    )
    try:
        numbers = {executor.submit(work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BrokenProcessPool:
        raise RunError(
            "a process of the runs was killed (out of memory?); what is finished is kept: run the same command again, "
            "with a smaller num_processes if memory was short"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_process(num_threads: int) -> None:
    """Ctrl-C is left to the run, which saves a checkpoint. When the parent is gone, this process ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    end_with_parent()
