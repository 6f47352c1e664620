"""The weights of a tag: found in the cache without a network, asked for once, and never waited for long."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import open_clip.pretrained
import pytest
from huggingface_hub import constants

from manifests.errors import ConfigError
from manifests.services.model_hub import cache_without_hub, download_weights

HERE = "model.pretrained: the weights 'tag' of tiny are not on this machine"


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tag of one's own, an empty cache, and a port at which nothing listens."""
    known = {"tiny": {"tag": {"hf_hub": "someone/tiny/"}}}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", known)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_cached_weights_need_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=HERE):
        download_weights("tiny", "tag", "model.pretrained")
    repository = tmp_path / "models--someone--tiny"
    for path, content in (("refs/main", "a1b2"), ("snapshots/a1b2/open_clip_model.safetensors", "weights")):
        (repository / path).parent.mkdir(parents=True)
        (repository / path).write_text(content, encoding="utf-8")
    download_weights("tiny", "tag", "model.pretrained")


def test_the_hub_client_can_be_told_to_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=rf"{HERE} and cannot be downloaded \(HF_HUB_OFFLINE is set\)"):
        download_weights("tiny", "tag", "model.pretrained")


def test_one_moment_without_a_network_does_not_cut_a_process_off() -> None:
    with cache_without_hub() as silence:
        assert "http://127.0.0.1:9 does not answer" in silence
        with cache_without_hub() as inner:
            assert inner == silence, "asked once"
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.slow
def test_a_dead_resolver_does_not_hold_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*arguments: Any, **options: Any) -> Any:
        over.wait(600)
        raise OSError("no name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 does not answer within 4 seconds"):
        download_weights("tiny", "tag", "model.pretrained")
    over.set()
