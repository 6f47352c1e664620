"""Files of web servers. What a server refuses for now is not missing, and an empty file can be read."""

from __future__ import annotations

import functools
import io
import os
from typing import Any

from fsspec.implementations.http import HTTPFileSystem, HTTPStreamFile

from manifests.errors import no_ranges

_MISSING = (404, 410)


class WebFiles(HTTPFileSystem):  # type: ignore[misc]  # its base is Any: fsspec has no types
    """fsspec's client says of every refusal, also of 503, that the file is missing."""

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        try:
            return dict(await super()._info(url, **options))
        except FileNotFoundError as error:
            if error.__cause__ is None or getattr(error.__cause__, "status", None) in _MISSING:
                raise
            raise error.__cause__ from None

    async def _exists(self, path: str, **options: Any) -> bool:
        try:  # its head is enough: fsspec would begin a download
            await self._info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        opened = super()._open(path, mode, **options)
        if not isinstance(opened, HTTPStreamFile):
            return opened
        if opened.r.headers.get("Content-Length") == "0":  # of an empty file there is no range
            opened.close()
            return io.BytesIO()
        opened.seek = functools.partial(_seek, opened)
        return opened


def _seek(stream: Any, offset: int, whence: int = os.SEEK_SET) -> int:
    try:
        HTTPStreamFile.seek(stream, offset, whence)
    except ValueError:
        raise no_ranges(stream.url) from None
    return int(stream.loc)
