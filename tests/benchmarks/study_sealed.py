"""The sealed photos of the study: found, grouped, decoded. Only `bench_dalip_vs_clip.py judge` calls this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NEAR = 8  # bits of a pHash


def sealed_photos(folder: Path) -> list[dict[str, Any]]:
    """Every photo below the folder: .../Fruit|Vegetables|Packages/COARSE[/CLASS]/NAME.jpg; its class is its folder."""
    photos = []
    for path in sorted(folder.rglob("*.jpg")):
        group = next(part for part in path.parts if part in ("Fruit", "Vegetables", "Packages"))
        label = path.parent.name.replace("-", " ").replace("_", " ")
        photos.append({"path": str(path), "label": label, "special": group != "Packages"})
    return photos


def sealed_groups(photos: list[dict[str, Any]], grocery: Path) -> dict[str, Any]:
    """Labels, a group number for each photo, and whether a training or validation photo is near it."""
    seen = _hashes(sorted([*(grocery / "train").rglob("*.jpg"), *(grocery / "val").rglob("*.jpg")]))
    own = _hashes([Path(photo["path"]) for photo in photos])
    labels = [photo["label"] for photo in photos]
    return {
        "labels": labels,
        "special": [photo["special"] for photo in photos],
        "group": group_near(own, labels),
        "near_training": [bool(np.bitwise_count(seen ^ value).min() <= NEAR) for value in own],
    }


def group_near(hashes: np.ndarray, labels: list[str]) -> list[int]:
    """Photos of one class within `NEAR` bits of one another, also by way of others, share a number."""
    group = list(range(len(hashes)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, value in enumerate(hashes):
        near = np.flatnonzero(np.bitwise_count(hashes[:i] ^ value) <= NEAR)
        for j in near.tolist():
            if labels[i] == labels[j]:
                group[root(i)] = root(j)
    return [root(i) for i in range(len(hashes))]


def scratch_pictures(photos: list[dict[str, Any]]) -> Any:
    """uint8 (N, 3, 60, 60): decoded as the training pictures are, the middle."""
    import torch
    from learning_pictures import CACHE_PX, VIEW_PX, decode

    slack = (CACHE_PX - VIEW_PX) // 2
    found = []
    for photo in photos:
        picture = decode(photo["path"])
        if picture is None:
            raise SystemExit(f"{photo['path']}: cannot be read")
        found.append(picture[slack : slack + VIEW_PX, slack : slack + VIEW_PX])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def _hashes(paths: list[Path]) -> np.ndarray:
    import imagehash
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(path) as picture:
            bits = imagehash.phash(picture.convert("RGB")).hash.flatten()
        found.append(int("".join("1" if bit else "0" for bit in bits), 2))
    return np.array(found, dtype=np.uint64)
