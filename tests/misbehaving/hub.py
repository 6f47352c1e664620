"""A Hugging Face Hub on the loopback, for the real client: repositories, LFS and Xet uploads, commits, downloads.

It keeps what arrives and counts how often each blob arrived. `fail` and `hold` make it misbehave. It speaks what
huggingface_hub 2.4 and hf-xet 1.8 ask: https://huggingface.co/docs/hub/api, the batch API of git-lfs, and Xet's upload
protocol (https://huggingface.co/docs/xet). Xet's blobs are counted and dropped, so files sent that way have no bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

TOKEN = "hf_tokenOfTheTests"
LARGE = (".tar", ".parquet", ".safetensors", ".jpg", ".png")
CUT = 0  # as a status: read half of the body, then reset the connection


@dataclass
class StoredFile:
    """A file of a repository: its bytes, or None for one that came by Xet."""

    sha256: str
    num_bytes: int
    content: bytes | None
    is_large: bool

    @property
    def oid(self) -> str:
        if self.is_large:
            return self.sha256
        return hashlib.sha1(b"blob %d\0" % self.num_bytes + (self.content or b"")).hexdigest()


@dataclass
class Repository:
    private: bool
    files: dict[str, StoredFile] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)  # paths of each commit, `-path` for a deletion

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()


@dataclass
class Fault:
    pattern: str  # of "METHOD /path"
    status: int
    times: int
    headers: dict[str, str]


class FakeHub(ThreadingHTTPServer):
    """Listens on 127.0.0.1; what tests read stands in its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}  # by "datasets/OWNER/NAME" or "models/OWNER/NAME"
        self.blobs: dict[str, bytes] = {}  # by sha256
        self.arrived: Counter[str] = Counter()  # whole blobs by sha256, and xorbs by their hash
        self.log: list[str] = []  # "METHOD /path status"
        self.faults: list[Fault] = []
        self.held_after: int | None = None
        self.holding = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN}

    def fail(self, pattern: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next `times` requests that fit with a status, or cut them off."""
        self.faults.append(Fault(pattern, status, times, {name.replace("_", "-"): v for name, v in headers.items()}))

    def hold(self, after: int) -> None:
        """Once so many blobs arrived, read only half of any other, set `holding`, and wait until the client is gone."""
        self.held_after = after

    def release(self) -> None:
        self.held_after = None
        self.holding.clear()

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves its connection in the middle; nothing to say about it."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    KINDS: ClassVar[dict[str, str]] = {"dataset": "datasets", "model": "models"}

    def log_message(self, format: str, *args: Any) -> None:
        """The log is a list."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        fault = self.server.take_fault(f"{self.command} {path}")
        if fault is not None and fault.status == CUT:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._note(path, CUT)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._read_body(path)
        if fault is not None:
            self._answer(fault.status, {"error": "on purpose"}, fault.headers)
        elif not self._is_free(path) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._route(path, body)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815  (names of http.server)

    def _is_free(self, path: str) -> bool:
        """LFS blobs go to signed addresses, and Xet has a token of its own."""
        return path.startswith(("/lfs/", "/xet/", "/v1/telemetry", "/api/agent-harnesses"))

    def _read_body(self, path: str) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        is_blob = path.startswith(("/lfs/", "/xet/v1/xorbs/"))
        held = self.server.held_after
        if is_blob and held is not None and sum(self.server.arrived.values()) >= held:
            self.rfile.read(length // 2)
            self.server.holding.set()
            while self.connection.recv(1 << 16):  # until the client is killed
                pass
            raise ConnectionError("the client left in the middle of a blob")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client left in the middle of a body")
        return body

    def _note(self, path: str, status: int) -> None:
        with self.server.lock:
            self.server.log.append(f"{self.command} {path} {status}")

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._note(unquote(self.path.partition("?")[0]), status)
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, path: str, body: bytes) -> None:
        for pattern, act in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda _: self._answer(200, {"errors": [], "warnings": []})),
            (r"/api/(\w+/[^/]+/[^/]+)(?:/revision/\w+)?", self._tell),
            (r"/api/(\w+/[^/]+/[^/]+)/tree/\w+(?:/(.+))?", self._list),
            (r"/api/(\w+/[^/]+/[^/]+)/preupload/main", self._preupload),
            (r"/api/(\w+/[^/]+/[^/]+)/commit/main", self._commit),
            (r"/api/\w+/[^/]+/[^/]+/xet-write-token/main", self._xet_token),
            (r"/(.+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/lfs/([0-9a-f]{64})", self._take_blob),
            (r"/xet/v1/xorb-grants/\w+/(\w+)", self._xet_grant),
            (r"/xet/v1/xorbs/\w+/(\w+)", self._xet_xorb),
            (r"/xet/v1/shards", lambda _: self._answer(200, {"result": 1})),
            (r"/((?:datasets/)?[^/]+/[^/]+)/resolve/[^/]+/(.+)", self._download),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                return act(body, *found.groups())
        return self._answer(404, {"error": "not found"})

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return found

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        kind = self.KINDS[asked.get("type", "model")]
        name = f"{kind}/{asked['organization']}/{asked['name']}"
        url = f"{self.server.endpoint}/{name.removeprefix('models/')}"
        if name in self.server.repositories:
            return self._answer(409, {"error": "You already created this repo", "url": url})
        self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self._answer(200, {"url": url})

    def _tell(self, body: bytes, name: str) -> None:
        if found := self._repository(name):
            siblings = [{"rfilename": path} for path in found.files]
            kind, _, repository = name.partition("/")
            told = {"id": repository, "sha": found.sha, "private": found.private, "siblings": siblings, "tags": []}
            self._answer(200, told | ({"downloads": 0} if kind == "models" else {}))

    def _list(self, body: bytes, name: str, folder: str | None) -> None:
        if repository := self._repository(name):
            prefix = f"{folder}/" if folder else ""
            below = {path: file for path, file in repository.files.items() if path.startswith(prefix)}
            if folder and not below:
                return self._answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
            inner = {path: path.removeprefix(prefix) for path in below}
            whole = "recursive=true" in self.path.lower()
            listed: list[dict[str, Any]] = [
                {"type": "file", "path": path, "size": file.num_bytes, "oid": file.oid}
                for path, file in below.items()
                if whole or "/" not in inner[path]
            ]
            folders = {prefix + path.partition("/")[0] for path in inner.values() if "/" in path}
            listed += [{"type": "directory", "path": path, "size": 0, "oid": "0"} for path in sorted(folders)]
            self._answer(200, listed)
        return None

    def _preupload(self, body: bytes, name: str) -> None:
        if found := self._repository(name):
            answers = []
            for asked in json.loads(body)["files"]:
                known = found.files.get(asked["path"])
                mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
                answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
                               | ({"oid": known.oid} if known else {}))  # fmt: skip
            self._answer(200, {"files": answers})

    def _lfs_batch(self, body: bytes, name: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            told = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.blobs:
                told["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
            objects.append(told)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _take_blob(self, body: bytes, sha256: str) -> None:
        if hashlib.sha256(body).hexdigest() != sha256:
            return self._answer(400, {"error": "other bytes than announced"})
        with self.server.lock:
            self.server.blobs[sha256] = body
            self.server.arrived[sha256] += 1
        return self._answer(200, {})

    def _xet_token(self, body: bytes) -> None:
        told = {"casUrl": f"{self.server.endpoint}/xet", "exp": 4_000_000_000, "accessToken": "xet"}
        self._answer(200, told)

    def _xet_grant(self, body: bytes, xorb: str) -> None:
        """200 says that the xorb is here already; after 404 the client sends it."""
        self._answer(200 if self.server.arrived[xorb] else 404, {})

    def _xet_xorb(self, body: bytes, xorb: str) -> None:
        with self.server.lock:
            self.server.arrived[xorb] += 1
        self._answer(200, {"was_inserted": True})

    def _commit(self, body: bytes, name: str) -> None:
        found = self._repository(name)
        if found is None:
            return None
        changed = []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                sha256 = hashlib.sha256(content).hexdigest()
                found.files[value["path"]] = StoredFile(sha256, len(content), content, False)
                changed.append(value["path"])
            elif entry["key"] == "lfsFile":
                blob = self.server.blobs.get(value["oid"])
                found.files[value["path"]] = StoredFile(value["oid"], value["size"], blob, True)
                changed.append(value["path"])
            elif entry["key"] == "deletedFile":
                del found.files[value["path"]]
                changed.append(f"-{value['path']}")
        found.commits.append(changed)
        url = f"{self.server.endpoint}/{name}/commit/{found.sha}"
        return self._answer(200, {"success": True, "commitOid": found.sha, "commitUrl": url})

    def _download(self, body: bytes, name: str, path: str) -> None:
        found = self._repository(name if name.startswith("datasets/") else f"models/{name}")
        if found is None:
            return None
        file = found.files.get(path)
        if file is None or file.content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": found.sha, "X-Linked-Size": str(file.num_bytes)}
        if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            piece = file.content[int(part[1]) : int(part[2]) + 1]
            span = f"bytes {part[1]}-{int(part[1]) + len(piece) - 1}/{file.num_bytes}"
            return self._answer(206, piece, headers | {"Content-Range": span})
        return self._answer(200, file.content, headers)


def use_hub(hub: FakeHub, monkeypatch: Any, transfer: str = "lfs") -> None:
    """Make this process take it for the Hub; `transfer` is lfs or xet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", transfer == "lfs")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers while the context lasts."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
