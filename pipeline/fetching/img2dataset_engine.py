"""The engine `fetch.engine: img2dataset`: its unchanged Downloader, with our resizer and our writer in its constructor.

Reads the rows of one part, writes them into a PartWriter. Only for hosts that need no politeness; what it cannot do
or tell, compared with our own loop, is listed in README.md under "Differences". Gives up with ConfigError when
img2dataset is not installed. A row that its loop loses ends the part, because the PartWriter misses its fact.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import pyarrow as pa

from manifests.contract.outcomes import Outcome
from manifests.errors import ConfigError
from manifests.services.packages import install_line
from manifests.stores import storage
from pipeline.fetching import settings as bounds
from pipeline.fetching.answers import refuse_status
from pipeline.fetching.part import PartWriter, fact_of_download
from pipeline.fetching.pictures.image import Fact, Rejected, StoredImage, fact_of, measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import FetchSettings
from pipeline.fetching.urls import BadURL, Target, parse_url
from pipeline.fetching.visits import Download

# How errors of urllib, http.client and ssl read in Python 3.11, once img2dataset has turned them into text. The first
# pattern that fits the whole text counts; a text that fits none is a bad_response.
_MESSAGES = (
    (r"Use of image disallowed by X-Robots-Tag directive", Outcome.OPTED_OUT, "X-Robots-Tag"),
    (r"HTTP Error 3\d\d: .*infinite loop.*", Outcome.TOO_MANY_REDIRECTS, "a loop, or more than 10 redirects"),
    (r"HTTP Error 3\d\d: .*Redirection to url.*", Outcome.REFUSED_TARGET, "redirect to a scheme that is not http"),
    (r"<urlopen error \[Errno -\d+\].*", Outcome.DNS_FAILURE, "the name has no address"),
    (r"<urlopen error .*timed out>", Outcome.CONNECT_TIMEOUT, "no connection in time"),
    (r"(<urlopen error )?\[Errno (32|103|104)\].*", Outcome.CONNECTION_RESET, "the connection was reset"),
    (r"(<urlopen error )?(\[SSL: UNEXPECTED_EOF|EOF occurred).*", Outcome.CONNECTION_RESET, "closed without an answer"),
    (r"Remote end closed connection.*", Outcome.CONNECTION_RESET, "closed without an answer"),
    (r"<urlopen error \[Errno \d+\].*", Outcome.CONNECT_FAILED, "no connection"),
    (r"(<urlopen error )?\[SSL.*", Outcome.TLS_FAILURE, "no agreement on TLS"),
    (r"(The read operation )?timed out", Outcome.READ_TIMEOUT, "silent for too long"),
    (r"IncompleteRead\(.*", Outcome.BODY_TRUNCATED, "fewer bytes came than were announced"),
)
_HTTP_ERROR = re.compile(r"HTTP Error (\d{3}): ")


def download_with_img2dataset(
    rows: Sequence[tuple[str, str]], settings: FetchSettings, part: PartWriter, scratch: str | None = None
) -> None:
    """Let img2dataset download (sample_id, url) rows; we measure and store each picture.

    Its own files lie in the folder `scratch` for so long, or in the system's temporary folder.

    Raises: ConfigError when img2dataset is not installed.
    """
    targets: dict[str, Target] = {}
    for sample_id, url in rows:
        try:
            targets[sample_id] = parse_url(url)  # urllib would open file:// and ftp:// as well
        except BadURL as error:
            part.add(sample_id, fact_of_download(Download(error.outcome, error.detail)))
    if not targets:
        return
    network = settings.network
    if scratch is not None:
        storage.make_folder(scratch)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="plantmix-img2dataset-") as folder:
        listing = Path(folder) / "rows.arrow"
        _write_listing(listing, targets)
        downloader = _downloader_class()(
            sample_writer_class=lambda *_: _SampleWriter(part, targets, network.retries + 1),
            resizer=_Resizer(settings.image),
            thread_count=network.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["sample_id", "url"],
            timeout=bounds.READ_SECONDS,
            number_sample_per_shard=len(targets),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=network.retries,
            user_agent_token=network.agent_token,
            disallowed_header_directives=list(network.x_robots_directives) or None,
        )
        downloader.download_shard((0, str(listing)))


class _Resizer:
    """Called by img2dataset with each body: our measurement, in the form of its own resizer's answer."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings

    def __call__(self, stream: BinaryIO, _boxes: None = None) -> tuple[Any, ...]:
        """(picture, stored width and height, original width and height, error message).

        The message is all that the loop passes on of a refused picture, so it holds the facts as JSON.
        """
        body = stream.read()
        if len(body) > self._settings.max_body_bytes:
            detail = f"{len(body)} bytes, allowed {self._settings.max_body_bytes}"
            result: StoredImage | Rejected = Rejected(Outcome.BODY_TOO_LARGE, detail)
        else:
            result = measure_image(body, self._settings)
        if isinstance(result, Rejected):
            return None, None, None, None, None, json.dumps(fact_of(result))
        original = result.original
        return result, result.stored_width_px, result.stored_height_px, original.width_px, original.height_px, None


class _SampleWriter:
    """Called by img2dataset with each row, failures too: our pool and facts in the place of its tar and Parquet."""

    def __init__(self, part: PartWriter, targets: dict[str, Target], num_attempts: int) -> None:
        self._part = part
        self._targets = targets
        self._num_attempts = num_attempts

    def write(self, picture: StoredImage | None, _key: str, _caption: None, meta: dict[str, Any]) -> None:
        """Keep one row; `meta` holds our columns and how img2dataset says that it ended."""
        sample_id, message = meta["sample_id"], meta["error_message"]
        # it follows redirects without a word, so this is the host that was asked first
        fact: Fact = {"outcome": Outcome.OK.value, "host": self._targets[sample_id].host}
        if meta["status"] == "failed_to_download":
            outcome, detail, http_status = explain_message(message)
            fact |= {"outcome": outcome.value, "detail": detail, "http_status": http_status}
        elif meta["status"] == "failed_to_resize":
            fact |= json.loads(message)
        if meta["status"] == "failed_to_download" or self._num_attempts == 1:
            fact["attempts"] = self._num_attempts  # whatever a failure was, it tries as often as it may
        self._part.add(sample_id, fact, picture)

    def close(self) -> None:
        """Do nothing: the owner finishes the part."""


def explain_message(message: str) -> tuple[Outcome, str, int | None]:
    """Outcome, detail and HTTP status of a download that img2dataset describes as `message`.

    The detail is in our own words, because a message may quote an address with a secret in it.
    """
    match = _HTTP_ERROR.match(message)
    status = int(match[1]) if match else None
    for pattern, outcome, detail in _MESSAGES:
        if re.fullmatch(pattern, message, re.DOTALL):
            return outcome, detail, status
    if status is not None:
        return refuse_status(status) or Outcome.BAD_RESPONSE, f"status {status}", status
    return Outcome.BAD_RESPONSE, "img2dataset gives no reason that is known", None


def _write_listing(path: Path, targets: dict[str, Target]) -> None:
    """Write the rows as img2dataset reads them, with addresses without credentials."""
    urls = [target.url for target in targets.values()]
    table = pa.table({"sample_id": pa.array(targets, pa.string()), "url": pa.array(urls, pa.string())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _downloader_class() -> Any:
    """img2dataset's Downloader. Its import takes about 4 s and adds 260 MB to a worker."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the web for a newer release
    # not in Python 3.13; only the resizer that we replace calls it
    if sys.modules.get("imghdr") is None and importlib.util.find_spec("imghdr") is None:
        sys.modules["imghdr"] = ModuleType("imghdr")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports: no user of ours can act on them
            from img2dataset.downloader import Downloader
    except ImportError as error:
        raise ConfigError(
            f"fetch.engine is img2dataset, which cannot be imported ({error}): {install_line('img2dataset')}, or leave "
            "the key out to use PlantMix's own engine"
        ) from None
    return Downloader
