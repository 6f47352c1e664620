"""Pictures whose owners say in the file itself whether it may train a model: XMP packets, and signed C2PA manifests."""

from __future__ import annotations

import datetime
import io
import json
from functools import lru_cache
from typing import Any

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


@lru_cache(maxsize=1)
def _signer() -> Any:
    """Certificate chain and key of a signer of the tests' own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text: str) -> x509.Name:
        names = [
            (NameOID.COUNTRY_NAME, "DE"),
            (NameOID.ORGANIZATION_NAME, "PlantMix tests"),
            (NameOID.COMMON_NAME, text),
        ]
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in names])

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    usage = dict.fromkeys(others.split(), False)

    def certificate(subject: str, key: Any, *, is_root: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("root"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, **usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )
        if not is_root:
            email = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(email, critical=False)
        return builder.sign(root, hashes.SHA256())

    pem = serialization.Encoding.PEM
    chain = certificate("signer", leaf, is_root=False).public_bytes(pem) + certificate(
        "root", root, is_root=True
    ).public_bytes(pem)
    key = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return chain, key


def signed(entries: dict[str, Any], label: str = "cawg.training-mining", ingredient: bytes | None = None) -> bytes:
    """A JPEG with a C2PA manifest that holds a training and data mining assertion, signed by the tests."""
    import c2pa

    chain, key = _signer()
    assertions = [{"label": label, "data": {"entries": entries}}] if entries else []
    actions = {"label": "c2pa.actions", "data": {"actions": [{"action": "c2pa.created"}]}}
    definition = {
        "claim_generator_info": [{"name": "PlantMix tests"}],
        "format": "image/jpeg",
        "title": "a picture",
        "assertions": [*assertions, *([] if ingredient else [actions])],
    }
    settings = c2pa.Settings.from_dict({"verify": {"verify_after_sign": False, "verify_trust": False}})
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(b"es256", chain, key, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder(definition, c2pa.Context(settings)) as builder:
        if ingredient:
            parent = json.dumps({"title": "before", "relationship": "parentOf"})
            builder.add_ingredient(parent, "image/jpeg", io.BytesIO(ingredient))
        builder.sign(signer, "image/jpeg", io.BytesIO(encode(pixels(320, 240), quality=90)), out)
    return out.getvalue()
