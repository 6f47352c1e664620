"""The client of each kind of address, which is fsspec's, and what we add to it."""

from __future__ import annotations

import functools
import gc
import mimetypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.registry import known_implementations

from manifests.errors import ConfigError
from manifests.masking import hide_secrets
from manifests.services.packages import install_line

_S3_PUT_BYTES = 5 << 30  # the most that S3 takes in one request


def is_remote(path: str) -> bool:
    """Return true for an fsspec address with a scheme, false for a local path."""
    return "://" in path and not path.startswith("file://")


_CREDENTIALS = re.compile(r"(?:s3a?|gc?s)://(?!arn:)[^/]*[:@]")
"""An address of a bucket with a user or password: no bucket's name holds these signs."""


def filesystem(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of `path`, and the path within it.

    Raises: ConfigError for what is no address of a kind that is known, and for a client that is not installed.
    """
    if is_remote(path):
        _part_at_forks()
    if path.startswith(("http://", "https://")):
        from manifests.stores.web import WebFiles  # its client takes long to import

        return WebFiles(), path
    if _CREDENTIALS.match(path):
        raise ConfigError(
            f"{hide_secrets(path.partition('://')[0])}://...: this address holds credentials; give them by the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) and name the "
            "bucket alone"
        )
    with _naming_client(path):
        fs, inner = fsspec.core.url_to_fs(path)
    return fs, str(inner)


@contextmanager
def _naming_client(address: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error).startswith("Protocol not known"):
            raise ConfigError(f"{address.partition('://')[0]}://: no such kind of address; is it misspelt?") from None
        raise ConfigError(f"{hide_secrets(address)}: is no address of a file: {error}") from None
    except ImportError:
        client = known_implementations[address.partition("://")[0]]["class"].partition(".")[0]
        raise ConfigError(f"{address} needs {client}, which is not installed: {install_line(client)}") from None


@functools.cache
def _part_at_forks() -> None:
    # a fork shares the parent's epoll: were a store's client collected in the child, it would take the parent's
    # connections out of there, and the parent would wait for answers that have come
    os.register_at_fork(after_in_child=gc.freeze)


def put(fs: Any, local: str, inner: str) -> None:
    """Put a finished local file into a store. A reader sees all of it or what was there before.

    S3 gets up to 5 GiB in one request, so a killed upload leaves nothing behind. Larger files go in several parts.
    """
    if not type(fs).__module__.startswith("s3fs.") or Path(local).stat().st_size > _S3_PUT_BYTES:
        fs.put_file(local, inner)
        return
    # one request that sends the file while it is read; `put_file` would have it in memory. botocore tries again from
    # the start of the file; s3fs's own retries would go on where the failed request had come to, and are left out
    from s3fs.errors import translate_boto_error  # an extra

    bucket, key, _ = fs.split_path(inner)
    set_for_all = {**fs.s3_additional_kwargs, **fs.req_kw}  # by the user: encryption, storage class, who pays
    named = {"Bucket": bucket, "Key": key}
    if kind := mimetypes.guess_type(key)[0]:
        named["ContentType"] = kind  # so that a browser shows a page, and does not save it

    async def send() -> None:
        await fs.set_session()
        client = await fs.get_s3(bucket)
        members = client.meta.service_model.operation_model("PutObject").input_shape.members
        request = {name: value for name, value in set_for_all.items() if name in members} | named
        with Path(local).open("rb") as stream:
            await client.put_object(**request, Body=stream)

    try:
        fsspec.asyn.sync(fs.loop, send)
    except Exception as error:
        translated = translate_boto_error(error)
        if translated is error:  # an error that is its own cause would have no end
            raise
        raise translated from error
    fs.invalidate_cache(inner)
