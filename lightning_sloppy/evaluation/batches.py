"""Batches: inputs and targets, moved, counted and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.nests import map_tensors, tensors_of, with_tensors
from lightning_sloppy.evaluation.real_numbers import cast_number

Batch = tuple[Any, Any]
"""Inputs and targets: tensors, or nests of tensors that the module and the loss accept."""


def as_pair(batch: Any) -> Batch:
    """Return ``(inputs, targets)``.

    A batch that is no pair (a mapping, a dataclass, a longer tuple) is both: the module and the loss get all of it.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    return batch, batch


def is_whole(batch: Batch) -> bool:
    """Whether the batch is no pair: inputs and targets are the same object."""
    return batch[0] is batch[1]


def map_batch(function: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """The same batch with every tensor replaced; one that is no pair stays none."""
    if is_whole(batch):
        whole = map_tensors(function, batch[0])
        return whole, whole
    return map_tensors(function, batch)


def sample_count(batch: Batch) -> int:
    """Samples in a batch: the first dimension of its first tensor.

    Raises:
        ConfigurationError: When there is no tensor with a first dimension.
    """
    for leaf in tensors_of(batch):
        if leaf.ndim > 0:
            return int(leaf.shape[0])
    raise ConfigurationError("A batch holds no tensor with a first dimension; give (inputs, targets) as tensors.")


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move every tensor; cast those of floating point to ``dtype`` (products are at least float32).

    One that requires gradients still does, for a loss may differentiate in its inputs.
    """

    def move(leaf: Tensor) -> Tensor:
        # Autograd cannot save a tensor that was made in inference mode.
        moved = cast_number(leaf.clone() if leaf.is_inference() else leaf.detach(), dtype).to(device)
        return moved.requires_grad_() if leaf.requires_grad else moved

    return map_batch(move, batch)


def private(batch: Batch) -> Batch:
    """Clone the tensors of the inputs: an in-place first layer would otherwise change the kept batch.

    Tensors made in inference mode are cloned among the targets too, for autograd cannot save them.
    """
    inputs = map_tensors(torch.clone, batch[0])
    if is_whole(batch):
        # A loss that reads the inputs reads those of the data, whatever the forward made of its own.
        return inputs, batch[1]
    return inputs, map_tensors(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, batch[1])


def rows_of(nest: Any, rows: slice | Tensor) -> Any:
    """These samples of a nest of batched tensors; the first dimension stays."""
    return map_tensors(lambda leaf: leaf[rows] if leaf.ndim > 0 else leaf, nest)


def some_of(batch: Batch, most: int) -> Batch:
    """At most so many samples of a batch, evenly spread, for checks that need not see all of them."""
    count = sample_count(batch)
    return batch if count <= most else picked(batch, torch.linspace(0, count - 1, most).long())


def picked(batch: Batch, places: Tensor) -> Batch:
    """The samples at these places; tensors without a row for each sample stay whole."""
    count = sample_count(batch)

    def pick(leaf: Tensor) -> Tensor:
        return leaf[places.to(leaf.device)] if leaf.shape[:1] == (count,) else leaf

    return map_batch(pick, batch)


def joined(batches: list[Batch]) -> Batch | None:
    """All samples as one batch; None when some tensor has no row for each sample, or the batches are of several shapes.

    >>> joined([(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(1, 3), torch.zeros(1))])[0].shape
    torch.Size([3, 3])
    """
    columns = [tensors_of(batch[0] if is_whole(batch) else batch) for batch in batches]
    alike = {tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves) for leaves in columns}
    rows = all(
        leaf.shape[:1] == (sample_count(batch),)
        for batch, leaves in zip(batches, columns, strict=True)
        for leaf in leaves
    )
    if len(alike) != 1 or not rows:
        return None
    merged = [torch.cat(parts) for parts in zip(*columns, strict=True)]
    if is_whole(batches[0]):
        nest = with_tensors(batches[0][0], merged)
        return nest, nest
    return with_tensors(batches[0], merged)


def collected(batches: Iterable[Any]) -> list[Batch]:
    """Hold all batches of a re-iterable, checked; a batch without samples has no mean loss and is left out.

    Raises:
        ConfigurationError: For a generator (it can be read once only), no batch, or a plain tuple or list that is no
            pair: nobody knows which part of it is which.
    """
    if isinstance(batches, Iterator):
        raise ConfigurationError(
            "The batches are read more than once, but a generator or iterator was given; pass a list or a DataLoader."
        )
    held = [as_pair(_named(batch)) for batch in batches]
    held = [batch for batch in held if sample_count(batch) > 0]
    if not held:
        raise ConfigurationError(
            "No samples to measure on: the batches are empty; pass at least one (inputs, targets)."
        )
    return held


def _named(batch: Any) -> Any:
    if type(batch) in (tuple, list) and len(batch) != 2:
        raise ConfigurationError(
            f"Batches must be pairs (inputs, targets), but the data give a {type(batch).__name__} of {len(batch)}; "
            "give pairs, or a dict or dataclass that goes whole to module and loss."
        )
    return batch
