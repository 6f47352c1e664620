"""Text to paste so that another tool reads a release with its mixture: arguments, code, settings.

Reads the record and mixture.json, and gives text. Of img2dataset, the files that it leaves: never into a release.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.release import SPLIT_FOLDERS, Release
from manifests.errors import ConfigError
from manifests.stores import storage
from pipeline.judging.quotas.allocation import Pool, allocate
from pipeline.releases.opening import read_json
from pipeline.sidefiles.write import json_bytes


@dataclass(frozen=True)
class Group:
    """Training shards of one domain of a stratified release, or all training shards of a mixed one."""

    domain: str | None
    share: float
    shards: tuple[str, ...]
    num_samples: int

    @property
    def factor(self) -> float:
        """Weight of each of its shards when shards are drawn with replacement: share over samples (f = r / N)."""
        return self.share / self.num_samples


def groups_of(release: Release, ratio: Mapping[str, float] | None) -> list[Group]:
    """Return the groups that a reader draws from, with shares that sum to 1. The default is the release's own target.

    Raises: ConfigError for a ratio over a mixed release, for one that names an unknown domain, and when a takedown left
        no training samples.
    """
    counts = release.num_by_domain()
    if release.kind == "mixed":
        if ratio is not None:
            raise ConfigError(
                f"{release.path}: this release has its ratio baked in; another one needs `plantmix mix`, or a "
                "stratified release (pack.kind: stratified)"
            )
        return [Group(None, 1.0, tuple(release.shards("train")), release.num_samples("train"))]
    shares = ratio if ratio is not None else target_ratio(release)
    wrong = [domain for domain, share in shares.items() if domain not in counts or not 0 <= share < float("inf")]
    if wrong or not 0 < sum(shares.values()) < float("inf"):
        which = (
            f"wrong: {', '.join(f'{domain}={shares[domain]:g}' for domain in wrong)}"
            if wrong
            else "their sum must be above 0"
        )
        raise ConfigError(
            f"{release.path}: the release has the domains {', '.join(counts)}; give shares of 0 or more for them, as "
            f"--ratio {','.join(f'{domain}=1' for domain in counts)} ({which})"
        )
    whole = sum(shares.values())
    return [
        Group(domain, share / whole, tuple(release.shards("train", domain)), counts[domain])
        for domain, share in shares.items()
        if share > 0
    ]


def target_ratio(release: Release) -> dict[str, float]:
    """Return the target shares of mixture.json, without domains that have no training samples."""
    counts = release.num_by_domain()
    rows = read_json(release, "mixture.json")["domains"]
    return {row["domain"]: float(row["target_share"]) for row in rows if counts.get(row["domain"])}


def epoch_samples(release: Release, groups: Sequence[Group]) -> int:
    """Return samples of one epoch.

    All of a mixed release, of a stratified one the most that its pools give at the ratio.

    The pools give each sample as often as `max_epochs` of the recipe allows. A smaller `num_samples` of the recipe
    counts instead.
    """
    if release.kind == "mixed":
        return release.num_samples("train")
    mix: Mapping[str, Any] = release.record["recipe"]["mix"]
    pools = {}
    for group in groups:
        epochs = mix["max_epochs"]
        epochs = epochs.get(group.domain, 1.0) if isinstance(epochs, dict) else epochs
        pools[str(group.domain)] = Pool(group.num_samples, float(epochs))
    quotas = allocate({str(group.domain): group.share for group in groups}, pools, None)
    most = sum(quota.num_samples for quota in quotas)
    return min(most, mix["num_samples"]) if mix["num_samples"] else most


def braces(names: Iterable[str]) -> str:
    """Shard names as one brace pattern: NAME-{000000..000009}.tar, runs and single numbers joined by commas."""
    parts = [name.removesuffix(".tar").rpartition("-") for name in names]
    runs: list[list[str]] = []
    for _, _, number in parts:
        if runs and int(number) == int(runs[-1][1]) + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [first if first == last else f"{{{first}..{last}}}" for first, last in runs]
    return f"{parts[0][0]}-{words[0] if len(words) == 1 else '{' + ','.join(words) + '}'}.tar"


def describe(release: Release, target: str, ratio: Mapping[str, float] | None) -> str:
    """Return the text to paste for a target, with absolute paths."""
    groups = groups_of(release, ratio)
    folder = release.path if storage.is_remote(release.path) else str(Path(release.path).absolute())
    return TARGETS[target](release, folder, groups)


def _patterns(folder: str, groups: Sequence[Group]) -> list[str]:
    return [f"{folder}/{SPLIT_FOLDERS['train']}/{braces(group.shards)}" for group in groups]


def _open_clip(release: Release, folder: str, groups: Sequence[Group]) -> str:
    words = ["--dataset-type webdataset", f"--train-data {shlex.quote('::'.join(_patterns(folder, groups)))}"]
    if release.kind == "stratified":
        factors = "::".join(f"{group.factor:.9g}" for group in groups)
        words += ["--dataset-resampled", f"--train-data-upsampling-factors {shlex.quote(factors)}"]
    words.append(f"--train-num-samples {epoch_samples(release, groups)}")
    if "heldout" in release.splits:
        pattern = f"{folder}/{SPLIT_FOLDERS['heldout']}/{braces(release.shards('heldout'))}"
        words += [f"--val-data {shlex.quote(pattern)}", f"--val-num-samples {release.num_samples('heldout')}"]
    lines = ["python -m open_clip_train.main", *words]
    notes = [
        f"# {group.domain}: share {group.share:.6g} of {group.num_samples:,} samples, factor {group.factor:.6g} a shard"
        for group in groups
        if group.domain
    ]
    return "\n".join([*notes, " \\\n  ".join(lines)])


def _webdataset(release: Release, folder: str, groups: Sequence[Group]) -> str:
    lines = [
        "import webdataset as wds",
        *_opened_by_fsspec(folder),
        "",
        f"epoch_samples = {epoch_samples(release, groups):_}",
    ]
    lines += ["sources = [", *(f"    {pattern!r}," for pattern in _patterns(folder, groups)), "]"]
    if release.kind == "mixed":
        lines.append("dataset = wds.WebDataset(sources[0], shardshuffle=100).shuffle(5000)")
    else:
        lines += [
            f"shares = {[round(group.share, 9) for group in groups]}",
            "dataset = wds.RandomMix(",
            "    [wds.WebDataset(source, resampled=True).shuffle(5000) for source in sources], probs=shares",
            ")  # endless: take epoch_samples of it for an epoch",
        ]
    return "\n".join([*lines, "# each sample: jpg (bytes), txt, json, __key__; .decode('pil') gives pictures"])


def _opened_by_fsspec(folder: str) -> list[str]:
    """Lines that teach webdataset the scheme of an object store: it opens s3:// with nothing of its own (0.2.86)."""
    if not storage.is_remote(folder):
        return []
    scheme = folder.partition("://")[0]
    opened = "lambda url, mode='rb', bufsize=8192, **_: fsspec.open(url, mode).open()"
    return ["import fsspec", "", f"wds.gopen_schemes[{scheme!r}] = {opened}"]


def _globs(folder: str, groups: Sequence[Group]) -> list[str]:
    """One glob a group, with every digit of the number: `plant-[0-9]*.tar` would find shards of the domain plant-2."""
    parts = [group.shards[0].removesuffix(".tar").rpartition("-") for group in groups]
    return [f"{folder}/{SPLIT_FOLDERS['train']}/{stem}-{'[0-9]' * len(number)}.tar" for stem, _, number in parts]


def _hf_datasets(release: Release, folder: str, groups: Sequence[Group]) -> str:
    load = "load_dataset('webdataset', data_files={{'train': {!r}}}, split='train', streaming=True)"
    parts = [load.format(pattern) for pattern in _globs(folder, groups)]
    if release.kind == "mixed":
        return f"from datasets import load_dataset\n\ndataset = {parts[0]}"
    lines = ["from datasets import interleave_datasets, load_dataset", "", "parts = ["]
    lines += [*(f"    {part}," for part in parts), "]", f"shares = {[round(group.share, 9) for group in groups]}"]
    lines.append(
        "dataset = interleave_datasets(parts, probabilities=shares, seed=0, stopping_strategy='all_exhausted')"
    )
    return "\n".join(lines)


def _dalip(release: Release, folder: str, groups: Sequence[Group]) -> str:
    lines = [f"release: {folder}"]
    if release.kind == "stratified":
        lines += ["data:", "  mixture:", *(f"    {group.domain}: {group.share:.9g}" for group in groups)]
        lines.append(f"  epoch_samples: {epoch_samples(release, groups)}")
    return "\n".join(lines)


TARGETS = {"open_clip": _open_clip, "webdataset": _webdataset, "hf_datasets": _hf_datasets, "dalip": _dalip}


def write_img2dataset(release: Release, out: str) -> str:
    """Write the training split as img2dataset leaves its downloads; returns a line that says what is there.

    00000.tar (copies of the shards), 00000.parquet, 00000_stats.json, in a new folder.

    Raises: ConfigError when the folder is not empty, and when a takedown left no training samples.
    """
    release.num_samples("train")
    if storage.sizes_below(out):
        raise ConfigError(f"{out}: not empty; give a new folder, so that no file of yours is among them")
    storage.make_folder(out)
    shards = release.shards("train")
    read = ("url", "text", "key", "stored_width_px", "stored_height_px", "width_px", "height_px", "image_id")
    for number, (_, _, rows) in enumerate(release.iter_shards(read, "train")):
        stem = storage.join(out, f"{number:05d}")
        storage.copy(release.shard_path("train", shards[number]), f"{stem}.tar")
        nothing = pa.nulls(rows.num_rows, pa.string())
        table = pa.table(
            {
                "url": rows["url"],
                "caption": rows["text"],
                "key": rows["key"],
                "status": pa.array(["success"] * rows.num_rows),
                "error_message": nothing,
                "width": rows["stored_width_px"],
                "height": rows["stored_height_px"],
                "original_width": rows["width_px"],
                "original_height": rows["height_px"],
                "exif": nothing,
                "sha256": rows["image_id"],
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.publish_bytes(f"{stem}.parquet", sink.getvalue().to_pybytes())
        stats = {
            "count": rows.num_rows,
            "successes": rows.num_rows,
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "duration": 0.0,
            "start_time": 0.0,
            "end_time": 0.0,
            "status_dict": {"success": rows.num_rows},
        }
        storage.publish_bytes(f"{stem}_stats.json", json_bytes(stats))
    pattern = f"{{00000..{len(shards) - 1:05d}}}.tar"
    left_out = sum(release.num_samples(split) for split in release.splits if split != "train")
    without = f"; the {left_out:,} held-out samples are left out, as img2dataset knows no splits" if left_out else ""
    return f"{len(shards):,} shards as img2dataset leaves them: {storage.join(out, pattern)}{without}"
