"""Folders of made-up tokens, for the tests of the studies that train on stored tokens; and the scripts of these."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

STUDY = ("second_order_material", "study_records", "study_training", "study_heads", "bench_third_study",
         "third_study_material", "third_study_statistics")  # fmt: skip


def folder_of(path: Path, splits: dict[str, int]) -> Path:
    """A folder as `prepare` and `seal` make them, of random tokens: 4 of a picture and up to 3 of a text."""
    rng, rows = np.random.default_rng(len(splits)), []
    for split, count in splits.items():
        rows += [
            {"path": f"{split}/{n}.png", "split": split, "texts": [f"name {n}"], "hexcode": f"1f6{n:02x}"}
            for n in range(count)
        ]
    texts = sorted({text for row in rows for name in row["texts"] for text in (name, f"a picture of {name}.")})
    path.mkdir()
    (path / "rows.json").write_text(json.dumps(rows))
    (path / "texts.json").write_text(json.dumps(texts))
    for side, count, tokens in (("image", len(rows), 4), ("text", len(texts), 3)):
        made = rng.standard_normal((count, 1 + tokens, 256)).astype(np.float16)
        if side == "text":
            made[::2, 3:] = 0  # padding
        np.save(path / f"{side}.npy", made)
        np.savez(path / f"{side}-components.npz", mean=np.zeros(8), shape=np.array([tokens, 8]), weights="x")
    return path
