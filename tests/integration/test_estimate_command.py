"""What an estimate says adds up, asks nobody unless told, and asks for heads as politely as fetch asks for pictures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT
from misbehaving.consent import licence
from misbehaving.server import SITE_FILES

from manifests.errors import ConfigError
from pipeline.answers.estimates import decode_seconds, estimate, host_times, stored_bytes
from pipeline.answers.sizes import ask_sizes
from pipeline.cli import main
from pipeline.commands.estimate import describe
from pipeline.config import BuildConfig
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import NetworkSettings


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[float, str, str]] = []
        self.num_connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.num_connections += 1
        super().process_request(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        body = b"User-agent: *\nDisallow: /private\n\nLicense: /licence.xml\n"
        if self.path == "/licence.xml":
            body = licence('<prohibits type="usage">all</prohibits>', "/licensed/").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._note()
        if self.path == "/moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/2000.jpg")
        else:
            self.send_response(404 if "gone" in self.path else 200)
        if self.path.strip("/").removesuffix(".jpg").isdigit():
            self.send_header("Content-Length", self.path.strip("/").removesuffix(".jpg"))
        if "optout" in self.path:
            self.send_header("X-Robots-Tag", "noai")
        self.end_headers()

    def _note(self) -> None:
        self.server.seen.append((time.monotonic(), self.command, self.path))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def network(**changes: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({"allow_private_addresses": True, "retries": 0, **changes})


def write_config(folder: Path, *urls: str, **fetch: Any) -> Path:
    lines = ["id,url,caption", *(f"{number},{url},c" for number, url in enumerate(urls))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    (folder / "pics" / "oak").mkdir(parents=True, exist_ok=True)
    (folder / "pics" / "oak" / "1.jpg").write_bytes(bytes(5000))
    columns = {"url": "url", "caption": "caption", "record_key": "id"}
    free = {"defaults": {"licence": "CC0-1.0"}}
    config = {
        "name": "n",
        "work_dir": str(folder / "not" / "yet"),
        "sources": [
            {"name": "web", "domain": "plant", "table": str(folder / "t.csv"), "columns": columns, **free},
            {"name": "here", "domain": "general", "folder": {"path": str(folder / "pics")}, **free},
        ],
        "mix": {"ratio": {"plant": 1, "general": 1}},
        "fetch": fetch,
        "run": {"num_workers": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return folder / "c.yaml"


def test_licence_texts_that_cannot_be_read_are_listed_with_the_line_that_maps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(write_config(tmp_path).read_text())
    texts = ["CC BY 4.0", *['Free, "with credit"'] * 3, *["see page"] * 2, "", "n/a"]
    rows = [f"http://a.org/{n}.jpg,a rose,{json.dumps(text)}" for n, text in enumerate(texts)]
    (tmp_path / "t.csv").write_text("\n".join(["url,caption,licence", *rows]).replace('\\"', '""') + "\n")
    web = config["sources"][0]
    web["columns"] = {"url": "url", "caption": "caption", "licence": "licence"}
    del web["defaults"]
    config["fetch"] = {"network": {"contact": "mailto:me@example.org"}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["estimate", str(path)]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    at = lines.index("licences  web: 1 CC-BY-4.0; left out by select.licences: 7 unknown")
    assert lines[at + 2 : at + 5] == [
        """          into the source: `licences: {"Free, \\"with credit\\"": ID}`""",
        """                  3  'Free, "with credit"'""",
        "                  2  'see page'",
    ]
    assert (
        """'Free, "with credit"' cannot be read, and unknown licences are dropped; write `licences: {"Free"""
        in told.err
    )
    web["licences"] = {'Free, "with credit"': "CC-BY-4.0"}
    path.write_text(yaml.safe_dump(config))
    assert main(["estimate", str(path), "--json"]) == 0
    (found, _) = json.loads(capsys.readouterr().out)["sources"]
    assert {entry["licence"]: entry["num_pictures"] for entry in found["licences"]} == {"CC-BY-4.0": 4, "unknown": 4}
    assert found["unread_licences"] == [{"text": "see page", "num_pictures": 2}]


def test_counts_and_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"http://slow.org/{n}.jpg" for n in range(300)] + [f"https://cdn{n % 3}.net:443/{n}" for n in range(90)]
    urls += ["http://slow.org/0.jpg", "ftp://x", "", "https://u:p@B.example./x"]
    slow = {"pattern": "slow.org", "requests_per_second": 0.5, "connections": 1}
    shared = {"pattern": "*.net", "requests_per_second": 1.0, "connections": 4, "shared": True}
    path = write_config(tmp_path, *urls, network={"hosts": [slow, shared], "contact": "mailto:me@example.org"})
    assert main(["estimate", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    web, here = found["sources"]
    assert (web["num_rows"], web["num_pictures"]) == (394, 392)
    assert web["reasons"] == {"invalid_url": 1, "missing_url": 1}
    assert (here["num_rows"], here["num_pictures"]) == (1, 1)
    assert found["web"]["num_urls"] == 391  # one address stands in two rows
    hosts = {host["host"]: host for host in found["web"]["hosts"]}
    assert {name: host["num_urls"] for name, host in hosts.items()} == {"slow.org": 300, "*.net": 90, "b.example": 1}
    assert hosts["slow.org"]["hours"] == pytest.approx(300 / 0.5 / 3600)
    assert hosts["*.net"]["hours"] == pytest.approx(90 / 3600)
    assert found["web"]["hosts"][0]["host"] == "slow.org"
    assert found["hours"]["slowest_host"] == found["hours"]["total"] == hosts["slow.org"]["hours"]
    assert found["local"] == {"num_pictures": 1, "num_bytes": 5000}
    assert found["bytes"]["download"] == 391 * found["assumed"]["picture_bytes"]
    disk = found["disk"]
    assert disk["needed_bytes"] == sum(disk[f"{what}_bytes"] for what in ("pool", "release", "tables"))
    assert not (tmp_path / "not").exists(), "nothing may be written"
    assert main(["estimate", str(path)]) == 0
    text = capsys.readouterr().out
    assert "391 distinct addresses on 3 hosts" in text
    assert "1 invalid_url, 1 missing_url" in text
    assert found["hours"]["decided_by"] == "slow.org"
    assert "slow.org decides: 10 min 00 s at 0.5 requests/s, 1 at once" in text
    assert "fewer rows of it; without it 1 min 30 s" in text
    assert "1 pictures of 5 kB are on this machine" in text


def test_it_says_what_would_stop_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, "http://slow.org/1.jpg", "http://10.0.0.7/2.jpg")
    assert main(["estimate", str(path)]) == 2
    seen = capsys.readouterr()
    assert "2 distinct addresses on 2 hosts" in seen.out
    assert "a build would stop: fetch.network.contact is not set, and slow.org is not this machine" in seen.err
    assert "warning: sources.web: 1 of the first 2 addresses would be refused" in seen.err
    assert 'write `fetch: {network: {allow_private_addresses: ["10.0.0.7"]}}`' in seen.err


def test_repeated_records_are_told(tmp_path: Path) -> None:
    path = write_config(tmp_path, "http://a/1", "http://a/2")
    (tmp_path / "t.csv").write_text("id,url,caption\n1,http://a/1,c\n1,http://a/2,c\n")
    found = estimate(BuildConfig.model_validate(yaml.safe_load(path.read_text())))
    assert found["sources"][0]["reasons"] == {"duplicate_record": 1}
    assert found["web"]["num_urls"] == 1


def test_heads_are_asked_when_told(server: _Server, tmp_path: Path) -> None:
    urls = [f"{server.address}/{name}.jpg" for name in (1000, 3000, "moved", "gone", "optout", "nolength")]
    urls += [f"{server.address}/{name}/1.jpg" for name in ("private", "licensed")]
    path = write_config(tmp_path, *urls, network={"allow_private_addresses": True})
    config = BuildConfig.model_validate(yaml.safe_load(path.read_text()))
    assert estimate(config)["heads"] is None
    assert server.seen == []
    found = estimate(config, num_heads=100)
    assert found["heads"] == {
        "num_asked": 8,
        "num_answered": 3,
        "mean_bytes": 2000,
        "median_bytes": 2000,
        "outcomes": {"http_404": 1, "no_length": 1, "opted_out": 2, "robots_disallowed": 1},
    }
    assert found["bytes"]["download"] == 8 * 2000
    assert found["assumed"]["pictures_per_core_second"] == pytest.approx(1 / decode_seconds(2000), abs=2)
    assert {method for _, method, path_ in server.seen if path_ not in SITE_FILES} == {"HEAD"}
    assert "/private/1.jpg" not in {path_ for *_, path_ in server.seen}
    assert any("8 addresses for their size, 3 gave it" in line for line in describe(found))
    assert not any("not enough" in line for line in describe(found))
    found["disk"]["needed_bytes"] = found["disk"]["free_bytes"] + 1
    assert any("not enough" in line for line in describe(found))


def test_heads_keep_to_the_rate(server: _Server) -> None:
    urls = [f"{server.address}/{n}.jpg" for n in range(100_000, 100_006)]
    limits = {"requests_per_second": 10.0, "connections": 2}
    sizes, _ = ask_sizes(urls, network(limits=limits))
    assert sorted(sizes) == list(range(100_000, 100_006))
    assert server.num_connections <= 2
    times = sorted(at for at, *_ in server.seen)
    assert times[-1] - times[0] >= 0.1 * (len(urls) - 1)  # robots.txt and six heads, a tenth of a second apart


def test_heads_need_what_fetch_needs(server: _Server) -> None:
    with pytest.raises(ConfigError, match="contact is not set"):
        ask_sizes(["http://example.org/1.jpg"], network())
    sizes, outcomes = ask_sizes([f"{server.address}/1.jpg"], network(allow_private_addresses=False))
    assert (sizes, outcomes) == ([], {"refused_target": 1})
    assert server.seen == []


def test_hosts_without_a_rate_are_bounded_by_their_connections() -> None:
    free = network(limits={"requests_per_second": None, "connections": 2})
    (host,) = host_times([("a.org", 3600)], free)
    assert host["hours"] == pytest.approx(3600 * 0.5 / 2 / 3600)


def test_an_adaptive_host_may_take_an_eighth_of_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"https://inaturalist-open-data.s3.amazonaws.com/photos/{n}/medium.jpg" for n in range(3_000)]
    path = write_config(tmp_path, *urls, network={"contact": "mailto:me@example.org"})
    assert main(["estimate", str(path)]) == 0
    text = capsys.readouterr().out
    assert "inaturalist-open-data.s3.amazonaws.com decides: 10 min 00 s at 5 requests/s, 3 at once" in text
    assert "1 min 15 s if it bears 8 times as much" in text
    (host,) = host_times([("a.org", 3600)], network(limits={"requests_per_second": None, "connections": 2}))
    assert host["fewest_hours"] == host["hours"]


def cells_below(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of the page on scale, without its head."""
    section = (ROOT / "configs/SCALE.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def of_the_reference_recipe(folder: Path, hosts: dict[str, int]) -> dict[str, Any]:
    """The estimate for so many addresses of each host, under the reference recipe's config on two cores."""
    config = yaml.safe_load((ROOT / "configs/pipeline/plantmix-13m.yaml").read_text())
    config["fetch"]["network"]["contact"] = "mailto:me@example.org"
    config["run"]["num_workers"] = 2
    config["mix"] = {"ratio": {"plant": 1}}
    lines = [f"https://{host}/{n}.jpg,a plant" for host, num in hosts.items() for n in range(num)]
    (folder / "all.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
    columns = {"url": "url", "caption": "caption"}
    config["sources"] = [{"name": "all", "domain": "plant", "table": str(folder / "all.csv"), "columns": columns}]
    config["work_dir"] = str(folder / "work")
    return estimate(BuildConfig.model_validate(config))


def test_the_page_on_scale_states_the_days(tmp_path: Path) -> None:
    """Of a thousandth of the pictures; hours grow with the rows."""
    stated = {name.partition(",")[0]: days for name, *days in cells_below("Days, by host")}
    inaturalist, wikimedia, other, decoding = stated
    found = of_the_reference_recipe(tmp_path, {inaturalist: 10_000, wikimedia: 3_000, other: 30})
    hosts = {host["host"]: host for host in found["web"]["hosts"]}
    for times, at in ((1000, 0), (100_000 / 13, 2)):
        for name in (inaturalist, wikimedia, other):
            days, fewest = (times * hosts[name][hours] / 24 for hours in ("hours", "fewest_hours"))
            assert stated[name][at : at + 2] == [f"{days:.1f}", f"{fewest:.1f}" if hosts[name]["adaptive"] else ""], (
                name
            )
        work = times * 13_000 / 13_030 * found["hours"]["local_work"] / 24
        assert stated[decoding][at] == f"{work:.1f}"


def test_the_page_on_scale_states_the_disk(tmp_path: Path) -> None:
    found = of_the_reference_recipe(tmp_path, {"example.org": 1000})
    num_bytes = [
        found["bytes"]["download"],
        *(found["disk"][f"{name}_bytes"] for name in ("pool", "release", "tables")),
    ]
    for (name, *stated), each in zip(cells_below("Disk"), num_bytes, strict=True):
        for cell, times in zip(stated, (13_000, 100_000), strict=True):
            value, unit = cell.split()
            assert float(value) * {"GB": 1e9, "TB": 1e12}[unit] == pytest.approx(times * each, rel=0.005), name


def test_the_estimate_agrees_with_the_largest_build(server: _Server, tmp_path: Path) -> None:
    """Two addresses that state the mean size of its pictures stand for them."""
    lines = (ROOT / "tests/benchmarks/results/million.jsonl").read_text().splitlines()
    largest = max((told for told in map(json.loads, lines) if told["step"] == "build"), key=lambda told: told["num"])
    mean = round(largest["packed_mb"] * 1e6 / largest["num"])
    urls = [f"{server.address}/{size}.jpg" for size in (mean - 1, mean + 1)]
    path = write_config(tmp_path, *urls, network={"allow_private_addresses": True})
    config = yaml.safe_load(path.read_text())
    (config["sources"], config["mix"]) = (config["sources"][:1], {"ratio": {"plant": 1}})
    found = estimate(BuildConfig.model_validate(config), num_heads=2)
    assert found["bytes"]["mean_picture"] == mean
    times = largest["num"] / 2
    assert times * found["disk"]["needed_bytes"] == pytest.approx(1e6 * largest["disk_mb"], rel=0.1)
    work = times * found["hours"]["local_work"] * found["assumed"]["num_cores"] * 3600
    assert 1 <= work / largest["cpu_seconds"] <= 1.6, "the rest of a build is in it, and small ones pass as they are"


def test_stored_sizes_follow_the_settings() -> None:
    usual = stored_bytes(ImageSettings(), 500_000)
    assert 30_000 < usual < 50_000
    assert stored_bytes(ImageSettings(jpeg_quality=80), 500_000) < usual
    assert stored_bytes(ImageSettings(size_px=512), 500_000) == pytest.approx(4 * usual)
    assert stored_bytes(ImageSettings(resize="keep_ratio_largest"), 500_000) < usual
    assert stored_bytes(ImageSettings(resize="no"), 500_000) == 500_000
    assert stored_bytes(ImageSettings(), 9000) == 9000
