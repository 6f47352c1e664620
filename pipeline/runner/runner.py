"""Run FLOW: plan parts, skip committed ones, run the others, publish their files, commit them, seal the stage.

Workers (Ray tasks, or this process with `executor: inline`) write private files and return small records. Only this
driver renames files into place and commits them, each part in one transaction. When it is killed, committed parts stay
and the parts in flight are done again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from manifests import storage
from manifests.catalog import Catalog
from manifests.errors import ConfigError, IntegrityError, PartError, RetryableError, RunError
from manifests.records import PartFile, PartRecord, StageRecord
from pipeline.config import BuildConfig
from pipeline.runner.executing import Done, Executor, InlineExecutor, Job
from pipeline.runner.on_ray import RayExecutor
from pipeline.runner.progress import Progress
from pipeline.runner.work import BuildContext, Part, Stage, StageRun, Step

log = logging.getLogger("plantmix.runner")


FROM_TOO_LATE = (
    "--from: the stage '{stage}' before it is not done yet with this configuration; leave --from out and what is done "
    "will be reused"
)


@dataclass(frozen=True)
class BuildReport:
    """How a build ended: what each stage was (done or reused) and where the release lies."""

    stages: dict[str, StageRecord]
    redone: tuple[str, ...]
    release: str | None
    seconds: float


class Runner:
    """One build over one work folder."""

    def __init__(self, config: BuildConfig, flow: Sequence[Stage[Any]], catalog: Catalog) -> None:
        self._config, self._flow, self._catalog = config, flow, catalog
        self._executor: Executor | None = None
        self._context = BuildContext(config, catalog.workdir, catalog)

    def run(self, first: str | None = None, last: str | None = None, too_late: str = FROM_TOO_LATE) -> BuildReport:
        """Bring every stage up to date, in order, from `first` on and up to `last` (both included).

        `too_late` is what to say when a `{stage}` before `first` is not done yet.

        Raises: PartError when parts failed for good (all others are committed); IntegrityError; ConfigError of a plan.
        """
        started = time.monotonic()
        names = [stage.name for stage in self._flow]
        redone: list[str] = []
        release = None
        with self._working():
            for place, stage in enumerate(self._flow):
                before = first is not None and place < names.index(first)
                new = self._bring_up_to_date(stage, names[place + 1 :], too_late if before else None)
                if new:
                    redone.append(stage.name)
                if stage.name == last:
                    break
            else:
                release = self._catalog.find_release(self._context.fingerprint)
        return BuildReport(dict(self._context.sealed), tuple(redone), release, time.monotonic() - started)

    def redo(self, name: str, change: Callable[[BuildContext, StageRecord], bool]) -> tuple[StageRecord, StageRecord]:
        """Bring one stage to another version, on top of the stages that the last build sealed before it.

        Returns the old and the new version. `change` gets the old one and alters what the stage's inputs are made from.
        When it returns false, nothing is done.

        Raises: ConfigError when the stage, or one before it, is not done with this configuration; else as `run`.
        """
        names = [stage.name for stage in self._flow]
        place = names.index(name)
        context = self._context
        with self._working():
            for stage in self._flow[:place]:
                context.sealed[stage.name] = self._sealed_or_refuse(stage.name, self._catalog.find_current(stage.name))
            stage = self._flow[place]
            before = self._sealed_or_refuse(name, stage.fingerprint(stage.inputs(context)))
            if not change(context, before):
                return before, before
            self._bring_up_to_date(stage, names[place + 1 :], None)
            return before, context.sealed[name]

    def _sealed_or_refuse(self, stage: str, version: str | None) -> StageRecord:
        sealed = self._catalog.find_sealed(version) if version else None
        if sealed is None:
            raise ConfigError(
                f"{self._catalog.workdir}: the stage '{stage}' is not done yet with the configuration of the last "
                "build; run `plantmix build` with it first"
            )
        return sealed

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Before work: clear what a killed run left, drop parts whose files are gone. After: close, tidy, tell."""
        _clear_scratch(self._catalog.workdir)
        for name, num in self._catalog.drop_lost_parts().items():
            log.warning("%s: %d parts lost their files; where this build needs them they are done again", name, num)
        try:
            yield
        finally:
            if self._executor is not None:
                self._executor.close()
            _clear_scratch(self._catalog.workdir)
            self._publish_status(running=None)

    # ---- one stage

    def _bring_up_to_date(self, stage: Stage[Any], after: Sequence[str], too_late: str | None) -> bool:
        """Seal the current version of a stage; false when it was sealed already.

        Raises: ConfigError with `too_late`, where given, when it was not; else as `run`.
        """
        context = self._context
        inputs = stage.inputs(context)
        context.fingerprint = stage.fingerprint(inputs)
        sealed = self._catalog.find_sealed(context.fingerprint)
        if sealed is None and too_late is not None:
            raise ConfigError(too_late.format(stage=stage.name))
        was = self._catalog.find_current(stage.name)
        self._catalog.open_stage(stage.name, context.fingerprint, stage.identity(inputs))
        if sealed is not None:
            if was != context.fingerprint:  # back to an older version: later stages belong to another one
                self._catalog.forget_current(after)
            log.info("%s: reused, %s", stage.name, _describe(sealed))
            context.sealed[stage.name] = sealed
            if stage.settle is not None:
                stage.settle(context)
            return False
        self._catalog.forget_current(after)
        for step in stage.steps:
            self._run_step(stage, step, inputs)
        funnel, notes = stage.conclude(inputs, self._stage_run(None))
        self._catalog.seal_stage(StageRecord(stage.name, context.fingerprint, funnel, notes))
        record = self._catalog.find_sealed(context.fingerprint)  # as a later build will find it, to the byte
        assert record is not None
        context.sealed[stage.name] = record
        if stage.settle is not None:
            stage.settle(context)
        self._publish_status(running=None)
        log.info("%s: done, %s", stage.name, _describe(record))
        return True

    def _stage_run(self, how: Any) -> StageRun[Any]:
        context = self._context
        return StageRun(context.fingerprint, self._catalog, self._config.run, how, context.fetch_round)

    def _run_step(self, stage: Stage[Any], step: Step[Any, Any, Any], inputs: Any) -> None:
        context = self._context
        run = self._stage_run(step.how(context) if step.how else None)
        planned = list(step.plan(inputs, run))
        keys = [part.key if isinstance(part, PartRecord) else stage.key_of(step, part) for part in planned]
        kept = list(step.committed(inputs, run)) if step.committed else []
        found = self._catalog.find_parts(keys)
        links = [(position, key) for position, key in enumerate(keys) if key in found]
        links += [(len(keys) + extra, part.key) for extra, part in enumerate(kept)]
        self._catalog.link_parts(context.fingerprint, step.name, links)
        new = [(key, part) for key, part in zip(keys, planned, strict=True) if key not in found]
        if not new:
            return
        shared = self._ready_executor().share(step.shared(context)) if step.shared else None
        todo = [Job(key, part, run.execution(key[:16], shared)) for key, part in new if isinstance(part, Part)]
        position = {key: place for place, key in enumerate(keys)}
        progress = Progress(f"{stage.name} {step.name}", step.unit, todo, self._config.run.progress_seconds)
        failures: list[str] = []
        gpus = step.gpus(context) if step.gpus else None
        attempts = dict.fromkeys((job.key for job in todo), 0)
        with progress:
            while todo:
                again: list[Job] = []
                for done in self._ready_executor().run(step.work, todo, gpus):
                    job = done.job
                    attempts[job.key] += 1
                    if done.error is None and done.result is not None:
                        self._commit(stage, step, done, position[job.key], attempts[job.key])
                        progress.advance(job, done.result.funnel)
                        self._publish_status(running=progress.snapshot())
                    elif self._goes_again(done, attempts[job.key]):
                        again.append(job)
                    else:
                        failures.append(f"{done.error}")
                todo = again
        if failures:
            raise PartError(
                f"{stage.name}: {len(failures)} of {len(planned)} parts failed, the others are kept; first: "
                f"{failures[0]}. Mend the cause and run the same command again"
            )

    def _goes_again(self, done: Done, attempts: int) -> bool:
        error = done.error
        if isinstance(error, (IntegrityError, ConfigError, RunError)):
            raise error
        if isinstance(error, RetryableError) and attempts < self._config.run.max_attempts:
            log.warning(
                "a part failed for a passing reason, try %d of %d: %s", attempts, self._config.run.max_attempts, error
            )
            return True
        log.error("a part failed: %s", error)
        return False

    def _commit(self, stage: Stage[Any], step: Step[Any, Any, Any], done: Done, position: int, attempts: int) -> None:
        """Publish the files of a part, then state in one transaction that it exists."""
        result = done.result
        assert result is not None
        if result.funnel is not None:
            result.funnel.check(f"{stage.name} {step.name}")
        for file in result.files:
            storage.publish(file.temp, storage.join(self._catalog.workdir, file.path))
        files = tuple(PartFile(f.table, f.path, f.num_rows, f.num_bytes, f.sha256) for f in result.files)
        record = PartRecord(
            done.job.key,
            stage.name,
            step.name,
            done.job.part.reuse_key,
            files,
            result.funnel,
            result.notes,
            done.seconds,
            attempts,
        )
        self._catalog.commit_part(self._context.fingerprint, position, record)

    def _ready_executor(self) -> Executor:
        """Start the executor only when there is work: a build with nothing to do never starts Ray."""
        if self._executor is None:
            run = self._config.run
            self._executor = (
                InlineExecutor() if run.executor == "inline" else RayExecutor(run.num_workers, run.ray_address)
            )
        return self._executor

    def _publish_status(self, running: dict[str, Any] | None) -> None:
        self._catalog.publish_status(
            {"name": self._config.name, "running": running, "pid": os.getpid() if running else None}
        )


def _describe(stage: StageRecord) -> str:
    funnel = stage.funnel
    text = f"{funnel.num_kept:,} of {funnel.num_in:,} kept"
    dropped = [f"{num:,} {reason}" for reason, num in sorted(funnel.reasons.items(), key=lambda x: -x[1]) if num]
    return text + (f", dropped: {', '.join(dropped)}" if dropped else "")


def scratch_folder(workdir: str) -> str:
    """Where parts keep private temporary files; emptied at the start and the end of a build."""
    return storage.join(workdir, "scratch")


def _clear_scratch(workdir: str) -> None:
    """Remove what a killed build left behind; the open catalogue proves that no other build is running here."""
    storage.sweep(workdir)
    shutil.rmtree(scratch_folder(workdir), ignore_errors=True)


def stop_on_sigterm() -> None:
    """Turn SIGTERM into KeyboardInterrupt, so that a pre-empted driver leaves tidily."""

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
