"""Read samples of a data set by index, without using the Trainer's loader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, rows_in
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.preserve import Mode
from lightning_sloppy.probing.guard import measuring

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

READ_CHUNK = 1_024
"""Samples collated at a time when the whole data set is read."""
CURVATURE_SAMPLES = 2_000
"""Largest number of samples for the curvature of a final certificate."""


class SampleSource:
    """The samples of a loader's data set, by index.

    Iterating the Trainer's own loader would reset persistent workers and lose an epoch, or advance a shared generator.
    Indexing the data set and collating here does neither.

    Args:
        loader: A training or validation loader with an indexable data set. With a :class:`SubsetRandomSampler` the
            samples are those of its indices, with any other sampler the whole data set.

    Raises:
        ConfigurationError: If the data set is iterable, has no length, or is empty.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        dataset = getattr(loader, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ConfigurationError(
                f"Samples can be read by index from a data set with a length and an index only, but that of the "
                f"loader, {type(dataset).__name__}, "
                f"{'is iterable' if isinstance(dataset, IterableDataset) else 'has no length'}; use a map-style data "
                "set (with __len__ and __getitem__).",
                cause="index",
            )
        if len(dataset) == 0:
            raise ConfigurationError("The training data set is empty, so there is nothing to measure; check its path.")
        if loader.batch_size is None and loader.batch_sampler is None:
            raise ConfigurationError(
                "The loader does not collate (batch_size=None), so single samples cannot be drawn for the probe; pass "
                "a batch_size or a batch_sampler to the loader.",
                cause="index",
            )
        sampler = _inner_sampler(loader.sampler)
        if type(sampler) is SubsetRandomSampler:
            dataset = Subset(dataset, list(sampler.indices))
        self._dataset = dataset
        self._collate = getattr(loader, "collate_fn", None) or default_collate
        self.loader = loader
        self.batch_size = int(getattr(loader, "batch_size", None) or 256)
        self._beside: SampleSource | None = None

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self._dataset)

    def read(self, indices: Tensor) -> Any:
        """One collated batch of these samples, as the loader would return it, on the CPU."""
        base, inner = _resolve(self._dataset, indices)
        if type(base) is TensorDataset and self._collate is default_collate:
            # Slicing the tensors gives the same as item by item, a thousand times faster.
            return [tensor[inner] for tensor in base.tensors]
        return self._collate(_fetched(base, inner))

    @property
    def stacks(self) -> bool:
        """Whether a batch is a plain stack of its samples, so that each sample is the same in every batch."""
        return self._collate is default_collate

    def each_alone(self, indices: Tensor) -> Iterator[Any]:
        """Each sample as a batch of one. If batches are padded, packed or joined, a row of a batch is not a sample."""
        for part in torch.split(indices, READ_CHUNK):
            for sample in _fetched(*_resolve(self._dataset, part)):
                yield self._collate([sample])

    @property
    def in_memory(self) -> bool:
        """Whether the samples are rows of tensors."""
        return type(_resolve(self._dataset, torch.arange(0))[0]) is TensorDataset

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore on exit the random generators that the data set and its transforms hold."""
        restores = [restore for owner in _owners(self._dataset) for restore in _generator_restores(owner)]
        try:
            yield
        finally:
            for restore in restores:
                restore()

    def chunks(self, indices: Tensor, size: int = READ_CHUNK) -> Iterator[Any]:
        """Collated batches of at most ``size`` samples."""
        for part in torch.split(indices, size):
            yield self.read(part)

    def each_once(self) -> SampleSource:
        """The same samples without those that refer to an earlier sample again; itself if there are none."""
        seen: set[tuple[int, int]] = set()
        kept = []
        beside = [] if self._beside is None else [self._beside._places()]
        for index, places in enumerate(zip(self._places(), *beside, strict=True)):
            if seen.isdisjoint(places):
                kept.append(index)
                seen.update(places)
        return self if len(kept) == len(self) else self.only(torch.tensor(kept))

    def only(self, indices: Tensor) -> SampleSource:
        """Some of the samples, as a new source."""
        part = copy(self)
        part._dataset = Subset(self._dataset, indices.tolist())
        part._beside = None if self._beside is None else self._beside.only(indices)
        return part

    def places_in(self, count: int, *, part: bool = False) -> Tensor | None:
        """Indices of the samples in the data set of this length: that of this source, or the next one under subsets.

        Args:
            count: Length of the data set that is looked for.
            part: Whether the data set of this source is a part of that data set, even if it has the same length.

        Returns:
            Indices, shape (n,); None if no data set has that length.
        """
        dataset, indices = self._dataset, torch.arange(len(self))
        while part or len(dataset) != count:
            if type(dataset) is not Subset:
                return None
            part = False
            indices, dataset = torch.as_tensor(dataset.indices)[indices], dataset.dataset
        return indices

    def in_place_of(self, other: SampleSource, indices: Tensor) -> SampleSource:
        """The samples with the given indices, marked as another reading of the samples of ``other``."""
        part = self.only(indices)
        part._beside = other
        return part

    def identities(self) -> set[tuple[int, int]]:
        """The place of each sample: identity of the data set under all subsets, and index in it.

        For another reading of samples, the places of these samples as well.
        """
        return set(self._places()) | (set() if self._beside is None else self._beside.identities())

    def same_places(self) -> Tensor:
        """A number per sample, (n,): samples with the same place have the same, in order of first occurrence."""
        numbers: dict[tuple[int, int], int] = {}
        return torch.tensor([numbers.setdefault(place, len(numbers)) for place in self._places()])

    def _places(self) -> list[tuple[int, int]]:
        return _places(self._dataset, torch.arange(len(self)))


def _fetched(base: Any, indices: Tensor) -> list[Any]:
    """These samples as the data set returns them."""
    wanted = indices.tolist()
    fetch = getattr(base, "__getitems__", None)
    return list(fetch(wanted)) if fetch is not None else [base[index] for index in wanted]


def _inner_sampler(sampler: Any) -> Any:
    """The sampler of the user inside the wrapper that Lightning uses for several ranks."""
    for _ in range(4):
        inner = getattr(sampler, "sampler", None) or getattr(getattr(sampler, "dataset", None), "_sampler", None)
        if inner is None:
            return sampler
        sampler = inner
    return sampler


def _owners(dataset: Any, depth: int = 4) -> Iterator[Any]:
    """The data set, those inside it, and their transforms."""
    yield dataset
    if depth:
        inside = [getattr(dataset, name, None) for name in ("dataset", "transform", "transforms", "target_transform")]
        inside += list(getattr(dataset, "datasets", []))
        for owner in inside:
            if isinstance(owner, (list, tuple)):
                for part in owner:
                    yield from _owners(part, depth - 1)
            elif owner is not None:
                yield from _owners(owner, depth - 1)


def _generator_restores(owner: Any) -> Iterator[Callable[[], object]]:
    for value in list(getattr(owner, "__dict__", {}).values()):
        if isinstance(value, torch.Generator):
            yield partial(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            yield partial(setattr, value.bit_generator, "state", value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            yield partial(value.set_state, value.get_state())
        elif isinstance(value, random.Random):
            yield partial(value.setstate, value.getstate())


def _places(dataset: Any, indices: Tensor) -> list[tuple[int, int]]:
    """The place of each of these samples, under subsets and concatenations."""
    base, inner = _resolve(dataset, indices)
    if not isinstance(base, ConcatDataset):
        return [(id(base), index) for index in inner.tolist()]
    ends = torch.tensor(base.cumulative_sizes)
    parts = torch.searchsorted(ends, inner, right=True)
    found: list[tuple[int, int]] = [(0, 0)] * len(inner)
    for number, part in enumerate(base.datasets):
        chosen = (parts == number).nonzero().flatten()
        begin = 0 if number == 0 else int(ends[number - 1])
        for position, place in zip(chosen.tolist(), _places(part, inner[chosen] - begin), strict=True):
            found[position] = place
    return found


def _resolve(dataset: Any, indices: Tensor) -> tuple[Any, Tensor]:
    """Follow plain subsets to the data set that holds the samples."""
    while type(dataset) is Subset:
        indices = torch.as_tensor(dataset.indices)[indices]
        dataset = dataset.dataset
    return dataset, indices


def curvature_indices(total: int) -> Tensor:
    """Indices of the samples for the curvature of a final certificate."""
    return probe_indices(total, CURVATURE_SAMPLES, seed=4)


def probe_indices(total: int, wanted: int, seed: int) -> Tensor:
    """``min(wanted, total)`` distinct indices in random order, the same for a seed on every rank and after a resume.

    >>> len(probe_indices(5, 10, seed=0))
    5
    """
    rng = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=rng)[:wanted]


def located_by(module: LightningModule, batches: list[Batch], mode: Mode = "eval") -> list[Batch]:
    """Find the samples in batches from the outputs of the module for some of them in this mode.

    Raises:
        ConfigurationError: If the number of samples cannot be determined.
    """
    plain = Objective(module, None)
    with measuring(module, mode):
        found = plain.located(plain.prepare(batches))
    return [batch.with_rows(rows_in(each)) for batch, each in zip(batches, found, strict=True)]
