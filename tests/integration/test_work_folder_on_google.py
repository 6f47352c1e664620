"""`work_dir: gs://` through the real gcsfs, to a Cloud Storage server on the loopback: the bytes of a local build."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import hash_tree, write_folder_config
from command_server import CommandServer
from environments import environment
from gcsfs.core import GCSFileSystem
from release_writer import drawn_samples

from manifests.contract.reader import open_reader
from manifests.stores import folder as remote

pytestmark = pytest.mark.slow

BUCKET = "bucket"
NUM = 20


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Address of a Cloud Storage server on the loopback, with a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={BUCKET}"]
    python = environment("tools", on_ours=True)
    program = [python, "-m", "gcp_storage_emulator", *command]
    with subprocess.Popen(program, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no server on port {port}")


def run(commands: CommandServer, folder: Path, endpoint: str, *arguments: str) -> str:
    """One command of a user of the store; returns what it printed to stderr."""
    store = {
        "STORAGE_EMULATOR_HOST": endpoint,
        "NO_GCE_CHECK": "true",  # nobody looks for credentials of this machine,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # and nobody asks Google what kind of bucket it is
        remote.PLACE_VARIABLE: str(folder / "local"),
    }
    command = commands.start("plantmix", *arguments, **store)
    _, err = command.communicate(timeout=1500)
    assert command.returncode == 0, err
    return err


def hash_bucket(endpoint: str, folder: str) -> dict[str, str]:
    """sha256 of every object below a folder of the bucket, by its path there."""
    fs = GCSFileSystem(token="anon", endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)
    return {path.removeprefix(f"{folder}/"): hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(folder)}


def test_a_build_a_check_and_a_takedown_leave_what_they_leave_on_a_disk(
    endpoint: str, commands: CommandServer, tmp_path: Path
) -> None:
    for number, sample in enumerate(drawn_samples(NUM, 0)):
        path = tmp_path / "pictures" / ("plant" if number % 2 else "general") / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.jpg)
        path.with_suffix(".txt").write_text(f"picture number {number} of the field")
    pictures = str(tmp_path / "pictures")
    work, stored = str(tmp_path / "work"), f"gs://{BUCKET}/runs/one"
    said = [
        run(commands, tmp_path, endpoint, "build", str(write_folder_config(tmp_path, place, pictures)))
        for place in (work, stored)
    ]
    assert hash_bucket(endpoint, f"{BUCKET}/runs/one/releases") == hash_tree(tmp_path / "work/releases")
    said.append(run(commands, tmp_path, endpoint, "verify", stored))

    with open_reader(work) as reader:
        ((taken,),) = reader.execute("SELECT min(sample_id) FROM placements").fetchall()
    said += [run(commands, tmp_path, endpoint, "takedown", place, "--id", taken) for place in (work, stored)]
    after = hash_bucket(endpoint, f"{BUCKET}/runs/one/releases")
    assert after == hash_tree(tmp_path / "work/releases")
    assert sum(path.endswith("/release.json") for path in after) == 2
    assert "Task was destroyed" not in "".join(said)
