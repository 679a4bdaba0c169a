"""Batches: pairs of inputs and targets, moved, counted and cast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_sloppy.errors import ConfigurationError

Batch = tuple[Any, Any]
"""Inputs and targets: tensors, or nests of tensors that the module and the loss accept."""


def as_pair(batch: Any) -> Batch:
    """Return ``(inputs, targets)``.

    Raises:
        ConfigurationError: When the batch is not a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    kind = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise ConfigurationError(
        f"Batches must be pairs (inputs, targets), but the data give {kind}; let the dataset or collate_fn give pairs."
    )


def sample_count(batch: Batch) -> int:
    """Samples in a batch: the first dimension of its first tensor.

    Raises:
        ConfigurationError: When there is no tensor with a first dimension.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return int(leaf.shape[0])
    raise ConfigurationError("A batch holds no tensor with a first dimension; give (inputs, targets) as tensors.")


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move every tensor; cast those of floating point to ``dtype`` (products are at least float32)."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach()
        return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

    return pytree.tree_map(move, batch)  # type: ignore[no-any-return]


def private(batch: Batch) -> Batch:
    """Clone the tensors of the inputs: an in-place first layer would otherwise change the kept batch.

    Tensors made in inference mode are cloned among the targets too, for autograd cannot save them.
    """
    inputs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch[0])
    targets = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, batch[1]
    )
    return inputs, targets


def rows_of(nest: Any, rows: slice | Tensor) -> Any:
    """These samples of a nest of batched tensors; the first dimension stays."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim > 0 else leaf, nest)


def collected(batches: Iterable[Any]) -> list[Batch]:
    """Hold all batches of a re-iterable, checked; a batch without samples has no mean loss and is left out.

    Raises:
        ConfigurationError: For a generator (it can be read once only), no batch, or a batch that is not a pair.
    """
    if isinstance(batches, Iterator):
        raise ConfigurationError(
            "The batches are read more than once, but a generator or iterator was given; pass a list or a DataLoader."
        )
    held = [batch for batch in map(as_pair, batches) if sample_count(batch) > 0]
    if not held:
        raise ConfigurationError(
            "No samples to measure on: the batches are empty; pass at least one (inputs, targets)."
        )
    return held
