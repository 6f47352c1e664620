"""Groups of shards as a config names them, and the files and addresses that they stand for.

Braces and `::` are those of `manifests/samples/braces.py`. Lists folders and stores; opens no shard.
Gives up with ConfigError on a place without shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from manifests.contract.settings import NAME_PATTERN, Settings, from_config
from manifests.errors import ConfigError
from manifests.masking import MASK, PIPE
from manifests.samples import braces
from manifests.samples.braces import split_paths
from manifests.samples.endings import is_tar, plain_tars
from manifests.stores import storage
from training.data.foreign import naming_fault, shown


class ShardGroup(Settings):
    """Webdataset shards that are one domain, beside or instead of a release.

    Samples are read as by sources[].webdataset of a build. Here one that repeats a key is used too, and one without a
    picture or a text is left out and counted.
    """

    name: str = Field(default="shards", pattern=NAME_PATTERN)
    """Name of the domain."""
    shards: tuple[str, ...] = Field(min_length=1)
    """Files, `{000..099}` braces, patterns, folders, addresses (s3://, hf://, https://), or `pipe:` and a command."""
    weight: float | None = Field(default=None, gt=0.0)
    """Share of the samples, relative to the other weights; null for all groups: in proportion to their sizes."""
    split: Literal["train", "heldout"] = "train"
    """heldout: for `eval.split`, not trained on."""

    @field_validator("shards", mode="before")
    @classmethod
    def _as_list(cls, shards: Any) -> Any:
        return (shards,) if isinstance(shards, str) else shards

    @field_validator("shards")
    @classmethod
    def _from_config(cls, shards: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        parts = [part for text in shards for part in split_paths(text)]
        if (info.context or {}).get("is_kept") and any(p.startswith(PIPE) and MASK not in p for p in parts):
            raise ValueError("a pipe: command is run only from your own config, not from a run's folder")
        return tuple(part if part.startswith(PIPE) else from_config(part, info) for part in parts)


def expand(places: Iterable[str]) -> list[str]:
    """Return the shards of some places, in order: braces and `::`, patterns, folders.

    Raises: ConfigError for a place without shards, and for a compressed tar; RetryableError when a store does not
        answer.
    """
    shards: list[str] = []
    for part in (part for pattern in places for part in split_paths(pattern)):
        names = braces.expand(part)
        if storage.is_remote(part):
            storage.filesystem(part)[0].invalidate_cache()  # a cached listing may be older than the files
        for name in names:
            if MASK in name:
                raise ConfigError(f"{shown(name)}: a run's folder keeps no secrets; give your own config instead")
            shards += [name] if name.startswith(PIPE) else _files_of(name)
    return shards


def _files_of(name: str) -> list[str]:
    """Return the tars in a folder, those of a pattern, or the one file. Raises: ConfigError for a compressed one."""
    is_pattern = re.search(r"[*\[]" if name.startswith("http") else r"[*?\[]", name) is not None
    with naming_fault(name):
        fs, inner = storage.filesystem(name)
        if not is_pattern and (name.startswith("http") or name.endswith(".tar") or not fs.isdir(inner)):
            plain_tars([name])
            return [name]
        if is_pattern and not storage.is_remote(name) and fs.exists(inner):  # a file with such a name
            return [name]
        there = fs.glob(inner if is_pattern else f"{inner.rstrip('/')}/**/*.t*")
        files = [fs.unstrip_protocol(file) if storage.is_remote(name) else file for file in sorted(there)]
        tars = plain_tars(files)
        files = [file for file in files if file in tars or not is_tar(file)] if is_pattern else tars
    if not files:
        raise ConfigError(f"{shown(name)}: no shard here (.tar)")
    return files
