"""The tokens of an open_clip model's towers, through open_clip's own `forward_intermediates`.

Takes an open_clip CLIP or CustomTextCLIP and changes nothing in it, so that everything written for open_clip still
works on it. Gives the usual pooled feature and, beside it, every token, the anchor, and which tokens are padding. Gives
up with ConfigError on towers without usable tokens: ResNets, attentional pooling, CoCa, convolutional timm trunks.

Texts may be shorter than the context, which open_clip's own towers do not take: a caption of 20 tokens need not pass
through 77 positions.

Shape letters: `B` batch, `M` tokens, `W` token width, `C` embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip

_CUT_STEP = 8
"""Texts end at a multiple of this, so that kernels and memory see few shapes."""


@dataclass(frozen=True)
class TowerOutput:
    """One tower on one batch: the pooled feature, which is the branch's anchor, and what else the branch takes."""

    feature: Tensor  # (B, C)
    tokens: Tensor  # (B, M, C)
    mask: Tensor | None  # (B, M), true for tokens that count; None: all of them


def image_tower(clip: Any, images: Tensor) -> TowerOutput:
    """Return the image tower; the class token is not among the tokens."""
    visual = clip.visual
    output = visual.forward_intermediates(
        images, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
    )
    tokens_BMW = output["image_intermediates"][-1]
    projection = visual.proj if hasattr(visual, "proj") else visual.head  # of timm towers
    return TowerOutput(output["image_features"], _project(tokens_BMW, projection), None)


def text_tower(clip: Any, tokens: Tensor, *, mask_padding: bool) -> TowerOutput:
    """Return the text tower; the pooled (EOT) token stays among the tokens."""
    if _is_hf_text(clip):
        return _hf_text_tower(clip.text, tokens)
    if tokens.shape[1] < clip.context_length:
        output = _short_text_tower(clip, tokens)
    elif hasattr(clip, "text"):
        output = clip.text.forward_intermediates(
            tokens, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
        )
    else:
        output = clip.forward_intermediates(text=tokens, text_indices=1, normalize_intermediates=True, normalize=False)
    text = getattr(clip, "text", clip)
    tokens_BMW = output["text_intermediates"][-1]
    mask_BM = _text_mask(clip, tokens) if mask_padding else None
    return TowerOutput(output["text_features"], _project(tokens_BMW, text.text_projection), mask_BM)


def text_feature(clip: Any, tokens: Tensor) -> Tensor:
    """Return the pooled feature (B, C) of token ids (B, M), which `cut_texts` may have cut."""
    if tokens.shape[1] < clip.context_length and not _is_hf_text(clip):
        short: Tensor = _short_text_tower(clip, tokens)["text_features"]
        return short
    feature_BC: Tensor = clip.encode_text(tokens)
    return feature_BC


def cut_texts(clip: Any, tokens: Tensor) -> Tensor:
    """Token ids without the positions behind the end of the longest text (B, M up to the next multiple of 8).

    Unchanged where the tower looks at them: without a causal mask, or when it does not pool at the end of the text. (A
    Hugging Face tower masks padding itself.) Waits for the device of `tokens`; give it those on the CPU.
    """
    if _is_hf_text(clip):
        used_M = (tokens != clip.text.config.pad_token_id).any(dim=0)
        end_B = used_M.nonzero()
    elif getattr(getattr(clip, "text", clip), "attn_mask", None) is not None:
        end_B = _end_of_text(clip, tokens)
    else:
        end_B = None
    if end_B is None or not end_B.numel():
        return tokens
    longest = int(end_B.max()) + 1
    return tokens[:, : -(-longest // _CUT_STEP) * _CUT_STEP]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and back to the former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def probe_width(clip: Any) -> int:
    """Width of the projected tokens and of the embedding, found by encoding one picture and one text.

    Raises: ConfigError for towers without usable tokens.
    """
    check_towers(clip)
    height, width = image_size_px(clip)
    reference = next(clip.parameters())
    images = torch.zeros(1, 3, height, width, device=reference.device, dtype=reference.dtype)
    tokens = torch.ones(1, clip.context_length, dtype=torch.long, device=reference.device)
    try:
        with evaluating(clip):
            outputs = {"image": image_tower(clip, images), "text": text_tower(clip, tokens, mask_padding=False)}
    except (AssertionError, AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
        # timm has no error of its own for a trunk without tokens. ConvNeXt and FastViT raise TypeError (timm 1.0.31);
        # others may lack a method, or fail an assertion or on a shape.
        kind = type(getattr(clip.visual, "trunk", clip.visual)).__name__
        raise ConfigError(
            f"this architecture gives no usable tokens (image tower {kind}: {error}); use a ViT or preset 'clip'"
        ) from error
    for side, output in outputs.items():
        feature, token = output.feature.shape, output.tokens.shape
        if len(feature) != 2 or len(token) != 3 or feature[-1] != token[-1]:
            raise ConfigError(
                f"the {side} tower's tokens {tuple(token)} do not fit its pooled feature {tuple(feature)}: use preset "
                "'clip'"
            )
    return int(outputs["image"].feature.shape[-1])


def check_towers(clip: Any) -> None:
    """Refuse, by name, the towers whose tokens open_clip does not give.

    Raises: ConfigError.
    """
    visual = clip.visual
    if isinstance(clip, open_clip.CoCa):
        raise ConfigError("CoCa has a captioning decoder that DALIP does not train; use a CLIP architecture")
    if isinstance(visual, open_clip.ModifiedResNet):
        raise ConfigError("the second-order branch needs tokens, a ResNet has none; use a ViT or preset 'clip'")
    if getattr(visual, "attn_pool", None) is not None:
        raise ConfigError(
            "the image tower pools by attention, its tokens are not in the embedding's space; "
            "use a ViT with pool_type 'tok' or 'avg', or preset 'clip'"
        )
    if _image_pool(visual) == "none":
        raise ConfigError("the image tower has pool_type 'none': no pooled feature to anchor on; use 'tok' or 'avg'")


def image_size_px(clip: Any) -> tuple[int, int]:
    """Height and width of the pictures the model takes (a ResNet of open_clip keeps one number)."""
    size = clip.visual.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _is_hf_text(clip: Any) -> bool:
    return isinstance(getattr(clip, "text", None), open_clip.HFTextEncoder)


def _project(tokens_BMW: Tensor, projection: Any) -> Tensor:
    """Project every token as the tower projects its pooled one: by a module, by a matrix, or not at all."""
    if projection is None:
        return tokens_BMW
    projected: Tensor = projection(tokens_BMW) if isinstance(projection, nn.Module) else tokens_BMW @ projection
    return projected


def _image_pool(visual: Any) -> str:
    """Return how the tower pools: open_clip's `pool_type`, or timm's `global_pool`."""
    trunk = getattr(visual, "trunk", None)
    return str(visual.pool_type if trunk is None else getattr(trunk, "global_pool", ""))


def _text_pool(clip: Any) -> tuple[str, int | None]:
    """Return how the text tower pools, and its end-of-text id if it looks for one."""
    text = getattr(clip, "text", None)
    if text is not None:
        return text.pool_type, text.eos_id
    return clip.text_pool_type, clip.text_eos_id


def _end_of_text(clip: Any, tokens: Tensor) -> Tensor | None:
    """Position of the token the tower pools at, when it pools at the end of the text."""
    pool, eos = _text_pool(clip)
    if getattr(getattr(clip, "text", None), "cls_emb", None) is not None:
        return None
    if pool == "argmax":
        return tokens.argmax(dim=-1)
    if pool == "eos" and eos is not None:
        return torch.eq(tokens, eos).int().argmax(dim=-1)
    return None


def _text_mask(clip: Any, tokens: Tensor) -> Tensor:
    """Return true up to and including the end of the text; where the tower pools elsewhere, for all but padding."""
    end_B = _end_of_text(clip, tokens)
    if end_B is not None:
        return torch.arange(tokens.shape[1], device=tokens.device) <= end_B.unsqueeze(1)
    pad = getattr(getattr(clip, "text", clip), "pad_id", 0)
    mask_BM = tokens != pad
    # A text of padding alone still needs one token.
    return mask_BM | (~mask_BM.any(dim=1, keepdim=True) & (torch.arange(tokens.shape[1], device=tokens.device) == 0))


def _short_text_tower(clip: Any, tokens: Tensor) -> dict[str, Any]:
    """open_clip's `forward_intermediates` of a causal text tower, over the first M of its positions."""
    text, length = getattr(clip, "text", clip), tokens.shape[1]
    cast_dtype = text.transformer.get_cast_dtype()
    hidden_BMW = text.token_embedding(tokens).to(cast_dtype) + text.positional_embedding[:length].to(cast_dtype)
    hidden_BMW = text.transformer(hidden_BMW, attn_mask=text.attn_mask[:length, :length])
    hidden_BMW = text.ln_final(hidden_BMW)
    pool, end_id = _text_pool(clip)
    pooled_BW = open_clip.text_global_pool(hidden_BMW, tokens, pool, eos_token_id=end_id)
    return {"text_features": _project(pooled_BW, text.text_projection), "text_intermediates": [hidden_BMW]}


def _hf_text_tower(text: Any, tokens: Tensor) -> TowerOutput:
    """Return a Hugging Face tower: the calls of open_clip's own adapter, with the hidden states kept.

    Padding is always masked. Attention never looks at it, so its hidden states mean nothing.
    """
    attention = (tokens != text.config.pad_token_id).long()
    hidden = text.transformer(input_ids=tokens, attention_mask=attention)
    pooled_BW, tokens_BMW = text.pooler(hidden, attention), hidden.last_hidden_state
    return TowerOutput(text.proj(pooled_BW), text.proj(tokens_BMW), attention.bool())
