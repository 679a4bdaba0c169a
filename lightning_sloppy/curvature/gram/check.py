"""Check on a few samples for which parameters the per-sample gradients of layers are right."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_sloppy.curvature.gram.calls import Call, Use
from lightning_sloppy.curvature.gram.outer_products import Outer, norm
from lightning_sloppy.curvature.gram.recorder import LayerRecorder
from lightning_sloppy.curvature.parameters import grad
from lightning_sloppy.evaluation.batches import INNER, AnyBatch, Batch, picked, private, rows_in, sample_count
from lightning_sloppy.evaluation.nests import leaves_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.vectors import generator

CHECKED_SAMPLES = 16
"""Number of samples of the check."""

CHECK_TOLERANCE = 1e-3
"""Relative difference of two sums of gradients above which they are not the same."""

ROUNDING = 1e-6
"""Absolute tolerance for cancellation between terms of size one."""

UNUSED = "unused"
"""Path of a parameter that the outputs do not depend on."""

Structure = tuple[tuple[int, ...] | None, ...]
"""The shape of the output of each call for one sample."""

_log = logging.getLogger("lightning_sloppy")


class Recording:
    """Samples run forward, with the calls that parameters go into.

    Args:
        objective: Module and loss.
        leaves: Trainable parameters by name.
        batch: Prepared, of n samples.

    Attributes:
        outputs: What the module gave, with its graph.
        calls: Always in the same order.
    """

    def __init__(self, objective: Objective, leaves: Mapping[str, Tensor], batch: Batch) -> None:
        own = private(batch)
        inputs, count = own[0], sample_count(batch)
        recorder = LayerRecorder(leaves.values(), own_tensors(own), count)
        with recorder:
            outputs = objective.outputs(leaves, inputs)
        self.count = count
        self.outputs: Any = outputs
        self._objective = objective
        self._rows: Tensor | None = None
        self.calls = recorder.calls

    @property
    def rows(self) -> Tensor:
        """The outputs that the loss uses, (n, D): which, may be found out after the run, from its outputs."""
        if self._rows is None:
            self._rows = self._objective.rows(self.outputs, self.count)
        return self._rows

    def release(self) -> None:
        """Release the graph, because others may still refer to this record."""
        self.outputs, self._rows, self.calls = None, self.rows.detach(), []

    def take_axes(self, axes: Sequence[int | None]) -> Structure | None:
        """Set the axes of the calls; returns what they look like for one sample, None for another number of calls."""
        if len(axes) != len(self.calls):
            return None
        for call, axis in zip(self.calls, axes, strict=True):
            call.axis = axis
        return tuple(call.shape_of_one(self.count) for call in self.calls)

    def gradients(self, calls: Sequence[Call], directions: Iterable[Tensor]) -> list[list[Tensor]]:
        """Gradients in the outputs of some calls, for each of them a list over the cotangents."""
        found: list[list[Tensor]] = [[] for _ in calls]
        for direction in directions if calls else ():
            parts = grad([self.rows], [call.output for call in calls], [direction], retain_graph=True)
            for mine, call, part in zip(found, calls, parts, strict=True):
                mine.append(torch.zeros_like(call.output) if part is None else part)
        return found


@dataclass
class Served:
    """The parameters whose gradients can be taken from layers.

    Attributes:
        paths: How each parameter is served; those that layers cannot serve are missing.
        axes: The axis of samples of each call, in order.
        numbers: What has to be held of each of these parameters for one sample: inputs, and outputs for one cotangent.
        checked: What the calls of the batches looked like that were checked.
    """

    paths: dict[str, str]
    axes: list[int | None]
    numbers: dict[str, tuple[int, int]]
    checked: set[Structure]


def served(objective: Objective, leaves: Mapping[str, Tensor], batch: Batch) -> Served:
    """Check on some samples of a batch. If that fails, no gradients are taken from layers.

    Args:
        objective: Module and loss.
        leaves: Trainable parameters by name.
        batch: A prepared batch.
    """
    places = _spread(sample_count(batch))
    try:
        recording, fewer = (_some(objective, leaves, batch, some) for some in (places, places[:-1]))
        axes = _axes(recording, fewer)
        structure = recording.take_axes(axes)
        if structure is None:
            return Served({}, axes, {}, set())
        wrong = unreliable(recording, leaves)
        inner = _inner(recording, [leaves[name] for name in wrong])
        if inner != axes:
            recording.take_axes(inner)
            still = unreliable(recording, leaves)
            axes, wrong = (inner, still) if still < wrong else (axes, wrong)
            recording.take_axes(axes)
    except Exception:  # a forward for batches of one size, or one whose functions cannot be replaced by equal ones
        _log.debug("Layers do not tell per-sample gradients", exc_info=True)
        return Served({}, [], {}, set())
    paths = {
        name: "+".join(sorted({call.path for call in recording.calls if call.touches(leaf)})) or UNUSED
        for name, leaf in leaves.items()
        if name not in wrong
    }
    numbers = {name: _numbers(recording, leaves[name]) for name in paths}
    return Served(paths, axes, numbers, {structure})


def own_tensors(batch: AnyBatch) -> list[Tensor]:
    """Tensors of the inputs with a row for each sample."""
    found = zip(leaves_of(batch[0]), rows_in(batch).inputs, strict=True)
    return [leaf.data if isinstance(leaf, PackedSequence) else leaf for leaf, axis in found if axis is not None]


def _spread(count: int) -> Tensor:
    """Places of some samples, at least two, evenly spread."""
    return torch.linspace(0, count - 1, max(2, min(count, CHECKED_SAMPLES))).long()


def _some(objective: Objective, leaves: Mapping[str, Tensor], batch: Batch, places: Tensor) -> Recording:
    return Recording(objective, leaves, picked(batch, places))


def _axes(recording: Recording, fewer: Recording) -> list[int | None]:
    """The dimension of each output that has another size for fewer samples; none for another number of calls."""
    axes: list[int | None] = []
    if len(recording.calls) == len(fewer.calls):
        for call, other in zip(recording.calls, fewer.calls, strict=True):
            sizes = list(zip(call.output.shape, other.output.shape, strict=False))
            changed = [axis for axis, (more, less) in enumerate(sizes) if more != less]
            axes.append(changed[0] if changed in ([0], [1]) else None)
    return axes


def _inner(recording: Recording, wrong: Sequence[Tensor]) -> list[int | None]:
    """The axes of the calls; where those of these parameters have several rows of a sample, these may be apart."""
    return [
        INNER
        if call.axis == 0 and len(call.output) > recording.count and any(call.touches(leaf) for leaf in wrong)
        else call.axis
        for call in recording.calls
    ]


def _numbers(recording: Recording, leaf: Tensor) -> tuple[int, int]:
    calls = [call for call in recording.calls if call.touches(leaf)]
    inputs, outputs = sum(call.stored() for call in calls), sum(call.output.numel() for call in calls)
    return -(-inputs // recording.count), -(-outputs // recording.count)


def unreliable(recording: Recording, leaves: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters whose per-sample gradients from layers are wrong.

    For random cotangents, summed with random weights, they must be autograd's gradient of the outputs weighted in the
    same way. They are not when the rows of a layer are no samples, or in another order, when a parameter is used
    elsewhere, too, or when one sample acts on the outputs of another. The weights are normal: two samples may well
    have the same sign.

    Args:
        recording: Samples with their calls.
        leaves: The parameters.
    """
    rng, like = generator(0), recording.rows
    directions = torch.randn(like.shape, generator=rng).to(like.device, like.dtype)
    weights = torch.randn(len(like), generator=rng).to(like.device, like.dtype)
    gradients = recording.gradients(recording.calls, [directions])
    truth = grad([like], list(leaves.values()), [directions * weights.unsqueeze(1)], retain_graph=True)
    wrong = set()
    for (name, leaf), expected in zip(leaves.items(), truth, strict=True):
        uses = uses_of(leaf, recording.calls, gradients, recording.count)
        # Sums of nothing would agree by chance; a parameter that nothing uses has no gradient at all.
        nothing = uses is not None and expected is None
        if not (_add_up(uses, weights, leaf, expected) if uses else nothing):
            wrong.add(name)
    return wrong


def uses_of(leaf: Tensor, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]], count: int) -> list[Use] | None:
    """Per-sample gradients of a parameter from all its calls; None if one of them does not provide them."""
    found = [call.uses(leaf, parts, count) for call, parts in zip(calls, gradients, strict=True) if call.touches(leaf)]
    if any(uses is None for uses in found):
        return None
    uses = [use for part in found if part is not None for use in part]
    # Only gradients in the same shape can be added.
    return uses if len({isinstance(use, Outer) and use.transposed for use in uses}) < 2 else None


def _add_up(uses: Sequence[Use], weights: Tensor, leaf: Tensor, expected: Tensor | None) -> bool:
    mine, scale = torch.zeros_like(leaf).reshape(-1), 0.0
    for use in uses:
        part = use.combined(weights.unsqueeze(1)) if isinstance(use, Outer) else torch.tensordot(weights, use[:, 0], 1)
        mine += part.reshape(-1)
        scale += use.scale() if isinstance(use, Outer) else norm(use)
    whole = torch.zeros_like(mine) if expected is None else expected.to_dense().reshape(-1)
    return norm(mine - whole) <= CHECK_TOLERANCE * norm(whole) + ROUNDING * scale
