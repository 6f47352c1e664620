"""Small CLIPs with random weights: what is computed with them is tested, not how well they see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
MODEL = Path(__file__).resolve().parents[1] / "configs/models/vit-tiny-demo.json"


def tiny(folder: Path, name: str, embed_dim: int = 32, *, vision: dict[str, Any] | None = None, **extra: Any) -> str:
    """A small architecture file of its own name (open_clip keeps every name it has seen)."""
    text = TEXT | extra.pop("text", {})
    config = {"embed_dim": embed_dim, "vision_cfg": VISION | (vision or {}), "text_cfg": text, **extra}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def save_weights(folder: Path) -> Path:
    """The file of the demo's weights, which are the same each time."""
    import open_clip
    import torch

    torch.manual_seed(0)
    open_clip.add_model_config(MODEL)
    path = folder / "tiny.pt"
    torch.save(open_clip.create_model(MODEL.stem).state_dict(), path)
    return path
