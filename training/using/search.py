"""`dalip search`: a text or a picture in, the names of the most alike out; one at a time, or many over a pipe.

Reads an index, its model and pictures. Writes nothing. Gives up with ConfigError on a query by another model than that
of the index, and with RunError on a picture that cannot be read; over a pipe that costs one answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from manifests.errors import PlantMixError, RunError
from training.evaluation.encoder import Encoder
from training.using.index import Hit, SearchIndex


@dataclass(frozen=True)
class Searcher:
    """An index and its model."""

    index: SearchIndex
    encoder: Encoder

    @classmethod
    def open(cls, index: SearchIndex, model: str | None, device: str) -> Searcher:
        """Load the model: the one that is named, or that of the index where it was when its vectors were made.

        Raises: ConfigError for a place without a model, and for another model.
        """
        encoder = Encoder.open(model or index.record["source"], device)
        index.require_model(encoder)
        return cls(index, encoder)

    def find(self, *, text: str | None = None, image: str | None = None, top: int) -> list[Hit]:
        """The vectors nearest to a text or to a picture file.

        Raises: RunError for a picture that cannot be read.
        """
        kind = self.index.record["features"]
        if image is not None:
            query = self.encoder.encode_pictures([image], kind)
        else:
            query = self.encoder.encode_texts([text or ""], kind)
        return self.index.search(query[0].numpy(), top)

    def serve(self, lines: Iterable[str], say: Callable[[str], None], top: int) -> None:
        """Answer each line, {"text": ...} or {"image": FILE}, with a line: {"hits": [...]} or {"error": ...}."""
        for line in lines:
            try:
                asked = json.loads(line)
                if not isinstance(asked, dict) or len(asked) != 1 or not set(asked) <= {"text", "image"}:
                    raise RunError('a query is {"text": ...} or {"image": FILE}')
                hits = self.find(**asked, top=top)
                say(json.dumps({"hits": [hit._asdict() for hit in hits]}))
            except (PlantMixError, ValueError) as error:
                say(json.dumps({"error": str(error)}))
