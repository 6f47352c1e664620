"""Download a Debian package and read the files in it, without root and without installing anything.

Uses the apt sources of the machine. Writes NAME_VERSION_ARCH.deb into the folder it is given. Gives up with ConfigError
where apt is missing or cannot reach its mirror; the message says what to do instead.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from manifests.errors import ConfigError
from manifests.services.child import Command
from manifests.stores.storage import make_folder, publish

INSTEAD = (
    "The demo needs these pictures; your own pictures do not: list them in a table with an image URL and a "
    "caption a row (csv, parquet or jsonl), name the table and its columns under `sources` in a copy of "
    "configs/pipeline/demo.yaml, and run `plantmix build YOUR.yaml`."
)


def fetch_package(name: str, folder: Path) -> Path:
    """Give the .deb of package `name` in `folder`. It is downloaded with apt-get if it is not there yet.

    A .deb that someone put there by hand serves as well. Where the machine's package lists do not know the package (a
    fresh container) or are out of date, private lists are fetched, which needs no root.

    Raises: ConfigError when apt is missing or the download fails.
    """
    present = find_package(name, folder)
    if present is not None:
        return present
    if shutil.which("apt-get") is None:
        raise ConfigError(
            f"{name}: apt-get is not on this machine, so this Debian package with pictures cannot be fetched. "
            f"Put the file {name}_VERSION_all.deb of any Debian or Ubuntu mirror into {folder} and run this again. "
            + INSTEAD
        )
    make_folder(str(folder))
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=folder) as scratch:
        deb = _download(name, Path(scratch))
        target = folder / deb.name
        publish(str(deb), str(target))
    return target


def _download(name: str, scratch: Path) -> Path:
    first = _apt_get(["download", name], scratch)
    if (deb := find_package(name, scratch)) is not None and first.returncode == 0:
        return deb
    private = _private_lists(scratch)
    update = _apt_get([*private, "update"], scratch)
    second = _apt_get([*private, "download", name], scratch)
    if (deb := find_package(name, scratch)) is not None and second.returncode == 0:
        return deb
    lines = [line for done in (first, update, second) for line in done.stderr.splitlines()]
    errors = [line[2:].strip() for line in lines if line.startswith("E:")]
    # every fault ends in "Unable to locate"; where there is another one, that is the cause
    cause = min(errors, key=lambda error: error.startswith("Unable to locate"), default="no reason given")
    raise ConfigError(
        f"{name}: apt-get could not download this package: {cause}. Check the network and the apt sources "
        f"(on Ubuntu the component `universe`), then run this again. " + INSTEAD
    )


def find_package(name: str, folder: Path) -> Path | None:
    """Return the .deb of package `name` in `folder` with the last name in the alphabet, or None."""
    debs = sorted(folder.glob(f"{name}_*.deb"))
    return debs[-1] if debs else None


def package_version(deb: Path) -> str:
    """Return the version in a .deb's file name, e.g. 2025.03.31-1."""
    return urllib.parse.unquote(deb.stem.split("_")[1])


def read_members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of each regular file of a .deb, in the order of the archive; dpkg-deb unpacks it.

    Raises: ConfigError when the file is not a whole Debian package, or dpkg-deb is not there.
    """
    try:
        unpacking = Command(["dpkg-deb", "--fsys-tarfile", str(deb)])
    except FileNotFoundError:
        raise ConfigError(f"{deb}: dpkg-deb is not on this machine, so this package cannot be read") from None
    with unpacking:
        try:
            with tarfile.open(fileobj=unpacking.output, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None:
                        yield member.name.removeprefix("./"), content.read()
        except tarfile.TarError:  # it ends early: dpkg-deb says why
            unpacking.process.kill()
    if unpacking.end() != 0:
        cause = unpacking.last_line or "it ends early"
        raise ConfigError(f"{deb}: not a whole Debian package ({cause}); delete it and run this again")


def _apt_get(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # As root, apt downloads as the user _apt, who may not write here, and warns about it.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _private_lists(folder: Path) -> list[str]:
    """Options that make apt keep its lists under `folder`, where no root is needed."""
    lists, cache = folder.resolve() / "apt" / "lists", folder.resolve() / "apt" / "cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
