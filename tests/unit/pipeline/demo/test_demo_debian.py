from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.errors import ConfigError
from pipeline.demo.debian import fetch_package, find_package, package_version, read_members

FILES = {"usr/share/a/one.png": b"\x89PNG first", "usr/share/a/one.txt": b"A rose.\n", "usr/share/b/empty": b""}


def _tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _ar(members: dict[str, bytes]) -> bytes:
    body = b"!<arch>\n"
    for name, content in members.items():
        body += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode()
        body += content + b"\n" * (len(content) % 2)
    return body


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


def _write_deb(folder: Path, suffix: str = ".xz", name: str = "stamps_1%3a2.0-1_all.deb") -> Path:
    # an odd length in front, so that the padding of ar is met
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar{suffix}": COMPRESSIONS[suffix](_tar(FILES)),
    }
    path = folder / name
    path.write_bytes(_ar(members))
    return path


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_members_of_every_compression(tmp_path: Path, suffix: str) -> None:
    assert dict(read_members(_write_deb(tmp_path, suffix))) == FILES


@pytest.mark.parametrize("keep", [0, 4, 30, 150, -40])
def test_a_cut_package_is_named_with_what_to_do(tmp_path: Path, keep: int) -> None:
    deb = _write_deb(tmp_path)
    deb.write_bytes(deb.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"stamps_.*: not a whole Debian package .*delete it and run this again"):
        list(read_members(deb))


def test_garbage_inside_is_named(tmp_path: Path) -> None:
    deb = tmp_path / "stamps_1_all.deb"
    deb.write_bytes(_ar({"data.tar.xz": b"no xz at all"}))
    with pytest.raises(ConfigError, match="not a whole Debian package"):
        list(read_members(deb))


def test_version_is_read_from_the_name(tmp_path: Path) -> None:
    assert package_version(_write_deb(tmp_path)) == "1:2.0-1"


def test_a_file_laid_there_by_hand_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    deb = _write_deb(tmp_path)
    assert fetch_package("stamps", tmp_path) == deb
    assert find_package("stamp", tmp_path) is None


def test_without_apt_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError) as caught:
        fetch_package("stamps", tmp_path / "packages")
    message = str(caught.value)
    assert "apt-get is not on this machine" in message
    assert "stamps_VERSION_all.deb" in message
    assert "`sources` in a copy of configs/pipeline/demo.yaml" in message
    assert "plantmix build YOUR.yaml" in message
    assert not (tmp_path / "packages").exists()


FAKE_APT = """#!/bin/sh
# stands for an apt without (or with stale) lists: only after an update with private lists it knows the package
echo "$@" >> {log}
case "$*" in
  *update*) touch {known} ;;
  *download*) if [ -f {known} ]; then cp {deb} . ; else echo "E: Unable to locate package stamps" >&2; exit 100; fi ;;
esac
"""


def test_missing_lists_are_fetched_privately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mirror"
    source.mkdir()
    deb = _write_deb(source)
    log, known, tools = tmp_path / "log", tmp_path / "known", tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(FAKE_APT.format(log=log, known=known, deb=deb))
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    packages = tmp_path / "packages"
    found = fetch_package("stamps", packages)
    assert found == packages / deb.name
    assert found.read_bytes() == deb.read_bytes()
    assert [path.name for path in packages.iterdir()] == [deb.name]
    calls = log.read_text().splitlines()
    assert len(calls) == 3
    assert "Dir::State::Lists=" in calls[1]
    assert calls[1].endswith("update")


def test_the_words_of_apt_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package stamps' >&2\nexit 100\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(ConfigError, match=r"stamps: .*Unable to locate package stamps.*`universe`.*YOUR\.yaml"):
        fetch_package("stamps", tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []
