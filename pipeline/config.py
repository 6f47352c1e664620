"""The settings of a run: one YAML file, read once into frozen models. The default of every setting stands in its class.

The sections, in the order of the flow, and where their classes are:

    name, work_dir   BuildConfig, at the end of this file
    sources          SourceSettings  pipeline/sources/settings.py
    evaluation       EvaluationSet   here
    fetch            FetchSettings   pipeline/fetching/settings.py; pipeline/fetching/pictures/settings.py
    dedup            DedupSettings   here
    caption          CaptionSettings pipeline/judging/captions/settings.py
    score            ScoreSettings   pipeline/scoring/settings.py
    select           SelectSettings  here; pipeline/judging/vocabulary/licences.py, pipeline/judging/quotas/balance.py
    mix              MixSettings     here
    pack             PackSettings    here
    run              RunSettings     here: workers and memory, which change no byte of a release
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from manifests.contract.settings import ConfigPath, NameOrPath, Settings, read_settings
from manifests.contract.tables import TEXT_TYPES
from pipeline.fetching.settings import FetchSettings
from pipeline.judging.captions.settings import CaptionSettings
from pipeline.judging.quotas.balance import BalanceSettings
from pipeline.judging.vocabulary.licences import LicenceSettings
from pipeline.scoring.settings import ScoreSettings
from pipeline.sources.settings import KINDS, Name, Origin, SourceSettings

STAGES = ("ingest", "fetch", "dedup", "caption", "score", "select", "mix", "pack")
"""Names of the stages of FLOW, in its order."""
PREFER = ("licence", "priority", "taxon", "pixels", "caption")  # the first difference decides which duplicate stays
CLUSTER_SEED = 0  # of k-means; nobody needs another draw
IMAGES_PER_CLUSTER = 1000  # of k-means on average; only the images of one cluster are compared
PLACEHOLDER_MIN_COUNT = 20  # a pHash that so many images of different pixels share is named as a placeholder
MAX_RADIUS = 16  # bits of 64: beyond it unlike photos count as the same, see pipeline/judging/matching/README.md


class EvaluationSet(Origin):
    """Images that no training sample may show: pictures of any kind of source, or a list of URLs matched by name."""

    section: ClassVar[str] = "evaluation"
    radius: int = Field(4, ge=0, le=MAX_RADIUS)
    """Largest Hamming distance of pHashes that counts as a leak."""
    match_names: bool = False
    """Match by the same record key (or file name), and by an address of the same picture."""
    unreadable: Literal["refuse", "report"] = "refuse"
    """What a build does when it cannot read images of the set: stop, or name them and go on."""

    @model_validator(mode="after")
    def _something_to_match(self) -> EvaluationSet:
        if not KINDS[self.kind].on_disk and not self.match_names:
            raise ValueError(
                f"a {self.kind} holds no image bytes and is matched by name alone: set match_names: true, or give the "
                f"images as {' or '.join(sorted(name for name, kind in KINDS.items() if kind.on_disk))}"
            )
        return self

    def recipe(self) -> dict[str, Any]:
        """Return the recipe of the origin, and how the set is matched."""
        return super().recipe() | self.model_dump(include={"radius", "match_names", "unreadable"}) | {"mirrored": True}


class SemanticSettings(Settings):
    """Images that an open_clip model sees as the same, though their pixels differ (SemDeDup)."""

    model: NameOrPath
    """open_clip architecture, e.g. ViT-B-32, or path of its json config."""
    pretrained: NameOrPath
    """open_clip tag or path of local weights."""
    threshold: float = Field(0.95, gt=0, le=1)
    """Smallest cosine of embeddings of semantic duplicates."""
    batch_size: int = Field(64, ge=1)
    """Pictures embedded at a time."""
    device: str = "cpu"
    """Where the model runs, such as `cuda`."""


class DedupSettings(Settings):
    """Which images count as the same, and which of them stays."""

    radius: int = Field(4, ge=0, le=MAX_RADIUS)
    """Largest Hamming distance of the 64-bit pHashes of near-duplicates, mirrored or not."""
    semantic: SemanticSettings | None = None
    """Find semantic duplicates too; off when absent."""
    extra_captions: int = Field(0, ge=0, le=9)
    """How many captions of dropped duplicates stay with the kept image, as text members extra_caption_1.txt and on."""


class SelectSettings(Settings):
    """Decisions over stored measurements."""

    licences: LicenceSettings = LicenceSettings()
    other_labels: Literal["keep_one", "drop"] = "keep_one"
    """Of copies under different taxa or class folders: keep the best one as any duplicate, or drop them all."""
    balance: BalanceSettings = BalanceSettings()


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    if any(share < 0 for share in weights.values()) or not sum(weights.values()):
        raise ValueError(f"shares must be 0 or more, and not all 0 (given: {weights})")
    return weights


Weights = Annotated[dict[str, float], AfterValidator(_check_weights)]


class HeldoutSettings(Settings):
    """Samples set aside for evaluation, drawn from the kept ones before the mixture.

    `heldout: 10%` is short for `heldout: {share: 0.1}`.
    """

    num_samples: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """How many samples of each domain."""
    share: float | None = Field(None, gt=0, lt=1)
    """Share of each domain that num_samples does not name."""

    @model_validator(mode="before")
    @classmethod
    def _from_percent(cls, value: Any) -> Any:
        if not isinstance(value, str | int | float):
            return value
        percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
        if percent is None:
            raise ValueError(
                f"'{value}' is no share; write `heldout: 10%`, or how many of each domain: "
                "`heldout: {num_samples: {plant: 500}}`"
            )
        return {"share": float(percent[1]) / 100}

    @model_serializer(mode="wrap")
    def _without_an_unset_share(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if name != "share" or value is not None}

    def num_of(self, domain: str, num_kept: int) -> int:
        """Return how many of a domain's kept samples are set aside."""
        return self.num_samples.get(domain, round(num_kept * (self.share or 0)))


class MixSettings(Settings):
    """The share of each domain: by a ratio, by the mixture file of `plantmix plan choose`, or by size."""

    ratio: Weights | None = None
    """Weights of the domains; only their proportions count."""
    mixture: ConfigPath | None = None
    """Path of a mixture.json."""
    by_size: dict[str, Literal["all"] | int | float] | None = None
    """Of each domain `all` of its pool, a number of samples, or a share of the whole (0.23) that is filled to match the
    others."""
    sources: dict[str, Weights] = Field(default_factory=dict)
    """Weights of the sources within a domain; without, its sources are one pool."""
    num_samples: int | None = Field(None, ge=1)
    """Training samples; as many as the pools allow when absent."""
    max_epochs: float | dict[str, float] = 1.0
    """How often a sample may appear, on average over its domain; 1 means no repetition."""
    heldout: HeldoutSettings = HeldoutSettings()
    seed: int = 0
    """Seed of the shuffle, the repeats and the held-out draw."""

    @field_validator("by_size")
    @classmethod
    def _sizes(cls, sizes: dict[str, str | int | float] | None) -> dict[str, str | int | float] | None:
        for domain, size in (sizes or {}).items():
            if isinstance(size, float) and not 0 < size < 1:
                raise ValueError(f"{domain}: a share lies between 0 and 1; write `all` or a whole number of samples")
            if isinstance(size, int) and size < 0:
                raise ValueError(f"{domain}: a number of samples is 0 or more")
        if sizes is not None:
            if sum(size for size in sizes.values() if isinstance(size, float)) >= 1:
                raise ValueError("shares must sum to less than 1, because the other domains fill the rest")
            if not any(size == "all" or (isinstance(size, int) and size > 0) for size in sizes.values()):
                raise ValueError("give one domain at least `all` or a number of samples, to share the rest by")
        return sizes

    @field_validator("max_epochs")
    @classmethod
    def _at_least_one(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if any(epochs < 1 for epochs in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError("must be 1 or more; leave samples out with num_samples or the ratio")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> MixSettings:
        if sum(origin is not None for origin in (self.ratio, self.mixture, self.by_size)) != 1:
            raise ValueError("give exactly one of mix.ratio, mix.mixture and mix.by_size")
        if self.by_size is not None and self.num_samples is not None:
            raise ValueError("mix.by_size says how many samples there are; leave mix.num_samples out")
        whole = [domain for domain in self.sources if (self.by_size or {}).get(domain) == "all"]
        if whole:
            raise ValueError(f"mix.sources: weights for {', '.join(whole)} have no effect: mix.by_size takes all of it")
        return self

    def epochs_of(self, domain: str) -> float:
        """Return how often a sample of a domain may appear, on average."""
        return self.max_epochs.get(domain, 1.0) if isinstance(self.max_epochs, dict) else self.max_epochs


class PackSettings(Settings):
    """The form of a release."""

    kind: Literal["mixed", "stratified"] = "mixed"
    """mixed: the ratio baked in, all domains shuffled together; stratified: every kept sample once, shards of one
    domain each, so that any ratio can be drawn at load time."""
    samples_per_shard: int | None = Field(None, ge=1, le=1_000_000)
    """Samples of a full shard; 1000 unless shard_bytes is given."""
    shard_bytes: int | None = Field(None, ge=1)
    """A shard is closed before it passes about this size."""

    @property
    def max_samples(self) -> int | None:
        """Most samples of a shard; None when only its bytes count."""
        return 1000 if self.samples_per_shard is None and self.shard_bytes is None else self.samples_per_shard


class RaySettings(Settings):
    """The cluster that parts run on, and what Ray sets aside for each of them."""

    address: str | None = None
    """A running cluster: HOST:PORT or `auto`; when absent RAY_ADDRESS, or a local Ray."""
    cpus_per_part: float = Field(1.0, gt=0)
    """CPUs of one part."""
    part_memory_gb: float | None = Field(None, gt=0)
    """Memory of one part, by which Ray spreads parts."""


class RunSettings(Settings):
    """Execution only: nothing here changes a byte of a release."""

    executor: Literal["ray", "processes", "inline"] = "ray"
    """ray: parts run side by side, on one machine or many; processes: side by side on this machine, without Ray (those
    that need a GPU in one process); inline: one after the other in this process."""
    num_workers: int | None = Field(None, ge=1)
    """Parallel parts; all cores when absent."""
    ray: RaySettings = RaySettings()
    fetch_part_size: int = Field(1000, ge=1)
    """URLs of one fetch part."""
    fetch_part_seconds: float = Field(60.0, gt=0)
    """How often a fetch part commits what it has."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory of a part of a metadata step; in processes, one that runs alone has that of all workers."""
    max_attempts: int = Field(3, ge=1)
    """How often a part is tried when a fault may pass."""
    retry_wait_seconds: float = Field(5.0, ge=0)
    """Wait before parts are tried a second time; three times as long before each later try."""
    max_passing_share: float = Field(0.5, ge=0, le=1)
    """A build stops after fetch when more of a source's pictures failed for a reason that may pass."""
    progress_seconds: float = Field(10.0, gt=0)
    """Interval of progress lines in a log."""


class BuildConfig(Settings):
    """A whole run of `plantmix build`."""

    name: Name
    """Name of the release."""
    work_dir: ConfigPath
    """Folder of the catalogue, the pool and the releases; s3://BUCKET/FOLDER (gs://, az://) puts them into a store,
    with a local folder below PLANTMIX_LOCAL_DIR or the user's cache folder."""
    sources: list[SourceSettings] = Field(min_length=1)
    evaluation: list[EvaluationSet] = Field(default_factory=list)
    """Sets that are kept out of the training data."""
    fetch: FetchSettings = FetchSettings()
    dedup: DedupSettings = DedupSettings()
    caption: CaptionSettings = CaptionSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    mix: MixSettings
    pack: PackSettings = PackSettings()
    run: RunSettings = RunSettings()

    @property
    def domains(self) -> list[str]:
        """Domains of the sources, in order of first appearance."""
        return list(dict.fromkeys(domain for source in self.sources for domain in source.domains))

    @field_validator("sources", "evaluation")
    @classmethod
    def _in_work_folder(cls, origins: list[Origin], info: ValidationInfo) -> list[Origin]:
        return [origin.in_work_folder(info.data.get("work_dir", "")) for origin in origins]

    @model_validator(mode="after")
    def _sections_fit(self) -> BuildConfig:
        self._check_names()
        self._check_domains()
        self._check_texts()
        self._check_caps()
        self._check_source_weights()
        return self

    def _check_names(self) -> None:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: the name {', '.join(twice)} is given twice; a source's name is its identity")
        sets = [evaluation.name for evaluation in self.evaluation]
        if len(set(sets)) < len(sets):
            raise ValueError(f"evaluation: two sets have the same name; the names are {', '.join(sets)}")

    def _check_domains(self) -> None:
        named: list[tuple[str, Iterable[str]]] = [
            ("mix.ratio", self.mix.ratio or {}),
            ("mix.by_size", self.mix.by_size or {}),
            ("mix.sources", self.mix.sources),
            ("mix.max_epochs", self.mix.max_epochs if isinstance(self.mix.max_epochs, dict) else {}),
            ("mix.heldout.num_samples", self.mix.heldout.num_samples),
            *(("select.balance.caps.domains", cap.domains) for cap in self.select.balance.caps),
            *(("score.rules.domains", rule.domains or ()) for rule in self.score.rules),
        ]
        parted = [source.name for source in self.sources if source.other_domain]
        if parted and self.caption.backbone is None:
            raise ValueError(f"sources.{parted[0]}.other_domain: name the archive of a backbone in caption.backbone")
        for key, domains in named:
            unknown = [domain for domain in domains if domain not in self.domains]
            if unknown:
                raise ValueError(
                    f"{key}: unknown domain {', '.join(unknown)}; the sources have {', '.join(self.domains)}"
                )
        for key, shares in (("mix.ratio", self.mix.ratio), ("mix.by_size", self.mix.by_size)):
            missing = [domain for domain in self.domains if shares is not None and domain not in shares]
            if missing:
                raise ValueError(f"{key}: no share for the domain {', '.join(missing)}; write 0 to leave it out")
        if self.pack.kind == "stratified" and "heldout" in self.domains:
            raise ValueError(
                "sources: rename the domain 'heldout': a stratified release names shards by domain or split"
            )

    def _check_texts(self) -> None:
        kinds = [captions.kind for source in self.sources for captions in source.captions]
        there = dict.fromkeys(["caption", *TEXT_TYPES, *kinds])
        for name in (name for choice in self.caption.text.choices for name in choice.any_of):
            if name not in there:
                raise ValueError(f"caption.text.choices: no text is called '{name}'; there are {', '.join(there)}")

    def _check_caps(self) -> None:
        kept = {name for source in self.sources for name in source.extra_names()}
        for cap in self.select.balance.caps:
            if cap.extra_column and cap.extra_column not in kept:
                raise ValueError(
                    f"select.balance.caps: no source keeps the column '{cap.extra_column}'; "
                    "name it in `columns.extra` of a source"
                )

    def _check_source_weights(self) -> None:
        if self.mix.sources and self.pack.kind == "stratified":
            raise ValueError("mix.sources: a stratified release takes pools whole; weights of sources need kind: mixed")
        for domain, weights in self.mix.sources.items():
            names = [source.name for source in self.sources if domain in source.domains]
            if sorted(names) != sorted(weights):
                raise ValueError(
                    f"mix.sources: {domain} has the sources {', '.join(names)}, weights are given for "
                    f"{', '.join(weights)}; name each of them, with 0 to leave it out"
                )


def read_config(path: str | Path) -> BuildConfig:
    """Read a build configuration.

    Raises: ConfigError with one line a mistake.
    """
    return read_settings(path, BuildConfig)
