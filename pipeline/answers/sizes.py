"""Sizes of pictures without a download: HEAD requests under the same gate, address and consent rules.

Reads the network, writes nothing. A host that declares no length, or does not answer HEAD, gives no size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from manifests.contract.outcomes import Outcome
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import NetworkSettings

_ANY_SIZE = 1 << 62


def ask_sizes(urls: Sequence[str], settings: NetworkSettings) -> tuple[list[int], Counter[str]]:
    """Return the declared size of each picture, asked for as politely as fetch asks for the picture.

    How the others ended.

    Raises: ConfigError when a contact is needed.
    """
    settings.require_contact(urls)
    sizes, outcomes = list[int](), Counter[str]()
    client = HttpClient(settings, pictures_by_head=True)
    with client, Scheduler(urls, client, HostGate(settings), _ANY_SIZE) as scheduler:
        for _ in urls:
            _, download = scheduler.take()
            assert download is not None, "only give_back leaves rows unasked"
            if download.outcome is Outcome.OK and download.body.isdigit():
                sizes.append(int(download.body))
            else:
                outcomes["no_length" if download.outcome is Outcome.OK else download.outcome.value] += 1
    return sizes, outcomes
