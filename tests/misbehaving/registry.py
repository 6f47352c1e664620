"""What a misbehaviour is: a name, what the server does under it, how a row that meets it must end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple

from misbehaving.answers import send, send_picture


class Request(NamedTuple):
    """One line of the log: when it came (time.monotonic), for whom, for what."""

    seconds: float
    host: str
    path: str
    headers: dict[str, str]
    nth: int  # how often this host and path have been asked, this time included
    is_kept: bool = False  # the connection was used before


Act = Callable[[socket.socket, Request], None]


class Behaviour(NamedTuple):
    """What the server does under a name, and how a fetched row must end."""

    name: str
    does: str
    outcome: str
    act: Act
    url: str = "http://{host}:{port}/{name}"
    robots: Act | None = None
    """What its host answers for robots.txt, where not as every other."""
    tdmrep: Act | None = None
    """What its host answers for tdmrep.json; 404 where absent."""
    licence: Act | None = None
    """What its host answers for /licence.xml; 404 where absent."""


BEHAVIOURS: dict[str, Behaviour] = {}


def put(name: str, outcome: str, does: str, act: Act = lambda sock, _: send_picture(sock), **more) -> None:
    """Register what takes a line; `more` are the other fields of a `Behaviour`."""
    BEHAVIOURS[name] = Behaviour(name, does, outcome, act, **more)


def behaviour(outcome: str, **more):
    """Register a function under its own name; its docstring says what it does."""

    def register(act: Act):
        put(act.__name__, outcome, (act.__doc__ or "").strip(), act, **more)
        return act

    return register


def answer(status: str = "200 OK", headers: dict[str, str] | None = None, body: bytes = b"") -> Act:
    """The same answer each time."""
    return lambda sock, _: send(sock, status, headers, body)


def host_of(name: str) -> str:
    """The host that a behaviour has for itself, so that what it does to a host's reputation touches no other."""
    return f"{name.partition('/')[0]}.test".replace("_", "-")
