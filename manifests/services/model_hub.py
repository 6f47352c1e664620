"""Weights of open_clip's tags, and whole models, from the model hub or its cache on this machine.

Gives up with ConfigError in seconds.

Without a network the hub's own client tries each file six times, a minute in all, and prints every try. So it is asked
once whether the hub answers; if not, the client is told to look in its cache alone, until the work at hand is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError
from manifests.services import open_clip_api as open_clip

PATIENCE_SECONDS = 4.0
HUB = "hf-hub:"  # open_clip's word for a repository of the hub

_silence = ""  # why the client looks in its cache alone, while that is our doing


def download_weights(model: str, tag: str, key: str) -> None:
    """Make sure that the weights of a tag are in the cache. `key` names the setting that holds the tag, for messages.

    Raises: ConfigError when they are neither there nor to be had.
    """
    import huggingface_hub

    source = open_clip.get_pretrained_cfg(model, tag)
    with cache_without_hub() as silence:
        try:
            open_clip.download_pretrained(source)
        except Exception as error:  # hub, HTTP and cache errors of several libraries: there are no weights
            repository, _, file = source.get("hf_hub", "").rpartition("/")
            file = file or open_clip.HF_SAFE_WEIGHTS_NAME
            reason = silence or " ".join(str(error).split())[-300:]
            cache = huggingface_hub.constants.HF_HUB_CACHE
            raise ConfigError(
                f"{key}: the weights '{tag}' of {model} are not on this machine and cannot be downloaded ({reason}). "
                f"Where there is a network, run `hf download {repository} {file}`, and copy "
                f"the folder models--{repository.replace('/', '--')} that it writes into {cache}; or set {key} to the "
                "path of a file of weights, which is then read with CLIP's own mean and std"
            ) from None


def fetch_model(name: str, *more: str) -> Path:
    """Return the folder in the hub's cache of a model in open_clip's layout, named as open_clip does.

    `hf-hub:OWNER/NAME`.

    open_clip downloads its config and weights. Files of `more` come along where the repository has them.

    Raises: ConfigError when it is neither there nor to be had.
    """
    repository = name.removeprefix(HUB)
    with cache_without_hub() as silence:
        try:
            config = open_clip.download_pretrained_from_hf(repository, filename="open_clip_config.json")
            open_clip.download_pretrained_from_hf(repository)
        except Exception as error:  # as above
            raise ConfigError(
                f"{name}: is not on this machine and cannot be downloaded as a model of open_clip "
                f"({silence or ' '.join(str(error).split())[-300:]}); check the name, or give a folder"
            ) from None
        for file in more:
            with suppress(Exception):
                open_clip.download_pretrained_from_hf(repository, filename=file)
    return Path(config).parent


@contextmanager
def cache_without_hub() -> Iterator[str]:
    """Within it the hub's client looks in its cache alone, if the hub does not answer; gives why not, "" if it does.

    The outermost one asks the hub. Afterwards the client may use the network again, so that one moment without it does
    not cut off a process that lives long.
    """
    global _silence
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield _silence or "HF_HUB_OFFLINE is set"
        return
    _silence = _why_silent(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = bool(_silence)
    try:
        yield _silence
    finally:
        constants.HF_HUB_OFFLINE, _silence = False, ""


def _why_silent(endpoint: str) -> str:
    """Why the hub does not answer; any answer counts, a refusal too. In a thread: a dead resolver hangs for long."""
    from huggingface_hub import utils

    client: Any = utils  # half typed
    answers: list[str] = []

    def ask() -> None:
        try:
            client.get_session().head(endpoint, timeout=PATIENCE_SECONDS)
            answers.append("")
        except Exception as error:  # of whichever HTTP library the client uses
            answers.append(f"{endpoint} does not answer: {error}")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return answers[0] if answers else f"{endpoint} does not answer within {PATIENCE_SECONDS:g} seconds"
