"""The validation loss during a training, on all ranks.

Each rank encodes some of the held-out batches, whole ones, so that features do not depend on the number of ranks. Rank
0 judges the pairs, since a pair is compared with others. Reads held-out samples; writes a line of the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from training.config import TrainSettings
from training.data import loader
from training.data.shards import SamplePool, open_pool
from training.evaluation.encoding import Encoded, encode_pairs, join_encoded
from training.model.dalip import DalipModel
from training.record.log import RunLog
from training.run.distributed import Ranks, agree, attempt, gather_on_main
from training.run.state import Trainer


def validate(trainer: Trainer, step: int, log: RunLog) -> None:
    """Log the validation loss; every rank has to call this.

    Raises: RunError on every rank for a broken sample, or features or losses that are not finite.
    """
    from training.evaluation.evaluate import domain_losses

    settings, split, ranks = trainer.settings, str(trainer.settings.eval.split), trainer.ranks
    pool = open_pool(loader.open_sources(settings.release, settings.data, split), split)

    def encode(model: DalipModel, pool: SamplePool, rows: Sequence[int], settings: TrainSettings) -> Pairs | None:
        return encode_on_ranks(ranks, model, pool, rows, settings)

    figures = agree(ranks, attempt(lambda: domain_losses(trainer.model, pool, settings, trainer.task, encode=encode)))
    if not ranks.is_main:
        return
    losses = {name: figure["value"] for name, figure in figures.items()}
    left_out = {name: figure["left_out"] for name, figure in figures.items() if figure["left_out"]}
    log.event("validation", step=step, losses=losses, **({"left_out": left_out} if left_out else {}))
    said = "  ".join(
        f"{k} {v:.4f}" + (f" ({left_out[k]} left out)" if k in left_out else "") for k, v in losses.items()
    )
    log.print_line(f"step {step}  validation loss  {said}")


Pairs = tuple[Encoded, Encoded]


def encode_on_ranks(
    ranks: Ranks, model: DalipModel, pool: SamplePool, rows: Sequence[int], settings: TrainSettings
) -> Pairs | None:
    """Features of pictures and texts of all `rows` on rank 0, None elsewhere."""
    if ranks.world_size == 1:
        return encode_pairs(model, pool, rows, settings)
    # Running statistics are those of rank 0; without this a rank has its own until the next step.
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    size = settings.eval.batch_size
    num_batches = -(-len(rows) // size)
    first, end = (num_batches * number // ranks.world_size * size for number in (ranks.rank, ranks.rank + 1))
    taken = rows[first:end]
    encoded = agree(ranks, attempt(lambda: encode_pairs(model, pool, taken, settings) if taken else None))
    parts = [part for part in gather_on_main(encoded, ranks) if part is not None]
    if not ranks.is_main:
        return None
    images, texts = zip(*parts, strict=True)
    return join_encoded(images), join_encoded(texts)
