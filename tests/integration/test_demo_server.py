from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from pipeline.demo.server import HOST, serving


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    (folder / "schöne bilder").mkdir(parents=True)
    (folder / "robots.txt").write_text("User-agent: *\nAllow: /\n")
    (folder / "a.png").write_bytes(b"\x89PNG" + bytes(200_000))
    (folder / "page.jpg").write_bytes(b"<!DOCTYPE html>")
    (folder / "empty.gif").write_bytes(b"")
    (folder / "schöne bilder" / "plant 1.jpg").write_bytes(b"\xff\xd8jpeg")
    (tmp_path / "secret.txt").write_text("outside")
    return folder


def _ask(connection: http.client.HTTPConnection, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type", ""), answer.read()


def test_everything_over_one_connection_that_stays_open(web: Path) -> None:
    with serving(web) as server:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=600)
        assert _ask(connection, "/a.png") == (200, "image/png", (web / "a.png").read_bytes())
        own_socket = connection.sock
        assert own_socket is not None
        assert _ask(connection, "/gone/1.jpg")[0] == 404
        assert _ask(connection, "/page.jpg") == (200, "image/jpeg", b"<!DOCTYPE html>")
        assert _ask(connection, "/empty.gif") == (200, "image/gif", b"")
        assert _ask(connection, "/sch%C3%B6ne%20bilder/plant%201.jpg?size=big") == (200, "image/jpeg", b"\xff\xd8jpeg")
        assert _ask(connection, "/robots.txt") == (200, "text/plain", b"User-agent: *\nAllow: /\n")
        assert _ask(connection, "/a.png", "HEAD") == (200, "image/png", b"")
        assert _ask(connection, "/gone/1.jpg", "HEAD")[0] == 404
        assert _ask(connection, "/", "GET")[0] == 404
        assert connection.sock is own_socket
        connection.close()


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/a.png/../../secret.txt"])
def test_nothing_outside_the_folder_is_served(web: Path, path: str) -> None:
    with serving(web) as server:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=600)
        assert _ask(connection, path)[0] == 404
        connection.close()


def test_a_null_byte_in_a_path_is_not_found(web: Path) -> None:
    with serving(web) as server:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=600)
        assert _ask(connection, "/a%00.png")[0] == 404
        connection.close()


def test_the_port_is_kept_while_it_is_free_and_replaced_when_it_is_not(web: Path, tmp_path: Path) -> None:
    with serving(web) as first, serving(tmp_path, first.port) as second:
        assert second.port not in (0, first.port)
    with serving(web, first.port) as again:
        assert again.port == first.port
