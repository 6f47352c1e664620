"""Trained runs and indexes below a work folder that were made from certain releases or pictures. Writes nothing.

They are known by the records that `dalip` leaves: RUN/run.json and INDEX/index.json. Those that lie elsewhere are named
by `dalip` itself, when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract.records import fingerprints_of_run
from manifests.contract.release import Release
from manifests.names.vectors import samples_of
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.storage import read_if_there

_OF_BUILDS = {"pool", "tables", "releases", "catalog"}  # folders of a work folder that hold neither


def list_made_from(workdir: str, holding: Sequence[Release], ids: Sequence[str]) -> list[tuple[str, str]]:
    """(path, how) of each run that was trained on one of the releases, and of each index of samples with these ids."""
    names = {release.fingerprint: release.name for release in holding}
    found = []
    for folder in _folders(workdir):
        run = json_object(read_if_there(storage.join(folder, "run.json")))
        if on := [names[each] for each in fingerprints_of_run(run) if each in names]:
            found.append((folder, f"trained on {', '.join(on)}"))
        table = storage.join(folder, "names.parquet")
        if "features" in json_object(read_if_there(storage.join(folder, "index.json"))) and (
            num := _num_in(table, ids)
        ):
            found.append((folder, f"an index of {num:,} of the images"))
    return sorted(found)


def _folders(workdir: str) -> Iterator[str]:
    fs, inner = storage.filesystem(workdir)
    for folder, below, files in fs.walk(inner, detail=False):
        if folder.rstrip("/") == inner.rstrip("/"):
            below[:] = [name for name in below if name not in _OF_BUILDS]
        if {"run.json", "index.json"} & set(files):
            yield storage.join(workdir, folder[len(inner.rstrip("/")) + 1 :])


def _num_in(table: str, ids: Sequence[str]) -> int:
    fs, inner = storage.filesystem(table)
    try:
        names = pq.read_table(inner, filesystem=fs, columns=["name"])["name"]
    except (OSError, ValueError, KeyError):  # half an index, which no search opens
        return 0
    found: int = pc.sum(pc.is_in(samples_of(names), pa.array(ids, pa.string()))).as_py() or 0
    return found
