"""Models out as ONNX: a folder that runs with onnxruntime, without torch and without this package.

    image.onnx                 pixels (B, 3, H, W) float32, normalised -> f, and with a second branch z and both; with
                               projectors these are of the first kind, and f_KIND and both_KIND of each other one
    text.onnx                  tokens (B, L) int64 -> f, z, both
    preprocessor_config.json   how pictures are prepared, as transformers writes it for CLIP
    tokenizer.json             texts to tokens, as the `tokenizers` library reads it
    dalip_onnx.json            sizes, names, the scale of similarities

B is free. `both` is the one vector [sqrt(a) f ; sqrt(1 - a) z]. Each file is first written to a private place, run by
onnxruntime on batches of several sizes and compared with the model. Gives up with ConfigError, and publishes nothing,
when they differ by more than 1e-4, on frozen towers, and where the extra `onnx` is not installed.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifests import storage
from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip
from manifests.services.packages import require
from training.model.architecture import architecture_config
from training.model.dalip import DalipModel
from training.model.exports import local_place, private_folder, publish_folder
from training.model.fast import plain_attention
from training.model.frozen import FrozenCLIP
from training.model.loss import one_vector
from training.model.towers import image_size_px

CONFIG_FILE = "dalip_onnx.json"
TOLERANCE = 1e-4  # of every number of a feature, whose length is 1
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_CHECKED_BATCHES = (1, 2, 17)  # the branch multiplies in another layout from 16 on
# As open_clip's SimpleTokenizer splits a text after its cleaning.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class _Features(nn.Module):
    """One side of a model: f, and with a second branch z and both. Pictures have f and both for each kind of text."""

    def __init__(self, model: DalipModel, side: str, first_order_weight: float) -> None:
        super().__init__()
        self.model, self.side, self.weight = model, side, first_order_weight
        self.other_kinds = model.settings.projectors[1:] if side == "image" else ()

    @property
    def names(self) -> list[str]:
        alone = self.model.second_order is None
        others = [f"{name}_{kind}" for kind in self.other_kinds for name in (("f",) if alone else ("f", "both"))]
        return [*(("f",) if alone else ("f", "z", "both")), *others]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        orders = self.model.image_orders if self.side == "image" else self.model.text_orders
        f_BC, z_BC = orders(inputs)
        outputs = [f_BC] if z_BC is None else [f_BC, z_BC, one_vector(f_BC, z_BC, self.weight)]
        for number in range(1, len(self.other_kinds) + 1):
            kinds_B = torch.full_like(f_BC[:, 0], number, dtype=torch.int64)
            of_kind_BC = self.model.project(f_BC, kinds_B)
            outputs += [of_kind_BC] if z_BC is None else [of_kind_BC, one_vector(of_kind_BC, z_BC, self.weight)]
        return tuple(outputs)


def export_onnx(model: DalipModel, folder: str | Path, first_order_weight: float) -> str:
    """Write the folder; returns the Python line that opens its image encoder.

    `first_order_weight` is a of the vector `both`, as in the loss.

    Raises: ConfigError for a target that is a file, for what ONNX cannot hold, and for features that differ.
    """
    target = local_place(folder)
    require("an ONNX export", *_PACKAGES)
    if isinstance(model.clip, FrozenCLIP):
        raise ConfigError(
            f"{model.settings.architecture}: its towers are outside the model, so ONNX cannot hold it; "
            "use --format huggingface"
        )
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; name a folder for the ONNX layout")
    height, width = image_size_px(model.clip)
    context = int(model.clip.context_length)
    examples = {
        "image": torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0)),
        "text": torch.arange(3 * context).view(3, -1) % 300 + 1,
    }
    with private_folder(target) as private:
        names = dict[str, list[str]]()
        for side, example in examples.items():
            module = _Features(model, side, first_order_weight).eval()
            names[side] = module.names
            _write_side(module, example, private / f"{side}.onnx")
            _check_side(module, example, private / f"{side}.onnx")
        _write_tokenizer(model, private)
        storage.publish_json(private / "preprocessor_config.json", _preprocessor(model))
        config = {
            "image": {"file": "image.onnx", "input": "pixels", "size_px": [height, width]},
            "text": {"file": "text.onnx", "input": "tokens", "context_length": context},
            "outputs": names["text"],
            "kinds": list(model.settings.projectors),
            "image_outputs": names["image"],
            "first_order_weight": first_order_weight,
            "logit_scale": float(model.clip.logit_scale.detach().exp()),
        }
        storage.publish_json(private / CONFIG_FILE, config)
        publish_folder(private, target, CONFIG_FILE)
    return f'onnxruntime.InferenceSession("{target}/image.onnx")'


def _write_side(module: _Features, example: Tensor, path: Path) -> None:
    name = "pixels" if module.side == "image" else "tokens"
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    try:
        with plain_attention(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of deprecations within the exporter
            program = torch.onnx.export(
                module, (example,), dynamo=True, verbose=False, input_names=[name], output_names=module.names,
                dynamic_shapes=({0: batch},),
            )  # fmt: skip
            if program is not None:
                program.save(str(path))
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path.name}: torch cannot write this model as ONNX: {words}; nothing is written") from None


@torch.no_grad()
def _check_side(module: _Features, example: Tensor, path: Path) -> None:
    """Raises: ConfigError when onnxruntime gives other features."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in _CHECKED_BATCHES:
        inputs = example.repeat(-(-size // len(example)), *[1] * (example.ndim - 1))[:size]
        expected = module(inputs)
        outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        for name, ours, theirs in zip(module.names, expected, outputs, strict=True):
            gap = float((ours - torch.from_numpy(theirs)).abs().max())
            if not gap <= TOLERANCE:
                raise ConfigError(
                    f"{path.name}: {name} of {size} differs from the model's by {gap:.1e}, more than {TOLERANCE:.0e}; "
                    "nothing is written"
                )


def _preprocessor(model: DalipModel) -> dict[str, Any]:
    """As transformers' CLIPImageProcessor reads it. Source: its documentation of that class."""
    settings, (height, width) = model.preprocess_settings, image_size_px(model.clip)
    if settings.resize_mode == "shortest" and height == width:
        size: dict[str, int] = {"shortest_edge": height}
    else:
        size = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[settings.interpolation],
        "do_center_crop": settings.resize_mode == "shortest",
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def _write_tokenizer(model: DalipModel, folder: Path) -> None:
    """Raises: ConfigError for a tokenizer that has no such file."""
    tokenizer = model.tokenizer
    if isinstance(tokenizer, open_clip.HFTokenizer):
        tokenizer.tokenizer.save_pretrained(str(folder))
        return
    text_config = architecture_config(model.settings.architecture)["text_cfg"]
    if type(tokenizer) is not open_clip.SimpleTokenizer or text_config.get("tokenizer_kwargs"):
        raise ConfigError(f"{model.settings.architecture}: its tokenizer has no file of its own; nothing is written")
    content = json.dumps(_byte_pairs(tokenizer, int(model.clip.context_length)), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(content + "\n", encoding="utf-8")


def _byte_pairs(tokenizer: Any, context_length: int) -> dict[str, Any]:
    """open_clip's own tokenizer in the format of the `tokenizers` library, padded with 0 as open_clip pads.

    What is not in it: open_clip first repairs broken encodings (ftfy) and unescapes HTML.

    Source: the format's documentation, and transformers' conversion of the CLIP tokenizer for which parts are needed.
    """
    start, end = "<start_of_text>", "<end_of_text>"
    numbers = {start: tokenizer.sot_token_id, end: tokenizer.eot_token_id}
    pairs = sorted(tokenizer.bpe_ranks, key=lambda pair: tokenizer.bpe_ranks[pair])
    marks = [{"SpecialToken": {"id": name, "type_id": 0}} for name in (start, end)]
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": context_length, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": context_length}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!",
        },
        "added_tokens": [
            {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for name, number in numbers.items()
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [marks[0], {"Sequence": {"id": "A", "type_id": 0}}, marks[1]],
            "pair": [marks[0], *({"Sequence": {"id": name, "type_id": 0}} for name in "AB"), marks[1]],
            "special_tokens": {
                name: {"id": name, "ids": [number], "tokens": [name]} for name, number in numbers.items()
            },
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False,
            "vocab": tokenizer.encoder, "merges": [f"{left} {right}" for left, right in pairs],
        },
    }  # fmt: skip
