"""The record of a stranger's release: a name in it that leads elsewhere, or says more than a name, opens nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.contract.release import LATEST_FILE, RECORD_FILE, Release, path_of_shard, plain_name
from manifests.errors import IntegrityError
from pipeline.cli import main
from tests.release_writer import drawn_samples, write_release

BAD_NAMES = (
    "../secret.tar",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "-rf",
    "a\nrm -rf ~",
    "a\x1b[2J",
    "a b",
    "a;b",
    "$(id)",
    "a\u2028b",
    "a\x00b",
    "c:\\x",
    "x" * 300,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("releases") / "toy-0001", drawn_samples(8, 4), shard_size=4)


def rename_shard(record: dict[str, Any], name: Any) -> None:
    record["splits"]["train"]["shards"][0]["shard"] = name


def rename_file(record: dict[str, Any], name: Any) -> None:
    name = name.replace("a/b", "a//b")  # a file may lie in a folder of the release, so a/b alone would do no harm
    record["files"][f"shards/{name}"] = record["files"].pop("shards/toy-000000.tar")


def rename_domain(record: dict[str, Any], name: Any) -> None:
    record["splits"]["train"]["shards"][0]["domains"] = {str(name): 4}


def rename_counted_domain(record: dict[str, Any], name: Any) -> None:
    record["counts"] = {"domains": {str(name): 4}}


def rename_split(record: dict[str, Any], name: Any) -> None:
    record["splits"][str(name)] = record["splits"].pop("train")


def rename_field(field: str) -> Callable[[dict[str, Any], Any], None]:
    def rename(record: dict[str, Any], name: Any) -> None:
        record[field] = name

    return rename


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@pytest.mark.parametrize(
    "rename",
    [rename_shard, rename_file, rename_domain, rename_split, rename_counted_domain]
    + [rename_field(field) for field in ("name", "version", "kind", "fingerprint")],
)
def test_no_name_in_a_record_leads_elsewhere(
    original: Path, tmp_path: Path, rename: Callable[[dict[str, Any], Any], None], name: Any
) -> None:
    record = copy.deepcopy(json.loads((original / RECORD_FILE).read_text()))
    rename(record, name)
    (tmp_path / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=r"no plain name|is no split|not a whole record"):
        Release.open(str(tmp_path))


@pytest.mark.parametrize("name", [*BAD_NAMES, 7, None], ids=repr)
def test_a_plain_name_cannot_be_anything_else(name: Any) -> None:
    with pytest.raises(ValueError, match="no plain name"):
        plain_name(name)


@pytest.mark.parametrize("name", ["toy-000000.tar", "plantmix-13m-heldout-000012.tar", "a.b+c_d-1", "_x"])
def test_names_that_a_build_gives_are_plain(name: str) -> None:
    assert plain_name(name) == name


def test_the_samples_table_of_a_stranger_leads_nowhere(original: Path) -> None:
    release = Release.open(str(original))
    with pytest.raises(IntegrityError, match="no plain name"):
        release.shard_path("train", "../../secret.tar")
    with pytest.raises(IntegrityError, match="no shard of a release"):
        path_of_shard(str(original), "../..", "toy-000000.tar")


@pytest.mark.parametrize("pointed", ["../elsewhere/toy-0001", "/etc", "..", ""])
def test_a_pointer_to_the_newest_release_stays_in_its_folder(tmp_path: Path, pointed: str) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / LATEST_FILE).write_text(f"{pointed}\n")
    with pytest.raises(IntegrityError, match=f"{LATEST_FILE}.*no plain name"):
        Release.open(str(tmp_path))


@pytest.mark.parametrize(
    "command", [["export", "--for", "img2dataset", "--out", "OUT"], ["export", "--for", "open_clip"], ["verify"],
                ["takedown", "--owner", "x"], ["report"]],
)  # fmt: skip
def test_every_command_refuses_such_a_release(
    original: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was found: the file beside the release was linked into the export."""
    (tmp_path / "secret.tar").write_bytes(b"secret")
    record = json.loads((original / RECORD_FILE).read_text())
    rename_shard(record, "../../secret.tar")
    record["files"]["shards/../../secret.tar"] = {"num_bytes": 6, "sha256": "0" * 64}
    record |= {"counts": {}, "recipe": {}}
    folder = tmp_path / "toy-0001"
    folder.mkdir()
    (folder / RECORD_FILE).write_text(json.dumps(record))
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    assert main([words[0], str(folder), *words[1:]]) == 2
    assert "no plain name" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.tar", "toy-0001"]
