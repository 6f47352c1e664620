"""How large pictures are, without downloading them: HEAD requests under the same gate, address and consent rules.

Reads the network, writes nothing. A host that declares no length, or does not answer HEAD, gives no size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from manifests.outcomes import Outcome
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import NetworkSettings

_ANY_SIZE = 1 << 62


@dataclass
class Sizes:
    """What a sample of addresses answered: the declared sizes, and how many of the others ended how."""

    num_bytes: list[int] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)


def ask_sizes(urls: Sequence[str], settings: NetworkSettings) -> Sizes:
    """Ask for the size of each picture, as politely as fetch asks for the picture itself.

    Raises: ConfigError when a contact is needed.
    """
    settings.require_contact(urls)
    sizes = Sizes()
    with HeadClient(settings) as client, Scheduler(urls, client, HostGate(settings), _ANY_SIZE) as scheduler:
        for _ in urls:
            _, download = scheduler.take()
            assert download is not None, "only give_back leaves rows unasked"
            if download.outcome is Outcome.OK and download.body.isdigit():
                sizes.num_bytes.append(int(download.body))
            else:
                outcome = "no_length" if download.outcome is Outcome.OK else download.outcome.value
                sizes.outcomes[outcome] = sizes.outcomes.get(outcome, 0) + 1
    return sizes


class HeadClient(HttpClient):
    """An HttpClient that asks for pictures with HEAD, and gives the declared length as the body, `?` where none is.

    The files of a site are still read with GET.
    """

    pictures_by_head = True
