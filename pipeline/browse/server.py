"""Serve the pages on the loopback until the user stops it."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from manifests.errors import ConfigError
from pipeline.browse.app import Describe, Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.guard import PARAMETER
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import Tell
from pipeline.browse.index_process import IndexProcess, cache_folder, keep_index
from pipeline.browse.model_search import ModelSearch
from pipeline.browse.snapshot import IMAGES_FILE, INDEX_FOLDER, Snapshot, open_snapshot

LOOPBACK = "127.0.0.1"
SECONDS_BETWEEN_LINES = 5.0


def serve(
    path: str,
    port: int,
    describe_life: Describe,
    evaluation: Sequence[str] = (),
    search: str | None = None,
    model: str | None = None,
) -> int:
    """Print the address with its token, make the index, and answer until Ctrl-C. Port 0 takes a free one.

    `evaluation` has SET=PLACE for each evaluation set whose pictures may be shown. `search` are vectors of
    `dalip embed`, `model` their model where that moved.

    Raises: ConfigError when there is nothing to look at, a set or vectors are not there or the port is taken; RunError
        as `open_snapshot`, and when the index could not be made.
    """
    cache = cache_folder()
    with (
        tempfile.TemporaryDirectory(prefix="plantmix-browse-") as private,
        _listen(port) as listening,
        open_snapshot(path, Path(private), cache) as snapshot,
        ExitStack() as opened,
    ):
        as_of = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        own_port = listening.getsockname()[1]
        token = secrets.token_hex(24)
        model_search = opened.enter_context(ModelSearch(search, model, Path(private))) if search else None
        pages = Pages(snapshot, as_of, describe_life, EvaluationPictures(snapshot, evaluation), model_search)
        config = uvicorn.Config(
            make_app(pages, token=token, port=own_port),
            log_level="warning", access_log=False, lifespan="off", server_header=False,
        )  # fmt: skip
        server = uvicorn.Server(config)
        failures: list[Exception] = []

        def open_index() -> None:
            try:
                if snapshot.index == Path(private) / INDEX_FOLDER:
                    index_process = opened.enter_context(
                        IndexProcess(path, Path(private))
                    )  # Ctrl-C ends it before its folder
                    index_process.wait(_telling(snapshot, pages))
                opened.enter_context(snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True))
                pages.open(ImageIndex(snapshot))
                _say(f"{snapshot.name}: ready, {pages.num_images:,} images")
            except Exception as error:
                failures.append(error)
                server.should_exit = True
                return
            try:
                _say(f"index kept in {cache} ({keep_index(snapshot, cache) / 1e6:,.0f} MB)")
            except OSError as error:
                _say(f"the index cannot be kept for the next time: {error}")

        print(f"http://{LOOPBACK}:{own_port}/?{PARAMETER}={token}", flush=True)
        _say("open this address in a browser on this machine; Ctrl-C ends it")
        opening = threading.Thread(target=open_index, daemon=True)
        opening.start()
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            server.run(sockets=[listening])
        if failures:
            raise failures[0]
    return 0


def _telling(snapshot: Snapshot, pages: Pages) -> Tell:
    """Take the share that is done to the waiting page, and to the terminal now and then."""
    first: list[tuple[float, float]] = []  # when the first share was told: before it, the process started
    last = time.monotonic()

    def tell(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        pages.share = share
        if not first:
            first.append((now, share))
            return
        pages.seconds_left = (now - first[0][0]) * (1 - share) / (share - first[0][1])
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            _say(f"{snapshot.name}: index {share:.0%} done, about {pages.seconds_left:,.0f} s to go")

    return tell


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()  # so that whoever has the address can ask before the server runs
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port {port} of this machine cannot be taken: {error.strerror}; give another --port"
        ) from None
    return listening
