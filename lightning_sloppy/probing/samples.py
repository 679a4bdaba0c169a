"""Reading the data set by its own indices, so that the Trainer's loader never notices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from lightning_sloppy.errors import ConfigurationError

READ_CHUNK = 1_024
"""Samples collated at a time when the whole data set is read."""


class SampleSource:
    """The samples behind a loader, by index.

    Iterating the Trainer's own loader would reset persistent workers and lose an epoch, or advance a shared
    generator; indexing the data set and collating here touches neither.

    Args:
        loader: A training or validation loader with an indexable data set.

    Raises:
        ConfigurationError: For an iterable data set, one without length, or an empty one.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        dataset = getattr(loader, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ConfigurationError(
                f"A fixed probe needs a data set with length and index, but the loader gives {type(dataset).__name__}; "
                "use a map-style dataset (with __len__ and __getitem__)."
            )
        if len(dataset) == 0:
            raise ConfigurationError("The training data set is empty, so there is nothing to measure; check its path.")
        self._dataset = dataset
        self._collate = getattr(loader, "collate_fn", None) or default_collate
        self.loader = loader
        self.batch_size = int(getattr(loader, "batch_size", None) or 256)

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self._dataset)

    def read(self, indices: Tensor) -> Any:
        """One collated batch of these samples, as the loader would give it, on the CPU."""
        base, inner = _resolve(self._dataset, indices)
        if type(base) is TensorDataset and self._collate is default_collate:
            # Slicing the tensors is what item by item gives, a thousand times faster.
            return [tensor[inner] for tensor in base.tensors]
        wanted = inner.tolist()
        fetch = getattr(base, "__getitems__", None)
        return self._collate(fetch(wanted) if fetch is not None else [base[index] for index in wanted])

    def chunks(self, indices: Tensor, size: int = READ_CHUNK) -> Iterator[Any]:
        """Collated batches of at most ``size`` samples."""
        for part in torch.split(indices, size):
            yield self.read(part)

    def repeated_indices(self) -> int:
        """How many entries of a subset stand for a sample that was already there."""
        return len(self) - len(self.identities())

    def identities(self) -> set[tuple[int, int]]:
        """Where each sample lives: identity of the data set behind all subsets, and index in it."""
        return _identities(self._dataset)


def _identities(dataset: Any) -> set[tuple[int, int]]:
    if isinstance(dataset, ConcatDataset):
        return set().union(*(_identities(part) for part in dataset.datasets))
    base, inner = _resolve(dataset, torch.arange(len(dataset)))
    return {(id(base), index) for index in inner.tolist()}


def _resolve(dataset: Any, indices: Tensor) -> tuple[Any, Tensor]:
    """Follow plain subsets down to the data set that holds the samples."""
    while type(dataset) is Subset:
        indices = torch.as_tensor(dataset.indices)[indices]
        dataset = dataset.dataset
    return dataset, indices


def probe_indices(total: int, wanted: int, seed: int) -> Tensor:
    """``min(wanted, total)`` distinct indices in random order, the same for a seed on every rank and after a resume.

    >>> len(probe_indices(5, 10, seed=0))
    5
    """
    rng = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=rng)[:wanted]
