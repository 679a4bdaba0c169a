"""Copies of training batches, for data that cannot be read by index and for measurements on the current batch."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, BatchSize, as_pair, counted_by, sample_count
from lightning_sloppy.evaluation.nests import map_tensors
from lightning_sloppy.evaluation.sample_rows import located


class StreamedBatches:
    """Keeps copies of the first batches of a training, and of the latest one.

    The batches are copied because a training step may change its batch. They are kept whole, because with several
    loaders it is not known which rows belong together.
    """

    def __init__(self) -> None:
        self._first: list[Batch] = []
        self._latest: tuple[int, Batch] | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples kept of the first batches."""
        return sum(map(_count, self._first))

    def see(
        self,
        batch: Any,
        number: int,
        wanted: int,
        *,
        module: nn.Module | None = None,
        batch_size: BatchSize | None = None,
    ) -> None:
        """Copy a batch, unless it was seen already. First batches are kept until there are ``wanted`` samples.

        Args:
            batch: The batch that the training step will receive.
            number: Number of this batch in the whole training.
            wanted: Number of samples to keep of the first batches.
            module: Module of the fit; its ``forward`` shows which parts of the batch are inputs.
            batch_size: The ``batch_size=`` of the user, or None.
        """
        if self._latest is not None and self._latest[0] == number:
            return
        copy = as_pair(map_tensors(torch.clone, batch), module=module, counted=counted_by(batch_size, batch))
        self._latest = (number, copy)
        if self.num_samples < wanted:
            self._first.append(copy)

    def first(self, num_samples: int) -> list[Batch]:
        """The first batches until they hold ``num_samples`` samples; all batches if they hold fewer."""
        chosen: list[Batch] = []
        count = 0
        for batch in self._first:
            if count >= num_samples:
                break
            chosen.append(batch)
            count += _count(batch)
        return chosen

    def latest(self) -> list[Batch]:
        """The latest batch, in a list; empty before the first."""
        return [] if self._latest is None else [self._latest[1]]


def _count(batch: Batch) -> int:
    """Number of samples by the shapes of a batch. If these do not determine it, the measurement uses the module."""
    with suppress(ConfigurationError):
        return sample_count(located([batch])[0])
    return sample_count(batch)
