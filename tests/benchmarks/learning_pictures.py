"""Pictures and captions of the studies of learning: decoded once into one small file, given out as tensors.

`prepare` reads GROCERY, the Grocery Store dataset (Klasson et al., WACV 2019: train/ and val/ with train.txt, val.txt,
classes.csv), and CORPUS, a folder of captioned pictures with a pairs.parquet (columns url_path, caption, domain,
source_package, tier, phash). It writes pixels.npy and rows.json; `Data` reads them.

Special domain: fruit and vegetables (varieties), judged on the val photos, which come from other shops. General
domain: cartons, drawings, small photos and emoji of two vendors; judged on val cartons, on a third vendor's emoji,
and on held-out pictures that are further than pHash distance 8 from every training picture.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

CACHE_PX, VIEW_PX, CONTEXT = 70, 60, 16
EMOJI_TRAIN = ("emoji-datasource-google", "emoji-datasource-twitter")
EMOJI_TEST = "@lobehub/fluent-emoji-3d"
HELDOUT_SOURCES = ("tuxpaint-stamps-default", "gcompris-qt-data", "pysiogame", "openclipart-png")
TEMPLATES = ("a photo of {}.", "{}", "a picture of {}.")


def prepare(grocery: Path, corpus: Path, work: Path) -> None:
    rows = [*_grocery_rows(grocery), *_corpus_rows(corpus)]
    work.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (len(rows), CACHE_PX, CACHE_PX, 3))
    kept = []
    for row in rows:
        picture = decode(row["path"])
        if picture is not None:
            pixels[len(kept)] = picture
            kept.append(row)
    (work / "rows.json").write_text(json.dumps(kept))
    counts: dict[str, int] = {}
    for row in kept:
        counts[row["split"]] = counts.get(row["split"], 0) + 1
    print(f"{len(kept)} of {len(rows)} pictures: {counts}")


def _grocery_rows(folder: Path) -> list[dict[str, Any]]:
    with (folder / "classes.csv").open(encoding="utf-8") as stream:
        classes = list(csv.DictReader(stream))
    about = {}
    for entry in classes:
        text = (folder / entry["Product Description Path (str)"].lstrip("/")).read_text(
            encoding="utf-8", errors="replace"
        )
        lines = [line.removeprefix("Description:").strip() for line in text.splitlines() if "Description:" in line]
        about[entry["Class Name (str)"]] = (entry["Coarse Class Name (str)"], lines[0] if lines else "")
    rows = []
    for split in ("train", "val"):
        for line in (folder / f"{split}.txt").read_text(encoding="utf-8").splitlines():
            path = line.split(",")[0]
            group, name = path.split("/")[1], path.split("/")[-2]
            coarse, prose = about[name]
            words, kind = _words(name), _words(coarse)
            texts = [f"a photo of {words}, a kind of {kind}", words, f"{words} {kind}"]
            rows.append({
                "path": str(folder / path),
                "split": ("special" if group != "Packages" else "cartons") + ("_train" if split == "train" else "_val"),
                "texts": texts + ([prose] if prose else []),
                "label": words,
            })  # fmt: skip
    return rows


def _corpus_rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows, near = [], random.Random(0)
    for entry in pq.read_table(folder / "pairs.parquet").to_pylist():
        if entry["domain"] != "general" or entry["tier"] != "core" or not entry["caption"] or entry["error"]:
            continue
        source = entry["source_package"]
        split = "general_train"
        if source == EMOJI_TEST:
            split = "emoji_val"
        elif source in HELDOUT_SOURCES and near.random() < 0.1:
            split = "general_val"
        rows.append({
            "path": str(folder / entry["url_path"]), "split": split, "texts": [entry["caption"]],
            "label": entry["caption"], "phash": int(entry["phash"], 16), "sha256": entry["sha256"],
        })  # fmt: skip
    train = np.array([row["phash"] for row in rows if row["split"] == "general_train"], dtype=np.uint64)
    seen: set[str] = set()
    kept = []
    for row in rows:
        phash, digest = row.pop("phash"), row.pop("sha256")
        if row["split"].endswith("_val"):
            close = np.bitwise_count(train ^ np.uint64(phash)).min() <= 8
            if row["label"] in seen or (row["split"] == "general_val" and close):
                continue
            seen.add(row["label"])
        elif digest in seen:
            continue
        seen.add(digest)
        kept.append(row)
    return kept


def _words(name: str) -> str:
    return name.replace("-", " ").replace("_", " ")


def decode(path: str) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, picture).convert("RGB")
    side = max(flat.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(flat, ((side - flat.size[0]) // 2, (side - flat.size[1]) // 2))
    return np.asarray(square.resize((CACHE_PX, CACHE_PX), Image.Resampling.BICUBIC))


class Data:
    """Decoded pictures and tokens of every row, by split.

    Token ids are numbered anew, in their order, so that the embedding holds only ids that occur: a dense gradient of
    49,408 rows would take longer than the model. `keep_back` takes every tenth training picture out of training and
    puts it in the place of the pictures to judge on (of general pictures, those with a caption of their own).
    """

    def __init__(self, work: Path, *, keep_back: bool = False) -> None:
        import open_clip
        import torch

        self.pixels = np.load(work / "pixels.npy", mmap_mode="r")
        self.rows = json.loads((work / "rows.json").read_text())
        self._tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
        tokens = [self._tokenizer(row["texts"]) for row in self.rows]
        named = [self._tokenizer([t.format(row["label"]) for t in TEMPLATES]) for row in self.rows]
        self.vocabulary = torch.unique(torch.cat(tokens + named))
        self.tokens = [torch.searchsorted(self.vocabulary, ids) for ids in tokens]
        self.by_split: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            self.by_split.setdefault(row["split"], []).append(number)
        if keep_back:
            self.by_split = self._keep_back()

    def _keep_back(self) -> dict[str, list[int]]:
        kept: dict[str, list[int]] = {}
        for name in ("special", "cartons", "general"):
            rows = self.by_split[f"{name}_train"]
            kept[f"{name}_train"] = [row for place, row in enumerate(rows) if place % 10]
            seen: set[str] = set()
            for row in rows[::10]:
                if name == "general" and self.rows[row]["label"] in seen:
                    continue
                seen.add(self.rows[row]["label"])
                kept.setdefault(f"{name}_val", []).append(row)
        return kept

    def encode(self, texts: list[str]) -> Any:
        """Token ids (B, context) of texts whose tokens all occur in the data."""
        import torch

        return torch.searchsorted(self.vocabulary, self._tokenizer(texts))

    def views(self, rows: list[int], rng: np.random.Generator | None) -> Any:
        """uint8 (B, 3, 60, 60): a random crop and mirror of each, or the middle."""
        import torch

        slack = CACHE_PX - VIEW_PX
        views = np.empty((len(rows), VIEW_PX, VIEW_PX, 3), np.uint8)
        for i, row in enumerate(rows):
            top, left, mirror = (slack // 2, slack // 2, False) if rng is None else (
                int(rng.integers(slack + 1)), int(rng.integers(slack + 1)), bool(rng.integers(2)))  # fmt: skip
            view = self.pixels[row, top : top + VIEW_PX, left : left + VIEW_PX]
            views[i] = view[:, ::-1] if mirror else view
        return torch.from_numpy(views).permute(0, 3, 1, 2)
