"""Settings of fetching, split into what identifies the result and what is only execution.

`FetchSettings.image` is identity: it goes into the stage's fingerprint, because other values give other
bytes or other decisions. `engine` and `network` are execution: rates, threads and patience change how long
a fetch takes and which passing failures it meets, never what a fetched picture looks like.
Reads and writes nothing. Gives up with ConfigError through manifests.contract.settings.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from manifests import __version__
from manifests.contract.outcomes import Outcome
from manifests.contract.settings import Settings
from manifests.errors import ConfigError
from pipeline.fetching.consent.statements import Consent
from pipeline.fetching.pictures.settings import ImageSettings

# The settings that decide a final outcome: another value may change it, another day will not.
DECIDED_BY = {
    Outcome.REFUSED_TARGET: ("network.allow_private_addresses",),
    Outcome.ROBOTS_DISALLOWED: ("network.robots_txt", "network.user_agent"),
    Outcome.OPTED_OUT: ("network.x_robots_directives", "network.consent_signals", "network.user_agent"),
    Outcome.BODY_TOO_LARGE: ("image.max_body_bytes",),
    Outcome.TOO_MANY_PIXELS: ("image.max_pixels",),
    Outcome.IMAGE_TOO_SMALL: ("image.min_side_px",),
    Outcome.ASPECT_TOO_EXTREME: ("image.max_aspect_ratio",),
}

DEFAULT_X_ROBOTS = ("noai", "noimageai", "noindex", "noimageindex", "noml", "none")

# How long fetch waits and how much it tries, where no setting says so.
CONNECT_SECONDS = 10.0  # longest wait for a connection, and for the addresses of a name
READ_SECONDS = 20.0  # longest silence within an answer
BACKOFF_SECONDS = 1.0  # pause before the first retry; it doubles each time, give or take half of it at random
HOST_PATIENCE_SECONDS = 120.0  # longest that rows wait for a closed host, and longest Crawl-delay that is kept
BREAKER_FAILURES = 6  # failures in a row to reach a host, after which it counts as dead
BREAKER_SECONDS = 300.0  # how long a dead host is left alone
MAX_REDIRECTS = 5  # a longer chain ends as too_many_redirects
DECODE_THREADS = 2  # pictures decoded at a time in one worker; each may need the memory of `image.max_pixels`

ConsentSignal = Literal["content_usage", "tdm_reservation", "tdmrep_file", "rsl_licence", "iptc_data_mining"]


class HostLimits(Settings):
    """Limits of one host, over all workers of the cluster together."""

    requests_per_second: Annotated[float, Field(gt=0)] | None = 5.0
    """null: only `connections` limits the host."""
    connections: Annotated[int, Field(ge=1, le=1000)] = 2
    """Most requests to the host at a time."""
    adaptive: bool = False
    """Go faster, up to eight times as fast, until the host slows down or answers 403, 429 or 503; then go slower."""

    @model_validator(mode="after")
    def _adaptive_has_a_start(self) -> Self:
        if self.adaptive and self.requests_per_second is None:
            raise ValueError("adaptive needs requests_per_second, the rate to start with")
        return self


class HostOverride(HostLimits):
    """Limits for the hosts whose name (or name:port) fits a shell pattern. The first pattern that fits counts."""

    pattern: Annotated[str, Field(min_length=1)]
    """A shell pattern of host names, such as `*.example.org`."""
    shared: bool = False
    """true: all hosts that fit share one set of limits (one provider behind many names)."""

    @field_validator("pattern")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()


class HostProfile(HostLimits):
    """The requests of an operator of well-known hosts to programs, and where they stand.

    Where an operator states nothing, the limits are careful guesses of ours. Unlike an entry of `hosts`, a profile does
    not put a Crawl-delay aside.
    """

    patterns: tuple[str, ...]
    stated: str
    source: str
    read_on: str


ProfileName = Literal["inaturalist", "gbif", "eol", "wikimedia"]
PROFILES: dict[ProfileName, HostProfile] = {
    "inaturalist": HostProfile(
        patterns=("inaturalist-open-data.s3.amazonaws.com", "inaturalist-open-data.s3.*.amazonaws.com"),
        stated="nothing of this bucket; users were refused at some rate that they do not tell",
        source="https://github.com/inaturalist/inaturalist-open-data/issues/5",
        read_on="2026-11-26",
        requests_per_second=5.0,
        connections=3,  # at half a second a picture, two would not reach the rate
        adaptive=True,
    ),
    "gbif": HostProfile(
        patterns=("api.gbif.org",),
        stated="of the image cache: scripts use a single HTTP connection",
        source="https://techdocs.gbif.org/en/openapi/images",
        read_on="2026-11-26",
        requests_per_second=5.0,
        connections=1,
    ),
    "eol": HostProfile(
        patterns=("eol.org", "*.eol.org"),
        stated="one request a second (a member of its staff, of eol.org); nothing of its pictures",
        source="https://discuss.eol.org/t/eol-data-services/236/77",
        read_on="2026-11-26",
        requests_per_second=1.0,
        connections=1,
    ),
    # one request a second keeps 25 Mbit/s for pictures of 3 MB, which originals have on average
    "wikimedia": HostProfile(
        patterns=("upload.wikimedia.org",),
        stated="two requests at a time, 25 Mbit/s over 10 s; a User-Agent with a contact",
        source="https://wikitech.wikimedia.org/wiki/Robot_policy, quoted 2025-04-10 on the list wikitech-l",
        read_on="2026-11-26",
        requests_per_second=1.0,
        connections=2,
    ),
}


class NetworkSettings(Settings):
    """Execution: threads, patience, politeness, consent."""

    threads: Annotated[int, Field(ge=1, le=512)] = 32
    """Requests at the same time in one worker."""
    total_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one attempt, with its redirects, without the waiting for the gate."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a passing failure. A final failure is never retried."""
    limits: HostLimits = HostLimits()
    hosts: tuple[HostOverride, ...] = ()
    profiles: tuple[ProfileName, ...] = tuple(PROFILES)
    """Operators whose own rules are kept, where no entry of `hosts` fits. Empty: none."""
    user_agent: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]*(/[A-Za-z0-9._\-]+)?$")] = (
        f"PlantMix/{__version__}"
    )
    """The name by which robots.txt and X-Robots-Tag know us, with an optional version."""
    contact: Annotated[str, Field(min_length=3, pattern=r"^[\x21-\x7e]+( [\x21-\x7e]+)*$")] | None = None
    """A page or mail address where site owners can reach you. Needed as soon as one host is not this machine."""
    allow_private_addresses: bool | tuple[str, ...] = False
    """Networks (10.0.0.0/8) or host names that may be private, loopback or link-local. true: all."""
    robots_txt: bool = True
    """Obey robots.txt."""
    x_robots_directives: tuple[str, ...] = DEFAULT_X_ROBOTS
    """X-Robots-Tag directives that opt a picture out. Empty: the header is ignored."""

    consent_signals: tuple[ConsentSignal, ...] = get_args(ConsentSignal)
    """Further signals that opt a picture out: AIPREF, TDMRep's header and file, RSL, IPTC."""

    @field_validator("x_robots_directives")
    @classmethod
    def _lower_directives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(directive.strip().lower() for directive in value)

    @field_validator("allow_private_addresses")
    @classmethod
    def _are_networks_or_hosts(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        for entry in value if isinstance(value, tuple) else ():
            if "/" in entry:
                ipaddress.ip_network(entry)
            elif not re.fullmatch(r"[A-Za-z0-9._:\-]+", entry):
                raise ValueError(f"'{entry}' is neither a network like 10.0.0.0/8 nor a host name")
        return value

    @property
    def agent_token(self) -> str:
        """The name by which robots.txt and X-Robots-Tag know us, in lower case."""
        return self.user_agent.partition("/")[0].lower()

    @property
    def consent(self) -> Consent:
        """The rules of what counts as the refusal of an owner."""
        directives, signals = (tuple(sorted({*names})) for names in (self.x_robots_directives, self.consent_signals))
        return Consent(self.agent_token, self.robots_txt, directives, signals)

    @property
    def user_agent_header(self) -> str:
        """The whole User-Agent header: who asks, and where to reach them."""
        return f"{self.user_agent} ({self.contact})" if self.contact else self.user_agent

    def limits_of(self, host: str) -> tuple[str, HostLimits]:
        """Return the limits of a host, and the name under which its requests are counted.

        `host`, or a shared pattern.
        """
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        for override in self.hosts:
            if fnmatch.fnmatchcase(host, override.pattern) or fnmatch.fnmatchcase(name, override.pattern):
                return (override.pattern if override.shared else host), override
        for profile in map(PROFILES.__getitem__, self.profiles):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in profile.patterns):
                return host, profile
        return host, self.limits

    def require_contact(self, urls: Iterable[str]) -> None:
        """Refuse to ask other people's hosts without an address where their owners can reach the user.

        Raises: ConfigError that names the first such host.
        """
        if self.contact:
            return
        for url in urls:
            try:
                parts = urlsplit(url or "")
                host = (parts.hostname or "") if parts.scheme in ("http", "https") else ""
            except ValueError:
                continue
            if host and not _is_this_machine(host):
                raise ConfigError(
                    f"fetch.network.contact is not set, and {host} is not this machine: give a page or mail "
                    "address where site owners can reach you (it is sent in the User-Agent header)"
                )


class FetchSettings(Settings):
    """Settings of the fetch stage: `image` identifies the result, `engine` and `network` are only execution."""

    engine: Literal["plantmix", "img2dataset"] = "plantmix"
    """Which loop downloads. img2dataset is neither polite nor bounded, and stores no signal: for hosts of your own."""
    image: ImageSettings = ImageSettings()
    network: NetworkSettings = NetworkSettings()

    @model_validator(mode="after")
    def _engine_keeps_what_network_asks(self) -> Self:
        if self.engine == "img2dataset" and (changes := _changes_for_img2dataset(self.network)):
            raise ValueError(
                "engine img2dataset neither spares hosts nor protects this machine. Leave `engine` out, or "
                f"set in fetch.network what it cannot do: {'; '.join(changes)}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that a release states: everything that changes a stored byte, and whose refusal counts.

        The engine is left out. Both engines give the bytes of a download to the same measurement, so a picture that
        either one got has the same stored bytes and the same facts about them. Which rows fail, and what is known of
        the way, may differ, as it may under other `network` settings or on another day. Changing the engine
        therefore downloads nothing again.
        """
        return {**self.image.identity(), "consent": asdict(self.network.consent)}

    def deciding(self) -> tuple[tuple[str, str], ...]:
        """Each outcome of DECIDED_BY with the values that decide it here, as JSON."""
        values = self.model_dump(mode="json")
        values["network"]["user_agent"] = self.network.agent_token  # its version decides nothing
        pairs = []
        for outcome, keys in DECIDED_BY.items():
            sections = [key.split(".") for key in keys]
            pairs.append((outcome.value, json.dumps([values[section][key] for section, key in sections])))
        return tuple(pairs)


def _changes_for_img2dataset(network: NetworkSettings) -> list[str]:
    """Return settings that promise what img2dataset does not do, each with the value that stops promising it."""
    promises = [
        (not network.robots_txt, "robots_txt: false (it reads no robots.txt)"),
        (not network.consent_signals, "consent_signals: [] (it reads none of them)"),
        (network.allow_private_addresses is True, "allow_private_addresses: true (it checks no address)"),
        (network.limits.requests_per_second is None, "limits.requests_per_second: null (it keeps no rate)"),
        (
            network.limits.connections >= network.threads,
            f"limits.connections: {network.threads} or more (each worker opens as many as it has threads)",
        ),
        (not network.hosts, "no hosts (it knows no limits of single hosts)"),
        (not network.profiles, "profiles: [] (it knows no limits of single hosts)"),
    ]
    return [change for fits, change in promises if not fits]


@lru_cache(maxsize=1024)
def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
