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
"""``batch_size(batch)``: how many samples a batch holds, as its loader gives it."""


INNER = -1
"""Stands for the first dimension of an output, (T N, ...), in which the samples change fastest."""


@dataclass(frozen=True)
class Rows:
    """Where the samples of a batch are.

    Attributes:
        count: Samples n.
        inputs: For each leaf of the inputs the dimension that has a row for each sample; None for what all samples
            have in common.
        targets: The same of the targets; empty where inputs and targets are the same object.
        outputs: The same of the outputs of ``forward``, by their place among its tensors, as far as it was seen; empty
            where nothing was to be seen, None where it was not looked at. ``INNER`` where positions and samples were
            made one dimension.
        apart: Whether samples can be taken out of the batch.
    """

    count: int
    inputs: tuple[int | None, ...]
    targets: tuple[int | None, ...] = ()
    outputs: Mapping[int, int] | None = None
    apart: bool = True

    @property
    def divisible(self) -> bool:
        """Whether every leaf has a row for each sample, or was seen to be common to all."""
        return self.apart and (bool(self.outputs) or None not in (*self.inputs, *self.targets))


class Batch(tuple[Any, Any]):
    """Inputs and targets: tensors, or nests of tensors that the module and the loss accept.

    A batch that is no pair is both: inputs and targets are the same object.

    Attributes:
        rows: Where the samples are; None while nobody has looked.
        counted: Samples as the user says; None when nobody was asked.
        read: Samples that were read for it, where they were read one by one; None for a batch as its loader gave it.
        leading: Of a longer tuple the number of parts that are inputs, else 0.
        parts: Of a longer tuple the number of all parts, else 0.
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
        """Two parts, and what is known of them."""
        made = super().__new__(cls, (inputs, targets))
        made.rows, made.counted, made.read = rows, counted, read
        made.leading, made.parts = leading, parts
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """For copies and for other processes."""
        return (self[0], self[1], self.rows, self.counted, self.read, self.leading, self.parts)

    def of(self, inputs: Any, targets: Any, rows: Rows | None = None) -> Batch:
        """A batch with other parts and the same facts; with samples of its own where ``rows`` are given."""
        if rows is None:
            return Batch(inputs, targets, self.rows, self.counted, self.read, self.leading, self.parts)
        return Batch(inputs, targets, rows, leading=self.leading, parts=self.parts)

    def with_rows(self, rows: Rows | None) -> Batch:
        """The same batch, its samples found; None: to be looked for."""
        return Batch(self[0], self[1], rows, self.counted, self.read, self.leading, self.parts)

    @property
    def given(self) -> Any:
        """The batch as its loader gave it."""
        if self[0] is self[1]:
            return self[0]
        if not self.leading:
            return self[0], self[1]
        first = self[0] if self.leading > 1 else (self[0],)
        return (*first, *self[1]) if self.parts - self.leading > 1 else (*first, self[1])


AnyBatch: TypeAlias = "Batch | tuple[Any, Any]"
"""A batch, or a plain pair as instruments make them."""


def as_pair(
    batch: Any, *, module: nn.Module | None = None, counted: int | None = None, read: int | None = None
) -> Batch:
    """Return ``(inputs, targets)``.

    A batch that is no pair (a mapping, a dataclass, a longer tuple) is both: the module and the loss get all of it.
    So is one of two parts whose module needs both of them.

    Args:
        batch: As a loader gives it.
        module: Of a tuple with more than two parts its ``forward`` takes the first ones, and the rest are the targets;
            None: it stays whole.
        counted: Samples in it as the user says, or None.
        read: Samples that were read for it, or None.
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
    """Whether the batch is no pair: inputs and targets are the same object."""
    return batch[0] is batch[1]


def map_batch(function: Callable[[Tensor], Any], batch: AnyBatch) -> Batch:
    """The same batch with every tensor replaced; one that is no pair stays none."""
    made = as_pair(batch)
    if is_whole(batch):
        whole = map_tensors(function, batch[0])
        return made.of(whole, whole)
    return made.of(map_tensors(function, batch[0]), map_tensors(function, batch[1]))


def batch_leaves(batch: AnyBatch) -> list[Tensor | PackedSequence]:
    """All leaves of a batch, those of one that is no pair once."""
    return leaves_of(batch[0]) if is_whole(batch) else [*leaves_of(batch[0]), *leaves_of(batch[1])]


def sizes_of(leaf: Tensor | PackedSequence) -> tuple[int, ...]:
    """Sizes of the dimensions of a leaf that may be those of the samples; of a ragged one, only the samples' own."""
    if isinstance(leaf, PackedSequence):
        return (int(leaf.batch_sizes[0]),) if len(leaf.batch_sizes) else (0,)
    return (int(leaf.size(0)),) if leaf.is_nested else tuple(leaf.shape)


def rows_in(batch: AnyBatch) -> Rows:
    """Where the samples of a batch are: as was found, else in the first dimension of its first tensor.

    Raises:
        ConfigurationError: When there is no tensor with a first dimension.
    """
    if isinstance(batch, Batch) and batch.rows is not None:
        return batch.rows
    count = next((sizes_of(leaf)[0] for leaf in batch_leaves(batch) if sizes_of(leaf)), None)
    if count is None:
        raise ConfigurationError("A batch holds no tensor with a first dimension; give (inputs, targets) as tensors.")
    inputs, targets = (
        tuple(0 if sizes_of(leaf)[:1] == (count,) else None for leaf in leaves_of(part)) for part in batch
    )
    return Rows(count, inputs, () if is_whole(batch) else targets)


def sample_count(batch: AnyBatch) -> int:
    """Samples in a batch.

    Raises:
        ConfigurationError: When there is no tensor with a first dimension.
    """
    return rows_in(batch).count


def to_device(batch: AnyBatch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move every tensor; cast those of floating point to ``dtype`` (products are at least float32).

    One that requires gradients still does, for a loss may differentiate in its inputs.
    """

    def move(leaf: Tensor) -> Tensor:
        # Autograd cannot save a tensor that was made in inference mode.
        moved = cast_number(leaf.clone() if leaf.is_inference() else leaf.detach(), dtype).to(device)
        return moved.requires_grad_() if leaf.requires_grad else moved

    return map_batch(move, batch)


def private(batch: AnyBatch) -> Batch:
    """Clone the tensors of the inputs: an in-place first layer would otherwise change the kept batch.

    Tensors made in inference mode are cloned among the targets too, for autograd cannot save them.
    """
    made, inputs = as_pair(batch), map_tensors(torch.clone, batch[0])
    if is_whole(batch):
        # A loss that reads the inputs reads those of the data, whatever the forward made of its own.
        return made.of(inputs, batch[1])
    return made.of(inputs, map_tensors(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, batch[1]))


def some_of(batch: AnyBatch, most: int) -> AnyBatch:
    """At most so many samples of a batch, evenly spread, for checks that need not see all of them.

    A batch whose samples cannot be taken apart stays whole.
    """
    rows = rows_in(batch)
    if rows.count <= most or not rows.apart:
        return batch
    return picked(batch, torch.linspace(0, rows.count - 1, most).long())


def picked(batch: AnyBatch, places: Tensor) -> Batch:
    """The samples at these places; tensors without a row for each sample stay whole.

    Raises:
        UnsupportedError: When samples cannot be taken out of the batch.
    """
    rows = rows_in(batch)
    if not rows.apart:
        raise UnsupportedError(
            f"The {rows.count:,} samples of a batch cannot be taken apart, for its tensors have no row for each of "
            "them; give batches of one sample each."
        )
    return _parted(batch, len(places), lambda leaf, axis: _picked(leaf, axis, places))


def cut(batch: AnyBatch, samples: slice) -> Batch:
    """A run of samples of a batch, without copies where that can be."""
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
    """All samples as one batch; None when some tensor has no row for each sample, or the batches are of several shapes.

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
    """Hold all batches of a re-iterable, checked; a batch without samples has no mean loss and is left out.

    Args:
        batches: Re-iterable.
        batch_size: The user's count of the samples of a batch, or None.
        module: Says which parts of a longer tuple are inputs.

    Raises:
        ConfigurationError: For a generator (it can be read once only), no batch, or a plain tuple or list that is no
            pair where nobody knows which part of it is which.
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
    """What the user's ``batch_size`` says of a batch; None without one.

    Raises:
        ConfigurationError: When it gives no whole number of samples.
    """
    if batch_size is None:
        return None
    count = batch_size(batch)
    if isinstance(count, Tensor) and count.numel() == 1 and not count.is_floating_point():
        count = int(count)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ConfigurationError(
            f"batch_size= must give the number of samples of a batch, but gave {count!r}; return a whole number, such "
            "as batch[1].shape[0]."
        )
    return count


def checked_batch_size(batch_size: object) -> None:
    """Refuse what is no function of a batch.

    Raises:
        ConfigurationError: For a number, say: the last batch usually holds fewer samples.
    """
    if batch_size is not None and not callable(batch_size):
        raise ConfigurationError(
            f"batch_size={batch_size!r} must be a function of a batch, for batches differ in size; pass for instance "
            "batch_size=lambda batch: batch[1].shape[0]."
        )


def _is_plain(batch: Any) -> bool:
    return type(batch) in (tuple, list)


def _refuse_unnamed(batch: Batch, module: nn.Module | None) -> None:
    whole = batch[0]
    if is_whole(batch) and _is_plain(whole) and (module is None or not takes_several(module)):
        raise ConfigurationError(
            f"Batches must be pairs (inputs, targets), but the data give a {type(whole).__name__} of {len(whole)}; "
            "give pairs, or a dict or dataclass that goes whole to module and loss."
        )
