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


def hugging_face_text(folder: Path, kind: str) -> str:
    """A small real text tower and its tokenizer in the layout of transformers, as open_clip names them by folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "leaf", "the", "flower", "of", "an", "iris", "by", "water", "oak"]
    pad = 0 if kind == "bert" else 1  # RoBERTa's positions start behind its padding id
    words = words if pad == 0 else ["[UNK]", "[PAD]", *words[2:]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    place = folder / f"text-{kind}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(place)
    values = {"vocab_size": len(words), "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 64, "max_position_embeddings": 40, "pad_token_id": pad}  # fmt: skip
    (BertConfig if kind == "bert" else RobertaConfig)(**values).save_pretrained(place)
    return str(place)


def save_weights(folder: Path) -> Path:
    """The file of the demo's weights, which are the same each time."""
    import open_clip
    import torch

    torch.manual_seed(0)
    open_clip.add_model_config(MODEL)
    path = folder / "tiny.pt"
    torch.save(open_clip.create_model(MODEL.stem).state_dict(), path)
    return path


def exported_clip(folder: Path, seed: int, architecture: str) -> Path:
    """A plain CLIP of random weights, in open_clip's layout."""
    import torch

    from training.model.build import build_model
    from training.model.exports import export_hugging_face
    from training.model.presets import ModelSettings

    torch.manual_seed(seed)
    export_hugging_face(build_model(ModelSettings(preset="clip", architecture=architecture)), folder / f"clip-{seed}")
    return folder / f"clip-{seed}"
