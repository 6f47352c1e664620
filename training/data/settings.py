"""The `data` section of a training config, and the shares of releases."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from manifests.contract.settings import ConfigPath, Settings
from manifests.stores.cache import DEFAULT_GB, ShardCache
from training.data.images import AugmentSettings
from training.data.shard_groups import ShardGroup
from training.data.texts import text_name

PREFETCH_BATCHES = 4  # that each loader process makes in advance


class ReleaseShare(Settings):
    """One of several releases, and its share of the samples."""

    release: ConfigPath
    """A release or a work folder."""
    weight: float = Field(gt=0.0)
    """How much of it, over the sum of all weights."""


class TextSettings(Settings):
    """Which text of a sample is used: one member by name, or one drawn from several each time.

    A sample that has none of them gives its `txt`.
    """

    use: Literal["fixed", "draw"] = "fixed"
    """fixed: the first of the members; draw: one of them each time, also of further ones of a kind, as trait_2."""
    members: tuple[str, ...] = Field(default=("txt",), min_length=1)
    """Text members by their ending, such as `txt`, `sci`; of `data.shards` also keys of a json, as `json:caption`."""

    @field_validator("members")
    @classmethod
    def _without_ending(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(text_name, members))

    @model_validator(mode="after")
    def _one_when_fixed(self) -> TextSettings:
        if self.use == "fixed" and len(self.members) != 1:
            raise ValueError(f"use: fixed takes one member, given {len(self.members)}; or set use: draw")
        return self


class DataSettings(Settings):
    """The data that are read, and how batches are drawn from them."""

    shards: tuple[ShardGroup, ...] = ()
    """Webdataset shards of others: a place, a list of places, or a list of groups, each of which is a domain."""
    split: str = "train"
    """Split of the release."""
    batch_size: int = Field(default=256, ge=2)
    """Samples of one optimiser step, over all ranks."""
    mixture: dict[str, float] | None = None
    """Domain -> share, drawn at load time; null: as the release is."""
    batches: Literal["mixed", "one_domain"] = "mixed"
    """one_domain: each batch is of one domain, drawn by share."""
    pool_samples: dict[str, PositiveInt] | None = None
    """Domain -> number of samples that its pool is cut to."""
    epoch_samples: int | None = Field(default=None, ge=1)
    """Samples of one epoch; null: as many as the split holds."""
    shuffle_window: int = Field(default=16384, ge=1)
    """How far samples may move from their place in the shards."""
    text: TextSettings = TextSettings()
    augment: AugmentSettings = AugmentSettings()
    num_workers: int = Field(default=2, ge=0)
    """Loader processes of each rank."""
    max_corrupt_samples: int = Field(default=100, ge=0)
    """Number of broken samples that a run may meet; one more stops it."""
    check_shards: bool = True
    """Read local shards once before the first step, and compare their sha256."""
    cache_dir: ConfigPath | None = None
    """Folder of this machine, for shards and runs of an object store; null: one in the temporary folder."""
    cache_gb: float = Field(default=DEFAULT_GB, gt=0.0)
    """GB of shards of an object store that are kept in `cache_dir`; those not used for longest are removed."""

    @model_validator(mode="before")
    @classmethod
    def _without_tokens(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("tokens") is not None:
            raise ValueError(
                "tokens: stored tokens of frozen towers are read by versions up to 0.4.0 alone; take it out, name the "
                "tower's own architecture, and lock the towers (lock: {lock_image: true, lock_text: true})"
            )
        return values

    @field_validator("shards", mode="before")
    @classmethod
    def _as_groups(cls, shards: Any) -> Any:
        is_list = isinstance(shards, list | tuple) and len(shards) > 0 and all(isinstance(path, str) for path in shards)
        return ({"shards": shards},) if isinstance(shards, str) or is_list else shards

    @field_validator("shards")
    @classmethod
    def _fit(cls, groups: tuple[ShardGroup, ...]) -> tuple[ShardGroup, ...]:
        names = [(group.split, group.name) for group in groups]
        if doubled := [name for split, name in names if names.count((split, name)) > 1]:
            raise ValueError(
                f"two groups are named '{doubled[0]}'; give each a name of its own, or make them one group"
            )
        if odd := [group.name for group in groups if group.split == "heldout" and group.weight is not None]:
            raise ValueError(f"group '{odd[0]}' is held out, so its weight has no effect; take it out")
        return groups

    @model_validator(mode="after")
    def _some_share_is_positive(self) -> DataSettings:
        shares = (self.mixture or {"": 1.0}).values()
        if min(shares, default=0.0) < 0 or sum(shares) <= 0:
            raise ValueError("mixture shares must not be negative, and some share must be above 0")
        return self

    @property
    def cache(self) -> ShardCache:
        """Where shards of remote releases are kept."""
        return ShardCache(self.cache_dir, self.cache_gb)
