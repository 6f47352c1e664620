"""What a picture says of itself: may it train a model? Read from its bytes, before metadata is removed.

IPTC's field in XMP is always read. C2PA's assertion is read where it counts, because its library is an extra.
Bytes in, words out; no file, no network. What cannot be understood forbids nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from typing import Any

from PIL import Image

from manifests.pictures.xmp import values_in
from manifests.services.packages import require

IPTC = "XMP plus:DataMining"
C2PA = "C2PA training-mining"
MARKS = {"iptc_data_mining": IPTC, "c2pa_training": C2PA}
"""How the words about a picture begin, by the setting's name of the signal."""

_PROPERTY = "http://ns.useplus.org/ldf/xmp/1.0/ DataMining"
# Source: PLUS, "Data Mining" of the License Data Format vocabulary, as in the IPTC Photo Metadata Standard 2023.1.
_PROHIBITED = "DMI-PROHIBITED"
# Source: CAWG, "Training and Data Mining Assertion" 1.1 (2025-05-06); C2PA 1.4 for the labels that begin with c2pa.
_ASSERTIONS = ("cawg.training-mining", "c2pa.training-mining")
_USES = ("ai_training", "ai_generative_training", "data_mining")
_NOT_ALLOWED = ("notAllowed", "constrained")
_NO_NETWORK = {
    "verify": {"verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "core": {"decode_identity_assertions": False},
}


def refusal_of(image: Image.Image, body: bytes, *, with_c2pa: bool) -> str | None:
    """What an open picture says against training, such as `XMP plus:DataMining: DMI-PROHIBITED`; None when nothing."""
    refusals = []
    if value := data_mining(image.info.get("xmp")):
        refusals.append(f"{IPTC}: {value}")
    if with_c2pa and may_hold_c2pa(body) and (use := c2pa_training(body)):
        refusals.append(f"{C2PA}: {use}")
    return "; ".join(refusals) or None


def may_hold_c2pa(body: bytes) -> bool:
    """False where a picture has no C2PA manifest."""
    return b"jumb" in body and b"c2pa" in body


def require_library(signals: Collection[str]) -> None:
    """Raises: ConfigError when C2PA's assertion is to be read, and its library is not installed."""
    if "c2pa_training" in signals:
        require("fetch.network.consent_signals: c2pa_training", "c2pa")


def counting(detail: str, signals: Collection[str]) -> bool:
    """True when the words about a picture hold a signal that counts."""
    return any(f"{MARKS[name]}:" in detail for name in signals if name in MARKS)


def data_mining(packet: bytes | str | None) -> str | None:
    """The value of PLUS DataMining in an XMP packet that forbids training; None when none does.

    Every value that begins with DMI-PROHIBITED forbids it: also the one for generative models alone, because a release
    may train any model, and those that refer to conditions that no machine can read.
    """
    ends = (value.rpartition("/")[2] for value in values_in(packet, (_PROPERTY,))[_PROPERTY])
    return next((value for value in ends if value.startswith(_PROHIBITED)), None)


def c2pa_training(body: bytes) -> str | None:
    """The use that a manifest within the bytes does not allow, such as `ai_training=notAllowed`; None when none.

    All manifests count, those of the pictures that it was made from too. Whether a signature holds is not asked: nobody
    forges a refusal. Nothing is fetched.
    """
    import c2pa

    context = c2pa.Context(c2pa.Settings.from_dict(_NO_NETWORK))
    try:
        with c2pa.Reader(None, io.BytesIO(body), context=context) as reader:
            manifests: dict[str, Any] = json.loads(reader.json()).get("manifests", {})
    except (c2pa.C2paError, ValueError):
        return None
    for manifest in manifests.values():
        for assertion in manifest.get("assertions", ()):
            if str(assertion.get("label", "")).split("__")[0] in _ASSERTIONS:
                entries = (assertion.get("data") or {}).get("entries") or {}
                for label, entry in entries.items():
                    name, use = str(label).rpartition(".")[2], entry.get("use") if isinstance(entry, dict) else entry
                    if name in _USES and use in _NOT_ALLOWED:
                        return f"{name}={use}"
    return None
