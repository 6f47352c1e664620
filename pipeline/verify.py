"""`plantmix verify`: a release against its record, down to every pixel hash when asked. Writes nothing."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

from manifests import storage
from manifests.errors import ConfigError, IntegrityError
from manifests.release import Release

MAX_SHOWN = 10


def verify_release(path: str, deep: bool) -> int:
    """Check a release and print what was checked; returns the exit code.

    Fast: every file's size and sha256, the counts of the record, shards and samples table. Deep: every member of
    every shard against samples.parquet: image decodes, its pHash, its sha256, its text.

    Raises: ConfigError when there is no release, or with what is wrong with it: what was given is not one.
    """
    try:
        release = Release.open(path)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None
    faults = [*release.wrong_hashes(), *release.strangers(), *_wrong_counts(release)]
    num_images = 0
    if deep and not faults:
        for num_read, fault in _read_shards(release):
            num_images = num_read
            if fault is not None:
                faults.append(fault)
    if faults:
        shown = "\n  ".join(faults[:MAX_SHOWN])
        more = f"\n  and {len(faults) - MAX_SHOWN:,} more" if len(faults) > MAX_SHOWN else ""
        raise ConfigError(
            f"{release.path}: {len(faults):,} faults:\n  {shown}{more}\nBuild it again, or take a whole copy"
        )
    files = len(release.record["files"])
    print(f"{release.name}: {files:,} files, sizes and sha256 as recorded; counts add up")
    if deep:
        print(f"{num_images:,} images decode; pHash, sha256 and text of each equal the record")
    return 0


def _wrong_counts(release: Release) -> Iterator[str]:
    samples = release.samples()
    for split in release.splits:
        entry = release.record["splits"][split]
        in_shards = sum(shard["num_samples"] for shard in entry["shards"])
        in_table = sum(1 for value in samples["split"].to_pylist() if value == split)
        if not entry["num_samples"] == in_shards == in_table:
            yield (
                f"split {split}: the record says {entry['num_samples']:,} samples, its shards {in_shards:,}, "
                f"samples.parquet {in_table:,}"
            )
    for stage, funnel in release.record["counts"]["stages"].items():
        if funnel["in"] != funnel["kept"] + sum(funnel["reasons"].values()):
            yield f"stage {stage}: {funnel['in']:,} in, but {funnel['kept']:,} kept and the drops do not add up"


def _read_shards(release: Release) -> Iterator[tuple[int, str | None]]:
    """(images read so far, fault or None) for every sample of every shard."""
    num_read = 0
    for split in release.splits:
        rows = release.samples(split).to_pylist()
        by_shard: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            by_shard.setdefault(row["shard"], {})[row["key"]] = row
        for shard in release.shards(split):
            waiting = by_shard.pop(shard, {})
            for key, members in _samples_of(release.shard_path(split, shard)):
                num_read += 1
                row = waiting.pop(key, None)
                fault = f"{shard}: {key} is not in samples.parquet" if row is None else _fault_of(row, members)
                yield num_read, fault
            for key in waiting:
                yield num_read, f"{shard}: {key} of samples.parquet is not in the shard"
        for shard in by_shard:
            yield num_read, f"{shard}: named in samples.parquet, not in the record"


def _samples_of(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    fs, inner = storage.filesystem(path)
    with fs.open(inner, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        key = ""
        members: dict[str, bytes] = {}
        for info in archive:
            name, _, extension = info.name.partition(".")
            if name != key and members:
                yield key, members
                members = {}
            key = name
            content = archive.extractfile(info)
            members[extension] = content.read() if content else b""
        if members:
            yield key, members


def _fault_of(row: dict[str, Any], members: dict[str, bytes]) -> str | None:
    import imagehash
    from PIL import Image

    where = f"{row['shard']}/{row['key']}"
    image = members.get("jpg", b"")
    if hashlib.sha256(image).hexdigest() != row["stored_sha256"]:
        return f"{where}: the image is not the one recorded"
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            phash = int(str(imagehash.phash(opened)), 16)
            size = opened.size
    except (OSError, ValueError) as error:
        return f"{where}: the image does not decode: {error}"
    if phash != row["phash"]:
        return f"{where}: pHash {phash:016x}, recorded {row['phash']:016x}"
    if size != (row["stored_width_px"], row["stored_height_px"]):
        return f"{where}: {size[0]} x {size[1]} pixels, recorded {row['stored_width_px']} x {row['stored_height_px']}"
    if members.get("txt", b"").decode("utf-8", "replace") != row["text"]:
        return f"{where}: the text is not the one recorded"
    return None
