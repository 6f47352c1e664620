"""A release of real pictures, published: what is sent, what may be public, and what other tools read of the copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environments
import fsspec
import pytest
import yaml
from building import PLANTMIX, ROOT, release_of, run_here
from misbehaving.hub import FakeHub, fake_hub, use_hub
from sealed import flip_byte
from waiting import wait_until

from manifests.contract.release import Release
from manifests.errors import ConfigError
from pipeline.cli import main
from pipeline.releases.publishing import plan_publishing

# huggingface_hub 2.4 sends LFS files in a way that its own HTTP client deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
REPOSITORY = "datasets/lab/plants"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`mixed`: half of the pictures may not be passed on when changed. `free`: everyone may pass on all."""
    folder = tmp_path_factory.mktemp("publish")
    for number, photo in enumerate(PHOTOS):
        place = folder / ("ours" if number % 2 else "theirs") / photo.stem
        place.mkdir(parents=True)
        shutil.copy(photo, place)
    for name, licence in (("mixed", "CC BY-ND 4.0"), ("free", "CC0 1.0")):
        values = {
            "name": name,
            "work_dir": str(folder / name),
            "sources": [
                {"name": "ours", "domain": "plant", "folder": {"path": str(folder / "ours")},
                 "defaults": {"licence": "CC BY 4.0"}},
                {"name": "theirs", "domain": "plant", "folder": {"path": str(folder / "theirs")},
                 "defaults": {"licence": licence}},
            ],
            "mix": {"ratio": {"plant": 1}, "heldout": {"num_samples": {"plant": 4}}},
            "pack": {"samples_per_shard": 2},
            "run": {"executor": "inline"},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        assert main(["build", str(folder / f"{name}.yaml")]) == 0
    return {name: release_of(folder / name) for name in ("mixed", "free")}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def publish(hub: FakeHub, home: Path, *arguments: str | Path, transfer: str = "lfs") -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_hub(hub, patch, transfer)
        patch.setenv("HF_XET_CACHE", str(home))
        return run_here("publish", *arguments)


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    releases: dict[str, Path], hub: FakeHub, tmp_path: Path
) -> None:
    done = publish(hub, tmp_path, releases["mixed"], "--to", "hf:lab/plants", "--dry-run")
    assert done.returncode == 0, done.stderr
    num_files = len(Release.open(str(releases["mixed"])).record["files"]) + 3
    assert f"{num_files} files" in done.stdout
    assert "private, and --public is not possible" in done.stdout
    assert ["CC-BY-ND-4.0", "theirs", "8", "not", "by", "everyone"] in [
        line.split() for line in done.stdout.split("\n")
    ]
    assert not hub.log


def test_public_is_refused_with_every_licence_that_forbids_it(
    releases: dict[str, Path], hub: FakeHub, tmp_path: Path
) -> None:
    done = publish(hub, tmp_path, releases["mixed"], "--to", "hf:lab/plants", "--public")
    assert done.returncode == 2
    assert "may not be public" in done.stderr
    assert "8 images: CC-BY-ND-4.0, from theirs" in done.stderr
    assert "CC-BY-4.0" not in done.stderr
    assert not hub.log


def test_a_release_whose_licences_were_read_by_single_words_does_not_become_public(releases: dict[str, Path]) -> None:
    release = Release.open(str(releases["free"]))
    release.record["recipe"]["caption"]["version"] = 11
    with pytest.raises(ConfigError, match="were not yet read as a whole when it was built; build it again"):
        plan_publishing(release, "hf:lab/plants", public=True, authors=())
    assert not plan_publishing(release, "hf:lab/plants", public=False, authors=()).public


@pytest.mark.parametrize("public", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_release_that_everyone_may_pass_on_is_public_only_where_that_is_said(
    releases: dict[str, Path], hub: FakeHub, tmp_path: Path, public: bool
) -> None:
    done = publish(hub, tmp_path, releases["free"], "--to", "hf:lab/plants", *(["--public"] if public else []))
    assert done.returncode == 0, done.stderr
    assert hub.repositories[REPOSITORY].private is not public


def test_a_release_that_is_not_whole_is_not_sent(releases: dict[str, Path], hub: FakeHub, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(releases["mixed"], copy)
    damaged = next((copy / "shards").glob("*.tar"))
    flip_byte(damaged)
    done = publish(hub, tmp_path, copy, "--to", "hf:lab/plants")
    assert done.returncode == 2
    assert damaged.name in done.stderr
    assert not hub.log


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["lfs", "xet"])
def test_a_publish_that_is_killed_goes_on_where_it_was(
    releases: dict[str, Path], hub: FakeHub, tmp_path: Path, transfer: str
) -> None:
    hub.hold(after=3 if transfer == "lfs" else 0)
    command = [*PLANTMIX, "publish", str(releases["mixed"]), "--to", "hf:lab/plants"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "01"[transfer == "lfs"]}
    env = kept | hub.environment | own
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(hub.holding.is_set, process)
        process.kill()
    before = dict(hub.arrived)
    assert not hub.repositories[REPOSITORY].commits
    assert len(before) >= 3 if transfer == "lfs" else not before  # those already on their way arrive too
    hub.release()
    done = publish(hub, tmp_path, releases["mixed"], "--to", "hf:lab/plants", transfer=transfer)
    assert done.returncode == 0, done.stderr
    assert len(hub.arrived) > len(before)
    assert set(hub.arrived.values()) == {1}
    record = Release.open(str(releases["mixed"])).record
    there = hub.repositories[REPOSITORY].files
    assert set(there) == {*record["files"], "release.json", "croissant.json", "CITATION.cff"}
    assert {name: there[name].sha256 for name in record["files"]} == {
        name: entry["sha256"] for name, entry in record["files"].items()
    }


# ---- what others read of the copy


@pytest.fixture(scope="module")
def downloaded(releases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed release as it lies on the hub after a publish, in a folder."""
    folder = tmp_path_factory.mktemp("downloaded")
    with fake_hub() as hub:
        done = publish(hub, folder / "home", releases["mixed"], "--to", "hf:lab/plants", "--author", "Ada's lab")
        assert done.returncode == 0, done.stderr
        for name, file in hub.repositories[REPOSITORY].files.items():
            path = folder / "plants" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content or b"")
    return folder / "plants"


def read_with(code: str, folder: Path, tmp_path: Path, python: Path | str) -> Any:
    """Run a reader in a process and a home of its own; what it prints last, as JSON."""
    env = {"PATH": os.defpath, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(python), "-c", code, str(folder)], capture_output=True, text=True, check=False, env=env, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_verify_takes_the_copy_for_whole(downloaded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(downloaded), "--deep"]) == 0
    assert "15 images decode" in capsys.readouterr().out


MLCROISSANT = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1] + "/croissant.json")
issues = dataset.metadata.ctx.issues
text = lambda value: value.decode() if isinstance(value, bytes) else value
records = {name: list(dataset.records(name)) for name in ("splits", "samples", "images")}
print(json.dumps({
    "issues": [*issues.errors, *issues.warnings], "version": dataset.metadata.ctx.conforms_to.value,
    "license": dataset.metadata.license, "creators": [row.name for row in dataset.metadata.creators],
    "splits": [text(row["splits/name"]) for row in records["splits"]],
    "texts": {text(row["samples/key"]): [text(row["samples/split"]), text(row["samples/text"])]
              for row in records["samples"]},
    "sizes": {text(row["images/key"]): row["images/image"].size for row in records["images"]},
}, default=str))
"""


@pytest.mark.slow
def test_mlcroissant_finds_no_fault_and_reads_every_record(downloaded: Path, tmp_path: Path) -> None:
    told = read_with(MLCROISSANT, downloaded, tmp_path, environments.environment("consumers"))
    rows = Release.open(str(downloaded)).samples().to_pylist()
    assert told["issues"] == []
    assert told["version"] == "http://mlcommons.org/croissant/1.1"
    assert set(told["license"]) == {
        "https://creativecommons.org/licenses/by/4.0/",
        "https://creativecommons.org/licenses/by-nd/4.0/",
    }
    assert told["creators"] == ["Ada's lab"]
    assert set(told["splits"]) == {"train", "heldout"}
    assert told["texts"] == {row["key"]: [row["split"], row["text"]] for row in rows}
    assert told["sizes"] == {row["key"]: [row["stored_width_px"], row["stored_height_px"]] for row in rows}


def test_the_citation_file_names_the_release_and_its_makers(downloaded: Path) -> None:
    found = yaml.safe_load((downloaded / "CITATION.cff").read_text(encoding="utf-8"))
    record = Release.open(str(downloaded)).record
    assert (found["cff-version"], found["type"], found["title"]) == ("1.2.0", "dataset", "mixed")
    assert found["version"] == record["version"]
    assert found["authors"] == [{"name": "Ada's lab"}]
    assert found["url"].endswith("/datasets/lab/plants")


# ---- folders and object stores


def test_a_folder_gets_a_whole_copy_and_only_what_is_missing_is_copied_again(
    releases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "copy"
    assert main(["publish", str(releases["mixed"]), "--to", f"file://{target}"]) == 0
    assert main(["verify", str(target), "--deep"]) == 0
    (target / "release.json").unlink()  # as a killed publish leaves it
    next((target / "shards").glob("*.tar")).unlink()
    (target / ".own.tar.tmp-0123456789ab").write_bytes(b"half")
    capsys.readouterr()
    assert main(["publish", str(releases["mixed"]), "--to", str(target)]) == 0
    num = len(Release.open(str(target)).record["files"])
    assert f"1 files copied, {num - 1} were there; all checked" in capsys.readouterr().out
    assert main(["verify", str(target), "--deep"]) == 0
    assert not list(target.glob(".*"))
    with (target / "README.md").open("a") as stream:  # a note of whoever has the copy
        stream.write("read by us\n")
    assert main(["verify", str(releases["mixed"])]) == 0


def test_an_object_store_gets_a_whole_copy_or_no_record(
    releases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target = "memory://bucket/plants"
    assert main(["publish", str(releases["mixed"]), "--to", target]) == 0
    assert not list(Release.open(target).wrong_hashes())
    store = fsspec.filesystem("memory")
    shard = next(name for name in store.find("/bucket/plants") if name.endswith(".tar"))
    content = bytearray(store.cat_file(shard))
    content[-1] ^= 1
    store.pipe_file(shard, bytes(content))
    store.rm_file("/bucket/plants/release.json")
    assert main(["publish", str(releases["mixed"]), "--to", target]) == 1
    assert "1 files are not what was sent" in capsys.readouterr().err
    assert not store.exists("/bucket/plants/release.json")


def test_a_folder_of_something_else_is_left_alone(
    releases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(releases["mixed"]), "--to", str(tmp_path / "copy")]) == 0
    assert main(["publish", str(releases["free"]), "--to", str(tmp_path / "copy")]) == 2
    assert "holds another release" in capsys.readouterr().err
    assert main(["publish", str(releases["free"]), "--to", str(releases["free"].parents[1])]) == 2
    assert "files of something else, first: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("hf:plants", "write hf:OWNER/NAME"),
        ("hf://lab/plants", "write hf:OWNER/NAME"),
        ("nosuch://bucket/x", "nosuch://: no such kind of address; is it misspelt?"),
    ],
)
def test_a_target_that_cannot_be_is_named(
    releases: dict[str, Path], capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    assert main(["publish", str(releases["mixed"]), "--to", target, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_public_is_for_the_hub_alone(releases: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(releases["free"]), "--to", "memory://x", "--public"]) == 2
    assert "the option is for hf:OWNER/NAME" in capsys.readouterr().err
