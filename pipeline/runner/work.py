"""The words of the runner: what a stage, a step, a part and its result are. No work here, no ray.

A stage is one entry of FLOW. It has steps; a step plans parts; a part is a pure function of a payload that
writes private files and returns a small record. The runner publishes and commits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests import storage
from manifests.records import Funnel, PartRecord, StageRecord
from manifests.rounds import FetchRound
from pipeline.config import BuildConfig
from pipeline.store.writing import PrivateFile


@dataclass(frozen=True)
class PartResult:
    """What a worker returns: files in the order of publication, counts, and notes in plain JSON values."""

    files: tuple[PrivateFile, ...] = ()
    funnel: Funnel | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


Work = Callable[[dict[str, Any]], PartResult]


@dataclass(frozen=True)
class Part:
    """A unit of work: `key` names its content, `payload` is all that `work` sees."""

    key: str
    payload: dict[str, Any]
    reuse_key: str = ""
    num_rows: int = 0


@dataclass(frozen=True)
class Step:
    """Parts that may run side by side.

    `plan` may raise ConfigError. `committed` names committed parts of other stage versions to stand on as well,
    whatever the plan says (the fetch stage keeps what it already downloaded). `shared` gives a picklable maker of one
    object that all workers of the run talk to (`payload["shared"]`), on a cluster through an actor. `gpus`, where a
    step has it, says that its work holds a model from part to part: on Ray its parts go to actors, one a worker, each
    with so many GPUs (0 for none).
    """

    name: str
    plan: Callable[[BuildContext], Sequence[Part]]
    work: Work
    unit: str = "parts"
    committed: Callable[[BuildContext], Sequence[PartRecord]] | None = None
    shared: Callable[[BuildContext], Callable[[], Any]] | None = None
    gpus: Callable[[BuildContext], float] | None = None


@dataclass(frozen=True)
class Stage:
    """One entry of FLOW.

    `identity` names everything that decides what the stage yields; its hash is the stage version.
    `conclude` turns the committed parts into the funnel and notes of the sealed stage; `settle` tells the
    catalogue what only this stage knows, whether it was done or reused.
    """

    name: str
    about: str
    identity: Callable[[BuildContext], dict[str, Any]]
    steps: tuple[Step, ...]
    conclude: Callable[[BuildContext], tuple[Funnel, dict[str, Any]]]
    settle: Callable[[BuildContext], None] | None = None


@dataclass
class BuildContext:
    """What plans may look at: the configuration, sealed stages before this one, and committed parts of this one."""

    config: BuildConfig
    workdir: str
    catalog: Any
    sealed: dict[str, StageRecord] = field(default_factory=dict)
    fingerprint: str = ""
    fetch_round: FetchRound | None = None
    """The round that `plantmix retry` is running; None in a build."""

    def files(self, stage: str, table: str) -> list[str]:
        """Absolute paths of a sealed stage's files that hold `table`, in plan order."""
        return self._files(self.sealed[stage].fingerprint, None, table)

    def content(self, stage: str, table: str) -> list[str]:
        """Hashes of a sealed stage's files that hold `table`: equal content gives equal fingerprints downstream."""
        version = self.sealed[stage].fingerprint
        return [file.sha256 for part in self.catalog.parts_of(version) for file in part.files if file.table == table]

    def execution(self) -> dict[str, Any]:
        """What a metadata step needs to run and no fingerprint may see."""
        return {"workdir": self.workdir, "memory_gb": self.config.run.memory_gb}

    def own_parts(self, step: str) -> list[PartRecord]:
        """Committed parts of an earlier step of the stage being built."""
        return list(self.catalog.parts_of(self.fingerprint, step))

    def own_result(self, step: str) -> tuple[Funnel, dict[str, Any]]:
        """Funnel and notes of a step that has one part: what most stages conclude with."""
        (part,) = self.own_parts(step)
        assert part.funnel is not None
        return part.funnel, dict(part.notes)

    def own_files(self, step: str, table: str) -> list[str]:
        """Absolute paths of the files that an earlier step of the stage being built committed."""
        return self._files(self.fingerprint, step, table)

    def paths(self, part: PartRecord, table: str) -> list[str]:
        """Absolute paths of a part's files that hold `table`."""
        return [storage.join(self.workdir, file.path) for file in part.files if file.table == table]

    def _files(self, version: str, step: str | None, table: str) -> list[str]:
        return [path for part in self.catalog.parts_of(version, step) for path in self.paths(part, table)]
