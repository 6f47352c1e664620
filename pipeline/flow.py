"""The whole pipeline on one page: eight stages, in order. Everything else hangs on this list."""

from __future__ import annotations

from typing import Any

from pipeline.engine.work import Stage
from pipeline.stages import caption, mix, score
from pipeline.stages.dedup import stage as dedup
from pipeline.stages.fetch import stage as fetch
from pipeline.stages.ingest import stage as ingest
from pipeline.stages.pack import stage as pack
from pipeline.stages.select import stage as select

FLOW: tuple[Stage[Any], ...] = (
    ingest.STAGE,  # tables of URLs -> candidates
    fetch.STAGE,  # candidates -> pool of images, facts
    dedup.STAGE,  # facts -> pairs of images that look alike
    caption.STAGE,  # candidates -> clean texts, measurements, verdicts
    score.STAGE,  # pool + texts -> CLIP scores, verdicts (off unless a model is named)
    select.STAGE,  # all verdicts, pairs, licences -> one decision a candidate
    mix.STAGE,  # decisions + ratio -> draws in a global shuffle
    pack.STAGE,  # draws + pool -> webdataset shards, a sealed release
)
