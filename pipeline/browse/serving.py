"""Serve the pages on the loopback until the user stops it."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path

import uvicorn

from manifests.errors import ConfigError
from pipeline.browse.app import Describe, make_app
from pipeline.browse.guard import PARAMETER
from pipeline.browse.index import make_index
from pipeline.browse.looking import Looking
from pipeline.browse.snapshot import open_snapshot

LOOPBACK = "127.0.0.1"


def serve(given: str, port: int, describe_life: Describe) -> int:
    """Index, print the address with its token, and answer until Ctrl-C. Port 0 takes a free one.

    Raises: ConfigError when there is nothing to look at or the port is taken; RunError as `open_snapshot`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="plantmix-browse-") as private,
        _listen(port) as listening,
        open_snapshot(given, Path(private)) as snapshot,
    ):
        started = time.monotonic()
        as_of = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        looking = Looking(snapshot, make_index(snapshot))
        num = looking.rows("SELECT count(*) AS num FROM session.images")[0]["num"]
        print(f"{snapshot.name}: {num:,} images, indexed in {time.monotonic() - started:.1f} s", file=sys.stderr)
        own_port = listening.getsockname()[1]
        token = secrets.token_hex(24)
        app = make_app(looking, token=token, port=own_port, as_of=as_of, describe_life=describe_life)
        print(f"http://{LOOPBACK}:{own_port}/?{PARAMETER}={token}", flush=True)
        print("open this address in a browser on this machine; Ctrl-C ends it", file=sys.stderr)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            server.run(sockets=[listening])
    return 0


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port {port} of this machine cannot be taken: {error.strerror}; give another --port"
        ) from None
    return listening
