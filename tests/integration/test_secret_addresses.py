"""A build over addresses with passwords and tokens: they reach the host, and nothing that is shown or published."""

from __future__ import annotations

import base64
import csv
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from building import loopback, write_small_config
from misbehaving.answers import encode, pixels, send, send_picture
from misbehaving.server import MisbehavingServer

from manifests.contract import tables
from manifests.contract.reader import open_reader
from pipeline.cli import main

PASSWORD, TOKEN = "hunter2secret", "s3cr3tt0k3n"
AUTHORIZATION = "Basic " + base64.b64encode(f"eve:{PASSWORD}".encode()).decode()


class GuardedWeb:
    """Pictures that are given only to who knows the password or the token."""

    def __init__(self) -> None:
        self.token = TOKEN
        self.server = MisbehavingServer(extra={"p": self._answer})

    def _answer(self, sock: Any, request: Any) -> None:
        path, _, query = request.path.partition("?")
        name = path.rpartition("/")[2]
        if request.headers.get("authorization") == AUTHORIZATION or query == f"token={self.token}&n={name}":
            send_picture(sock, encode(pixels(seed=int(name)), quality=90))
        else:
            send(sock, "403 Forbidden")

    def num_asked(self) -> int:
        num = sum(request.path.startswith("/p/") for request in self.server.log)
        self.server.log.clear()
        return num


@pytest.fixture
def web() -> Iterator[GuardedWeb]:
    made = GuardedWeb()
    with made.server:
        yield made


def urls_of(web: GuardedWeb, token: str = TOKEN) -> list[str]:
    host = f"127.0.0.1:{web.server.port}"
    by_password = [f"http://eve:{PASSWORD}@{host}/p/{n}" for n in range(4)]
    return by_password + [f"http://{host}/p/{n}?token={token}&n={n}" for n in range(4, 8)]


def write_config(folder: Path, urls: list[str], **more: Any) -> Path:
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "link", "title", "rights", "page"])
        for n, url in enumerate(urls):
            writer.writerow([n, url, f"a photo of plant number {n} in the field, from {url}", "CC0", url])
    columns: dict[str, Any] = {"url": "link", "caption": "title", "licence": "rights", "extra": ["page"], **more}
    columns |= {"reference_url": "page", "creator": "page"}
    source = {"name": "a", "domain": "plant", "table": str(folder / "table.csv"), "columns": columns}
    mix = {"ratio": {"plant": 1}, "heldout": {"num_samples": {"plant": 2}}}
    return write_small_config(folder, source, fetch=loopback(), dedup={"radius": 0}, mix=mix)


def texts_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Every published file as text, tables and shards unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            yield str(path), json.dumps(pq.read_table(path).to_pylist(), default=str, ensure_ascii=False)
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    assert content is not None
                    yield f"{path}:{member.name}", content.read().decode("latin-1")
        elif path.is_file():
            yield str(path), path.read_bytes().decode("latin-1")


@pytest.mark.slow
def test_secrets_reach_the_host_and_nothing_that_leaves(
    tmp_path: Path, web: GuardedWeb, capfd: pytest.CaptureFixture[str]
) -> None:
    """As it was found: both stood in samples.parquet, attribution.parquet and the json of every shard."""
    urls = urls_of(web)
    config, work = write_config(tmp_path, urls), str(tmp_path / "work")
    assert main(["build", str(config)]) == 0
    assert web.num_asked() == 8
    assert main(["build", str(config)]) == 0
    assert web.num_asked() == 0
    with open_reader(work) as connection:
        assert connection.sql("SELECT outcome, count(*) FROM facts GROUP BY ALL").fetchall() == [("ok", 8)]
    views = ("candidates", "rejects", "facts", "fetched", "captions", "samples", "decisions")
    rows = " UNION ALL ".join(f"SELECT to_json({view}) FROM {view}" for view in views)
    assert main(["query", work, rows, "--format", "json"]) == 0
    for url in (urls[0], urls[4]):
        assert main(["explain", work, url]) == 0
        assert main(["explain", work, url, "--json"]) == 0
    assert main(["status", work]) == 0
    (tmp_path / "out").mkdir()
    assert main(["report", work, "--out", str(tmp_path / "out" / "report.html")]) == 0
    assert main(["export", work, "--for", "img2dataset", "--out", str(tmp_path / "out" / "img2dataset")]) == 0
    assert main(["takedown", work, "--url", urls[0], "--url", urls[4], "--reason", f"asked: {urls[1]}"]) == 0
    assert main(["query", work, f"SELECT '{urls[5]}' FROM nowhere"]) == 2
    printed = capfd.readouterr()
    for place, text in texts_below(tmp_path / "work"):
        if place.endswith("-secrets.parquet"):
            assert Path(place).stat().st_mode & 0o777 == 0o600
        else:
            assert not any(secret in text for secret in (PASSWORD, TOKEN, "eve:")), place
    published = [*texts_below(tmp_path / "work/releases"), *texts_below(tmp_path / "out")]
    assert len(published) > 20
    for place, text in [*published, ("screen", printed.out), ("log", printed.err)]:
        for secret in (PASSWORD, TOKEN, "eve:"):
            assert secret not in text, (place, secret)


def test_ids_are_those_of_the_whole_address_without_its_password(tmp_path: Path, web: GuardedWeb) -> None:
    urls = urls_of(web)
    config = write_config(tmp_path, urls)
    assert main(["build", str(config), "--to", "ingest"]) == 0
    with open_reader(str(tmp_path / "work")) as connection:
        found = dict(connection.sql("SELECT sample_id, record_key FROM candidates").fetchall())
    plain = [url.replace(f"eve:{PASSWORD}@", "") for url in urls]
    assert found == {tables.sample_id("a", url): url.replace(TOKEN, "***") for url in plain}


def test_a_new_token_is_used_for_what_failed_and_is_a_new_address(tmp_path: Path, web: GuardedWeb) -> None:
    config = write_config(tmp_path, urls_of(web, "stale"), record_key="key")
    assert main(["build", str(config), "--to", "fetch"]) == 0
    assert web.num_asked() == 8
    config = write_config(tmp_path, urls_of(web), record_key="key")
    assert main(["build", str(config), "--to", "fetch"]) == 0
    assert web.num_asked() == 4
    with open_reader(str(tmp_path / "work")) as connection:
        assert connection.sql("SELECT outcome, count(*) FROM facts GROUP BY ALL").fetchall() == [("ok", 8)]


def test_the_estimate_asks_with_the_secret_and_does_not_show_it(
    tmp_path: Path, web: GuardedWeb, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(write_config(tmp_path, urls_of(web))), "--head", "8"]) == 0
    asked = [request for request in web.server.log if request.path.startswith("/p/")]
    assert sum(TOKEN in request.path for request in asked) == 4
    assert sum(request.headers.get("authorization") == AUTHORIZATION for request in asked) == 4
    out = capfd.readouterr()
    assert TOKEN not in out.out + out.err
    assert PASSWORD not in out.out + out.err


def test_an_address_with_a_token_takes_down_its_own_picture_alone(web: GuardedWeb, tmp_path: Path) -> None:
    urls = urls_of(web)
    host = f"http://127.0.0.1:{web.server.port}"
    urls[4:] = [f"{host}/p/{n}?token={web.token}&n={n}" for n in range(4, 8)]
    config = write_config(tmp_path, urls)
    assert main(["--quiet", "build", str(config)]) == 0
    assert main(["takedown", str(tmp_path / "work"), "--url", urls[5]]) == 0
    listed = (tmp_path / "work/takedowns.jsonl").read_text()
    assert web.token not in listed
    assert main(["--quiet", "build", str(config)]) == 0
    assert taken_down(tmp_path / "work") == [5]
    by_hand = tmp_path / "work/takedowns.jsonl"
    by_hand.write_text(listed + json.dumps({"by": "url", "value": f" {urls[6]} "}) + "\n")
    assert main(["--quiet", "build", str(config)]) == 0
    assert taken_down(tmp_path / "work") == [5, 6]


def taken_down(work: Path) -> list[int]:
    """Numbers of the pictures that the last build left out since they were taken down."""
    query = "SELECT caption FROM candidates JOIN decisions USING (sample_id) WHERE reason = 'takedown'"
    with open_reader(str(work)) as sql:
        captions = [row[0] for row in sql.execute(query).fetchall()]
    return sorted(int(caption.split("number ")[1].split()[0]) for caption in captions)
