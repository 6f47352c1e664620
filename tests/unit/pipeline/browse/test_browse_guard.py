"""Who gets an answer: only the browser that holds the token, under the right name, from our own pages."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from pipeline.browse.app import PAGES

OTHER_ADDRESSES = ("/style.css", "/picture/00.jpg", "/image/00", "/nowhere")
HERE = "127.0.0.1:8123"


@pytest.mark.parametrize("path", [*(path for path, _ in PAGES), *OTHER_ADDRESSES])
def test_nothing_is_given_without_the_token(stranger: TestClient, path: str) -> None:
    assert stranger.get(path).status_code == 403


@pytest.mark.parametrize("token", ["", "the-right-toke", "the-right-token2", "THE-RIGHT-TOKEN", "é"])
def test_a_wrong_token_is_refused(stranger: TestClient, token: str) -> None:
    assert stranger.get("/", params={"open": token}).status_code == 403
    assert stranger.get("/", headers={"Cookie": f"plantmix-browse-8123={token}".encode()}).status_code == 403


def test_the_token_moves_into_a_cookie_of_this_site_alone(stranger: TestClient) -> None:
    answer = stranger.get("/?reason=http_404&open=the-right-token&q=a+b")
    assert (answer.status_code, answer.headers["location"]) == (303, f"http://{HERE}/?reason=http_404&q=a+b")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert stranger.get("/").status_code == 200


def test_the_token_leads_to_no_other_site(stranger: TestClient) -> None:
    for path in ("//evil.example/", "/\\evil.example/"):
        answer = stranger.get(f"http://{HERE}{path}", params={"open": "the-right-token"})
        assert answer.headers["location"].startswith(f"http://{HERE}/")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8123", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8123.x"])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 403
    assert client.get("/", params={"open": "the-right-token"}, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8123", "http://127.0.0.1:9"])
def test_another_origin_is_refused(client: TestClient, origin: str) -> None:
    assert client.get("/", headers={"Origin": origin}).status_code == 403
    assert client.get("/", headers={"Origin": f"http://{HERE}"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(client: TestClient, method: str) -> None:
    assert client.request(method, "/").status_code == 405


@pytest.mark.parametrize("path", ["/", "/nowhere", "/style.css", "/reasons"])
def test_every_answer_forbids_scripts_and_frames(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "script" not in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
