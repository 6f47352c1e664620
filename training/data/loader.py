"""Releases in, batches out: verified, deterministic, and the same for any number of workers and processes.

Opens releases, which checks their record, and orders their samples (`training.data.sampling`). Worker processes read
them from the shards (`training.data.shards`), augment (`training.data.images`) and tokenise. A sample's randomness is
seeded by its position. A broken sample is named and replaced by the next row of its domain, so that every batch is full
and the mixture stays the same. Writes nothing. Gives up with ConfigError on a release that does not verify, and with
IntegrityError on a shard that is cut short later.
"""

from __future__ import annotations

import random
import signal
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manifests.contract.release import SAMPLES_FILE, SPLIT_FOLDERS, Release
from manifests.contract.tables import kind_of
from manifests.errors import ConfigError, IntegrityError, PlantMixError, RunError
from manifests.pictures.opening import without_pillow_warnings
from manifests.services.scheduling import STOP_SIGNALS
from manifests.stores.cache import ReadAhead, ShardCache
from manifests.stores.storage import WrittenFile
from training.data.columns import text_labels
from training.data.foreign import is_elsewhere
from training.data.images import CorruptSample, EvalView, TrainView, View
from training.data.sampling import BatchPlan, BatchSampler, SampleOrder, Stratum, mix_seed
from training.data.settings import PREFETCH_BATCHES, DataSettings, ReleaseShare, TextSettings
from training.data.shard_index import ShardRelease, open_groups
from training.data.shards import SamplePool, ShardReader, is_read_in_ranges, source_of, strata_of
from training.data.texts import JSON, NO_TEXT

_NUM_INSPECTED = 256  # samples whose text members are inspected before a run
_MAX_SUBSTITUTES = 100  # tries to fill one place before the release counts as broken


class Corrupt(NamedTuple):
    """One broken sample: its row in the pool and what was wrong with it."""

    row: int
    reason: str


class Batch(NamedTuple):
    """A batch as a loader yields it; `rows` are row numbers in the pool."""

    images: Tensor  # uint8 (B, 3, H, W)
    tokens: Tensor  # int64 (B, context length)
    rows: Tensor  # int64 (B,)
    corrupt: list[Corrupt]
    members: Tensor  # int64 (B,) number of the text among `data.text.members`; -1: `txt`, for want of them
    texts: Tensor  # int64 (B,) labels of the texts, equal for equal ones


class BatchDataset(Dataset[Any], ABC):
    """A sampler's rows in, a batch out; an error of ours comes back as a value, with its class and message."""

    def __getitems__(self, places: list[Any]) -> Any:
        try:
            return self.load(places)
        except PlantMixError as error:
            return error

    @abstractmethod
    def load(self, places: list[Any]) -> Any:
        """Read one batch, such as a `Batch` of (position, row) pairs."""


class SampleDataset(BatchDataset):
    """Decodes and tokenises samples; the position seeds all that is random about one."""

    def __init__(
        self,
        pool: SamplePool,
        view: View,
        tokenizer: Callable[[list[str]], Tensor],
        text: TextSettings,
        seed: int,
        strata: Sequence[Stratum] = (),
        cache: ShardCache | None = None,
    ) -> None:
        self.reader = ShardReader(pool, cache)
        self.view, self.tokenizer, self.text, self.seed = view, tokenizer, text, seed
        self.strata = strata
        self._with_members = text.members != ("txt",)

    def __len__(self) -> int:
        return len(self.reader.pool)

    def load(self, places: list[tuple[int, int]]) -> Batch:
        """Read, decode and tokenise one batch; the process's random state is restored.

        Raises: RunError when no sample after a broken one is whole; IntegrityError for a short shard.
        """
        corrupt: list[Corrupt] = []
        images, texts, rows, drawn = [], [], [], []
        read = self.reader.read([row for _, row in places], self._with_members)
        python_state, torch_state = random.getstate(), torch.get_rng_state()
        try:
            for (position, row), members in zip(places, read, strict=True):
                image, (text, member), used = self._load(position, row, members, corrupt)
                images.append(image)
                texts.append(text)
                drawn.append(member)
                rows.append(used)
        finally:
            random.setstate(python_state)
            torch.set_rng_state(torch_state)
        return Batch(torch.stack(images), self.tokenizer(texts), torch.tensor(rows), corrupt, torch.tensor(drawn),
                     text_labels(texts))  # fmt: skip

    def _load(
        self, position: int, row: int, members: tuple[bytes, bytes, dict[str, str]], corrupt: list[Corrupt]
    ) -> tuple[Tensor, tuple[str, int], int]:
        for _ in range(_MAX_SUBSTITUTES):
            seed = mix_seed(self.seed, position)
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            try:
                text = self._choose_text(members[1], members[2], seed)
                return self.view(members[0]), text, row
            except CorruptSample as reason:
                corrupt.append(Corrupt(row, str(reason)))
            row = self._substitute(row)
            (members,) = self.reader.read([row], self._with_members)
        raise RunError(
            f"{_MAX_SUBSTITUTES} samples in a row are broken, up to {self.reader.pool.names([row])[0]}: "
            f"{corrupt[-1].reason}; {self.reader.pool.cure_of([row])}"
        )

    def _substitute(self, row: int) -> int:
        """Return the next row among those that are drawn together with this one."""
        for part in self.strata:
            index = int(np.searchsorted(part.rows, row))
            if index < len(part.rows) and part.rows[index] == row:
                return int(part.rows[(index + 1) % len(part.rows)])
        return (row + 1) % len(self)

    def _choose_text(self, content: bytes, members: dict[str, str], seed: int) -> tuple[str, int]:
        if NO_TEXT in members:
            raise CorruptSample(members[NO_TEXT])
        try:
            members["txt"] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptSample(f"text is not UTF-8: {error}") from None
        named = self.text.members
        there = [(members[name], number) for number, name in enumerate(named) if members.get(name, "").strip()]
        if self.text.use == "draw":  # further texts of a kind, as trait_2, are drawn by its name too
            more = ((kind_of(name), text) for name, text in members.items() if name not in named)
            there += [(text, named.index(kind)) for kind, text in more if kind in named]
        if not there and not members["txt"].strip():
            raise CorruptSample(f"it has no text ({', '.join(named)})")
        return there[mix_seed(seed, 0x747874) % len(there)] if there else (members["txt"], -1)


def open_releases(release: str | Sequence[ReleaseShare]) -> list[Release]:
    """Open and verify the release or releases of a config.

    Raises: ConfigError, also for a release that does not verify.
    """
    try:
        return [Release.open(path) for path in places_of(release)]
    except IntegrityError as error:
        raise ConfigError(str(error)) from None


def places_of(release: str | Sequence[ReleaseShare]) -> list[str]:
    """Where the release or releases of a config lie."""
    return [release] if isinstance(release, str) else [share.release for share in release]


def open_sources(
    release: str | Sequence[ReleaseShare] | None, data: DataSettings, split: str
) -> list[Release | ShardRelease]:
    """Return the releases of a config, then its groups of shards that are of a split.

    Raises: ConfigError, RetryableError, RunError.
    """
    groups = [group for group in data.shards if group.split == split]
    opened = open_groups(groups, data.text.members, data.cache)
    there = {name for group in opened for text in group.endings for name in (text, kind_of(text))}
    lacking = {name for name in data.text.members if name != "txt" and not name.startswith(JSON)} - there
    if opened and lacking and release is None and split == data.split:  # an evaluation reads `txt`
        raise ConfigError(
            f"data.text: no sample of data.shards has a member {', '.join(sorted(lacking))}; they have "
            f"{', '.join(sorted(there))}"
        )
    return [*(open_releases(release) if release is not None else ()), *opened]


def share_weights(release: str | Sequence[ReleaseShare] | None, data: DataSettings) -> list[float] | None:
    """Return the weight of each release and group that is trained on, in the order of `open_sources`.

    None: by their sizes.

    Raises: ConfigError where some have one and others not.
    """
    of_releases = [None] if isinstance(release, str) else [share.weight for share in release or ()]
    weights = [*of_releases, *(group.weight for group in data.shards if group.split == data.split)]
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        raise ConfigError(
            "data.shards: some groups or releases have a weight and others not; give one to each (to a release in a "
            "list of {release, weight}), or to none"
        )
    return given or None


def check_shards(releases: Sequence[Release | ShardRelease], *splits: str, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the samples table and the shards of splits with the record of their release, byte for byte.

    Shards that PlantMix did not build are compared with their index.

    Only local files are read: a shard of a remote release is checked when it is fetched. `share` (k, n) is the k-th of
    n processes that divide the files.

    Raises: IntegrityError that names the first file with other content than when the release was sealed.
    """
    files: list[WrittenFile] = []
    for release in releases:
        if isinstance(release, ShardRelease):
            files += release.files if release.split in splits else ()
        else:
            shards = (f"{SPLIT_FOLDERS[split]}/{shard}" for split in splits for shard in release.shards(split))
            for name in dict.fromkeys([SAMPLES_FILE, *shards]):
                files.append(release.file(name))
    with ThreadPoolExecutor() as threads:
        here = [file for file in files if not is_elsewhere(source_of(file))][share[0] :: share[1]]
        list(threads.map(lambda file: file.require_content(source_of(file)), here))


def build_order(
    pool: SamplePool, data: DataSettings, release: str | Sequence[ReleaseShare] | None, seed: int
) -> SampleOrder:
    """Return the order of training samples of a config.

    Raises: ConfigError for an unknown domain or an empty choice.
    """
    strata = strata_of(pool, share_weights(release, data), data.mixture, data.pool_samples)
    if data.batches == "one_domain" and any(part.name.rpartition(":")[2] == "all" for part in strata):
        raise ConfigError("data.batches: one_domain needs data.mixture, since the release is not stratified by domain")
    chosen = sum(len(part.rows) for part in strata)
    block = data.batch_size if data.batches == "one_domain" else 1
    return SampleOrder(strata, data.epoch_samples or chosen, seed, data.shuffle_window, block)


def drawn_shares(pool: SamplePool, order: SampleOrder) -> list[dict[str, Any]]:
    """Return the draws of an epoch, by release and domain: the share, and the number of samples in its pool."""
    coded = pool.table["domain"].combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    keys = pool.releases.astype(np.int64) * len(names) + coded.indices.to_numpy()
    shares, sizes = defaultdict[int, float](float), Counter[int]()
    for part, count in zip(order.strata, order.counts, strict=True):
        for key, num in zip(*(item.tolist() for item in np.unique(keys[part.rows], return_counts=True)), strict=True):
            sizes[key] += num
            shares[key] += count / order.epoch_size * num / len(part.rows)
    return [
        {
            "release": pool.fingerprints[key // len(names)],
            "domain": names[key % len(names)],
            "share": shares[key],
            "samples": sizes[key],
        }
        for key in sorted(sizes)
    ]


def train_loader(
    pool: SamplePool,
    order: SampleOrder,
    plan: BatchPlan,
    batches: range,
    data: DataSettings,
    model: Any,
    *,
    pin: bool,
) -> DataLoader[Any]:
    """Return a loader of this rank's micro-batches `batches`; `model` gives the picture size and the tokenizer."""
    sampler = BatchSampler(order, plan, batches)
    size = model.preprocess_settings.size
    view = TrainView((size, size) if isinstance(size, int) else tuple(size), data.augment)
    parts = (pool, view, model.tokenizer, data.text, order.seed, order.strata, data.cache)
    return _loader(SampleDataset(*parts), _read_ahead(pool, sampler, data), data, pin)


def eval_batches(
    pool: SamplePool, rows: Sequence[int], data: DataSettings, model: Any, batch_size: int
) -> Iterator[Batch]:
    """Batches of the given rows in order, in open_clip's evaluation view, with each sample's `txt`.

    Raises: RunError for a broken sample; an evaluation leaves nothing out.
    """
    view = EvalView(model.preprocess_settings)
    dataset = SampleDataset(pool, view, model.tokenizer, TextSettings(), 0, cache=data.cache)
    batches = [[(0, row) for row in rows[i : i + batch_size]] for i in range(0, len(rows), batch_size)]
    for batch in iterate(_loader(dataset, batches, data, pin=False)):
        if batch.corrupt:
            first = batch.corrupt[0]
            raise RunError(f"{pool.names([first.row])[0]}: broken sample in the evaluation split: {first.reason}")
        yield batch


def _read_ahead(pool: SamplePool, batches: Any, data: DataSettings) -> Any:
    """Return the batches; of remote releases, with the shards of those to come fetched meanwhile."""
    if not any(is_elsewhere(source_of(file)) for file in pool.files):
        return batches

    def shards_of(places: list[tuple[int, int]]) -> list[WrittenFile]:
        files = pool.remote_shards([row for _, row in places])
        return [file for file in files if not is_read_in_ranges(file, data.cache)]

    return ReadAhead(batches, shards_of, data.cache)


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader; an error of a worker is raised here.

    Raises: RunError, IntegrityError.
    """
    for batch in loader:
        if isinstance(batch, PlantMixError):
            raise batch
        yield batch


def each_batch(dataset: Dataset[Any], batches: Sequence[Any], num_workers: int) -> Iterator[Any]:
    """Yield a data set's answer for each of some batches, as it comes."""
    num_workers = min(num_workers, len(batches))
    return iterate(DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=_unchanged))


def _loader(dataset: Dataset[Any], sampler: Any, data: DataSettings, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=min(data.num_workers, max(1, len(sampler))),
        collate_fn=_unchanged,
        prefetch_factor=PREFETCH_BATCHES if data.num_workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # its own, so that the loader draws from no other
    )


def _unchanged(batch: Any) -> Any:
    """Return the batch as its data set gave it: it comes stacked, or is an error."""
    return batch


def _start_worker(_: int) -> None:
    # The trainer decides when to stop. A signal to the whole process group must not kill its workers first.
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    without_pillow_warnings.__enter__()  # once and for good, not 10 us a picture


def absent_members(pool: SamplePool, data: DataSettings) -> tuple[list[str], list[str]]:
    """Text members of a config that no inspected sample has, and the members that they have.

    Every sample without a member gives its `txt`, so a misspelt name would go unseen.
    """
    named = set(data.text.members) - {"txt"}
    if not named:
        return [], []
    num = _NUM_INSPECTED if not pool.remote_shards([0]) else _NUM_INSPECTED // 16  # a request each
    rows = np.unique(np.linspace(0, len(pool) - 1, num).astype(int)).tolist()
    read = ShardReader(pool, data.cache if any(pool.members) else None).read(rows, with_texts=True)
    there = {name for _, _, members in read for name in members} - {NO_TEXT}
    return sorted(named - there), sorted(there)


def split_rows(pool: SamplePool) -> list[int]:
    """All row numbers, in an order that follows from the sample ids alone."""
    ids = np.asarray(pool.table["sample_id"].to_pylist(), dtype=np.str_)
    rows: list[int] = np.argsort(ids, kind="stable").tolist()
    return rows
