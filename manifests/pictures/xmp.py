"""Values of an XMP packet by the names of their properties. Pure; a broken or hostile packet has none."""

from __future__ import annotations

from collections.abc import Collection

from manifests.services.untrusted import is_read_xml

_MAX_BYTES = 1 << 20
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_RESOURCE, _ITEM = f"{_RDF} resource", f"{_RDF} li"


def values_in(packet: bytes | str | None, names: Collection[str]) -> dict[str, list[str]]:
    """Return the values of each property, in their order: attributes, addresses, texts, and items of lists.

    Names are `NAMESPACE NAME`.
    """
    content = packet.encode(errors="replace") if isinstance(packet, str) else bytes(packet or b"")
    values: dict[str, list[list[str]]] = {name: [] for name in names}  # each in the pieces that the parser gives
    inside: list[list[list[str]]] = []  # the values of the property whose element is open

    def start(name: str, attributes: dict[str, str]) -> None:
        for key in values.keys() & attributes.keys():
            values[key].append([attributes[key]])
        if name in values:
            inside[:] = [values[name]]
        if inside and (name in values or name == _ITEM):
            inside[0].append([attributes.get(_RESOURCE, "")])

    def end(name: str) -> None:
        if name in values:
            inside.clear()

    def text(part: str) -> None:
        if inside:
            inside[0][-1].append(part)

    is_named = any(name.partition(" ")[0].encode() in content for name in names)
    if len(content) > _MAX_BYTES or not is_named:
        return {name: [] for name in names}
    if not is_read_xml(content.strip(b"\0 \r\n\t"), start, end, text):
        return {name: [] for name in names}
    joined = {name: ["".join(pieces).strip() for pieces in some] for name, some in values.items()}
    return {name: [value for value in some if value] for name, some in joined.items()}
