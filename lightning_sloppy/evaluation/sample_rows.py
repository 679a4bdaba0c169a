"""Find the samples of batches: how many there are, and in which dimension of each tensor.

Most batches have a row for each sample in the first dimension of every tensor. Sequences may come with time first, a
grid may be common to all samples, and batch objects hold tensors of all kinds. What inputs, targets and outputs have in
common tells the count; that the outputs of some samples are those of the same samples among others tells the dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import (
    INNER,
    AnyBatch,
    Batch,
    Rows,
    batch_leaves,
    is_whole,
    picked,
    rows_in,
    sizes_of,
)
from lightning_sloppy.evaluation.nests import leaves_of, tensors_of
from lightning_sloppy.evaluation.real_numbers import is_number

Forward = Callable[[Batch], Any]
"""Function that returns the outputs of the module for a batch."""

COMPARED = 4
"""Samples whose outputs are compared with those of the last half of them."""

AGREEMENT = 1e-3
"""Largest relative difference of outputs attributed to rounding, as other batch sizes use other kernels."""

MOST_TRIES = 12
"""Ways to read the dimensions of one batch that are tried; one or two are there as a rule."""

ASK = (
    "pass batch_size=, a function of the batch that returns it, for instance batch_size=lambda batch: batch[1].shape[0]"
)


def located(batches: Sequence[Batch], forward: Forward | None = None) -> list[Batch]:
    """The same batches, each with its :class:`Rows`.

    Args:
        batches: Batches of one data set, with the same dimension order.
        forward: Function that runs the module on a batch, without gradients; None to use shapes alone.

    Raises:
        ConfigurationError: If the number of samples cannot be determined; the message asks for ``batch_size=``.
    """
    if not batches or all(batch.rows is not None and batch.rows.outputs is not None for batch in batches):
        return list(batches)
    if len({tuple(len(leaves_of(part)) for part in batch) for batch in batches}) > 1:
        return [located([batch], forward)[0] for batch in batches]  # of several kinds
    search = _Search(batches, forward)
    found = search.seen() or search.told()
    if found is None:
        shapes = ", ".join(str(sizes_of(leaf)) for leaf in batch_leaves(batches[0])) or "none"
        raise ConfigurationError(
            f"The number of samples in a batch cannot be determined from its tensors ({shapes}); {ASK}."
        )
    return [batch.with_rows(rows) for batch, rows in zip(batches, found, strict=True)]


Counts = tuple[int, ...]
"""Samples of each of several batches."""


class _Search:
    """Candidates for the samples of some batches, and the checks on them."""

    def __init__(self, batches: Sequence[Batch], forward: Forward | None) -> None:
        self._batches = batches
        self._forward = forward
        self._leaves = [batch_leaves(batch) for batch in batches]
        self._sizes = [[sizes_of(leaf) for leaf in leaves] for leaves in self._leaves]
        self._places = range(len(self._sizes[0]))
        # Which leaves are targets; not known if the batch is not a pair.
        first = batches[0]
        self._whole = is_whole(first)
        self._split = len(leaves_of(first[0]))
        self._rows_given: dict[int, int | None] = {}

    def seen(self) -> list[Rows] | None:
        """The reading that the outputs of some samples confirm; one with the outputs' rows in front before others."""
        if self._forward is None:
            return None
        later: list[Rows] | None = None
        for counts, inputs in islice(self._readings(), MOST_TRIES):
            which = counts.index(max(counts))
            outputs = self._confirmed(self._batches[which], self._rows(counts, inputs, which))
            if not outputs:
                continue
            rows = [replace(self._rows(counts, inputs, i, outputs), outputs=outputs) for i in range(len(counts))]
            if 0 in outputs.values():
                return rows
            later = later or rows
        return later

    def told(self) -> list[Rows] | None:
        """The reading that lists or shapes tell, with the outputs' rows where a module is there."""
        lists = None if self._said() or self._plain() else self._of_lists()
        if lists is not None:
            return lists
        for counts in self._counts():
            fits = [each[0] for each in self._fits(counts)]
            if counts in (self._said(), self._plain()) or self._fit(counts, fits[: self._split], fits[self._split :]):
                found = [self._rows(counts, tuple(fits[: self._split]), i) for i in range(len(counts))]
                # What some tensors have no row for is not taken apart, unless that was seen to work.
                return self._looked([replace(rows, apart=None not in (*rows.inputs, *rows.targets)) for rows in found])
        return self._looked((self._counted_by_outputs() if self._whole else None) or self._of_several_loaders())

    def _looked(self, found: list[Rows] | None) -> list[Rows] | None:
        """Mark the outputs as examined, so that they are not examined again."""
        if found is None or self._forward is None:
            return found
        return [replace(rows, outputs={}) for rows in found]

    def _of_lists(self) -> list[Rows] | None:
        """Inputs and targets are lists with an entry for each sample, as detectors have them: images of any size."""
        counts: list[int | None] = []
        for batch in self._batches:
            parts = batch[0] if self._whole else tuple(batch)
            parts = list(parts.values()) if isinstance(parts, Mapping) else parts
            listed = isinstance(parts, (list, tuple)) and all(type(part) in (list, tuple) and part for part in parts)
            if not listed or len(parts) < 2 or not all(map(_are_samples, parts)):
                return None
            lengths = {len(part) for part in parts}
            counts.append(len(parts[0]) if lengths == {batch.read or len(parts[0])} else None)
        return self._uncut(counts)

    def _of_several_loaders(self) -> list[Rows] | None:
        """Each loader has its own samples in the batch, which then counts as those of the first one."""
        counts: list[int | None] = []
        for batch in self._batches:
            parts = batch[0] if self._whole else tuple(batch)
            parts = list(parts.values()) if isinstance(parts, Mapping) else parts
            if not isinstance(parts, (list, tuple)) or not all(isinstance(p, (list, tuple, Mapping)) for p in parts):
                return None
            firsts = [{sizes_of(leaf)[0] for leaf in leaves_of(part) if sizes_of(leaf)} for part in parts]
            counts.append(next(iter(firsts[0])) if all(len(each) == 1 for each in firsts) else None)
        return self._uncut(counts)

    def _fit(self, counts: Counts, inputs: Sequence[int | None], targets: Sequence[int | None]) -> bool:
        """Whether outputs and targets, or inputs and targets, or the reader of the data agree on these counts."""
        outputs = self._rows_of_outputs(0)
        if outputs == counts[0]:
            return True
        if counts == self._hinted():
            return outputs is None
        # Without outputs to ask, the first dimension of a target tells; a second one may be that of features.
        leading = targets or inputs
        some = any(axis is not None for axis in inputs)
        return some and not self._whole and 0 in leading

    def _counted_by_outputs(self) -> list[Rows] | None:
        """Where no tensor of a batch object tells how many samples it holds, its outputs may."""
        return self._uncut([self._rows_of_outputs(i) for i in range(len(self._batches))])

    def _uncut(self, counts: list[int | None]) -> list[Rows] | None:
        """Batches of so many samples each that stay whole."""
        inputs = (None,) * self._split
        targets = (None,) * (len(self._places) - self._split)
        found = [Rows(count, inputs, targets, apart=False) for count in counts if count is not None]
        return found if len(found) == len(counts) else None

    def _readings(self) -> Iterator[tuple[Counts, tuple[int | None, ...]]]:
        """Counts, and for each leaf of the inputs the dimension of the samples."""
        for counts in self._counts():
            targets = self._fits(counts)[self._split :]
            if max(counts) < 2 or (targets and all(fits[0] is None for fits in targets)):
                continue
            for axes in product(*self._fits(counts)[: self._split]):
                # An integer tensor that stays whole may hold places in those that are cut, which would be missing.
                risky = any(axis is None and self._holds_places(leaf) for leaf, axis in enumerate(axes))
                if any(axis is not None for axis in axes) and not risky:
                    yield counts, axes

    def _holds_places(self, leaf: int) -> bool:
        found = self._leaves[0][leaf]
        return isinstance(found, Tensor) and found.ndim > 0 and not found.is_floating_point() and found.numel() > 0

    def _counts(self) -> list[Counts]:
        """Numbers of samples of the batches that may be meant, the likeliest first."""
        said = self._said()
        if said is not None:
            return [said]
        found = [self._hinted(), self._plain()]
        for axis in (0, 1):
            found += [self._along(leaf, axis) for leaf in (*self._places[self._split :], *self._places[: self._split])]
        plain = self._plain()  # which may be a batch without samples
        known = (counts for counts in found if counts is not None and (min(counts) > 0 or counts == plain))
        return list(dict.fromkeys(known))

    def _said(self) -> Counts | None:
        """What the user says."""
        return _all(batch.counted for batch in self._batches)

    def _hinted(self) -> Counts | None:
        """How many samples were read, where a tensor has a dimension of that size."""
        read = _all(batch.read for batch in self._batches)
        return read if read is not None and any(fits[0] is not None for fits in self._fits(read)) else None

    def _plain(self) -> Counts | None:
        """The first dimension of all tensors, where they agree on it."""
        counts = [{sizes[0] for sizes in leaves if sizes} for leaves in self._sizes]
        return _all(next(iter(each)) if len(each) == 1 else None for each in counts)

    def _along(self, leaf: int, axis: int) -> Counts | None:
        return _all(sizes[leaf][axis] if len(sizes[leaf]) > axis else None for sizes in self._sizes)

    def _fits(self, counts: Counts) -> list[list[int | None]]:
        """For each leaf the dimensions that have the right size in every batch, and none at all."""
        found: list[list[int | None]] = []
        for leaf in self._places:
            fits: list[int | None] = [
                axis
                for axis in range(min(len(sizes[leaf]) for sizes in self._sizes))
                if all(sizes[leaf][axis] == count for sizes, count in zip(self._sizes, counts, strict=True))
            ]
            found.append([*fits, None])
        return found

    def _rows(
        self, counts: Counts, inputs: tuple[int | None, ...], which: int, outputs: Mapping[int, int] | None = None
    ) -> Rows:
        """Of one batch; targets of several dimensions of the right size are read as the outputs are."""
        like = set((outputs or {}).values())
        targets = tuple(
            next((axis for axis in fits if axis in like), fits[0]) for fits in self._fits(counts)[self._split :]
        )
        return Rows(counts[which], inputs, targets)

    def _confirmed(self, batch: Batch, rows: Rows) -> dict[int, int]:
        """Where the samples are in the outputs; empty unless the outputs of some samples are what they are among more.

        The last half is compared: what comes first in a sequence does not depend on what is left out behind it.
        """
        assert self._forward is not None
        more = torch.linspace(0, rows.count - 1, min(rows.count, COMPARED)).long()
        half = more[len(more) // 2 :]
        given = batch.with_rows(rows)
        try:
            left, right = (tensors_of(self._forward(picked(given, places))) for places in (more, half))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a wrong reading fails in as many manners as there are modules
            return {}
        found: dict[int, int] = {}
        for place, (whole, part) in enumerate(zip(left, right, strict=False)):
            if not is_number(whole) or whole.shape == part.shape:
                continue
            axis = _axis_of_rows(whole, part, (len(more), len(half)))
            if axis is None:
                return {}
            found[place] = axis
        return found

    def _rows_of_outputs(self, which: int) -> int | None:
        """First dimension of the outputs of a batch; None where they have none, or no module is there."""
        if which not in self._rows_given:
            found = []
            with suppress(Exception):  # what the module refuses, the measurement itself says
                found = [] if self._forward is None else tensors_of(self._forward(self._batches[which]))
            rows = [int(tensor.shape[0]) for tensor in found if is_number(tensor) and tensor.ndim > 0]
            self._rows_given[which] = rows[0] if rows else None
        return self._rows_given[which]


def _are_samples(entries: Sequence[Any]) -> bool:
    """Whether the entries of a list are of one kind, as samples are and several inputs of a network seldom."""
    kinds = {tuple((tensor.ndim, tensor.dtype) for tensor in tensors_of(entry)) for entry in entries}
    return len(kinds) == 1 and () not in kinds


def _all(counts: Iterable[int | None]) -> Counts | None:
    """The counts of all batches, or None."""
    found = tuple(counts)
    return None if None in found else found  # type: ignore[return-value]


def _axis_of_rows(whole: Tensor, part: Tensor, counts: tuple[int, int]) -> int | None:
    """The dimension of an output in which the last of some samples are what they are by themselves; None for none."""
    if whole.ndim != part.ndim:
        return None
    changed = [axis for axis in range(whole.ndim) if whole.shape[axis] != part.shape[axis]]
    more, half = counts
    axis = changed[0]
    if len(changed) != 1:
        return None
    if (whole.shape[axis], part.shape[axis]) == counts:
        return axis if _close(whole.narrow(axis, more - half, half), part) else None
    positions = whole.shape[0] // more
    if axis != 0 or (whole.shape[0], part.shape[0]) != (positions * more, positions * half):
        return None
    # Positions and samples as one dimension: sample by sample, or position by position.
    if _close(whole[-positions * half :], part):
        return 0
    left, right = (each.reshape(positions, count, -1) for each, count in zip((whole, part), counts, strict=True))
    return INNER if _close(left[:, -half:], right) else None


def _close(one: Tensor, other: Tensor) -> bool:
    size = one.abs().max() if one.numel() else one.new_zeros(())
    return bool(((one - other).abs() <= AGREEMENT * size).all())


def row_axes(found: list[Tensor], batch: AnyBatch) -> dict[int, int]:
    """By their place the outputs with a row for each sample, and the dimension of the rows."""
    rows = rows_in(batch)
    numbers = {place: tensor for place, tensor in enumerate(found) if is_number(tensor)}
    if rows.outputs:
        return {place: axis for place, axis in rows.outputs.items() if place in numbers}
    return {place: 0 for place, tensor in numbers.items() if tensor.shape[:1] == (rows.count,)}


def moved(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters a little beside the given ones, for looks at what depends on what.

    What a module does with the samples of a batch does not depend on the values of its weights, but a head of zeros or
    a closed gate hides it: all outputs are equal there.
    """
    return {name: p + 0.1 * torch.arange(p.numel()).cos().reshape(p.shape).to(p) for name, p in parameters.items()}
