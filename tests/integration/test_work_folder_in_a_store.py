"""`work_dir: s3://`: the same bytes as on a disk, whoever goes on with it, and few requests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import done, hash_tree, write_folder_config
from command_server import CommandServer
from misbehaving.object_store import BUCKET, Store, hash_stored, serving
from release_writer import drawn_samples
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import CATALOG_FILE, JOURNAL_FILE
from manifests.contract.records import Funnel, StageRecord
from manifests.errors import DamageError
from manifests.stores import folder as remote
from manifests.stores import storage
from pipeline.cli import main
from pipeline.engine.away import brought_here
from pipeline.engine.work import Execution
from pipeline.store.files import RowGroup

NUM = 40


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def pictures(store: Store) -> str:
    """A folder of pictures and their texts, in the same store."""
    fs = fsspec.filesystem("s3", **store.options)
    for number, sample in enumerate(drawn_samples(NUM, 0)):
        domain = "plant" if number % 2 else "general"
        fs.pipe_file(f"{BUCKET}/pictures/{domain}/{number:03}.jpg", sample.jpg)
        fs.pipe_file(f"{BUCKET}/pictures/{domain}/{number:03}.txt", f"picture number {number} of the field".encode())
    return f"s3://{BUCKET}/pictures"


@pytest.fixture(autouse=True)
def at_home(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the store, whose local folders lie in the test's folder."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(remote.PLACE_VARIABLE, str(tmp_path / "local"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.01, 0.01))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store.choose, store.injected = lambda method, path: None, 0


@pytest.fixture(scope="module")
def whole(store: Store, pictures: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """sha256 of every file of the releases that the same build makes on a local disk."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_folder_config(folder, str(folder / "work"), pictures)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which keeps the store of an earlier test open
        done("build", config)
    return hash_tree(folder / "work/releases")


def releases_in(store: Store, name: str) -> dict[str, str]:
    return hash_stored(store, f"{name}/releases")


def asked_for(store: Store, name: str) -> list[tuple[str, str]]:
    """(method, path within the work folder) of every request for a file of it."""
    top = f"/{BUCKET}/{name}/"
    return [(method, unquote(path)[len(top) :]) for method, path in store.requests if unquote(path).startswith(top)]


# ---- one machine


@pytest.mark.parametrize("is_home", [True, False], ids=["driver's machine", "another"])
def test_a_part_that_is_tried_again_has_the_tables_of_its_pieces_whoever_made_them(store: Store, is_home: bool) -> None:
    """As it was found: a node was lost, and on the driver's machine its part failed for ever (FileNotFoundError)."""
    address = f"s3://{BUCKET}/runs/pieces-{is_home}"
    fsspec.filesystem("s3", **store.options).pipe_file(f"{address}/tables/fetch/stem-0.parquet", b"a piece")
    home = remote.stands_for(address)
    remote.note(home, address)
    if is_home:
        Path(home, CATALOG_FILE).touch()
    run = Execution(home, 1, "stem", None, pieces=(f"{home}/tables/fetch/stem-0.parquet",), store=address)
    with brought_here(None, run) as (_, here, _):
        assert [Path(path).read_bytes() for path in here.pieces] == [b"a piece"]


def test_machines_that_share_a_cache_folder_keep_each_others_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://{BUCKET}/shared"
    run, parts = Execution(str(tmp_path / "driver"), 1, "stem", None, store=address), Path(remote.stands_for(address))
    with brought_here(None, run):
        (other,) = (parts / "parts").iterdir()
        renamed = other.rename(other.with_name(other.name.replace(f"-{os.getpid()}-", "-999999999-")))  # none has it
        with monkeypatch.context() as patched:
            patched.setattr("pipeline.engine.away.this_host", lambda: "another machine")
            with brought_here(None, run):
                assert renamed.exists(), "its process ids mean nothing there"
        with brought_here(None, run):
            assert not renamed.exists(), "of a killed process of this machine"


@pytest.mark.parametrize("damage", [False, True])
def test_elsewhere_a_file_is_damaged_where_it_cannot_be_read(damage: bool, tmp_path: Path) -> None:
    """As it was found: any ArrowInvalid of a part was told as damage, and `repair` found none."""
    address, home = f"s3://{BUCKET}/damage/{damage}", str(tmp_path / "driver")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    storage.publish_bytes(f"{address}/tables/a.parquet", content[:-1] if damage else content)
    inputs = RowGroup(f"{home}/tables/a.parquet", 0, "content")
    wanted = pytest.raises(DamageError if damage else pa.ArrowInvalid, match="a.parquet" if damage else "of the part")
    with wanted, brought_here(inputs, Execution(home, 1, "stem", None, store=address)):
        raise pa.ArrowInvalid("of the part")


def test_the_bytes_of_a_local_build_and_few_requests(
    store: Store, pictures: str, whole: dict[str, str], tmp_path: Path
) -> None:
    """As it was found: 1,346 requests for 200 pictures, and 848 times the bytes read from the pool."""
    config = write_folder_config(tmp_path, f"s3://{BUCKET}/runs/one", pictures)
    store.requests, store.sent = [], []
    assert main(["build", str(config)]) == 0
    asked, sent = asked_for(store, "runs/one"), list(store.sent)
    assert releases_in(store, "runs/one") == whole

    written = Counter(path for method, path in asked if method == "PUT")
    kept = {path: num for path, num in written.items() if path.startswith(("tables/", "pool/", "releases/"))}
    assert len(kept) > 2 * NUM / 4
    assert set(kept.values()) == {1}, "one request a file that is written, and none to move or copy it"
    of_files = Counter(method for method, path in asked if path in kept and not path.endswith("/release.json"))
    assert set(of_files) == {"PUT", "GET"}
    assert sum(method == "HEAD" for method, _ in asked) <= 8, "folders, and the record of the release at the end"

    arranged = [
        path for split in ("train", "heldout") for path in (tmp_path / "local").glob(f"*/tables/pack/*-{split}.parquet")
    ]
    assert len(arranged) == 2
    rows = [row for path in arranged for row in pq.read_table(path, columns=["length"]).to_pylist()]
    reads = [num for path, num in sent if "/runs/one/pool/" in path]
    assert len(reads) <= len(rows), "at most one request a picture"
    assert sum(reads) <= 1.2 * sum(row["length"] for row in rows)
    assert not [path for path, _ in sent if "/runs/one/tables/" in path], "what this machine wrote is not read again"
    assert not list((tmp_path / "local").glob("*/pool/*")), "pool and shards lie in the store alone"
    assert not list((tmp_path / "local").glob("*/releases/**/*.tar"))


@pytest.mark.slow
def test_processes_of_one_machine_write_into_the_store(
    store: Store, pictures: str, whole: dict[str, str], tmp_path: Path
) -> None:
    address = f"s3://{BUCKET}/runs/processes"
    store.requests = []
    config = write_folder_config(tmp_path, address, pictures, executor="processes", num_workers=2)
    assert main(["build", str(config)]) == 0
    assert releases_in(store, "runs/processes") == whole
    written = Counter(path for method, path in asked_for(store, "runs/processes") if method == "PUT")
    files = {path: num for path, num in written.items() if path.startswith(("tables/", "pool/", "releases/"))}
    assert set(files.values()) == {1}
    assert not fsspec.filesystem("s3", **store.options).find(f"{BUCKET}/runs/processes/scratch")


@pytest.mark.slow
def test_every_command_on_a_store(
    store: Store, pictures: str, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "runs/commands"
    built = f"s3://{BUCKET}/{name}"
    fs = fsspec.filesystem("s3", **store.options)
    config = str(write_folder_config(tmp_path, built, pictures))
    assert main(["build", config]) == 0

    def said(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(command)) == code
        return "".join(capsys.readouterr())

    release = built + "/releases/" + next(path for path in whole if "/" in path).partition("/")[0]
    picture = json.loads(said("query", built, "SELECT sample_id, stored_sha256 FROM facts LIMIT 1", "--format", "json"))
    picture = picture[0] if isinstance(picture, list) else picture
    os.environ[remote.PLACE_VARIABLE] = str(tmp_path / "another machine")
    assert "of each equal the catalogue" in said("verify", release, "--deep"), "no command before brought a table"
    assert "pack " in said("status", built)
    assert str(NUM) in said("query", built, "SELECT count(*) FROM decisions")
    assert "stored as" in said("explain", built, picture["sample_id"])
    assert "are as recorded" in said("verify", built)
    assert "of each equal the catalogue" in said("verify", built, "--deep")
    assert "nothing to do" in said("build", config)
    assert "where the tables lie too" in said("estimate", config)
    assert said("preview", config)
    assert said("report", release, "--out", str(tmp_path / "report.html"))
    assert "nothing to repair" in said("repair", built)
    shard = next(path for path in whole if path.endswith(".tar"))
    fs.pipe_file(f"{BUCKET}/{name}/releases/{shard}", b"damaged")
    assert "7 bytes, recorded are" in said("verify", built, "--deep", code=1)
    assert "made again, as recorded" in said("repair", built)
    assert releases_in(store, name) == whole

    with fs.open(f"{BUCKET}/{name}/releases/{next(p for p in whole if p.endswith('samples.parquet'))}") as stream:
        samples = pq.read_table(stream, columns=["sample_id", "shard"]).to_pylist()
    store.requests, store.sent = [], []
    output = said("takedown", release, "--id", samples[0]["sample_id"])
    assert "taken down: 1 images" in output
    old, new = release.rpartition("/")[2], output.splitlines()[-1].rpartition("/")[2]
    assert_a_takedown_touches_few_shards(asked_for(store, name), store, samples, old, new)
    assert b"not stated" in fs.cat_file(f"{BUCKET}/{name}/takedowns.jsonl")
    assert "1 takedown" in said("build", config)
    fs.rm_file(f"{BUCKET}/{name}/takedowns.jsonl")
    os.environ[remote.PLACE_VARIABLE] = str(tmp_path / "a third machine")
    assert "gone, so what must stay out is not known" in said("build", config, code=2)
    fs.pipe_file(f"{BUCKET}/{name}/takedowns.jsonl", b"")
    assert said("build", config)
    assert said("diff", release, f"{built}/releases")


def assert_a_takedown_touches_few_shards(
    asked: list[tuple[str, str]], store: Store, samples: list[dict[str, str]], old: str, new: str
) -> None:
    """As it was found: every shard was read and written again, copied and deleted; 626 requests, 452 of them HEAD."""
    touched = {row["shard"] for row in samples if row["sample_id"] == samples[0]["sample_id"]}
    written = Counter(path for method, path in asked if method == "PUT" and path.startswith(f"releases/{new}/"))
    assert {path.rpartition("/")[2] for path in written} >= {row["shard"] for row in samples}
    assert set(written.values()) == {1}, "each file is one request; shards that lose nothing are copied in the store"
    read = {path.rpartition("/")[2] for path, _ in store.sent if f"/{old}/" in path and path.endswith(".tar")}
    assert read == touched
    methods = Counter(method for method, _ in store.requests)
    assert methods["HEAD"] < 50, methods
    assert methods["DELETE"] == 1, "an old lease, and no private file"


# ---- faults of the store


@pytest.mark.slow
def test_faults_of_the_store_cost_no_byte(store: Store, pictures: str, whole: dict[str, str], tmp_path: Path) -> None:
    """Every kind of fault in turn, at every ninth request for a file of the work folder, sixteen times."""
    faults = ("slow_down", "reset", "unanswered", "expired_403", "truncated")
    seen = [0]

    def choose(method: str, path: str) -> str | None:
        if "/runs/faulty/" not in path:
            return None
        seen[0] += 1
        fault = faults[seen[0] // 9 % len(faults)] if seen[0] % 9 == 0 and seen[0] < 150 else None
        return fault if method == "GET" or fault != "truncated" else "slow_down"

    store.choose = choose
    config = write_folder_config(tmp_path, f"s3://{BUCKET}/runs/faulty", pictures)
    assert main(["build", str(config)]) == 0
    assert store.injected == 16
    store.choose = lambda method, path: None
    assert releases_in(store, "runs/faulty") == whole


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("PUT", "unanswered"),
        ("DELETE", "expired_403"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("PUT", "slow_down"), ("DELETE", "unanswered"))),
    ],
)
def test_a_fault_while_the_folder_is_taken_is_no_other_driver(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, fault: str
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    address = f"s3://{BUCKET}/taken-{method}-{fault}"
    with Catalog.open(address):
        pass
    left = [fault]
    store.choose = lambda asked, path: left.pop() if left and asked == method and "/lease-" in path else None
    with Catalog.open(address) as catalog:
        assert not left
        catalog.seal_stage(StageRecord("fetch", "version", Funnel(0, 0), {}))


def test_a_store_that_stays_away_is_one_line(
    store: Store, pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_folder_config(tmp_path, f"s3://{BUCKET}/runs/away", pictures)
    store.choose = lambda method, path: "expired_403" if "/runs/away" in path else None
    assert main(["build", str(config)]) == 1
    said = capsys.readouterr().err
    assert f"s3://{BUCKET}/runs/away: the store cannot be used now (" in said
    assert "(PermissionError" in said
    assert "run the same command again" in said
    assert main(["build", str(write_folder_config(tmp_path, f"s3://{BUCKET}", pictures))]) == 2
    assert "name a folder in the bucket" in capsys.readouterr().err


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 12, 16])
def test_a_file_is_read_to_its_end_whatever_its_size(
    store: Store, num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store refuses a range behind the end; that it has no more bytes is not a fault."""
    monkeypatch.setattr(storage, "_RANGE_BYTES", 8)
    content = b"0123456789abcdef"[:num_bytes]
    place = f"s3://{BUCKET}/sizes/{num_bytes}"
    storage.publish_bytes(place, content)
    store.requests = []
    assert storage.download(place, str(tmp_path / "here")).sha256 == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "here").read_bytes() == content
    assert [method for method, _ in store.requests] == ["GET"] * (num_bytes // 8 + 1)


# ---- another machine


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_one_elsewhere(
    store: Store, commands: CommandServer, pictures: str, whole: dict[str, str], tmp_path: Path
) -> None:
    config = write_folder_config(tmp_path, f"s3://{BUCKET}/runs/killed", pictures)
    fs = fsspec.filesystem("s3", **store.options, use_listings_cache=False)
    seen: set[str] = set()

    def choose(method: str, path: str) -> str | None:
        if method == "GET" and path.startswith(f"/{BUCKET}/pictures/") and path.endswith(".jpg"):
            seen.add(path)
            if len(seen) == 21:  # five parts are committed; their lines of the journal go out every two seconds
                (journal,) = tmp_path.glob(f"local/*/{JOURNAL_FILE}")
                wait_until(lambda: fs.du(f"{BUCKET}/runs/killed/catalog/journal") >= journal.stat().st_size)
                driver.kill()
        return None

    store.choose, store.requests = choose, []
    driver = commands.start("plantmix", "build", config)
    assert driver.wait(1500) == -signal.SIGKILL, driver.said()
    read_before = seen - {path for _, path in store.requests[-1:]}
    store.choose, store.requests = lambda method, path: None, []
    os.environ[remote.PLACE_VARIABLE] = str(tmp_path / "another machine")
    assert main(["build", str(config)]) == 0
    again = {path for method, path in store.requests if method == "GET" and path.endswith(".jpg")}
    assert len(read_before & again) <= 4, "only the part in flight is read again"
    assert len(again) >= NUM - 21
    assert releases_in(store, "runs/killed") == whole
