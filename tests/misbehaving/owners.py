"""Pictures whose owners say in the file itself, in an XMP packet, whether it may train a model."""

from __future__ import annotations

from misbehaving.answers import encode, pixels
from PIL import Image, PngImagePlugin

PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def xmp(description: str, attributes: str = "", before: str = "") -> bytes:
    """A packet as Adobe's tools write it."""
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{before}<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:plus="{PLUS}" {attributes}>{description}'
        '</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def mining(value: str) -> bytes:
    """A packet that says one value of PLUS DataMining."""
    return xmp("", f'plus:DataMining="{VOCABULARY}{value}"')


def with_xmp(packet: bytes, kind: str = "JPEG", image: Image.Image | None = None) -> bytes:
    """A picture that carries an XMP packet; a PNG has it compressed."""
    image = image or pixels(320, 240)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=True)
        return encode(image, "PNG", pnginfo=info)
    if kind == "TIFF":
        return encode(image, "TIFF", tiffinfo={700: packet})
    return encode(image, kind, xmp=packet)
