"""The statement inside a picture: may it train a model? Read before metadata is removed, from IPTC's field in XMP.

Bytes in, words out; no file, no network. What cannot be understood forbids nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from PIL import Image

from manifests.pictures.xmp import values_in

IPTC = "XMP plus:DataMining"
MARKS = {"iptc_data_mining": IPTC}
"""How the words about a picture begin, by the setting's name of the signal."""

_PROPERTY = "http://ns.useplus.org/ldf/xmp/1.0/ DataMining"
# Source: PLUS, "Data Mining" of the License Data Format vocabulary, as in the IPTC Photo Metadata Standard 2023.1.
_PROHIBITED = "DMI-PROHIBITED"


def refusal_of(image: Image.Image) -> str | None:
    """Return an open picture's refusal of training, such as `XMP plus:DataMining: DMI-PROHIBITED`.

    None when nothing.
    """
    value = data_mining(image.info.get("xmp"))
    return f"{IPTC}: {value}" if value else None


def counting(detail: str, signals: Collection[str]) -> bool:
    """Return true when the words about a picture hold a signal that counts."""
    return any(f"{MARKS[name]}:" in detail for name in signals if name in MARKS)


def data_mining(packet: bytes | str | None) -> str | None:
    """Return the value of PLUS DataMining in an XMP packet that forbids training; None when none does.

    Every value that begins with DMI-PROHIBITED forbids it: also the one for generative models alone, because a release
    may train any model, and those that refer to conditions that no machine can read.
    """
    ends = (value.rpartition("/")[2] for value in values_in(packet, (_PROPERTY,))[_PROPERTY])
    return next((value for value in ends if value.startswith(_PROHIBITED)), None)
