"""Pictures, names and tokens of the third study; the sealed ones lie in a folder of their own, which no run is told.

`prepare` makes the folder of the runs: the material of the second study, all of whose pictures have been seen. Training
is the Grocery Store photos, captioned pictures and the emoji of Google and Twitter. Validation is Fluent 3D and
EmojiOne 2.2.7. `seal` makes the folder of the two new vendors. A sealed picture has the name of a training picture, is
no near copy of one, and is the only one of its vendor with that name.

| vendor | package of npm | licence of the drawings |
|---|---|---|
| OpenMoji | openmoji 17.0.0 | CC BY-SA 4.0: LICENSE.txt and README.md of the package |
| Firefox OS Emoji (Mozilla) | @iconify-json/fxemoji 1.2.2 | CC BY 4.0: LICENSE.md of github.com/mozilla/fxemoji |
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from second_order_material import (
    TEMPLATES,
    Material,
    collect,
    hexcode,
    make_tokens,
    picture_hash,
    without_near,
)

VALIDATION = ("fluent", "emojione")
SEALED = ("openmoji", "fxemoji")
SIDE_PX = 128  # of a drawn SVG


def prepare(grocery: Path, corpus: Path, emojione: Path, work: Path) -> None:
    """The folder of the runs; goes on where it was."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "rows.json").is_file():
        rows, of_training = collect(grocery, corpus, emojione)
        for row in rows:
            row["split"] = {"val": "fluent", "sealed": "emojione"}.get(row["split"], row["split"])
        np.save(work / "training-hashes.npy", np.array(of_training))
        (work / "rows.json").write_text(json.dumps(rows))
    rows = json.loads((work / "rows.json").read_text())
    training = [i for i, row in enumerate(rows) if row["split"] in ("special", "general")]
    _finish(rows, np.random.default_rng(0).permutation(training)[:1024].tolist(), work)


def seal(openmoji: Path, fxemoji: Path, work: Path, sealed: Path) -> None:
    """The folder of the sealed vendors. Says how many pictures there are; shows nothing else of them."""
    if not (sealed / "rows.json").is_file():
        names = training_names(work)
        drawn = {"openmoji": _openmoji(openmoji), "fxemoji": _fxemoji(fxemoji, names)}
        rows = []
        for vendor, drawings in drawn.items():
            for code, svg in drawings:
                path = sealed / "pictures" / vendor / f"{code}.png"
                if code in names and _draw(svg, path):
                    rows.append({"path": str(path), "split": vendor, "texts": [names[code]], "hexcode": code})
        of_training = np.load(work / "training-hashes.npy").tolist()
        kept = without_near(
            rows, [picture_hash(row["path"]) for row in rows], [np.uint64(each) for each in of_training]
        )
        print(f"drawn: {Counter(row['split'] for row in rows)}")
        (sealed / "rows.json").write_text(json.dumps(kept))
    for side in ("image", "text"):
        shutil.copyfile(work / f"{side}-components.npz", sealed / f"{side}-components.npz")
    _finish(json.loads((sealed / "rows.json").read_text()), [], sealed)


def _finish(rows: list[dict[str, Any]], fitted: list[int], work: Path) -> None:
    """The tokens of every picture and text, each made once."""
    import torch

    torch.set_num_threads(1)
    print(f"{len(rows)} pictures: {dict(Counter(row['split'] for row in rows))}", flush=True)
    names = sorted({row["texts"][0] for row in rows if row["split"] in (*VALIDATION, *SEALED)})
    texts = sorted({text for row in rows for text in row["texts"]} | {t.format(n) for n in names for t in TEMPLATES})
    (work / "texts.json").write_text(json.dumps(texts))
    make_tokens("text", texts, np.random.default_rng(0).permutation(len(texts))[:1024].tolist(), work)
    make_tokens("image", [row["path"] for row in rows], fitted, work)


def training_names(work: Path) -> dict[str, str]:
    """The name of each emoji that training has pictures of, by its code points."""
    rows = json.loads((work / "rows.json").read_text())
    return {row["hexcode"]: row["texts"][0] for row in rows if row["split"] == "general" and row.get("hexcode")}


def _openmoji(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted((folder / "color/svg").glob("*.svg")):
        yield hexcode(file.stem), file.read_text(encoding="utf-8")


def _fxemoji(folder: Path, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The icons have names alone: a name of ours, or that of a character of Unicode, without spaces and marks."""
    icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    codes: dict[str, set[str]] = {}
    for code, name in names.items():
        spelled = [name, *([unicodedata.name(chr(int(code, 16)), "")] if "-" not in code else [])]
        for each in spelled:
            codes.setdefault(_squashed(each), set()).add(code)
    size = icons["width"], icons["height"]
    for name, icon in sorted(icons["icons"].items()):
        if len(found := codes.get(_squashed(name), set())) == 1:
            width, height = icon.get("width", size[0]), icon.get("height", size[1])
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            yield (
                next(iter(found)),
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>',
            )


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _draw(svg: str, path: Path) -> bool:
    """Draw once; false where nothing shows."""
    import resvg_py
    from PIL import Image

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE_PX, skip_system_fonts=True)))
    with Image.open(path) as picture:
        return picture.convert("RGBA").getchannel("A").getbbox() is not None


class NamedMaterial(Material):
    """Also says which rows it has."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        rows = [[row["split"], row.get("hexcode"), Path(row["path"]).name, *row["texts"]] for row in self.rows]
        self.digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()  # the same wherever the pictures lie

    def codes(self, vendors: Sequence[str]) -> dict[str, list[str]]:
        """The code points of the pictures of each vendor, in the order of their rows."""
        return {vendor: [self.rows[row]["hexcode"] for row in self.of_split(vendor)] for vendor in vendors}
