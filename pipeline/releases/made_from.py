"""Trained runs and vectors below a work folder that were made from certain releases or pictures. Writes nothing.

They are known by the records that `dalip` leaves: RUN/run.json and VECTORS.parquet.made.json. Those that lie elsewhere
are named by `dalip` itself, when they are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract.records import fingerprints_of_run
from manifests.contract.release import Release, samples_named
from manifests.services.untrusted import json_object
from manifests.stores import storage
from manifests.stores.storage import read_if_there

_RECORD = ".parquet.made.json"
_OF_BUILDS = {"pool", "tables", "releases", "catalog"}  # folders of a work folder that hold neither


def list_made_from(workdir: str, holding: Sequence[Release], ids: Sequence[str]) -> list[tuple[str, str]]:
    """(path, how) of each run that was trained on one of the releases, and of each table of vectors with these ids."""
    names = {release.fingerprint: release.name for release in holding}
    found = []
    fs, inner = storage.filesystem(workdir)
    top = inner.rstrip("/")
    for path, below, files in fs.walk(inner, detail=False):
        if path.rstrip("/") == top:
            below[:] = [name for name in below if name not in _OF_BUILDS]
        folder = storage.join(workdir, path[len(top) + 1 :])
        run = json_object(read_if_there(storage.join(folder, "run.json"))) if "run.json" in files else {}
        if on := [names[fingerprint] for fingerprint in fingerprints_of_run(run) if fingerprint in names]:
            found.append((folder, f"trained on {', '.join(on)}"))
        for record in (name for name in files if name.endswith(_RECORD)):
            table = storage.join(folder, record.removesuffix(".made.json"))
            is_embedded = "width" in json_object(read_if_there(f"{table}.made.json"))  # `dalip predict` writes none
            if is_embedded and (num := _num_in(table, ids)):
                found.append((table, f"vectors of {num:,} of the images"))
    return sorted(found)


def _num_in(table: str, ids: Sequence[str]) -> int:
    fs, inner = storage.filesystem(table)
    try:
        names = pq.read_table(inner, filesystem=fs, columns=["name"])["name"]
    except (OSError, ValueError, KeyError):  # damaged, and no search opens it
        return 0
    found: int = pc.sum(pc.is_in(samples_named(names), pa.array(ids, pa.string()))).as_py() or 0
    return found
