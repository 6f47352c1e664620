"""`dalip tokens`: the tokens of two frozen towers for the samples of a release, computed once, to train heads on.

Reads a release and the towers. Writes a folder: `components.npz` (the directions of the towers' features that are
kept), SPLIT/image and SPLIT/text-MEMBER (`training.data.tokens`), and last `architecture.json`, which a training config
names as its `model.architecture`. Goes on after any interruption. Gives up with ConfigError on a tower or release that
cannot be used, and with RunError on a broken picture.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from manifests.contract.settings import ConfigPath, NameOrPath, Settings
from manifests.errors import ConfigError, RunError
from manifests.services import open_clip_api as open_clip
from manifests.stores import storage
from manifests.stores.cache import ShardCache
from training.data.images import CorruptSample, EvalView, normalise
from training.data.loader import check_shards, open_releases
from training.data.shards import SamplePool, ShardReader, open_pool
from training.data.tokens import (
    ARCHITECTURE_FILE,
    fill_store,
    has_stores,
    pool_identity,
    principal_components,
    store_folder,
)
from training.model.backbones import Backbone, load_backbone
from training.model.device import pick_device
from training.model.frozen import COMPONENTS_FILE, FrozenCLIP, FrozenTower, load_components
from training.record.checkpoint import lock_folder

_FITTED_TOKENS = 100_000  # that the directions are found from


class TowerSettings(Settings):
    """One frozen tower: its name, and how many numbers of a token are kept (null: all of them)."""

    tower: NameOrPath = Field(min_length=1)
    """`timm:NAME`, `open_clip:NAME:TAG`, or `MODULE:FUNCTION` of your own."""
    width: int | None = Field(default=None, ge=1)
    """Numbers of a token that are kept; null: all."""


class TokenSettings(Settings):
    """The config of `dalip tokens`."""

    release: ConfigPath
    """Whose pictures and texts the towers see."""
    output_dir: ConfigPath = Field(min_length=1)
    """Folder of the tokens and of the model's architecture.json."""
    image: TowerSettings
    text: TowerSettings
    embed_dim: int = Field(default=256, ge=1)
    """Of the model that is trained on the tokens."""
    splits: tuple[str, ...] = Field(default=("train",), min_length=1)
    """Splits of the release: train, heldout."""
    text_members: tuple[str, ...] = Field(default=("txt",), min_length=1)
    """A sample without one gives its txt."""
    batch_size: int = Field(default=32, ge=1)
    """Samples that a tower sees at once."""
    fitted_samples: int = Field(default=1024, ge=2)
    """Samples that the kept directions are found from."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of the CPU; null: one a core."""

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_release(cls, values: Any) -> Any:
        if isinstance(values, dict) and {"shards", "data"} & values.keys():
            raise ValueError(
                "shards: tokens are computed of a release, whose pictures are known to be whole; build one of these "
                "tars (a source `webdataset`), or train on them with data.shards and without data.tokens"
            )
        return values


def compute_tokens(settings: TokenSettings, say: Callable[[str], None]) -> Path:
    """Compute what is missing; returns the architecture file. `say` gets a line of progress for each chunk.

    Raises: ConfigError, IntegrityError, RunError.
    """
    if storage.is_remote(settings.output_dir):
        raise ConfigError(f"{settings.output_dir}: tokens are written to a local folder")
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    folder = Path(settings.output_dir)
    releases = open_releases(settings.release)
    pools = {split: open_pool(releases, split) for split in settings.splits}
    for split in settings.splits:
        check_shards(releases, split)
    towers = {
        "image": load_backbone(settings.image.tower, "image"), "text": load_backbone(settings.text.tower, "text")
    }  # fmt: skip
    device = pick_device("auto")
    for tower in towers.values():
        tower.network.to(device)
    with lock_folder(folder):
        sources = {split: _Source(pool, towers["image"], device) for split, pool in pools.items()}
        architecture = _architecture(settings, towers, sources[settings.splits[0]], folder)
        clip = FrozenCLIP(architecture)
        load_components(clip, folder)
        clip.visual.use(towers["image"])
        clip.text.use(towers["text"])
        for split, source in sources.items():
            for member in ("", *settings.text_members):
                part = architecture["text_cfg" if member else "vision_cfg"]
                identity = pool_identity(source.pool) | part
                identity |= {"member": member, "components": architecture["components"]}
                encode = partial(_encode, clip.text if member else clip.visual, source, member, settings.batch_size)
                target = store_folder(folder, split, member)
                fill_store(target, identity, len(source.pool), encode, say)
        path = folder / ARCHITECTURE_FILE
        storage.publish_json(path, architecture)
        return path


def _encode(
    tower: FrozenTower, source: _Source, member: str, batch_size: int, rows: Sequence[int]
) -> NDArray[np.float32]:
    starts = range(0, len(rows), batch_size)
    parts = [tower.tokens_of(source.inputs(rows[start : start + batch_size], member)) for start in starts]
    return torch.cat(parts).numpy()


class _Source:
    """What the towers take of the samples of one split."""

    def __init__(self, pool: SamplePool, image: Backbone, device: torch.device) -> None:
        self.pool, self._reader, self._device = pool, ShardReader(pool, ShardCache()), device
        self._preprocess = open_clip.PreprocessCfg(**image.preprocess)
        self._view = EvalView(self._preprocess)

    def inputs(self, rows: Sequence[int], member: str) -> Any:
        """Texts of a member or, for the member "", normalised pictures.

        Raises: RunError for a broken sample.
        """
        read = self._reader.read(rows, with_texts=bool(member))
        try:
            if member:
                return [members.get(member, text.decode("utf-8")) for _, text, members in read]
            pixels = torch.stack([self._view(content) for content, _, _ in read])
        except (CorruptSample, UnicodeDecodeError) as error:
            names = ", ".join(self.pool.names(rows)[:3])
            raise RunError(f"a broken sample among {names}, ...: {error}; run `plantmix verify --deep`") from None
        return normalise(pixels.to(self._device), self._preprocess.mean, self._preprocess.std)


def _architecture(
    settings: TokenSettings, towers: dict[str, Backbone], source: _Source, folder: Path
) -> dict[str, Any]:
    """The model file of the towers. Finds the directions to keep, unless the folder has tokens of them already.

    Raises: ConfigError for the model file of something else.
    """
    parts: dict[str, dict[str, Any]] = {}
    components: dict[str, NDArray[np.float32]] = {}
    stored = folder / COMPONENTS_FILE
    has_tokens = stored.is_file() and has_stores(folder)
    if not has_tokens and (folder / ARCHITECTURE_FILE).exists():
        raise ConfigError(f"{folder / ARCHITECTURE_FILE}: is there, without tokens; choose another folder")
    rows = np.random.default_rng(0).permutation(len(source.pool))[: settings.fitted_samples].tolist()
    for side, tower in (("image", settings.image), ("text", settings.text)):
        fitted = [] if has_tokens else rows
        chosen = fitted or rows[: settings.batch_size]
        member = settings.text_members[0] if side == "text" else ""
        tokens, shape = _tokens_of(towers[side], source, chosen, member, settings.batch_size)
        width = tower.width or shape[2]
        if width > shape[2]:
            raise ConfigError(f"{side}.width is {width}, but the tokens of {tower.tower} are {shape[2]} wide")
        parts[side] = {
            "frozen_tower": tower.tower, "weights": towers[side].fingerprint, "tower_width": shape[2],
            "width": width, "num_tokens": shape[1],
        }  # fmt: skip
        if fitted:
            whole = width == shape[2]
            components[f"{side}_mean"], components[f"{side}_basis"] = (
                (np.zeros(width, np.float32), np.eye(width, dtype=np.float32))
                if whole
                else principal_components(tokens, width)
            )
    if components:
        stream = io.BytesIO()
        save: Any = np.savez  # its arrays by name clash with its own options for mypy
        save(stream, **components)
        storage.publish_bytes(str(stored), stream.getvalue())
    preprocess = json.loads(json.dumps(towers["image"].preprocess))
    return {
        "embed_dim": settings.embed_dim,
        "vision_cfg": parts["image"] | {"preprocess": preprocess},
        "text_cfg": parts["text"],
        "components": hashlib.sha256(stored.read_bytes()).hexdigest(),
    }


def _tokens_of(
    tower: Backbone, source: _Source, rows: Sequence[int], member: str, batch_size: int
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """A sample of the tokens that count of some rows, (N, V), and the shape of a batch of tokens."""
    parts: list[NDArray[np.float32]] = []
    shape: tuple[int, ...] = ()
    for start in range(0, len(rows), batch_size):
        _, tokens, mask = tower.run(source.inputs(rows[start : start + batch_size], member))
        shape = tuple(tokens.shape)
        parts.append((tokens.flatten(0, 1) if mask is None else tokens[mask]).float().cpu().numpy())
    every = np.concatenate(parts)
    return every[np.random.default_rng(0).permutation(len(every))[:_FITTED_TOKENS]], shape
