"""One YAML file is one whole run: what comes in, how it is judged, how it is mixed, what comes out.

Read once at the edge into frozen models. Every model says which of its fields are recipe (part of a stage's
fingerprint) and which are execution (workers, paths, rates: never part of one).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from manifests.errors import ConfigError
from manifests.settings import Settings, read_settings
from pipeline.captions.settings import CaptionSettings
from pipeline.fetching.settings import FetchSettings
from pipeline.quotas.balance import BalanceSettings
from pipeline.scoring.settings import ScoreSettings
from pipeline.sources.settings import ColumnMap, Name, Origin, SourceSettings
from pipeline.vocabulary.licences import LicenceSettings

__all__ = ["BuildConfig", "ColumnMap", "Name", "SourceSettings", "read_config", "recipe_of"]

MAX_RADIUS = 16  # bits of 64: beyond it unlike photos are called the same, see pipeline/matching/README.md


class SemanticSettings(Settings):
    """Images that an open_clip model sees as the same, though their pixels differ (SemDeDup)."""

    model: str = Field(description="open_clip architecture, e.g. ViT-B-32, or path of its json config")
    pretrained: str = Field(description="open_clip tag or path of local weights")
    threshold: float = Field(0.95, gt=0, le=1, description="smallest cosine of embeddings of semantic duplicates")
    images_per_cluster: int = Field(1000, ge=2, description="only images of one k-means cluster are compared")
    seed: int = 0
    batch_size: int = Field(64, ge=1)
    device: str = "cpu"


class DedupSettings(Settings):
    """Which images count as the same, and which one of them stays."""

    radius: int = Field(
        4, ge=0, le=MAX_RADIUS, description="largest Hamming distance of the 64-bit pHashes of near-duplicates"
    )
    prefer: tuple[Literal["licence", "pixels", "caption", "priority"], ...] = Field(
        ("licence", "pixels", "caption", "priority"),
        description="who stays: first difference in this order decides, then the sample id",
    )
    semantic: SemanticSettings | None = Field(None, description="semantic duplicates too; off when absent")
    extra_captions: int = Field(
        0,
        ge=0,
        le=9,
        description="so many captions of dropped duplicates are kept with the image that stays, as text members "
        "extra_caption_1.txt and on",
    )
    placeholder_min_count: int = Field(
        20, ge=2, description="images of different bytes that share one pHash this often are named as placeholders"
    )


class EvaluationSet(Origin):
    """Images that no training sample may show: a folder or webdataset, or a list of URLs matched by name alone."""

    place: ClassVar[str] = "evaluation"

    radius: int = Field(4, ge=0, le=MAX_RADIUS, description="largest Hamming distance of pHashes that counts as a leak")
    mirrored: bool = Field(True, description="match the mirror image of each as well")
    match_names: bool = Field(False, description="match by the same record key (or file name), and by the same URL")
    unreadable: Literal["refuse", "report"] = Field(
        "refuse", description="what a build does when images of the set cannot be read: stop, or say so and go on"
    )

    @model_validator(mode="after")
    def _something_to_match(self) -> EvaluationSet:
        if self.kind not in ("folder", "webdataset") and not self.match_names:
            raise ValueError(
                f"a {self.kind} holds no image bytes and is matched by name alone: set match_names: true, or give the "
                "images as folder (with a table in it) or webdataset"
            )
        return self

    def recipe(self) -> dict[str, Any]:
        """As of any origin, with how it is matched."""
        return super().recipe() | {
            "radius": self.radius,
            "mirrored": self.mirrored,
            "match_names": self.match_names,
            "unreadable": self.unreadable,
        }


class SelectSettings(Settings):
    """Decisions over stored measurements."""

    licences: LicenceSettings = LicenceSettings()
    balance: BalanceSettings = BalanceSettings()


class HeldoutSettings(Settings):
    """Samples set aside for evaluation, drawn from the kept ones before the mixture."""

    num_samples: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="how many of each domain"
    )


class MixSettings(Settings):
    """How much of each domain: by a ratio, by the mixture file of `plantmix plan choose`, or by size."""

    ratio: dict[str, float] | None = Field(None, description="weights; only their proportions count")
    mixture: str | None = Field(None, description="path of a mixture.json")
    by_size: dict[str, Literal["all"] | int | float] | None = Field(
        None,
        description="of each domain `all` of its pool, a number of samples, or a share of the whole (0.23) that is "
        "filled to match the others",
    )
    sources: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="weights of the sources within a domain; without, its sources are one pool"
    )
    num_samples: int | None = Field(None, ge=1, description="training samples; as many as the pools allow when absent")
    max_epochs: float | dict[str, float] = Field(
        1.0, description="how often a sample may appear, on average over its domain; 1 means no repetition"
    )
    heldout: HeldoutSettings = HeldoutSettings()
    seed: int = 0

    @field_validator("ratio")
    @classmethod
    def _positive(cls, ratio: dict[str, float] | None) -> dict[str, float] | None:
        if ratio is not None:
            _check_weights(ratio)
        return ratio

    @field_validator("sources")
    @classmethod
    def _positive_within(cls, sources: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for weights in sources.values():
            _check_weights(weights)
        return sources

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
                raise ValueError("shares must sum to less than 1: the rest is what they match")
            if not any(size == "all" or (isinstance(size, int) and size > 0) for size in sizes.values()):
                raise ValueError("some domain needs `all` or a number of samples, which the shares then match")
        return sizes

    @field_validator("max_epochs")
    @classmethod
    def _at_least_one(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if any(not 1 <= epochs < float("inf") for epochs in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError("must be 1 or more, and finite; leave samples out with num_samples or the ratio")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> MixSettings:
        if sum(origin is not None for origin in (self.ratio, self.mixture, self.by_size)) != 1:
            raise ValueError("give exactly one of mix.ratio, mix.mixture and mix.by_size")
        if self.by_size is not None and self.num_samples is not None:
            raise ValueError("mix.by_size says how many there are; leave mix.num_samples out")
        whole = [domain for domain in self.sources if (self.by_size or {}).get(domain) == "all"]
        if whole:
            raise ValueError(f"mix.sources: weights for {', '.join(whole)} decide nothing, mix.by_size takes all of it")
        return self

    def epochs_of(self, domain: str) -> float:
        """How often a sample of a domain may appear, on average."""
        return self.max_epochs.get(domain, 1.0) if isinstance(self.max_epochs, dict) else self.max_epochs


def _check_weights(weights: dict[str, float]) -> None:
    if any(not 0 <= share < float("inf") for share in weights.values()) or not sum(weights.values()):
        raise ValueError(f"shares must be 0 or more, finite, and not all 0 (given: {weights})")


class PackSettings(Settings):
    """What a release looks like."""

    kind: Literal["mixed", "stratified"] = Field(
        "mixed",
        description="mixed: the ratio baked in, shuffled as one; stratified: every kept sample once, shards of one "
        "domain each, so that any ratio can be drawn at load time",
    )
    samples_per_shard: int | None = Field(
        None, ge=1, le=1_000_000, description="a full shard's samples; 1000 unless shard_bytes is given"
    )
    shard_bytes: int | None = Field(None, ge=1, description="a shard is closed before it passes about this size")

    @property
    def max_samples(self) -> int | None:
        """Most samples of a shard; None when only its bytes count."""
        return 1000 if self.samples_per_shard is None and self.shard_bytes is None else self.samples_per_shard


class RunSettings(Settings):
    """Execution only: nothing here changes a single byte of a release."""

    executor: Literal["ray", "inline"] = "ray"
    num_workers: int | None = Field(None, ge=1, description="parallel parts; all cores when absent")
    ray_address: str | None = Field(None, description="address of a running Ray cluster; a local one when absent")
    fetch_part_size: int = Field(1000, ge=1, description="URLs a fetch part")
    fetch_part_seconds: float = Field(60.0, gt=0, description="what a fetch part has got is committed this often")
    memory_gb: float = Field(4.0, gt=0, description="memory of one metadata step")
    match_part_hashes: int = Field(
        50_000_000, ge=1, description="distinct pHashes up to which the duplicate search is one part"
    )
    max_attempts: int = Field(3, ge=1, description="tries of a part after passing faults")
    progress_seconds: float = Field(10.0, gt=0, description="interval of progress lines in a log")


class BuildConfig(Settings):
    """A whole run of `plantmix build`."""

    name: Name = Field(description="name of the release")
    work_dir: str = Field(description="catalogue, pool and releases lie here")
    sources: list[SourceSettings] = Field(min_length=1)
    evaluation: list[EvaluationSet] = Field(
        default_factory=list, description="sets that are kept out of the training data"
    )
    fetch: FetchSettings = FetchSettings()
    dedup: DedupSettings = DedupSettings()
    caption: CaptionSettings = CaptionSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    mix: MixSettings
    pack: PackSettings = PackSettings()
    run: RunSettings = RunSettings()

    @field_validator("work_dir")
    @classmethod
    def _at_home(cls, work_dir: str) -> str:
        return str(Path(work_dir).expanduser()) if work_dir.startswith("~") else work_dir

    @property
    def domains(self) -> list[str]:
        """Domains of the sources, in order of first appearance."""
        return list(dict.fromkeys(source.domain for source in self.sources))

    @model_validator(mode="after")
    def _names_fit(self) -> BuildConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: the name {', '.join(twice)} is given twice; a source's name is its identity")
        sets = [evaluation.name for evaluation in self.evaluation]
        if len(set(sets)) < len(sets):
            raise ValueError(f"evaluation: two sets have one name; they are {', '.join(sets)}")
        named: list[tuple[str, Iterable[str]]] = [
            ("mix.ratio", self.mix.ratio or {}),
            ("mix.by_size", self.mix.by_size or {}),
            ("mix.sources", self.mix.sources),
            ("mix.max_epochs", self.mix.max_epochs if isinstance(self.mix.max_epochs, dict) else {}),
            ("mix.heldout.num_samples", self.mix.heldout.num_samples),
            *(("select.balance.caps.domains", cap.domains) for cap in self.select.balance.caps),
            *(("score.rules.domains", rule.domains or ()) for rule in self.score.rules),
        ]
        for place, given in named:
            unknown = [domain for domain in given if domain not in self.domains]
            if unknown:
                raise ValueError(
                    f"{place}: unknown domain {', '.join(unknown)}; the sources have {', '.join(self.domains)}"
                )
        kept = {name for source in self.sources for name in source.extra_names()}
        for cap in self.select.balance.caps:
            if cap.extra_column and cap.extra_column not in kept:
                raise ValueError(
                    f"select.balance.caps: no source keeps the column '{cap.extra_column}'; "
                    "name it in `columns.extra` of a source"
                )
        if self.pack.kind == "stratified" and "heldout" in self.domains:
            raise ValueError("sources: a stratified release names shards by domain, and 'heldout' names a split's")
        for place, origin in (("mix.ratio", self.mix.ratio), ("mix.by_size", self.mix.by_size)):
            missing = [domain for domain in self.domains if origin is not None and domain not in origin]
            if missing:
                raise ValueError(f"{place}: no share for the domain {', '.join(missing)}; write 0 to leave it out")
        self._source_weights_fit()
        return self

    def _source_weights_fit(self) -> None:
        if self.mix.sources and self.pack.kind == "stratified":
            raise ValueError("mix.sources: a stratified release takes pools whole; weights of sources need kind: mixed")
        for domain, weights in self.mix.sources.items():
            own = [source.name for source in self.sources if source.domain == domain]
            if sorted(own) != sorted(weights):
                raise ValueError(
                    f"mix.sources: {domain} has the sources {', '.join(own)}, weights are given for "
                    f"{', '.join(weights)}; name each of them, with 0 to leave it out"
                )


def read_config(path: str | Path) -> BuildConfig:
    """Read a build configuration.

    Raises: ConfigError with one line a mistake.
    """
    return read_settings(path, BuildConfig)


def recipe_of(settings: Settings, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A model as plain JSON values, for a fingerprint; `without` names execution fields."""
    values: dict[str, Any] = settings.model_dump(mode="json")
    unknown = [name for name in without if name not in values]
    if unknown:
        raise ConfigError(f"{type(settings).__name__} has no field {', '.join(unknown)}")
    return {name: value for name, value in values.items() if name not in without}
