"""Weights of samples that stand in their targets: how many labels of a sample count, or what a mask adds up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.evaluation.batches import AnyBatch, rows_in
from lightning_sloppy.evaluation.nests import leaves_of


@dataclass(frozen=True)
class TargetWeights:
    """The weight of each sample by one tensor of the targets.

    Attributes:
        leaf: Place of the tensor among the leaves of the targets.
        ignored: Label that counts for nothing, which may be NaN, all others count 1; None: the entries are the weights.
        skipped: Labels at the start of each sequence that are not predicted: 1 where tokens predict the next one.
    """

    leaf: int
    ignored: float | None = None
    skipped: int = 0

    def of(self, batch: AnyBatch) -> Tensor:
        """(n,), float64 on the CPU."""
        rows = rows_in(batch)
        entries = leaves_of(batch[1])[self.leaf]
        if not isinstance(entries, Tensor):
            raise TypeError(f"Labels are tensors, but a {type(entries).__name__} came.")
        axis = (rows.targets or rows.inputs)[self.leaf]
        entries = entries.detach()
        if axis is not None:
            entries = entries.movedim(axis, 0)
        if self.skipped:
            entries = entries[:, self.skipped :]
        if self.ignored is None:
            counted = entries
        else:
            counted = ~entries.isnan() if math.isnan(self.ignored) else entries != self.ignored
        if axis is None:  # whose they are is not known, but the batch weighs what they weigh together
            return (counted.sum().to("cpu", torch.float64) / max(rows.count, 1)).expand(rows.count)
        return counted.reshape(rows.count, -1).sum(1).to("cpu", torch.float64)
