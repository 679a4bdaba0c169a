"""Gram matrix of the parameters whose gradients follow from inputs and output gradients of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_sloppy.curvature.gram.broadcasts import leaves_behind
from lightning_sloppy.curvature.gram.calls import Use
from lightning_sloppy.curvature.gram.check import UNUSED, Recording, Served, served, unreliable, uses_of
from lightning_sloppy.curvature.gram.inner_products import add_weight, kept_apart
from lightning_sloppy.curvature.gram.outer_products import Outer, merged, write_sum
from lightning_sloppy.curvature.gram.sums import GramSums
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective

KEPT_BYTES = 2 * 1024**3
"""Memory for what is kept of the layers between batches. Above it, the batches are run again for the rest."""


@dataclass
class _Held:
    """The data kept for one parameter: its formed gradients, (N, R, p), or the factors of its uses in each batch."""

    formed: Tensor | None = None
    uses: list[list[Outer]] = field(default_factory=list)


def add_layers(
    sums: GramSums,
    objective: Objective,
    leaves: Mapping[str, Tensor],
    pulled: Sequence[Tensor],
    batches: Sequence[Batch],
    budget: int,
    recorded: Recording | None = None,
) -> dict[str, str]:
    """Add the parameters that known layers use; returns the path of each, such as "conv".

    Args:
        sums: Where inner products go.
        objective: Module and loss.
        leaves: Trainable parameters by name.
        pulled: Cotangents of each batch, (R, n, D).
        batches: Prepared batches.
        budget: Bytes for formed gradients.
        recorded: The first batch, when it was run with these leaves already.
    """
    # A single sample would not tell whether samples act on one another.
    largest = max(batches, key=sample_count)
    known = served(objective, leaves, largest)
    paths: dict[str, str] = {}
    for names in _passes(known, leaves, sums, sample_count(largest), objective.dtype.itemsize):
        held = {name: _Held() for name in names}
        first = 0
        for batch, directions in zip(batches, pulled, strict=True):
            if held:
                recording, recorded = recorded or Recording(objective, leaves, batch), None
                _collect(recording, leaves, directions, known, held, (first, sums.samples))
                recording.release()
            first += sample_count(batch)
        _add(sums, held, budget // objective.dtype.itemsize)
        paths |= {name: known.paths[name] for name in held}
    return paths


def _passes(
    known: Served, leaves: Mapping[str, Tensor], sums: GramSums, largest: int, itemsize: int
) -> Iterator[list[str]]:
    """Parameters in groups whose kept numbers fit into memory; a single larger one stays alone."""
    group: list[str] = []
    used = 0
    for name in known.paths:
        inputs, outputs = known.numbers[name]
        kept = min(inputs + sums.copies * outputs, sums.copies * leaves[name].numel()) * sums.samples
        # Gradients in the outputs are there for a whole batch in any case.
        size = (kept + sums.copies * outputs * largest) * itemsize
        if group and used + size > KEPT_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _collect(
    recording: Recording,
    leaves: Mapping[str, Tensor],
    directions: Tensor,
    known: Served,
    held: dict[str, _Held],
    place: tuple[int, int],
) -> None:
    """Add the gradients of one batch for the kept parameters. Parameters without gradients there are dropped.

    The batch's place is the number of its first sample, and that of all samples.
    """
    count = recording.count
    structure = recording.take_axes(known.axes)
    if structure is None:
        held.clear()
        return
    if structure not in known.checked:
        for name in unreliable(recording, {name: leaves[name] for name in held}):
            del held[name]
    calls = [call for call in recording.calls if any(call.touches(leaves[name]) for name in held)]
    gradients = recording.gradients(calls, directions)
    reached = leaves_behind(recording.rows) if any(known.paths[name] == UNUSED for name in held) else set()
    for name in list(held):
        uses = uses_of(leaves[name], calls, gradients, count)
        if known.paths[name] == UNUSED:
            right = uses == [] and id(leaves[name]) not in reached
        else:
            right = (
                uses is not None
                and len(uses) > 0
                and _keep(held[name], uses, (count, len(directions), leaves[name].numel()), place)
            )
        if not right:
            del held[name]


def _keep(held: _Held, uses: Sequence[Use], shape: tuple[int, int, int], place: tuple[int, int]) -> bool:
    """Keep one batch of a parameter as factors, if they are needed or smaller, else formed; False if batches differ."""
    first, samples = place
    count, copies, size = shape
    outer = merged([use for use in uses if isinstance(use, Outer)])
    direct = [use for use in uses if isinstance(use, Tensor)]
    if held.uses or (first == 0 and not direct and kept_apart(outer, samples)):
        held.uses.append(outer)
        return not direct
    if held.formed is None:
        like = direct[0] if direct else outer[0].right.data
        held.formed = like.new_empty(samples, copies, size)
    target = held.formed[first : first + count]
    if outer:
        groups, height, width = outer[0].left.groups, outer[0].left.width, outer[0].right.width
        write_sum(outer, target.view(count, copies, groups, height, width))
    for index, gradients in enumerate(direct):
        target.copy_(gradients) if not outer and index == 0 else target.add_(gradients)
    return True


def _add(sums: GramSums, held: Mapping[str, _Held], budget: int) -> None:
    """Add the inner products of everything held."""
    rows: dict[str, Tensor] = {}
    for name, this in held.items():
        if this.uses:
            add_weight(sums, name, this.uses, budget)
        elif this.formed is not None:
            rows[name] = this.formed
    if rows:
        sums.add_rows(rows)
