"""Folders to a hub on the loopback, through the real client: what arrives, what is refused, what passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from misbehaving.hub import CUT, FakeHub, Repository, fake_hub, use_hub

from manifests.errors import ConfigError, RunError
from manifests.publishing import hub as uploads

# huggingface_hub 2.4 sends LFS files in a way that its own HTTP client deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "lab/plants"
MARKER = "release.json"
FILES = {"shards/a.tar": b"a" * 5000, "shards/b.tar": b"b" * 3000, "README.md": b"# plants\n", MARKER: b"{}"}
LARGE = [name for name in FILES if name.endswith(".tar")]
MORE = {"croissant.json": b"{}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    with fake_hub() as hub:
        use_hub(hub, monkeypatch)
        yield hub


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "release"


def upload(folder: Path, public: bool = False) -> list[str]:
    return uploads.upload_folder(str(folder), NAME, "dataset", public=public, marker=MARKER, more=MORE)


def stored(hub: FakeHub) -> Repository:
    return hub.repositories[f"datasets/{NAME}"]


def test_a_folder_arrives_whole_private_and_its_marker_last(hub: FakeHub, tmp_path: Path) -> None:
    lines = upload(write(tmp_path, FILES))
    found = stored(hub)
    assert found.private
    assert {name: file.content for name, file in found.files.items()} == FILES | MORE
    assert MARKER in found.commits[-1]
    assert not any(MARKER in commit for commit in found.commits[:-1])
    assert lines == [f"published: {hub.endpoint}/datasets/{NAME} (private), commit {found.sha}"]


@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_the_same_folder_again_sends_and_commits_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transfer: str
) -> None:
    use_hub(hub, monkeypatch, transfer)
    folder = write(tmp_path, FILES)
    upload(folder)
    arrived, commits = dict(hub.arrived), list(stored(hub).commits)
    assert arrived
    upload(folder)
    assert (dict(hub.arrived), stored(hub).commits) == (arrived, commits)
    assert {name: file.num_bytes for name, file in stored(hub).files.items()} == {
        name: len(content) for name, content in (FILES | MORE).items()
    }


def test_a_new_version_replaces_the_old_one_and_leaves_nothing_of_it(hub: FakeHub, tmp_path: Path) -> None:
    upload(write(tmp_path / "1", FILES))
    changed = {"shards/b.tar": FILES["shards/b.tar"], "shards/c.tar": b"c" * 100, MARKER: b'{"version": 2}'}
    upload(write(tmp_path / "2", changed))
    assert {name: file.content for name, file in stored(hub).files.items()} == changed | MORE
    assert set(hub.arrived.values()) == {1}


def test_files_of_someone_else_are_never_removed(hub: FakeHub, tmp_path: Path) -> None:
    upload(write(tmp_path / "1", {"notes.txt": b"mine", MARKER: b"{}"}))
    del stored(hub).files[MARKER]
    with pytest.raises(ConfigError, match=r"holds 1 files that are not of this upload, first: notes\.txt"):
        upload(write(tmp_path / "2", FILES))
    assert "notes.txt" in stored(hub).files


def test_a_public_repository_takes_no_private_upload(hub: FakeHub, tmp_path: Path) -> None:
    folder = write(tmp_path, FILES)
    hub.repositories[f"datasets/{NAME}"] = Repository(private=False)
    with pytest.raises(ConfigError, match="exists and is public"):
        upload(folder)
    assert not stored(hub).files
    upload(folder, public=True)
    assert set(stored(hub).files) == FILES.keys() | MORE.keys()


def test_a_private_repository_stays_private_and_that_is_said(hub: FakeHub, tmp_path: Path) -> None:
    folder = write(tmp_path, FILES)
    upload(folder)
    assert "make it public on its page" in upload(folder, public=True)[-1]
    assert stored(hub).private


@pytest.mark.parametrize(("token", "status"), [("hf_wrong", 401), (None, 401)])
def test_a_token_that_does_not_serve_is_said(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=rf"create the repository, .*\({status}\)\. Set HF_TOKEN"):
        upload(write(tmp_path, FILES))
    assert not hub.repositories


def test_a_token_that_may_not_write_is_said(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail("commit/main", 403, times=9)
    with pytest.raises(ConfigError, match=r"could not send the files, the token may not write there \(403\)"):
        upload(write(tmp_path, FILES))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("POST /api/repos/create", 503),
        ("POST /api/repos/create", 429),
        ("GET /api/datasets", 500),
        ("preupload", 429),
        ("objects/batch", 502),
        ("PUT /lfs", 500),
        ("PUT /lfs", CUT),
        ("commit/main", 503),
        ("commit/main", CUT),
        ("commit/main", 409),
    ],
)
def test_a_passing_fault_passes_and_no_blob_comes_twice(
    hub: FakeHub, tmp_path: Path, request_: str, status: int
) -> None:
    hub.fail(request_, status, times=1, **({"Retry_After": "0"} if status == 429 else {}))
    upload(write(tmp_path, FILES))
    assert not any(fault.times for fault in hub.faults)
    assert {name: file.content for name, file in stored(hub).files.items()} == FILES | MORE
    assert set(hub.arrived.values()) == {1}
    assert len(hub.arrived) == len(LARGE)


def test_a_hub_that_stays_down_is_said_and_what_arrived_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail("commit/main", 503, times=99)
    folder = write(tmp_path, FILES)
    with pytest.raises(RunError, match=r"could not send the files: .*503.*run the same command again to go on"):
        upload(folder)
    assert len(hub.arrived) == len(LARGE)
    assert not stored(hub).files
    hub.faults.clear()
    upload(folder)
    assert set(stored(hub).files) == FILES.keys() | MORE.keys()
    assert set(hub.arrived.values()) == {1}


@pytest.mark.parametrize("target", ["hf:", "hf:plants", "hf:a/b/c", "hf://lab/plants", "lab/plants", "hf:lab/pl ants"])
def test_a_target_that_is_no_repository_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="write hf:OWNER/NAME"):
        uploads.repository_of(target)
