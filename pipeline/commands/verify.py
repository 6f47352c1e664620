"""`plantmix verify`: a release against its record, down to every byte and pixel hash when asked. Writes nothing.

Fast means that no shard is read: a release of a terabyte takes as long as its tables do.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Iterator
from typing import Any

from manifests.errors import ConfigError
from manifests.release import Release
from pipeline.commands.parsing import Commands, add_command
from pipeline.releases.checks import Comparison, changes_since_sealed, differences_from_catalogue, inconsistencies
from pipeline.releases.cutting import iter_samples
from pipeline.releases.opening import open_release, work_folder_of

MAX_SHOWN = 10


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `verify` to the command line."""
    parser = add_command(
        commands,
        "verify",
        "check sizes, counts and side files of a release against its record, with --deep every byte and pixel",
        "plantmix verify data/demo --deep",
    )
    parser.add_argument("release", metavar="RELEASE", help="release folder, or a work folder for its newest release")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also hash every shard, decode every image, compare pHashes and texts with the record and the catalogue",
    )
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return verify_release(args.release, args.deep)


def verify_release(path: str, deep: bool) -> int:
    """Check a release and print what was checked; returns the exit code.

    Fast: every file's size, the sha256 of all but the shards, and that record, samples table and side files agree.
    Deep: the sha256 of every shard, every member of it against samples.parquet (image decodes, its pHash, its sha256,
    its text), and in a work folder release.json and samples.parquet against the catalogue of the build that packed it.

    Raises: ConfigError when there is no release, or with what is wrong with it: what was given is not one.
    """
    release = open_release(path)
    workdir = work_folder_of(release) if deep else None
    faults = [*release.wrong_hashes(shards=deep), *release.unknown_files()]
    faults += inconsistencies(release) if not faults else []
    num_images, compared = 0, Comparison(why_not="it lies in no work folder")
    if deep and not faults:
        for num_images, fault in _read_shards(release):  # noqa: B007  # the last one is what was read
            faults += [fault] if fault is not None else []
        if workdir is not None:
            compared = differences_from_catalogue(release, workdir)
            faults += compared.faults
    faults = [*(changes_since_sealed(release, workdir) if workdir is not None else ()), *faults]
    if faults:
        shown = "\n  ".join(faults[:MAX_SHOWN])
        more = f"\n  and {len(faults) - MAX_SHOWN:,} more" if len(faults) > MAX_SHOWN else ""
        raise ConfigError(
            f"{release.path}: {len(faults):,} faults:\n  {shown}{more}\nBuild it again, or take a whole copy"
        )
    files, shards = len(release.record["files"]), sum(len(release.shards(split)) for split in release.splits)
    if deep:
        print(f"{release.name}: {files:,} files, sizes and sha256 as recorded; counts add up")
    else:
        print(f"{release.name}: {files:,} files have the recorded sizes; counts add up")
        print(f"sha256 as recorded: {files - shards:,} files, all but the {shards:,} shards (--deep reads them)")
    if deep:
        print(f"{num_images:,} images decode; pHash, sha256 and text of each equal the record")
        if compared.why_not is None:
            print("pHash, image, licence and text of each equal the catalogue")
        else:
            print(f"not compared with a catalogue: {compared.why_not}")
    return 0


def _read_shards(release: Release) -> Iterator[tuple[int, str | None]]:
    """(images read so far, fault or None) for every sample of every shard."""
    num_read = 0
    for split, shard, rows in release.iter_shards():
        waiting = {row["key"]: row for row in rows.to_pylist()}
        for key, members in iter_samples(release.shard_path(split, shard)):
            num_read += 1
            row = waiting.pop(key, None)
            fault = f"{shard}: {key} is not in samples.parquet" if row is None else _fault_of(row, dict(members))
            yield num_read, fault
        for key in waiting:
            yield num_read, f"{shard}: {key} of samples.parquet is not in the shard"


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
