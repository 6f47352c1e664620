"""A GBIF on the loopback: the part of its API that makes downloads, as GBIF documents it, with faults to order.

Source: https://techdocs.gbif.org/en/data-use/api-downloads, and the classes Download, PredicateDownloadRequest and
DatasetOccurrenceDownloadUsage of gbif/gbif-api.
"""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER, PASSWORD = "ann", "s3cret-of-ann"
ACCOUNT = {"GBIF_USER": USER, "GBIF_PWD": PASSWORD, "GBIF_EMAIL": "ann@example.org"}
DATASETS = [
    {"datasetKey": f"50c9509d-{number:04d}", "datasetTitle": f"Data set {number} | of plants",
     "datasetDOI": f"10.15468/d{number}", "datasetCitation": f"Cite {number}", "numberRecords": 10 * number}
    for number in range(1, 4)
]  # fmt: skip
TAXA = {
    **{name: {"usageKey": key, "matchType": "EXACT", "scientificName": name}
       for key, name in enumerate(("Rosaceae", "Fagaceae", "Pinaceae", "Quercus"), 10)},
    "Fagus": {"usageKey": 2874569, "matchType": "EXACT", "scientificName": "Fagus L."},
    "Rosa altissima": {"usageKey": 1, "acceptedUsageKey": 8395064, "synonym": True, "matchType": "EXACT",
                       "scientificName": "Rosa altissima"},
    "Fagsu": {"matchType": "NONE"},
}  # fmt: skip


@dataclass
class GbifServer:
    """Listens on 127.0.0.1 while its context lasts.

    `statuses` are told one a question, the last one for ever. `refusals` are (status, headers, text) for the next
    requests for a download. `faults` are statuses for the next requests of any kind; 0 cuts the connection. `lose_key`
    makes so many downloads without telling anybody. `cuts` are the bytes after which the next transfers of the archive
    break off.
    """

    archive: bytes
    statuses: list[str] = field(default_factory=lambda: ["PREPARING", "RUNNING", "SUCCEEDED"])
    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    lose_key: int = 0
    has_ranges: bool = True
    stated_size: int | None = None
    format: str = "DWCA"
    downloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[tuple[str, str, bool]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def __enter__(self) -> GbifServer:
        handler = type("Bound", (_Handler,), {"gbif": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.api = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str, ending: str = "") -> int:
        """How often a path with this ending was asked for."""
        return sum(each == method and path.endswith(ending) for each, path, _ in self.log)

    def make(self, request: dict[str, Any]) -> str:
        """A download of this request; gives its key."""
        key = f"00{len(self.downloads) + 12345}-261126031328000"
        self.downloads[key] = {
            "key": key, "doi": "10.15468/dl.abc123", "license": "http://creativecommons.org/licenses/by-nc/4.0/legalcode",
            "request": request, "created": "2026-11-26T03:13:28.000+00:00", "totalRecords": 60, "numberDatasets": 3,
        }  # fmt: skip
        return key


class _Handler(BaseHTTPRequestHandler):
    gbif: GbifServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    @property
    def is_signed(self) -> bool:
        return self.headers.get("Authorization") == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._enter("POST"):
            return
        if not self.is_signed:
            self._send(401, b"")
        elif self.gbif.refusals:
            status, headers, text = self.gbif.refusals.pop(0)
            self._send(status, text.encode(), headers)
        else:
            key = self.gbif.make(json.loads(body))
            if self.gbif.lose_key:
                self.gbif.lose_key -= 1
                self._cut()
            else:
                self._send(201, key.encode(), {"Content-Type": "text/plain"})

    def do_GET(self) -> None:
        if not self._enter("GET"):
            return
        path, query = urlsplit(self.path).path.removeprefix("/v1/"), parse_qs(urlsplit(self.path).query)
        pieces = path.split("/")
        if path == "species/match":
            self._json(TAXA.get(query["name"][0], {"matchType": "NONE"}))
        elif pieces[:3] == ["occurrence", "download", "user"]:
            self._json({"results": list(self.gbif.downloads.values())} if self.is_signed else None, 401)
        elif pieces[:3] == ["occurrence", "download", "request"]:
            self._send_archive(pieces[3].removesuffix(".zip"))
        elif pieces[-1] == "datasets":
            first, num = int(query["offset"][0]), min(2, int(query["limit"][0]))
            rows = DATASETS[first : first + num]
            self._json({"results": rows, "endOfRecords": first + num >= len(DATASETS)})
        elif (found := self.gbif.downloads.get(unquote(pieces[-1]))) is None:
            self._json(None)
        else:
            status = self.gbif.statuses.pop(0) if len(self.gbif.statuses) > 1 else self.gbif.statuses[0]
            size = len(self.gbif.archive) if self.gbif.stated_size is None else self.gbif.stated_size
            request = found["request"] | {"format": self.gbif.format}
            self._json(found | {"status": status, "size": size if status == "SUCCEEDED" else 0, "request": request})

    def _send_archive(self, key: str) -> None:
        wanted = self.headers.get("Range")
        self.gbif.ranges.append(wanted)
        if key not in self.gbif.downloads or self.gbif.statuses[0] == "FILE_ERASED":
            return self._send(404, b"erased")
        body, headers, status = self.gbif.archive, {}, 200
        if wanted and self.gbif.has_ranges:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            body, status = body[first:], 206
        if self.gbif.cuts:
            self._send(status, body[: self.gbif.cuts.pop(0)], headers | {"Content-Length": str(len(body))})
            self._cut()
        else:
            self._send(status, body, headers)
        return None

    def _enter(self, method: str) -> bool:
        self.gbif.log.append((method, urlsplit(self.path).path, self.is_signed))
        if not self.gbif.faults:
            return True
        status = self.gbif.faults.pop(0)
        if status:
            self._send(status, b"busy", {"Retry-After": "7"} if status == 429 else {})
        else:
            self._cut()
        return False

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def _json(self, content: Any, otherwise: int = 404) -> None:
        self._send(otherwise if content is None else 200, json.dumps(content).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
