"""Micro-batches: the same samples in smaller pieces, when that is the same mean."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lightning_sloppy.evaluation.batches import Batch, cut, rows_in, sample_count
from lightning_sloppy.evaluation.loss_checks import agree
from lightning_sloppy.evaluation.objective import Objective


def divided(batches: list[Batch], size: int) -> list[Batch]:
    """Every batch in pieces of at most ``size`` samples."""
    return [
        cut(batch, slice(start, start + size)) for batch in batches for start in range(0, sample_count(batch), size)
    ]


def divisible(objective: Objective, leaves: Mapping[str, Tensor], batches: list[Batch], size: int) -> bool:
    """Whether the mean loss over pieces is that over the batches.

    Not in train mode, where the random stream and the statistics of a batch belong to the batch; not when a tensor
    of a batch has no row for each sample; not when the loss of the first batch says otherwise.
    """
    if any(child.training for child in objective.module.modules()):
        return False
    if not all(rows_in(batch).divisible for batch in batches):
        return False
    weighed = next((batch for batch in batches if objective.batch_weight(batch) > 0), None)
    if weighed is None:
        return True  # nothing adds anything
    parts = divided([weighed], size)
    weights = [objective.batch_weight(part) for part in parts]
    # No collective here: only this rank may be short of memory.
    whole = float(objective.loss_value(leaves, weighed))
    losses = [float(objective.loss_value(leaves, part)) for part, weight in zip(parts, weights, strict=True) if weight]
    pieces = sum(w * x for w, x in zip(filter(None, weights), losses, strict=True)) / sum(weights)
    return agree(whole, pieces) or not math.isfinite(whole - pieces)  # that it is not finite is said elsewhere
