"""A GBIF download that is there, read by the reader of Darwin Core Archives. Asks no host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from manifests.errors import ConfigError
from pipeline.sources import dwca
from pipeline.sources.gbif.asking import as_archive, is_waiting
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import Origin


def check_source(source: Origin) -> None:
    """Check that the archive is there, and has the terms that the config names.

    Raises: ConfigError.
    """
    if is_waiting(source):
        raise ConfigError(
            f"{source.where}: its download from GBIF is not there yet; `plantmix build CONFIG --to ingest` asks for it "
            "and waits"
        )
    dwca.check_source(as_archive(source))


def digest_inputs(source: Origin, hash_file: Callable[[str], str]) -> list[str]:
    """Hash of the archive."""
    check_source(source)
    return dwca.digest_inputs(as_archive(source), hash_file)


def read_rows(source: Origin, scratch: Scratch) -> Iterator[Batch]:
    """Every media row of the archive, filtered, and the rows that were dropped."""
    yield from dwca.read_rows(as_archive(source), scratch)


def first_media(source: Origin) -> dict[str, list[str | None]]:
    """Addresses and licences of the first media rows, without a join: `url` and `licence`."""
    return dwca.first_media(as_archive(source))
