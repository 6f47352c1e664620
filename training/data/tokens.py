"""Tokens of a frozen tower, computed once: a folder of chunks that an interrupted job goes on with.

A folder holds `tokens.json`, which says what the tokens are of (the release, the tower, its weights, the preparation of
pictures), and one .npy file for each `CHUNK` rows: float16 (rows, 1 + M, W), the pooled feature first. Each file is
published whole, with its sha256 (`training.data.sealed`), which a process compares when it first reads of it. A reader
maps the files into memory, so that all processes of a machine share what the system keeps of them. Gives up with
ConfigError on a folder of other tokens, and with IntegrityError on a chunk that is not whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.contract.settings import differences
from manifests.errors import ConfigError, IntegrityError
from manifests.services.untrusted import read_object
from manifests.stores import storage
from training.data.sealed import SealedFiles
from training.data.shards import SamplePool

ARCHITECTURE_FILE = "architecture.json"  # in the folder of `dalip tokens`, beside the stores
CHUNK = 256  # rows of a file: what an interruption costs at most
_FORMAT = "dalip-tokens/1"
_MARK_FILE = "tokens.json"
_LARGEST = np.finfo(np.float16).max

Rows = NDArray[np.float16]


def store_folder(folder: Path, split: str, member: str = "") -> Path:
    """Where the tokens of a split's texts, or of its pictures, lie in the folder of `dalip tokens`."""
    return folder / split / (f"text-{member}" if member else "image")


def has_stores(folder: Path) -> bool:
    """Whether tokens were computed into the folder of `dalip tokens`."""
    return any(folder.glob(f"*/*/{_MARK_FILE}"))


def pool_identity(pool: SamplePool) -> dict[str, Any]:
    """The identity of a pool: its releases, and its samples in their order."""
    samples = "".join(f"{sample}\n" for sample in pool.table["sample_id"].to_pylist())
    return {"releases": list(pool.fingerprints), "samples": hashlib.sha256(samples.encode()).hexdigest()}


def fill_store(
    folder: Path,
    identity: dict[str, Any],
    num_rows: int,
    encode: Callable[[Sequence[int]], NDArray[np.float32]],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Compute what is missing of the tokens of rows 0 to `num_rows` - 1; `encode` gives those of some rows.

    `identity` is all that the tokens depend on. `say` gets a line of progress for each chunk.

    Raises: ConfigError for a folder that holds tokens of something else.
    """
    mark = {"format": _FORMAT, "num_rows": num_rows, "chunk": CHUNK} | identity
    path = folder / _MARK_FILE
    storage.make_folder(str(folder))
    if path.is_file():
        if changes := differences(_read_mark(path), json.loads(json.dumps(mark))):
            raise ConfigError(
                f"{folder}: holds tokens of something else ({'; '.join(changes[:3])}); choose another folder"
            )
    else:
        storage.publish_json(path, mark)
    storage.sweep(str(folder))
    starts = range(0, num_rows, CHUNK)
    chunks = SealedFiles(folder)
    for done, start in enumerate(starts):
        if not chunks.is_whole(_chunk_name(done)):
            tokens = encode(range(start, min(start + CHUNK, num_rows)))
            stream = io.BytesIO()
            np.save(stream, np.clip(tokens, -_LARGEST, _LARGEST).astype(np.float16))
            chunks.write(_chunk_name(done), stream.getvalue())
        say(f"{folder}: {done + 1} of {len(starts)} chunks")


def open_stores(folder: Path, pool: SamplePool, members: Sequence[str]) -> tuple[TokenStore, list[TokenStore]] | None:
    """The tokens of the pictures and of each text member of a pool; None when no split in the folder is this pool.

    Raises: ConfigError for a member without tokens; IntegrityError for chunks that are missing.
    """
    identity = pool_identity(pool)
    for split in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        mark = store_folder(folder, split) / _MARK_FILE
        if not mark.is_file() or not identity.items() <= _read_mark(mark).items():
            continue
        if missing := [name for name in members if not store_folder(folder, split, name).is_dir()]:
            raise ConfigError(f"{folder}: has no tokens of the text {missing[0]}; add it to text_members")
        image, *texts = (TokenStore(store_folder(folder, split, name)) for name in ("", *members))
        return image, texts
    return None


class TokenStore:
    """The tokens of a folder that `fill_store` has filled."""

    def __init__(self, folder: Path) -> None:
        """Opens every chunk.

        Raises: IntegrityError for a folder without tokens, and for chunks that are missing or not whole.
        """
        self.folder, self.identity = folder, _read_mark(folder / _MARK_FILE)
        self.num_rows, self._chunk = int(self.identity["num_rows"]), int(self.identity["chunk"])
        self._sealed, self._compared = SealedFiles(folder), set[int]()
        self._chunks: list[Rows] = []
        for number, start in enumerate(range(0, self.num_rows, self._chunk)):
            path = folder / _chunk_name(number)
            try:
                chunk = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise IntegrityError(f"{path}: missing or not whole ({error}); run `dalip tokens` again") from None
            if len(chunk) != min(self._chunk, self.num_rows - start):
                raise IntegrityError(f"{path}: holds {len(chunk)} rows; run `dalip tokens` again")
            self._chunks.append(chunk)

    def read(self, rows: Sequence[int]) -> Rows:
        """Tokens of some rows, (B, 1 + M, W).

        Raises: IntegrityError for a chunk with other bytes than were written.
        """
        for number in {row // self._chunk for row in rows} - self._compared:
            if not self._sealed.is_whole(name := _chunk_name(number)):
                raise IntegrityError(f"{self.folder / name}: damaged; run `dalip tokens` again, which makes it anew")
            self._compared.add(number)
        tokens = np.empty((len(rows), *self._chunks[0].shape[1:]), np.float16)
        for index, row in enumerate(rows):
            tokens[index] = self._chunks[row // self._chunk][row % self._chunk]
        return tokens


def principal_components(tokens_NV: NDArray[np.float32], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (V,) and the first `width` directions (V, width) of rows, the one with the largest variance first."""
    mean_V = tokens_NV.mean(axis=0)
    centred_NV = tokens_NV - mean_V
    _, vectors_VV = np.linalg.eigh(centred_NV.T @ centred_NV)
    basis_VW = vectors_VV[:, ::-1][:, :width]
    # The sign of a direction is arbitrary; its largest entry is made positive.
    largest_W = np.abs(basis_VW).argmax(axis=0)
    basis_VW = basis_VW * np.sign(basis_VW[largest_W, np.arange(basis_VW.shape[1])])
    return mean_V.astype(np.float32), np.ascontiguousarray(basis_VW, dtype=np.float32)


def _chunk_name(number: int) -> str:
    return f"chunk-{number:06d}.npy"


def _read_mark(path: Path) -> dict[str, Any]:
    return read_object(path, f"move the folder {path.parent} away and run `dalip tokens` again")
