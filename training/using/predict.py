"""`dalip predict`: which of some labels each picture shows, how sure that is, and when it is not sure.

Reads a model, pictures, and labels or the taxa of a release. Writes a table with a row a picture: the best labels with
their probabilities, the best taxon of each rank above them with the sum of its labels, and an answer. The answer is
the best label or, where its probability is below the threshold, the taxon of the lowest rank that reaches it, or "not
sure". Within a group the probabilities add up to 1, so a picture of something else is not noticed. A picture that
cannot be read has an error and no answer. Gives up with ConfigError before the first picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from manifests.contract.release import Release
from training.config import ClassText
from training.data.columns import SampleColumns
from training.data.shards import open_pool
from training.evaluation.encoder import Encoder
from training.evaluation.encoding import FeatureKind
from training.using.classifier import Calibration, RankSums, calibrate, rank_sums
from training.using.labels import Labels, label_templates
from training.using.pictures import Encoded, Listing, encode_pieces, listing_of_pool
from training.using.pieces import PiecedTable

NOT_SURE = "not sure"
SPLIT = "heldout"  # of the release on which probabilities are calibrated
_MOST_CALIBRATED = 5000  # pictures: their error is then known to about 0.01
_LEAST_CALIBRATED = 10
# Of a group. Pictures of 8 labels, drawn under a known scale, 60 draws of each size: fits to 50 lose as much likelihood
# as a scale that is off by a quarter (0.016 nats), fits to 30 more, and fits to 10 may have no bound.
_LEAST_WITHIN = 50
_MOST_SIMILARITIES = 50_000_000  # of the calibration, held in memory as float64


@dataclass(frozen=True)
class PredictOptions:
    """Options of prediction: the prompt of labels and the reading of pictures; the last two change only the speed."""

    templates: tuple[str, ...] = ("a photo of a {}.",)
    text: ClassText = "asis"
    kind: FeatureKind | None = None
    top: int = 5
    threshold: float = 0.0
    batch_size: int = 64
    num_workers: int = 0


class Classifier:
    """A model and K labels: pictures to probabilities."""

    def __init__(self, encoder: Encoder, labels: Labels, options: PredictOptions) -> None:
        """Encode the labels.

        Raises: ConfigError for a template without a slot.
        """
        self.encoder, self.labels, self.options = encoder, labels, options
        self.sums: tuple[RankSums, ...] = rank_sums(labels)
        texts = labels.texts(options.text)
        # Labels of one text share their vector, so that rounding cannot tell them apart.
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = encoder.encode_classes(list(number), label_templates(options.templates), options.kind)
        self.vectors_KC = vectors[[number[text] for text in texts]]

    def similarity(self, pixels: Tensor) -> Tensor:
        """Return the similarity of views, uint8 (B, 3, H, W), to the labels, (B, K)."""
        return self.encoder.encode_views(pixels, self.options.kind) @ self.vectors_KC.t()

    def calibrate(self, release: Release, field: str) -> Calibration | str:
        """Fit the scale on held-out pictures of a release, whose labels are the values of a field of its samples.

        Of many pictures 5,000 are drawn. Pictures with other values, and those that cannot be read, are left out. Where
        too few are left, the reason comes back instead.

        Raises: ConfigError for a field that the release has not.
        """
        if SPLIT not in release.splits:
            return f"{release.path} has no held-out split"
        pool, number = open_pool([release], SPLIT), {name: i for i, name in enumerate(self.labels.names)}
        values = SampleColumns(release, SPLIT, "--field").values(field)
        labels = torch.tensor([number.get(str(value).strip(), -1) for value in values])
        rows = (labels >= 0).nonzero()[:, 0]
        least = _LEAST_WITHIN if self.labels.whole else _LEAST_CALIBRATED
        most = max(least, min(_MOST_CALIBRATED, _MOST_SIMILARITIES // len(number)))
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
        rows = rows[drawn.sort().values]
        listing = listing_of_pool(pool, rows.tolist(), release)
        parts = [part for part in self.similarities(listing, [range(len(listing))]) if len(listing)]
        good = torch.tensor([fault is None for _, _, faults in parts for fault in faults], dtype=torch.bool)
        if int(good.sum()) < least:
            return (
                f"{int(good.sum())} held-out pictures of {release.path} can be read and have a label in '{field}', "
                f"{least} are needed"
            )
        found = calibrate(parts[0][1], labels[rows[good]], self.encoder.logit_scale)
        if found.scale is None:
            return (
                f"the answers to {found.num_pictures} held-out pictures of {release.path} ({found.accuracy:.0%} right) "
                "give no finite scale; take a larger held-out split"
            )
        return found

    def similarities(self, listing: Listing, pieces: Sequence[range]) -> Iterator[Encoded]:
        """As `encode_pieces`: of each range of pictures the similarities to the labels, and faults."""
        options = self.options
        return encode_pieces(
            listing, pieces, self.encoder.view(), self.similarity, options.batch_size, options.num_workers
        )

    def rows(self, similarity_NK: Tensor, scale: float) -> dict[str, Any]:
        """Return the columns of N pictures, in the order of `schema`."""
        probability_NK = (similarity_NK * scale).softmax(1)
        best, number = probability_NK.topk(min(self.options.top, len(self.labels.names)))
        columns: dict[str, Any] = {}
        sure = best[:, 0] >= self.options.threshold
        names = [self.labels.names[i] for i in number[:, 0].tolist()]
        answers = [name if ok else NOT_SURE for name, ok in zip(names, sure.tolist(), strict=True)]
        ranks = [self.labels.rank if ok else None for ok in sure.tolist()]
        for column in range(best.shape[1]):
            columns[f"label_{column + 1}"] = [self.labels.names[i] for i in number[:, column].tolist()]
            columns[f"probability_{column + 1}"] = best[:, column].numpy()
        for sums in self.sums:
            taxon, probability = sums.best(probability_NK)
            columns[sums.rank] = [sums.names[i] for i in taxon.tolist()]
            columns[f"{sums.rank}_probability"] = probability.numpy()
            for row in (~sure & (probability >= self.options.threshold)).nonzero()[:, 0].tolist():
                answers[row], ranks[row], sure[row] = columns[sums.rank][row], sums.rank, True
        return {"answer": answers, "answer_rank": ranks, **columns}

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the table."""
        fields = [(name, pa.string()) for name in ("picture", "error", "answer", "answer_rank")]
        for number in range(1, min(self.options.top, len(self.labels.names)) + 1):
            fields += [(f"label_{number}", pa.string()), (f"probability_{number}", pa.float32())]
        for sums in self.sums:
            fields += [(sums.rank, pa.string()), (f"{sums.rank}_probability", pa.float32())]
        return pa.schema(fields)


def predict_table(
    classifier: Classifier, listing: Listing, out: str, calibration_on: tuple[Release, str] | None
) -> tuple[dict[str, Any], bool]:
    """Write the table of predictions; returns its record, and whether it was there before.

    `calibration_on` is a release and the field of its samples that holds the labels; without it the scale is the one
    that the model was trained with.

    Raises: ConfigError, IntegrityError.
    """
    encoder, labels, options = classifier.encoder, classifier.labels, classifier.options
    identity = {
        "model": encoder.fingerprint,
        "labels": labels.fingerprint,
        "device": encoder.model.device.type,
        "calibrated_on": None if calibration_on is None else [calibration_on[0].fingerprint, calibration_on[1]],
        "options": {key: value for key, value in asdict(options).items() if key != "num_workers"},
    } | ({"within": labels.whole.fingerprint} if labels.whole else {})
    table = PiecedTable(out, identity, listing, classifier.schema)

    def fit() -> dict[str, Any]:
        fitted = (
            "no release is named with --calibrate" if calibration_on is None else classifier.calibrate(*calibration_on)
        )
        if isinstance(fitted, str) and labels.whole and calibration_on is not None:
            of_all = Classifier(encoder, labels.whole, options).calibrate(*calibration_on)
            if not isinstance(of_all, str):
                return asdict(of_all) | {"why_not_within": fitted}
        return {"scale": encoder.logit_scale, "why_not": fitted} if isinstance(fitted, str) else asdict(fitted)

    calibration = table.kept("calibration", fit)
    encode, columns = partial(classifier.similarities, listing), partial(classifier.rows, scale=calibration["scale"])
    record = table.fill(encode, columns, {"calibration": calibration, "model": encoder.source}, "predict")
    return record, table.is_finished
