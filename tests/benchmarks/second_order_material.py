"""Pictures, names and tokens of the study `second-order`: what `bench_second_order.py prepare` makes and its runs read.

Training: the Grocery Store photos (special), and captioned pictures with the emoji of two vendors (general). A third
vendor's emoji are validation. Those of a fourth are sealed: no run sees them, and one command opens them. A judged
picture within NEAR bits of a training picture is left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EMBED_DIM, WIDTH = 256, 256
TOWERS = {"image": "study_towers:efficientnet_lite2", "text": "study_towers:minilm"}
TEMPLATES = ("{}", "a picture of {}.")
NEAR = 8  # bits of a pHash
TRAIN_EMOJI = ("emoji-datasource-google", "emoji-datasource-twitter")
VALIDATION_EMOJI = "@lobehub/fluent-emoji-3d"


def prepare(grocery: Path, corpus: Path, emojione: Path, work: Path) -> None:
    """rows.json, and the tokens of every picture and text, each made once; sealed pictures have a file of their own."""
    import torch

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "rows.json").is_file():
        (work / "rows.json").write_text(json.dumps(collect(grocery, corpus, emojione)[0]))
    rows = json.loads((work / "rows.json").read_text())
    counts = {split: sum(row["split"] == split for row in rows) for split in ("special", "general", "val", "sealed")}
    print(f"{len(rows)} pictures: {counts}", flush=True)
    names = sorted({row["texts"][0] for row in rows if row["split"] in ("val", "sealed")})
    texts = sorted({text for row in rows for text in row["texts"]} | {t.format(n) for n in names for t in TEMPLATES})
    (work / "texts.json").write_text(json.dumps(texts))
    training = [i for i, row in enumerate(rows) if row["split"] in ("special", "general")]
    chosen = np.random.default_rng(0).permutation(training)[:1024].tolist()
    make_tokens("image", [row["path"] for row in rows], chosen, work)
    make_tokens("text", texts, np.random.default_rng(0).permutation(len(texts))[:1024].tolist(), work)


def collect(grocery: Path, corpus: Path, emojione: Path) -> tuple[list[dict[str, Any]], list[np.uint64]]:
    """A row a picture, and the hashes of those of training."""
    rows = [*_grocery(grocery), *_corpus(corpus)]
    rows += _emojione(emojione, {row["hexcode"]: row["texts"][0] for row in rows if row.get("hexcode")})
    hashes = [picture_hash(row["path"]) for row in rows]
    of_training = [value for row, value in zip(rows, hashes, strict=True) if row["split"] in ("special", "general")]
    return without_near(rows, hashes, of_training), of_training


def _grocery(folder: Path) -> list[dict[str, Any]]:
    with (folder / "classes.csv").open(encoding="utf-8") as stream:
        coarse = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in csv.DictReader(stream)}
    rows = []
    for line in (folder / "train.txt").read_text(encoding="utf-8").splitlines():
        path = line.split(",")[0]
        name = path.split("/")[-2]
        words, kind = (text.replace("-", " ").replace("_", " ") for text in (name, coarse[name]))
        texts = [words, f"a photo of {words}, a kind of {kind}", f"{words} {kind}"]
        rows.append({"path": str(folder / path), "split": "special", "texts": texts})
    return rows


def _corpus(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq
    from PIL import Image

    rows, seen = [], set()
    for entry in pq.read_table(folder / "pairs.parquet").to_pylist():
        if entry["tier"] != "core" or not entry["caption"] or entry["error"] or entry["sha256"] in seen:
            continue
        if entry["width"] * entry["height"] > Image.MAX_IMAGE_PIXELS:
            continue
        seen.add(entry["sha256"])
        source, path = entry["source_package"], entry["url_path"]
        row = {"path": str(folder / path), "split": "general", "texts": [entry["caption"]]}
        if source == VALIDATION_EMOJI:
            row["split"] = "val"
        if source == VALIDATION_EMOJI or source in TRAIN_EMOJI:
            row["hexcode"] = hexcode(Path(path).stem)
        rows.append(row)
    return rows


def _emojione(folder: Path, names: dict[str, str]) -> list[dict[str, Any]]:
    """Pictures of a vendor that no arm sees, under the names that the others have."""
    files = sorted((folder / "assets/png_128x128").glob("*.png"))
    return [
        {"path": str(file), "split": "sealed", "texts": [names[code]], "hexcode": code}
        for file in files
        if (code := hexcode(file.stem)) in names
    ]


def hexcode(stem: str) -> str:
    """The code points of an emoji as all vendors have them."""
    return re.sub(r"-(fe0f|200d)", "", stem.lower())


def picture_hash(path: str) -> np.uint64:
    """The pHash of a picture on white."""
    import imagehash
    from PIL import Image

    with Image.open(path) as picture:
        flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    bits = imagehash.phash(flat.convert("RGB")).hash.flatten()
    return np.uint64(int("".join("1" if bit else "0" for bit in bits), 2))


def without_near(
    rows: list[dict[str, Any]], hashes: list[np.uint64], of_training: list[np.uint64]
) -> list[dict[str, Any]]:
    """Leave out judged pictures that are like one of training, and all but the first of one name."""
    kept, seen, training = [], set(), np.array(of_training)
    for row, value in zip(rows, hashes, strict=True):
        judged = (row["split"], row["texts"][0])
        if row["split"] not in ("special", "general"):
            if judged in seen or np.bitwise_count(training ^ value).min() <= NEAR:
                continue
            seen.add(judged)
        kept.append(row)
    return kept


def make_tokens(side: str, inputs: list[str], fitted: list[int], work: Path) -> None:
    """Principal components of the tower's tokens, then those of every input, float16; goes on where it was."""
    import torch

    from training.model.backbones import load_backbone

    backbone, path, size = load_backbone(TOWERS[side], side), work / f"{side}-components.npz", 32
    if not path.is_file():
        from training.data.tokens import principal_components

        parts = []
        for start in range(0, len(fitted), size):
            _, tokens, mask = backbone.run(_given(side, backbone, [inputs[i] for i in fitted[start : start + size]]))
            parts.append((tokens.flatten(0, 1) if mask is None else tokens[mask]).numpy())
        every = np.concatenate(parts)
        every = every[np.random.default_rng(0).permutation(len(every))[:100_000]]
        mean, basis = principal_components(every, WIDTH)
        np.savez(path, mean=mean, basis=basis, shape=tokens.shape[1:], weights=backbone.fingerprint)
    with np.load(path) as stored:
        mean, basis, num_tokens = (
            torch.from_numpy(stored["mean"]),
            torch.from_numpy(stored["basis"]),
            stored["shape"][0],
        )
    target = work / f"{side}.npy"
    if not target.is_file():
        np.lib.format.open_memmap(target, "w+", np.float16, (len(inputs), 1 + int(num_tokens), WIDTH)).flush()
    rows, done = np.load(target, mmap_mode="r+"), work / f"{side}.done"
    for start in range(int(done.read_text()) if done.is_file() else 0, len(inputs), size):
        pooled, tokens, mask = backbone.run(_given(side, backbone, inputs[start : start + size]))
        both = (torch.cat([pooled[:, None], tokens], dim=1) - mean) @ basis
        if mask is not None:
            both[:, 1:] *= mask[..., None]
        rows[start : start + size] = both.numpy()
        if start // size % 20 == 0:
            rows.flush()
            done.write_text(str(start))
            print(f"{side}: {start:,} of {len(inputs):,}", flush=True)
    done.write_text(str(len(inputs)))


def _given(side: str, backbone: Any, inputs: Sequence[str]) -> Any:
    """Texts as they are; pictures on a white square, in the tower's own view."""
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    if side == "text":
        return list(inputs)
    transform = image_transform_v2(PreprocessCfg(**backbone.preprocess), is_train=False)
    views = []
    for path in inputs:
        with Image.open(path) as picture:
            picture.draft("RGB", (520, 520))
            colour = picture.convert("RGBA")
        side_px = max(colour.size)
        square = Image.new("RGBA", (side_px, side_px), "white")
        square.alpha_composite(colour, ((side_px - colour.size[0]) // 2, (side_px - colour.size[1]) // 2))
        views.append(transform(square.convert("RGB")))
    return torch.stack(views)


class Material:
    """Rows, and their tokens."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.rows = json.loads((work / "rows.json").read_text())
        texts = json.loads((work / "texts.json").read_text())
        self.place = {text: number for number, text in enumerate(texts)}
        self._image, self._text = (np.load(work / f"{side}.npy", mmap_mode="r") for side in ("image", "text"))
        self.config = self._architecture()

    def of_split(self, split: str) -> list[int]:
        return [number for number, row in enumerate(self.rows) if row["split"] == split]

    def images(self, rows: Sequence[int]) -> Any:
        import torch

        return torch.from_numpy(self._image[list(rows)]).float()

    def texts(self, texts: Sequence[str]) -> Any:
        import torch

        return torch.from_numpy(self._text[[self.place[text] for text in texts]]).float()

    def _architecture(self) -> Path:
        parts = {}
        for side in ("image", "text"):
            with np.load(self.work / f"{side}-components.npz") as stored:
                parts[side] = {
                    "frozen_tower": TOWERS[side], "tower_width": len(stored["mean"]), "width": WIDTH,
                    "num_tokens": int(stored["shape"][0]), "weights": str(stored["weights"]),
                }  # fmt: skip
        path = self.work / "study.json"
        path.write_text(json.dumps({"embed_dim": EMBED_DIM, "vision_cfg": parts["image"], "text_cfg": parts["text"]}))
        return path
