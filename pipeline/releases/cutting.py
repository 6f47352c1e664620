"""Read the samples of a shard, and write a shard without some of them: the others are copied in order, byte for byte.

Gives up with IntegrityError on a shard that is not the one recorded.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manifests.errors import IntegrityError
from manifests.stores import storage
from pipeline.store.tar import ArchiveWriter

PLACED_MEMBERS = ("jpg", "txt", "json")


def iter_samples(path: str) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(key, [(extension, content), ...]) of every sample of a shard, members in their order."""
    with storage.open_file(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        key = ""
        members: list[tuple[str, bytes]] = []
        for info in archive:
            name, _, extension = info.name.partition(".")
            if name != key and members:
                yield key, members
                members = []
            key = name
            content = archive.extractfile(info)
            members.append((extension, content.read() if content else b""))
        if members:
            yield key, members


def cut_shard(path: str, target: str, without: set[str], sha256: str) -> dict[str, Any]:
    """Write a shard without the samples of some keys; gives what the record says of it, and `places` by key.

    Raises: IntegrityError when the shard has other content than recorded, or lacks a key.
    """
    if storage.is_remote(path):
        with tempfile.TemporaryDirectory(prefix="plantmix-") as folder:
            local = storage.join(folder, path.rpartition("/")[2])
            storage.download(path, local, sha256)
            return cut_shard(local, target, without, sha256)
    if storage.hash_file(path).sha256 != sha256:
        raise IntegrityError(f"{path}: has other content than when it was sealed; take a whole copy, then try again")
    temp = storage.temp_path(target)
    places: dict[str, dict[str, Any]] = {}
    missing = set(without)
    with Path(temp).open("wb") as stream:
        archive = ArchiveWriter(stream, digest := hashlib.sha256())
        for key, members in iter_samples(path):
            if key in without:
                missing.discard(key)
                continue
            places[key] = {"position": len(places)}
            for extension, content in members:
                offset = archive.add(f"{key}.{extension}", content)
                if extension in PLACED_MEMBERS:
                    places[key] |= {f"{extension}_offset": offset, f"{extension}_length": len(content)}
        num_bytes = archive.finish()
    if missing:
        storage.remove(temp)
        raise IntegrityError(f"{path}: lacks {len(missing)} samples of samples.parquet, first {min(missing)}")
    storage.publish(temp, target)
    return {"num_samples": len(places), "num_bytes": num_bytes, "sha256": digest.hexdigest(), "places": places}
