"""Batches: inputs and targets, moved, counted, cut and cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.calling import leading_inputs, needs_both, takes_several
from lightning_sloppy.evaluation.nests import leaves_of, map_leaves, map_tensors, tensors_of, with_tensors
from lightning_sloppy.evaluation.real_numbers import cast_number

BatchSize = Callable[[Any], int]
"""``batch_size(batch) -> int``: the number of samples in a batch, as its loader returns it."""


INNER = -1
"""Marker for the first dimension of an output, (T N, ...), in which the samples change fastest."""


@dataclass(frozen=True)
class Rows:
    """The dimensions of the samples in a batch.

    Attributes:
        count: Number of samples n.
        inputs: For each leaf of the inputs, the dimension that has one row per sample; None if all samples share the
            leaf.
        targets: The same for the targets; empty if inputs and targets are the same object.
        outputs: The same for the outputs of ``forward``, by their index among its tensors, where it was found; empty if
            none was found, None if it was not looked for. ``INNER`` if positions and samples share a dimension.
        apart: Whether samples can be taken out of the batch.
    """

    count: int
    inputs: tuple[int | None, ...]
    targets: tuple[int | None, ...] = ()
    outputs: Mapping[int, int] | None = None
    apart: bool = True

    @property
    def divisible(self) -> bool:
        """Whether every leaf has one row per sample, or was found to be shared by all samples."""
        return self.apart and (bool(self.outputs) or None not in (*self.inputs, *self.targets))


class Batch(tuple[Any, Any]):
    """Inputs and targets: tensors, or nested containers of tensors that the module and the loss accept.

    If a batch is not a pair, inputs and targets are the same object, the whole batch.

    Attributes:
        rows: Dimensions of the samples; None if they were not looked for yet.
        counted: Number of samples by ``batch_size=``; None without it.
        read: Number of samples read for the batch, if they were read one by one; None for a batch of a loader.
        leading: For a longer tuple, the number of elements that are inputs; else 0.
        parts: For a longer tuple, the number of elements; else 0.
    """

    _fields: ClassVar[tuple[str, str]] = ("inputs", "targets")  # by which walks through nests know a named tuple

    rows: Rows | None
    counted: int | None
    read: int | None
    leading: int
    parts: int

    def __new__(
        cls,
        inputs: Any,
        targets: Any,
        rows: Rows | None = None,
        counted: int | None = None,
        read: int | None = None,
        leading: int = 0,
        parts: int = 0,
    ) -> Batch:
        """Create the pair with its attributes."""
        made = super().__new__(cls, (inputs, targets))
        made.rows, made.counted, made.read = rows, counted, read
        made.leading, made.parts = leading, parts
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Arguments for copies and for pickling."""
        return (self[0], self[1], self.rows, self.counted, self.read, self.leading, self.parts)

    def of(self, inputs: Any, targets: Any, rows: Rows | None = None) -> Batch:
        """Return a batch with other inputs and targets and the same attributes, or with other ``rows`` if given."""
        if rows is None:
            return Batch(inputs, targets, self.rows, self.counted, self.read, self.leading, self.parts)
        return Batch(inputs, targets, rows, leading=self.leading, parts=self.parts)

    def with_rows(self, rows: Rows | None) -> Batch:
        """Return the same batch with these dimensions of the samples; None if they are not known."""
        return Batch(self[0], self[1], rows, self.counted, self.read, self.leading, self.parts)

    @property
    def given(self) -> Any:
        """The batch as its loader returned it."""
        if self[0] is self[1]:
            return self[0]
        if not self.leading:
            return self[0], self[1]
        first = self[0] if self.leading > 1 else (self[0],)
        return (*first, *self[1]) if self.parts - self.leading > 1 else (*first, self[1])


AnyBatch: TypeAlias = "Batch | tuple[Any, Any]"
"""A batch, or a plain pair as instruments create them."""


def as_pair(
    batch: Any, *, module: nn.Module | None = None, counted: int | None = None, read: int | None = None
) -> Batch:
    """Return ``(inputs, targets)``.

    If a batch is not a pair (a mapping, a dataclass, a longer tuple), inputs and targets are both the whole batch. The
    same holds for a pair if ``forward`` needs both elements.

    Args:
        batch: The batch as a loader returns it.
        module: From a tuple with more than two elements, its ``forward`` takes the first ones, and the rest are the
            targets. None: the tuple is not split.
        counted: Number of samples by ``batch_size=``, or None.
        read: Number of samples that were read for the batch, or None.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2 and not (module is not None and _is_plain(batch) and needs_both(module, batch[0])):
            return Batch(batch[0], batch[1], counted=counted, read=read)
        leading = leading_inputs(module, len(batch)) if module is not None and _is_plain(batch) else 0
        if leading:
            inputs = batch[0] if leading == 1 else tuple(batch[:leading])
            targets = batch[-1] if leading == len(batch) - 1 else tuple(batch[leading:])
            return Batch(inputs, targets, counted=counted, read=read, leading=leading, parts=len(batch))
    return Batch(batch, batch, counted=counted, read=read)


def is_whole(batch: AnyBatch) -> bool:
    """Whether the batch is not a pair, so that inputs and targets are the same object."""
    return batch[0] is batch[1]


def map_batch(function: Callable[[Tensor], Any], batch: AnyBatch) -> Batch:
    """Apply a function to every tensor of a batch. A batch that is not a pair is not turned into one."""
    made = as_pair(batch)
    if is_whole(batch):
        whole = map_tensors(function, batch[0])
        return made.of(whole, whole)
    return made.of(map_tensors(function, batch[0]), map_tensors(function, batch[1]))


def batch_leaves(batch: AnyBatch) -> list[Tensor | PackedSequence]:
    """All leaves of a batch; if it is not a pair, each leaf once."""
    return leaves_of(batch[0]) if is_whole(batch) else [*leaves_of(batch[0]), *leaves_of(batch[1])]


def sizes_of(leaf: Tensor | PackedSequence) -> tuple[int, ...]:
    """Sizes of the dimensions of a leaf that may be the sample dimension; of a ragged leaf, only that dimension."""
    if isinstance(leaf, PackedSequence):
        return (int(leaf.batch_sizes[0]),) if len(leaf.batch_sizes) else (0,)
    return (int(leaf.size(0)),) if leaf.is_nested else tuple(leaf.shape)


def rows_in(batch: AnyBatch) -> Rows:
    """Dimensions of the samples of a batch: those that were found, else the first dimension of its first tensor.

    Raises:
        ConfigurationError: If no tensor has a first dimension.
    """
    if isinstance(batch, Batch) and batch.rows is not None:
        return batch.rows
    count = next((sizes_of(leaf)[0] for leaf in batch_leaves(batch) if sizes_of(leaf)), None)
    if count is None:
        raise ConfigurationError("A batch has no tensor with a first dimension; pass (inputs, targets) as tensors.")
    inputs, targets = (
        tuple(0 if sizes_of(leaf)[:1] == (count,) else None for leaf in leaves_of(part)) for part in batch
    )
    return Rows(count, inputs, () if is_whole(batch) else targets)


def sample_count(batch: AnyBatch) -> int:
    """Number of samples in a batch.

    Raises:
        ConfigurationError: If no tensor has a first dimension.
    """
    return rows_in(batch).count


def to_device(batch: AnyBatch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move every tensor to the device, and cast floating-point tensors to ``dtype`` (products are at least float32).

    Tensors keep ``requires_grad``, because a loss may differentiate with respect to its inputs.
    """

    def move(leaf: Tensor) -> Tensor:
        # Autograd cannot save a tensor that was made in inference mode.
        moved = cast_number(leaf.clone() if leaf.is_inference() else leaf.detach(), dtype).to(device)
        return moved.requires_grad_() if leaf.requires_grad else moved

    return map_batch(move, batch)


def private(batch: AnyBatch) -> Batch:
    """Clone the tensors of the inputs, because an in-place first layer would change the kept batch.

    Targets that were made in inference mode are cloned too, because autograd cannot save them.
    """
    made, inputs = as_pair(batch), map_tensors(torch.clone, batch[0])
    if is_whole(batch):
        # A loss that reads the inputs must read those of the data, even if the forward changed its own copy.
        return made.of(inputs, batch[1])
    return made.of(inputs, map_tensors(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, batch[1]))


def some_of(batch: AnyBatch, most: int) -> AnyBatch:
    """At most ``most`` samples of a batch, evenly spread, for checks that do not need all of them.

    A batch whose samples cannot be separated is returned whole.
    """
    rows = rows_in(batch)
    if rows.count <= most or not rows.apart:
        return batch
    return picked(batch, torch.linspace(0, rows.count - 1, most).long())


def picked(batch: AnyBatch, places: Tensor) -> Batch:
    """The samples with these indices. Tensors without one row per sample are kept whole.

    Raises:
        UnsupportedError: If samples cannot be taken out of the batch.
    """
    rows = rows_in(batch)
    if not rows.apart:
        raise UnsupportedError(
            f"The {rows.count:,} samples of a batch cannot be separated, because its tensors do not have one row per "
            "sample; pass batches of one sample each."
        )
    return _parted(batch, len(places), lambda leaf, axis: _picked(leaf, axis, places))


def cut(batch: AnyBatch, samples: slice) -> Batch:
    """A slice of the samples of a batch, without copies if possible."""
    start, stop, _ = samples.indices(sample_count(batch))

    def run(leaf: Any, axis: int) -> Any:
        if isinstance(leaf, PackedSequence) or leaf.is_nested:
            return _picked(leaf, axis, torch.arange(start, stop))
        return leaf.narrow(axis, start, stop - start)

    return _parted(batch, stop - start, run)


def _parted(batch: AnyBatch, count: int, part: Callable[[Any, int], Any]) -> Batch:
    rows = rows_in(batch)

    def of(nest: Any, axes: tuple[int | None, ...]) -> Any:
        known = iter(axes)
        return map_leaves(lambda leaf: leaf if (axis := next(known)) is None else part(leaf, axis), nest)

    inputs = of(batch[0], rows.inputs)
    targets = inputs if is_whole(batch) else of(batch[1], rows.targets)
    return as_pair(batch).of(inputs, targets, replace(rows, count=count))


def _picked(leaf: Any, axis: int, places: Tensor) -> Any:
    if isinstance(leaf, PackedSequence):
        padded, lengths = pad_packed_sequence(leaf, batch_first=True)
        chosen = places.to(padded.device)
        return pack_padded_sequence(padded[chosen], lengths[places], batch_first=True, enforce_sorted=False)
    if leaf.is_nested:
        parts = leaf.unbind()
        return torch.nested.as_nested_tensor([parts[place] for place in places.tolist()], layout=leaf.layout)
    return leaf.index_select(axis, places.to(leaf.device))


def joined(batches: list[Batch]) -> Batch | None:
    """All samples as one batch; None if a tensor does not have one row per sample, or the shapes of batches differ.

    >>> joined([(torch.zeros(2, 3), torch.zeros(2)), (torch.zeros(1, 3), torch.zeros(1))])[0].shape
    torch.Size([3, 3])
    """
    columns = [batch_leaves(batch) for batch in batches]
    found = [rows_in(batch) for batch in batches]
    axes = {(*rows.inputs, *rows.targets) for rows in found}
    if len(axes) != 1 or not all(isinstance(leaf, Tensor) and not leaf.is_nested for each in columns for leaf in each):
        return None
    (axis,) = axes
    if None in axis or not all(rows.apart for rows in found):
        return None
    alike = {
        tuple((*leaf.shape[:at], *leaf.shape[at + 1 :], leaf.dtype) for leaf, at in zip(leaves, axis, strict=True))  # type: ignore[union-attr,operator]
        for leaves in columns
    }
    if len(alike) != 1:
        return None
    merged = [torch.cat(parts, at) for *parts, at in zip(*columns, axis, strict=True)]
    rows = replace(found[0], count=sum(each.count for each in found))
    first = as_pair(batches[0])
    if is_whole(first):
        nest = with_tensors(first[0], merged)
        return first.of(nest, nest, rows)
    split = len(tensors_of(first[0]))
    return first.of(with_tensors(first[0], merged[:split]), with_tensors(first[1], merged[split:]), rows)


def collected(
    batches: Iterable[Any], batch_size: BatchSize | None = None, module: nn.Module | None = None
) -> list[Batch]:
    """Return all batches of a re-iterable, checked. Batches without samples are left out: they have no mean loss.

    Args:
        batches: Re-iterable of batches.
        batch_size: The ``batch_size=`` of the user, or None.
        module: Module whose ``forward`` shows which elements of a longer tuple are inputs.

    Raises:
        ConfigurationError: If ``batches`` is a generator (it can be read only once), there is no batch, or a batch is a
            plain tuple or list that is not a pair and cannot be split into inputs and targets.
    """
    if isinstance(batches, Iterator):
        raise ConfigurationError(
            "The batches are read more than once, but a generator or iterator was given; pass a list or a DataLoader."
        )
    held = [as_pair(batch, module=module, counted=counted_by(batch_size, batch)) for batch in batches]
    for batch in held:
        _refuse_unnamed(batch, module)
    held = [batch for batch in held if batch.counted != 0 and (batch.counted or sample_count(batch) > 0)]
    if not held:
        raise ConfigurationError(
            "No samples to measure on: the batches are empty; pass at least one (inputs, targets)."
        )
    return held


def counted_by(batch_size: BatchSize | None, batch: Any) -> int | None:
    """Number of samples in a batch by the ``batch_size`` of the user; None without one.

    Raises:
        ConfigurationError: If it does not return a whole number.
    """
    if batch_size is None:
        return None
    count = batch_size(batch)
    if isinstance(count, Tensor) and count.numel() == 1 and not count.is_floating_point():
        count = int(count)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ConfigurationError(
            f"batch_size= must return the number of samples in a batch, but returned {count!r}; return a whole number, "
            "such as batch[1].shape[0]."
        )
    return count


def checked_batch_size(batch_size: object) -> None:
    """Check that ``batch_size`` is a function of a batch.

    Raises:
        ConfigurationError: If it is not, for instance a number: the last batch usually has fewer samples.
    """
    if batch_size is not None and not callable(batch_size):
        raise ConfigurationError(
            f"batch_size={batch_size!r} must be a function of a batch, because batches differ in size; pass for "
            "instance batch_size=lambda batch: batch[1].shape[0]."
        )


def _is_plain(batch: Any) -> bool:
    return type(batch) in (tuple, list)


def _refuse_unnamed(batch: Batch, module: nn.Module | None) -> None:
    whole = batch[0]
    if is_whole(batch) and _is_plain(whole) and (module is None or not takes_several(module)):
        raise ConfigurationError(
            f"Batches must be pairs (inputs, targets), but the data contain a {type(whole).__name__} of {len(whole)}; "
            "pass pairs, or a dict or dataclass, which module and loss both receive as a whole."
        )
