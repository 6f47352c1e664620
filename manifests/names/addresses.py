"""Equality of picture addresses, one answer for evaluation lists, takedowns and `plantmix audit`.

Gives SQL over a column of addresses. A photo of iNaturalist is known by its number, in any size and from either of its
hosts. Other addresses are equal without their scheme, `www.`, the usual port, a fragment and slashes at the end, with
the host in any case. Queries and escapes count: they may lead to other pictures.
"""

from __future__ import annotations

VERSION = 1
_SCHEME = "^(?:[a-zA-Z][a-zA-Z0-9+.-]*://)?"
_HOST = rf"{_SCHEME}(?:[wW]{{3}}\.)?([^/?#]*)"
_REST = f"{_SCHEME}[^/?#]*([^#]*)"
_PHOTO = (
    r"^https?://(?:static\.inaturalist\.org|(?:www\.)?inaturalist\.org|inaturalist-open-data\.s3[a-z0-9.-]*"
    r"\.amazonaws\.com)/photos/([0-9]+)(?:[/?#]|$)"
)


def address_key(url: str) -> str:
    """Return SQL for the same text for all addresses of a picture that the column or expression `url` may hold.

    Null for none.
    """
    host = f"regexp_replace(lower(regexp_extract({url}, '{_HOST}', 1)), ':(80|443)$', '')"
    plain = f"{host} || rtrim(regexp_extract({url}, '{_REST}', 1), '/')"
    number = f"nullif(regexp_extract({url}, '{_PHOTO}', 1, 'i'), '')"
    photo = f"CASE WHEN contains({url}, '/photos/') THEN 'inaturalist photo ' || {number} END"
    return f"nullif(coalesce({photo}, {plain}), '')"
