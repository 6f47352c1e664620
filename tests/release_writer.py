"""Writes a small real release, in the layout of the data contract, from pictures that Pillow draws or reads."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from tars import tar_of

from manifests.contract.release import FORMAT, LATEST_FILE, RECORD_FILE, SAMPLES_FILE, SPLIT_FOLDERS
from manifests.contract.tables import TAXON_RANKS, sample_id
from manifests.stores.storage import hash_file

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "cross")
LABELS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


TINY_ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass
class Sample:
    """One pair to be placed."""

    record_key: str
    jpg: bytes
    text: str
    domain: str = "plant"
    split: str = "train"
    category: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    species: str | None = None


def draw_picture(colour: str, shape: str, seed: int, size_px: int = 96) -> bytes:
    """A coloured shape on a noisy ground, as JPEG."""
    rng = random.Random(seed)
    ground = tuple(rng.randrange(90, 170) for _ in range(3))
    picture = Image.new("RGB", (size_px, size_px), ground)
    draw = ImageDraw.Draw(picture)
    radius = rng.randrange(size_px // 5, size_px // 3)
    x, y = (rng.randrange(radius, size_px - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.line((x - radius, y, x + radius, y), fill=COLOURS[colour], width=max(2, radius // 3))
        draw.line((x, y - radius, x, y + radius), fill=COLOURS[colour], width=max(2, radius // 3))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def drawn_samples(num_train: int, num_heldout: int, size_px: int = 96) -> list[Sample]:
    """Shapes in colours: red and green ones are the domain `plant`, the others `general`."""
    samples = []
    for i in range(num_train + num_heldout):
        colour, shape = list(COLOURS)[i % 4], SHAPES[(i // 4) % 3]
        domain = "plant" if colour in ("red", "green") else "general"
        samples.append(
            Sample(
                record_key=str(i),
                jpg=draw_picture(colour, shape, seed=i, size_px=size_px),
                text=f"a {colour} {shape}",
                domain=domain,
                split="train" if i < num_train else "heldout",
                category=f"{colour} {shape}",
                texts={"sci": f"Rubrum {shape}", "com": f"{colour} {shape} thing"} if domain == "plant" else {},
                species=shape if domain == "plant" else None,
            )
        )
    return samples


def write_release(
    folder: Path,
    samples: list[Sample],
    shard_size: int = 20,
    name: str = "toy",
    stratified: bool = False,
    more: Mapping[str, dict[str, str]] | None = None,
) -> Path:
    """Write a sealed release, globally shuffled, or with one group of training shards a domain; gives its folder.

    `more` holds further columns by sample id.
    """
    order = list(samples)
    random.Random(0).shuffle(order)
    rows, splits = [], {}
    for split, place in SPLIT_FOLDERS.items():
        chosen = [sample for sample in order if sample.split == split]
        if not chosen:
            continue
        (folder / place).mkdir(parents=True, exist_ok=True)
        groups = {name if split == "train" else f"{name}-{split}": chosen}
        if stratified and split == "train":
            groups = {domain: [sample for sample in chosen if sample.domain == domain]
                      for domain in sorted({sample.domain for sample in chosen})}  # fmt: skip
        shards: list[dict[str, object]] = []
        for prefix, members in groups.items():
            for number, start in enumerate(range(0, len(members), shard_size)):
                shard, placed = f"{prefix}-{number:06d}.tar", members[start : start + shard_size]
                rows += _write_shard(folder / place / shard, split, placed, len(shards))
                domains = dict(sorted(Counter(sample.domain for sample in placed).items()))
                shard_entry: dict[str, object] = {"shard": shard, "num_samples": len(placed), "domains": domains}
                shards.append(shard_entry | ({"domain": prefix} if stratified else {}))
        splits[split] = {"num_samples": len(chosen), "shards": shards}
    rows = [row | (more or {}).get(str(row["sample_id"]), {}) for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / SAMPLES_FILE)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            written = hash_file(str(path))
            files[str(path.relative_to(folder))] = {"num_bytes": written.num_bytes, "sha256": written.sha256}
    content = json.dumps({"splits": splits, "files": files}, sort_keys=True)
    record = {
        "format": FORMAT,
        "name": name,
        "version": "0001",
        "kind": "stratified" if stratified else "mixed",
        "fingerprint": sample_id("release", content),
        "splits": splits,
        "files": files,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record))
    return folder


def write_work_folder(folder: Path, samples: list[Sample], **options: int) -> Path:
    """A work folder as `plantmix build` leaves it: releases/NAME-VERSION and releases/LATEST."""
    write_release(folder / "releases" / "toy-0001", samples, **options)
    (folder / "releases" / LATEST_FILE).write_text("toy-0001\n")
    return folder


def _write_shard(path: Path, split: str, samples: list[Sample], number: int) -> list[dict[str, object]]:
    rows = []
    keys = [f"{split}{number:03d}x{position:05d}" for position in range(len(samples))]
    named: list[tuple[str, bytes]] = []
    for key, sample in zip(keys, samples, strict=True):
        members = {"jpg": sample.jpg, "json": json.dumps({"domain": sample.domain}).encode()}
        members |= {"txt": sample.text.encode()}
        members |= {f"{kind}.txt": text.encode() for kind, text in sample.texts.items()}
        named += [(f"{key}.{extension}", content) for extension, content in members.items()]
    path.write_bytes(tar_of(named, tarfile.USTAR_FORMAT))
    with tarfile.open(path) as tar:
        placed = {member.name: (member.offset_data, member.size) for member in tar}
    for position, (key, sample) in enumerate(zip(keys, samples, strict=True)):
        row: dict[str, object] = {
            "sample_id": sample_id("toy", sample.record_key),
            "copy": 0,
            "domain": sample.domain,
            "split": split,
            "shard": path.name,
            "position": position,
            "key": key,
            "source": "toy",
            "url": f"http://127.0.0.1/{sample.record_key}.jpg",
            "text": sample.text,
            "extra": json.dumps({"category": sample.category}),
            "licence": "CC0" if len(sample.text) % 2 else "CC0 1.0",  # as sources spell one licence
            "licence_id": "CC0-1.0",
            "image_id": hashlib.sha256(b"as downloaded " + sample.jpg).hexdigest(),
            "stored_sha256": hashlib.sha256(sample.jpg).hexdigest(),
        }
        for extension in ("jpg", "txt", "json"):
            row[f"{extension}_offset"], row[f"{extension}_length"] = placed[f"{key}.{extension}"]
        row |= {f"taxon_{rank}": None for rank in TAXON_RANKS} | {"taxon_species": sample.species or ""}
        rows.append(row)
    return rows
