"""Batches as they pass by, for data that cannot be read by index and for measurements on the current batch."""

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

    Copies, because a training step may change what it was given. They are whole batches: where several loaders give
    the parts, nobody knows which rows belong together.
    """

    def __init__(self) -> None:
        self._first: list[Batch] = []
        self._latest: tuple[int, Batch] | None = None

    @property
    def num_samples(self) -> int:
        """Samples kept of the first batches."""
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
        """Copy a batch, unless it was seen already; of the first ones until so many samples are there.

        Args:
            batch: What the training step is about to be given.
            number: Of this batch in the whole training.
            wanted: Samples to keep of the first batches.
            module: Of the fit: what its ``forward`` takes are the inputs.
            batch_size: The user's count of the samples of a batch, or None.
        """
        if self._latest is not None and self._latest[0] == number:
            return
        copy = as_pair(map_tensors(torch.clone, batch), module=module, counted=counted_by(batch_size, batch))
        self._latest = (number, copy)
        if self.num_samples < wanted:
            self._first.append(copy)

    def first(self, num_samples: int) -> list[Batch]:
        """The first batches, as many as hold so many samples; all there are when they hold fewer."""
        chosen: list[Batch] = []
        count = 0
        for batch in self._first:
            if count >= num_samples:
                break
            chosen.append(batch)
            count += _count(batch)
        return chosen

    def latest(self) -> list[Batch]:
        """The latest batch that was seen; nothing before the first."""
        return [] if self._latest is None else [self._latest[1]]


def _count(batch: Batch) -> int:
    """Samples of a batch as its shapes tell them; where they do not, the measurement asks the module, or the user."""
    with suppress(ConfigurationError):
        return sample_count(located([batch])[0])
    return sample_count(batch)
