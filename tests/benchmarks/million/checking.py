"""What is done with a finished build: each command with its seconds, CPU and memory, and what it must find.

Disk: a release of another ratio takes half of the first one again, a takedown writes anew the shards that hold one of
its pictures. So what was looked at goes: the packed pictures where they are many, the first release before the remix.
"""

from __future__ import annotations

import hashlib
import http.cookiejar
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from process_tree import below, kill

from million.make import write_config
from million.outcomes import complaints, judge, still_there
from million.rows import OWNER
from million.watching import PLANTMIX, ROOT, Background, Watched, disk_mb, done

_PAGES = {
    "first page": "/", "a filter": "/?reason=near_duplicate", "reasons": "/reasons", "duplicates": "/duplicates",
    "leaks": "/leaks",
}  # fmt: skip


def hash_tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                found[str(path.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def newest_release(work: Path) -> Path:
    """Where the last build or takedown wrote."""
    return work / "releases" / (work / "releases/LATEST").read_text(encoding="utf-8").strip()


def check(folder: Path, work: Path, is_large: bool) -> tuple[dict[str, Any], list[str]]:
    """Figures of all commands, and complaints: what is not as it has to be."""
    first = newest_release(work)
    judged = judge(folder, work)
    wrong = complaints(judged)
    commands: dict[str, Any] = {}

    def note(name: str, ended: Watched) -> None:
        commands[name] = {**ended.whole.as_json(), "disk_mb": round(disk_mb(work), 1)}

    if is_large:
        (folder / "pictures.bin").unlink(missing_ok=True)  # `make` writes the same bytes again
    note("verify --deep", done([*PLANTMIX, "verify", str(work), "--deep"]))
    note("takedown", done([*PLANTMIX, "takedown", str(first), "--owner", OWNER, "--reason", "asked by the owner"]))
    second = newest_release(work)
    before, num_owned = still_there(folder, first)
    after, _ = still_there(folder, second)
    note("verify, of the version without them", done([*PLANTMIX, "verify", str(second)]))
    commands["takedown"] |= {"num_images": num_owned, "in_release_before": before, "in_release_after": after}
    if after or not before:
        wrong.append(f"takedown: of {num_owned} pictures {before} were in the release, {after} are in the new one")
    note("diff", done([*PLANTMIX, "diff", str(first), str(second)]))
    if is_large:
        shutil.rmtree(first)
    remix = write_config(folder, work, "million-even", {"plant": 1, "general": 1})
    note("mix, another ratio", done([*PLANTMIX, "mix", str(remix)]))  # its web does not run: a download would fail
    third = newest_release(work)
    held, _ = still_there(folder, third)
    if held:
        wrong.append(f"mix: {held} pictures are back that were taken down")
    note("diff, another ratio", done([*PLANTMIX, "diff", str(second), str(third)]))
    commands["browse"] = browse(work)
    return {"outcomes": judged, "commands": commands}, wrong


def browse(work: Path) -> dict[str, Any]:
    """Seconds until the index is made and of a few pages; memory of the server and its index process."""
    with tempfile.TemporaryDirectory() as cache, (Path(cache) / "err").open("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            [*PLANTMIX, "browse", str(work)], stdout=subprocess.PIPE, stderr=err, text=True, cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": cache},
        )  # fmt: skip
        watch = Background(process.pid)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            root = address.partition("/?")[0]
            client = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
            client.open(address, timeout=600).read()
            while "ready" not in (Path(cache) / "err").read_text() and process.poll() is None:
                time.sleep(0.2)
            seconds = {"index": round(time.monotonic() - started, 2)}
            for name, path in _PAGES.items():
                asked = time.monotonic()
                page = client.open(root + path, timeout=600).read().decode()
                seconds[name] = round(time.monotonic() - asked, 3)
            image = "/image/" + page_id(client.open(root + "/", timeout=600).read().decode())
            asked = time.monotonic()
            page = client.open(root + image, timeout=600).read().decode()
            seconds["one image"] = round(time.monotonic() - asked, 3)
            assert "record-" in page, "the page of an image names its record"
        finally:
            kill([*below(process.pid), process.pid])
            process.wait()
        return {**watch.end().as_json(), "pages": seconds, "index_mb": round(disk_mb(Path(cache)), 1)}


def page_id(page: str) -> str:
    """The id of the first image on a page."""
    return page.partition('href="/image/')[2].partition('"')[0].partition("?")[0]


def release_of(work: Path) -> dict[str, Any]:
    """Name and hashes of a release: what another build of the same rows must give."""
    release = newest_release(work)
    files = hash_tree(release)
    whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return {"release": release.name, "num_files": len(files), "sha256": whole, "files": files}
