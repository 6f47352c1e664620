"""`dalip search`: a text or a picture in, the names of the most alike out; one at a time, or many over a pipe.

Reads vectors, their model and pictures. Gives up with ConfigError on a query by another model than that of the vectors,
and with RunError on a picture that cannot be read; over a pipe that costs one answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.release import Release, samples_named
from manifests.contract.takedowns import samples_taken_down
from manifests.errors import ConfigError, PlantMixError, RunError
from training.evaluation.encoder import Encoder
from training.evaluation.trained_model import notes_on_takedowns
from training.using.nearest import Hit, StoredVectors

_SHOWN = ("sample_id", "split", "shard", "key", "text", "url")  # of samples.parquet


@dataclass(frozen=True)
class Searcher:
    """Vectors and their model."""

    vectors: StoredVectors
    encoder: Encoder

    @classmethod
    def open(cls, vectors: StoredVectors, model: str | None, device: str, architecture: str | None = None) -> Searcher:
        """Load the model: the one that is named, or that of the vectors where it was when they were made.

        Raises: ConfigError for a place without a model, and for another model.
        """
        encoder, record = Encoder.open(model or vectors.record["source"], device, architecture), vectors.record
        if encoder.fingerprint != record["model"]:  # its numbers mean something else
            raise ConfigError(
                f"{vectors.place}: its vectors are of the model {record['model'][:12]} ({record['source']}), not of "
                f"{encoder.fingerprint[:12]} ({encoder.source}): give that model with --model, or embed anew with this "
                "one"
            )
        return cls(vectors, encoder)

    def find(self, *, text: str | None = None, image: str | None = None, top: int) -> list[Hit]:
        """Return the vectors nearest to a text or to a picture file.

        Raises: RunError for a picture that cannot be read.
        """
        kind = self.vectors.record["features"]
        if image is not None:
            query = self.encoder.encode_pictures([image], kind)
        else:
            query = self.encoder.encode_texts([text or ""], kind)
        return self.vectors.nearest(query[0].numpy(), top)

    def describe(self, hits: Sequence[Hit]) -> list[dict[str, str]]:
        """Return what else is known of each.

        Text, address and shard of a sample of a release, or the file of a picture.

        Nothing of what was embedded by an earlier version, or lies elsewhere by now.
        """
        names, about = pa.array([hit.name for hit in hits]), dict[str, dict[str, str]]()
        for place in map(Path, self.vectors.record["places"]):
            try:
                release = Release.open(str(place))
                rows = release.samples(columns=_SHOWN)
            except PlantMixError:  # no release: a folder, a table of paths, or a picture
                folder = place if place.is_dir() else place.parent
                about |= {hit.name: {"path": str(folder / hit.name)} for hit in hits if (folder / hit.name).is_file()}
                continue
            for row in rows.filter(pc.is_in(rows["sample_id"], names)).to_pylist():
                shard = release.shard_path(row["split"], row["shard"])
                about[row["sample_id"]] = {"text": row["text"], "url": row["url"], "path": f"{shard}/{row['key']}.jpg"}
        return [about.get(hit.name, {}) for hit in hits]

    def notes(self) -> list[str]:
        """Return notes on takedowns since: of what the model was trained on, and of the pictures of the vectors."""
        taken: set[str] = set()
        for place in self.vectors.record["places"]:
            with suppress(PlantMixError, OSError):  # no release; or its list cannot be read
                taken |= samples_taken_down(Release.open(place))
        found = pc.is_in(samples_named(self.vectors.names), pa.array(sorted(taken), pa.string()))
        num = pc.sum(found).as_py() or 0
        said = f"{self.vectors.place}: holds {num:,} pictures that were taken down since; embed the newest release anew"
        return [*notes_on_takedowns(self.encoder.trained), *([said] if num else [])]

    def serve(self, lines: Iterable[str], say: Callable[[str], None], top: int) -> None:
        """Answer each line, {"text": ...} or {"image": FILE}, with a line: {"hits": [...]} or {"error": ...}."""
        for line in lines:
            try:
                asked = json.loads(line)
                whole = isinstance(asked, dict) and len(asked) == 1 and set(asked) <= {"text", "image"}
                if not whole or not isinstance(next(iter(asked.values())), str):
                    raise RunError('a query is {"text": ...} or {"image": FILE}')
                hits = self.find(**asked, top=top)
                say(json.dumps({"hits": [hit._asdict() for hit in hits]}))
            except (PlantMixError, ValueError, RecursionError) as error:
                say(json.dumps({"error": str(error)}))
