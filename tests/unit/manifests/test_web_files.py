"""A web server is asked for the head of a file once, and again where it must be as it is now."""

from __future__ import annotations

from typing import Any

import pytest
import range_server

from manifests.errors import ConfigError
from manifests.stores import stamps, storage


def test_a_head_is_kept_until_the_file_is_asked_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = range_server._Handler.do_HEAD

    def do_head(handler: Any) -> None:
        asked.append(handler.path)
        answer(handler)

    monkeypatch.setattr(range_server._Handler, "do_HEAD", do_head)
    with range_server.serving_ranges() as server:
        server.put("0.tar", b"before", etag="1")
        address = f"{server.address}/0.tar"
        assert storage.exists(address)
        assert storage.size_of(address) == 6
        before = stamps.look(address)
        with storage.open_file(address) as stream:
            assert stream.read() == b"before"
        assert asked == ["/0.tar"]
        server.put("0.tar", b"after it", etag="2")
        assert stamps.look(address) == before
        assert stamps.look(address, now=True) == ('8-"2"', 8)
        assert asked == ["/0.tar"] * 2
        assert not storage.exists(f"{server.address}/1.tar")
        server.put("1.tar", b"it came")
        assert storage.exists(f"{server.address}/1.tar"), "what is missing is asked for again"


def test_a_server_without_ranges_is_named_with_the_cure() -> None:
    """A parser that begins at the end of a file, as Parquet's, was told to open it with other options."""
    with range_server.serving_ranges() as server:
        server.put("a.parquet", bytes(20 << 20))
        server.choose = lambda name, start: "whole"
        with storage.open_file(f"{server.address}/a.parquet") as stream:
            stream.seek(15 << 20)
            with pytest.raises(ConfigError, match="sends files whole, not in ranges; download it"):
                stream.read(8)
