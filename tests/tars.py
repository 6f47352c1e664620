"""Tars as other programs write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any


def tar_of(members: Iterable[tuple[str, bytes]], kind: int = tarfile.DEFAULT_FORMAT, mode: Any = "w") -> bytes:
    """A tar of files: of each its name and content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()
