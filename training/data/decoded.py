"""The pictures of a split decoded once for many runs: shrunk to what a small model can see, kept uncompressed.

Reads a pool of samples. Writes a folder with a tar for each shard (KEY.ppm, KEY.txt, further text members) and a table
of offsets beside it, each with its sha256 (`training.data.sealed`). So an interrupted decode goes on, and a damaged
shard is decoded anew. The pool that comes back has the same rows in the same order, so a run draws the same samples
from it. All processes of a machine share what they read through the system's page cache. A picture no larger than
`side_px` keeps every pixel. A broken picture keeps its bytes, so that the run finds and names it. Costs about side_px^2
x 4 bytes of disk a sample.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.pictures.opening import Unreadable, as_unreadable, is_plain, open_picture, upright_srgb
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.cache import ShardCache
from manifests.stores.storage import read_if_there
from training.data.sealed import SUMS_FILE, SealedFiles
from training.data.shards import OFFSETS, SamplePool, ShardReader

_FORMAT = "dalip-decoded/3"
_MARK_FILE = "decoded.json"
_BATCH = 64


def prepare_decoded(pool: SamplePool, folder: Path, side_px: int) -> list[int]:
    """Prepare the folder for this pool; returns the numbers of the shards that are not decoded yet, or damaged.

    A folder of another release or size is emptied.
    """
    mark = {"format": _FORMAT, "fingerprints": list(pool.fingerprints), "side_px": side_px, "num_samples": len(pool)}
    storage.make_folder(str(folder))
    path = folder / _MARK_FILE
    if json_object(read_if_there(str(path))) != mark:
        for old in (*folder.glob("shard-*"), folder / SUMS_FILE, path):
            old.unlink(missing_ok=True)
        storage.publish_json(path, mark)
    storage.sweep(str(folder))
    sealed = SealedFiles(folder)
    names = (tuple(_file(folder, shard, ending).name for ending in ("tar", "npy")) for shard in range(len(pool.files)))
    return [shard for shard, files in enumerate(names) if not all(map(sealed.is_whole, files))]


def decode_shard(pool: SamplePool, folder: Path, side_px: int, shard: int, cache: ShardCache | None = None) -> None:
    """Decode the samples of one shard. One of a store is read through the cache.

    Raises: IntegrityError for a shard that is shorter than its table says.
    """
    rows = np.flatnonzero(pool.shards == shard).tolist()
    reader, keys = ShardReader(pool, cache or ShardCache()), pool.table["key"].to_pylist()
    target = _file(folder, shard, "tar")
    temp = storage.temp_path(str(target))
    placed: dict[str, list[int]] = {name: [] for name in OFFSETS}
    with Path(temp).open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            for row, (image, text, members) in zip(batch, reader.read(batch, True), strict=True):
                picture = shrink(image, side_px)
                for kind, name, content in (
                    ("jpg", "ppm", picture),
                    ("txt", "txt", text),
                    *((None, f"{name}.txt", value.encode("utf-8")) for name, value in members.items()),
                ):
                    info = tarfile.TarInfo(f"{keys[row]}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    if kind is not None:
                        blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        placed[f"{kind}_offset"].append(tar.offset - blocks)
                        placed[f"{kind}_length"].append(len(content))
    offsets, sealed = io.BytesIO(), SealedFiles(folder)
    np.save(offsets, np.array([placed[name] for name in OFFSETS], dtype=np.int64))
    sha256 = storage.hash_file(temp).sha256
    storage.publish(temp, str(target))
    sealed.note(target.name, sha256)
    sealed.write(_file(folder, shard, "npy").name, offsets.getvalue())


def open_decoded(pool: SamplePool, folder: Path) -> SamplePool:
    """Return the same pool, read from the decoded shards in `folder`; all of them must be there."""
    offsets: dict[str, NDArray[np.int64]] = {name: np.zeros(len(pool), np.int64) for name in OFFSETS}
    for shard in range(len(pool.files)):
        rows = np.flatnonzero(pool.shards == shard)
        for name, values in zip(OFFSETS, np.load(_file(folder, shard, "npy")), strict=True):
            offsets[name][rows] = values
    files = tuple(replace(file, path=str(_file(folder, shard, "tar"))) for shard, file in enumerate(pool.files))
    return replace(pool, files=files, offsets=offsets)


def shrink(content: bytes, side_px: int) -> bytes:
    """Return a picture as PPM with its shorter side at most `side_px`.

    Bytes that are not a picture come back unchanged.
    """
    try:
        with open_picture(content) as opened, as_unreadable():
            picture = opened if is_plain(opened) else upright_srgb(opened)
            width, height = size = picture.size
            if (shorter := min(size)) > side_px:
                size = max(side_px, round(width * side_px / shorter)), max(side_px, round(height * side_px / shorter))
            if picture.format == "JPEG" and size != (width, height):
                picture.draft("RGB", (2 * size[0], 2 * size[1]))
            image = picture.convert("RGB")
    except Unreadable:
        return content
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PPM")
    return stream.getvalue()


def _file(folder: Path, shard: int, ending: str) -> Path:
    return folder / f"shard-{shard:06d}.{ending}"
