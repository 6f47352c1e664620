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
    """An HTTP file system that tells a refusal from a missing file, and keeps heads until `invalidate_cache`.

    fsspec's client calls a file missing after every refusal, also after 503, and asks for the same head each time.
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

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return a file, or a range of it.

        Raises: NoRangesError where the server sends the file whole, and more than the range begins with.
        """
        if start is None or end is None:
            return bytes(await super()._cat_file(url, start, end, **options))
        headers = {**self.kwargs.get("headers", {}), "Range": f"bytes={start}-{end - 1}"}
        session = await self.set_session()
        async with session.get(self.encode_url(url), **{**self.kwargs, **options, "headers": headers}) as answer:
            if answer.status == 416:  # behind the end
                return b""
            self._raise_not_found_for_status(answer, url)
            pieces, left = [], end - start
            if answer.status == 206 or start == 0:
                async for piece in answer.content.iter_any():
                    pieces.append(piece)
                    left -= len(piece)
                    if left < 0:
                        break
            if left < 0 or (answer.status != 206 and start > 0):
                answer.close()
                raise no_ranges(url)
            return b"".join(pieces)

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
