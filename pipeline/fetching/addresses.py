"""Names to addresses, and which addresses may be asked: public ones, and those that the config allows.

Resolves through the system, with a cache and a time limit. Gives up with LookupFailed (no address) or
TargetRefused (none that may be asked).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from pipeline.fetching import settings as bounds
from pipeline.fetching.settings import NetworkSettings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_CACHE_SECONDS = 300.0
_FAILURE_CACHE_SECONDS = 5.0
_CACHE_SIZE = 20_000
LOOKUP_THREADS = 32  # a lookup that hangs holds one of them until the system's resolver gives up

# Ranges for translation and tunnels that can lead to an inner address. `is_global` does not name them all, and differs
# between Python releases. Source: IANA special-purpose address registries.
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2002::/16", "2001::/23", "fec0::/10", "100::/64")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class LookupFailed(Exception):  # noqa: N818
    """The name has no address, or the answer did not come in time."""


class TargetRefused(Exception):  # noqa: N818
    """The name has only addresses that must not be asked."""


def is_public(address: IPAddress) -> bool:
    """Return true for an address on the open internet. An IPv4 address inside an IPv6 one is checked too."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if any(address.version == network.version and address in network for network in _NEVER_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def system_lookup(host: str) -> list[str]:
    """All addresses of a name, as the system gives them; may block as long as its resolver does."""
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class Resolver:
    """Checked addresses of a host, cached; safe for threads."""

    def __init__(self, settings: NetworkSettings, lookup: Callable[[str], list[str]] = system_lookup) -> None:
        self._lookup = lookup
        allowed = settings.allow_private_addresses
        self._allow_all = allowed is True
        entries = allowed if isinstance(allowed, tuple) else ()
        self._allowed_networks = [ipaddress.ip_network(entry) for entry in entries if "/" in entry]
        self._allowed_hosts = {entry.lower() for entry in entries if "/" not in entry}
        self._cache: OrderedDict[str, tuple[float, list[str] | str]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def addresses(self, host: str) -> list[str]:
        """Addresses of `host` that may be asked, in the system's order.

        Raises: LookupFailed, TargetRefused.
        """
        resolved = self._all_addresses(host.lower())
        good = [text for text in resolved if self._may_ask(host.lower(), text)]
        if not good:
            raise TargetRefused(f"{host} leads to {', '.join(resolved[:3])}, which is not a public address")
        return good

    def knows(self, host: str) -> bool:
        """Return whether `addresses` need not wait for the system."""
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(host))
        with self._lock:
            cached = self._cache.get(host.lower())
            return cached is not None and cached[0] > time.monotonic()

    def close(self) -> None:
        """End the lookup threads; one that still waits for the system ends by itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _may_ask(self, host: str, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if self._allow_all or host in self._allowed_hosts or text in self._allowed_hosts:
            return True
        return is_public(address) or any(
            address.version == network.version and address in network for network in self._allowed_networks
        )

    def _all_addresses(self, host: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]  # a literal needs no lookup
        except ValueError:
            pass
        now = time.monotonic()
        with self._lock:
            cached = self._cache.get(host)
            if cached and cached[0] > now:
                self._cache.move_to_end(host)
                return _unwrap(cached[1])
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(LOOKUP_THREADS, "resolve")
            future = self._pool.submit(self._lookup, host)
        answer: list[str] | str
        try:
            answer = future.result(bounds.CONNECT_SECONDS) or "no address"
        except TimeoutError:
            future.cancel()
            answer = f"no answer within {bounds.CONNECT_SECONDS:g} s"
        except (OSError, UnicodeError) as error:
            answer = str(getattr(error, "strerror", None) or error)
        keep = _FAILURE_CACHE_SECONDS if isinstance(answer, str) else _CACHE_SECONDS
        with self._lock:
            self._cache[host] = (now + keep, answer)
            while len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return _unwrap(answer)


def _unwrap(answer: list[str] | str) -> list[str]:
    if isinstance(answer, str):
        raise LookupFailed(answer)
    return answer
