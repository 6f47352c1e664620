"""Secrets in addresses, alone and within any text: taken out whole, and nothing else changed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import ConfigError
from manifests.masking import hide_in, hide_in_address, hide_secrets, hide_users
from manifests.stores.clients import filesystem

HIDDEN = [
    ("http://user:pw@a.example/1.jpg", "http://a.example/1.jpg"),
    ("https://user@a.example/1.jpg", "https://a.example/1.jpg"),
    ("https://:pw@a.example:8443/1.jpg", "https://a.example:8443/1.jpg"),
    ("https://u:p@ss@a.example/1.jpg", "https://a.example/1.jpg"),
    ("https://u:p/w@a.example/1.jpg", "https://a.example/1.jpg"),
    ("https://u:p?w#x@a.example/1.jpg", "https://a.example/1.jpg"),
    ("https://u:pw@[::1]:80/1.jpg", "https://[::1]:80/1.jpg"),
    ("HTTPS://U:PW@A.example/1.jpg", "HTTPS://A.example/1.jpg"),
    ("s3://key:secret@bucket/1.jpg", "s3://bucket/1.jpg"),
    ("http://a.example/1.jpg?token=t0k&w=640", "http://a.example/1.jpg?token=***&w=640"),
    ("http://a.example/1.jpg?w=1&access_token=x&apikey=y&key=z", "http://a.example/1.jpg?w=1&access_token=***&apikey=***&key=***"),
    ("http://a.example/1?X-Amz-Signature=a&X-Amz-Date=b", "http://a.example/1?X-Amz-Signature=***&X-Amz-Date=***"),
    ("http://a.example/1?sv=1&sig=a%2Bb", "http://a.example/1?sv=1&sig=***"),
    ("http://a.example/1#access_token=abc", "http://a.example/1#access_token=***"),
    ("http://a.example/1?u=http%3A%2F%2Fme%3Apw%40b.example", "http://a.example/1?u=***"),
    ('{"page": "http://u:pw@a.example/?token=x", "n": 1}', '{"page": "http://a.example/?token=***", "n": 1}'),
    ("see http://u:pw@a.example/1 and http://b.example/?sig=x", "see http://a.example/1 and http://b.example/?sig=***"),
    ("http://a.example/?w=1&amp;token=x", "http://a.example/?w=1&amp;token=***"),
]  # fmt: skip
UNTOUCHED = [
    "http://a.example/1.jpg",
    "http://a.example:8080/1.jpg",
    "http://a.example:8080/@user/1.jpg",
    "http://a.example/photos/me@home.jpg",
    "http://a.example/1.jpg?id=12345&size=large&hash=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b",
    "http://a.example/1.jpg#top",
    "Rosa canina, mail me@a.example?",
    "gbif:12345",
    "folder/name@0+12",
    "",
]


@pytest.mark.parametrize(("text", "shown"), HIDDEN)
def test_secrets_are_taken_out(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


@pytest.mark.parametrize("text", UNTOUCHED)
def test_all_else_stays(text: str) -> None:
    assert hide_secrets(text) == hide_users(text) == text


def test_an_id_keeps_the_token_and_not_the_password() -> None:
    assert hide_users("http://u:pw@a.example/1?token=x") == "http://a.example/1?token=x"


@given(st.text(), st.sampled_from(["token", "sig", "X-Amz-Signature", "api_key", "password"]))
def test_whatever_the_secret_it_is_gone_and_json_stays_json(noise: str, name: str) -> None:
    texts = {"url": f"http://user:hunter2secret@a.example/x?{name}=hunter2secret", "noise": noise}
    shown = hide_secrets(json.dumps(texts, ensure_ascii=False))
    assert "hunter2secret" not in shown
    assert json.loads(shown)["url"] == f"http://a.example/x?{name}=***"


def test_free_values_of_a_configuration_are_hidden_by_their_names_too() -> None:
    config = {
        "table": "s3://key:pw@bucket/t.csv",
        "columns": {"record_key": "id", "url": "link"},
        "options": {
            "api_token": "abc",
            "password": 1234,
            "auth": {"user": "eve", "parts": ["a", "b"], "on": True},
            "nested": [{"secret": "x", "weights": "https://h.example/w.bin?sig=abc&v=2"}],
            "label": "eyJhbGciOi.eyJzdWIi.c2ln",
            "threshold": 0.5,
        },
    }
    hidden = hide_in(config)
    assert hidden == {
        "table": "s3://bucket/t.csv",
        "columns": {"record_key": "id", "url": "link"},
        "options": {
            "api_token": "***",
            "password": "***",
            "auth": {"user": "***", "parts": ["***", "***"], "on": True},
            "nested": [{"secret": "***", "weights": "https://h.example/w.bin?sig=***&v=2"}],
            "label": "***",
            "threshold": 0.5,
        },
    }
    assert hide_in(hidden) == hidden


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("bucket.example.org/a.jpg?X-Amz-Signature=S", "bucket.example.org/a.jpg?X-Amz-Signature=***"),
        ("user:pw@host.example/b.jpg", "host.example/b.jpg"),
        ("//user:pw@host.example/b.jpg", "//host.example/b.jpg"),
        ("https://user:pw@host.example/b.jpg?token=t", "https://host.example/b.jpg?token=***"),
        ("pictures/b.jpg?size=large#top", "pictures/b.jpg?size=large#top"),
        ("pictures/b.jpg", "pictures/b.jpg"),
    ],
)
def test_an_address_is_masked_whatever_it_lacks(address: str, shown: str) -> None:
    assert hide_in_address(address) == shown
    assert hide_in_address(shown) == shown


@pytest.mark.parametrize(
    "address", ["s3://KEY:hunter2@bucket/a.csv", "s3://KEY:hun/ter2@bucket/a.csv", "gs://u@bucket/a"]
)
def test_an_address_of_a_bucket_holds_no_credentials(address: str) -> None:
    with pytest.raises(ConfigError, match="holds credentials; give them by the environment") as told:
        filesystem(address)
    assert "ter2" not in str(told.value)
