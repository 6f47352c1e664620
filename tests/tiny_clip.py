"""The demo's small CLIP with random weights: what is computed with it is tested, not how well it sees."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "configs/models/vit-tiny-demo.json"


def save_weights(folder: Path) -> Path:
    """The file of its weights, which are the same each time."""
    import open_clip
    import torch

    torch.manual_seed(0)
    open_clip.add_model_config(MODEL)
    path = folder / "tiny.pt"
    torch.save(open_clip.create_model(MODEL.stem).state_dict(), path)
    return path
