"""Files of web servers. What a server refuses for now is not missing, and an empty file can be read."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import Any

from fsspec.implementations.http import HTTPFileSystem, HTTPStreamFile

from manifests.errors import no_ranges

_MISSING = (404, 410)


class WebFiles(HTTPFileSystem):  # type: ignore[misc]  # its base is Any: fsspec has no types
    """fsspec's client says of every refusal, also of 503, that the file is missing. And it asks for the same head again
    and again; here it is kept until `invalidate_cache`, as clients of stores keep their listings.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._heads: dict[str, dict[str, Any]] = {}

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        if url not in self._heads:
            try:
                self._heads[url] = dict(await super()._info(url, **options))
            except FileNotFoundError as error:
                if error.__cause__ is None or getattr(error.__cause__, "status", None) in _MISSING:
                    raise
                raise error.__cause__ from None
        return dict(self._heads[url])

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the head of a file, or of all."""
        super().invalidate_cache(path)
        if path is None:
            self._heads.clear()
        else:
            self._heads.pop(path, None)

    async def _exists(self, path: str, **options: Any) -> bool:
        try:  # its head is enough: fsspec would begin a download
            await self._info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        opened = super()._open(path, mode, **options)
        if not isinstance(opened, HTTPStreamFile):
            opened.cache.fetcher = functools.partial(_fetch, opened.url, opened.cache.fetcher)
            return opened
        if opened.r.headers.get("Content-Length") == "0":  # of an empty file there is no range
            opened.close()
            return io.BytesIO()
        opened.seek = functools.partial(_seek, opened)
        return opened


def _fetch(address: str, fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    try:
        return fetch(start, end)
    except ValueError:  # of a server that names a length, and sends no ranges
        raise no_ranges(address) from None


def _seek(stream: Any, offset: int, whence: int = os.SEEK_SET) -> int:
    try:
        HTTPStreamFile.seek(stream, offset, whence)
    except ValueError:
        raise no_ranges(stream.url) from None
    return int(stream.loc)
