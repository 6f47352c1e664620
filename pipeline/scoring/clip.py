"""The CLIP score: cosine similarity of an image and its text by an open_clip model, by name or local weights.

Reads weights from disk, or lets open_clip download the weights of a tag before any work.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.services import model_hub
from manifests.services import open_clip_api as open_clip
from manifests.services.packages import require
from manifests.stores import storage
from pipeline.scoring.settings import CLIP


class ClipScorer:
    """An open_clip model. `precision` is fp32, bf16 or fp16; a CPU computes on one thread, so that scores repeat.

    `where` names the part of the config in messages.
    """

    name = CLIP

    def __init__(
        self, model: str, pretrained: str, precision: str = "fp32", device: str = "cpu", where: str = "score"
    ) -> None:
        self._model, self._pretrained, self._precision, self._device = model, pretrained, precision, device
        self._where = where
        self._net: Any = None

    def check(self) -> None:
        """Make sure that the model is known and its weights are there; the weights of a tag are downloaded now.

        Raises: ConfigError when open_clip is not installed, or the model or its weights cannot be loaded.
        """
        require(f"{self._where}.model", "open_clip", "torch")
        model = _register_model(self._model)
        if model not in open_clip.list_models():
            raise ConfigError(
                f"{self._where}.model: open_clip knows no model '{self._model}'; take a name of "
                "open_clip.list_models() or the path of a model config (.json)"
            )
        if storage.exists(self._pretrained):
            return
        tags = open_clip.list_pretrained_tags_by_model(model)
        if self._pretrained not in tags:
            raise ConfigError(
                f"{self._where}.pretrained: '{self._pretrained}' is neither a file nor a tag of {self._model} "
                f"({', '.join(tags) or 'it has none'})"
            )
        self._check_activation(model)
        model_hub.download_weights(model, self._pretrained, f"{self._where}.pretrained")

    def _check_activation(self, model: str) -> None:
        """Refuse a tag that was trained with another activation: open_clip only warns, and its scores are wrong."""
        config = open_clip.get_model_config(model)
        trained = open_clip.get_pretrained_cfg(model, self._pretrained).get("quick_gelu", False)
        if trained and not config.get("quick_gelu", False) and "timm_model_name" not in config["vision_cfg"]:
            raise ConfigError(
                f"{self._where}: the weights '{self._pretrained}' were trained with QuickGELU, {self._model} computes "
                f"GELU: take the model {model}-quickgelu"
            )

    def load(self) -> None:
        """Load the model and its weights on the device."""
        import torch

        if self._device == "cpu":
            torch.set_num_threads(1)  # the sum of the threads' parts would depend on how many there are
        name = _register_model(self._model)
        with ExitStack() as during:
            if not storage.exists(self._pretrained):
                during.enter_context(model_hub.cache_without_hub())
                model_hub.download_weights(name, self._pretrained, f"{self._where}.pretrained")
            try:
                self._net, _, self._preprocess = open_clip.create_model_and_transforms(
                    name, pretrained=self._pretrained, precision=self._precision, device=self._device
                )
            except (RuntimeError, OSError, pickle.UnpicklingError) as error:
                text = " ".join(str(error).split())
                if "weights_only" in text:  # torch would have the user run the code in the file
                    text = "it holds more than tensors and plain values, and code in a file is never run"
                raise ConfigError(f"{self._where}: {self._model} cannot load {self._pretrained}: {text:.300}") from None
            self._tokenize = open_clip.get_tokenizer(name)
        self._net.eval()
        self._dtype = open_clip.get_input_dtype(self._precision)

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """Cosine similarities, -1 to 1."""
        scores: list[float] = (self._encode(images) * self._encode_texts(texts)).sum(-1).cpu().tolist()
        return scores

    def embed(self, images: Sequence[Any]) -> Any:
        """Embeddings of length 1, float32 (images, D)."""
        return self._encode(images).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> Any:
        """Embeddings of length 1, float32 (texts, D)."""
        return self._encode_texts(texts).cpu().numpy()

    @property
    def logit_scale(self) -> float:
        """Return the factor of cosines before a softmax."""
        return float(self._net.logit_scale.detach().exp())

    def _encode(self, images: Sequence[Any]) -> Any:
        import torch

        pixels = torch.stack([self._preprocess(image) for image in images]).to(self._device, self._dtype)
        with torch.inference_mode():
            return self._net.encode_image(pixels, normalize=True).float()

    def _encode_texts(self, texts: Sequence[str]) -> Any:
        import torch

        with torch.inference_mode():
            return self._net.encode_text(self._tokenize(list(texts)).to(self._device), normalize=True).float()


def _register_model(model: str) -> str:
    """Return the name by which open_clip knows a model; a config file is registered with it first."""
    if not model.endswith(".json") or not Path(model).is_file():
        return model
    open_clip.add_model_config(model)
    return Path(model).stem
