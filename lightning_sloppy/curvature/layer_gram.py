"""Gram matrix of the parameters whose gradients follow from inputs and output gradients of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sloppy.curvature.gram_sums import GramSums
from lightning_sloppy.curvature.layer_calls import LayerCall, Use
from lightning_sloppy.curvature.layer_recorder import LayerRecorder
from lightning_sloppy.curvature.outer_products import (
    Outer,
    add_by_pairs,
    add_by_rows,
    behind,
    cheaper,
    compressed,
    merged,
    norm,
)
from lightning_sloppy.curvature.parameters import grad
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.vectors import generator, rademacher

KEPT_BYTES = 2 * 1024**3
"""Memory for what is kept of the layers between the batches; beyond it the batches are run again for the rest."""

CHECK_TOLERANCE = 1e-3
"""Relative difference of per-sample gradients summed under random signs from autograd's sum, above which the layer's
rows are no samples, or the parameter is used elsewhere, or one sample acts on another."""

ROUNDING = 1e-6
"""What cancellation may leave of terms of size one."""


@dataclass
class _Held:
    """What is known of one parameter: its gradients, formed, or the factors of its uses; one entry for each batch."""

    formed: list[Tensor] = field(default_factory=list)
    uses: list[list[Outer]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


class _Recording:
    """One batch run forward, with the calls that involve some parameters."""

    def __init__(self, objective: Objective, leaves: Mapping[str, Tensor], names: Sequence[str], batch: Batch) -> None:
        self.count = sample_count(batch)
        recorder = LayerRecorder([leaves[name] for name in names])
        with recorder:
            outputs = objective.outputs(leaves, private(batch)[0])
        self.rows = objective.rows(outputs, self.count)
        self.calls = recorder.calls


def add_layers(
    sums: GramSums,
    objective: Objective,
    leaves: Mapping[str, Tensor],
    pulled: Sequence[Tensor],
    batches: Sequence[Batch],
    budget: int,
) -> dict[str, str]:
    """Add the parameters that known layers use; returns the path of each, such as "conv".

    Every use is checked: gradients of all samples under random signs must sum to autograd's gradient of the outputs
    mixed in the same way. A parameter for which they do not is left out, to be served otherwise.

    Args:
        sums: Where inner products go.
        objective: Module and loss.
        leaves: Trainable parameters by name.
        pulled: Cotangents of each batch, (R, n, D).
        batches: Prepared batches.
        budget: Bytes for formed gradients.
    """
    paths: dict[str, str] = {}
    first: list[_Recording] = [_Recording(objective, leaves, list(leaves), batches[0])]
    for names in _passes(first[0], leaves, sums):
        held = {name: _Held() for name in names}
        for batch, directions in zip(batches, pulled, strict=True):
            if held:
                # The forward that the passes were planned by serves the first of them.
                recording = first.pop() if first else _Recording(objective, leaves, list(held), batch)
                _collect(recording, directions, leaves, held, sums.samples)
        _add(sums, held, budget // objective.dtype.itemsize)
        paths |= {name: "+".join(sorted(this.paths)) or "unused" for name, this in held.items()}
    return paths


def _passes(first: _Recording, leaves: Mapping[str, Tensor], sums: GramSums) -> Iterator[list[str]]:
    """Parameters in groups whose kept numbers fit into memory; a single larger one stays alone."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    needed = dict.fromkeys(leaves, 0)
    for call in first.calls:
        for parameter in call.parameters():
            name = names.get(id(parameter))
            if name is not None:
                seen = call.input.numel() + sums.copies * call.output.numel()
                formed = first.count * sums.copies * parameter.numel()
                # Output gradients of one batch are there in any case.
                each = min(seen, formed) * sums.samples // first.count + sums.copies * call.output.numel()
                needed[name] += each * call.output.element_size()
    group: list[str] = []
    used = 0
    for name, size in needed.items():
        if group and used + size > KEPT_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def _collect(
    recording: _Recording, directions: Tensor, leaves: Mapping[str, Tensor], held: dict[str, _Held], samples: int
) -> None:
    """Take what one batch tells of the parameters held; those it tells nothing reliable of are dropped."""
    wanted = {id(leaves[name]) for name in held}
    calls = [call for call in recording.calls if any(id(p) in wanted for p in call.parameters())]
    gradients: list[list[Tensor]] = [[] for _ in calls]
    for direction in directions:
        parts = grad([recording.rows], [call.output for call in calls], [direction], retain_graph=True)
        for mine, call, part in zip(gradients, calls, parts, strict=True):
            mine.append(torch.zeros_like(call.output) if part is None else part)
    signs = rademacher(recording.count, len(directions), generator(0)).to(directions.device, directions.dtype).T
    mixed = (directions * signs.T.unsqueeze(-1)).sum(0)
    truth = dict(zip(held, grad([recording.rows], [leaves[name] for name in held], [mixed]), strict=True))
    for name in list(held):
        uses = _uses(leaves[name], calls, gradients, recording.count)
        if uses is None or not _keep(held[name], uses, leaves[name], truth[name], signs, samples):
            del held[name]
        else:
            held[name].paths |= {call.path for call in calls if any(leaves[name] is p for p in call.parameters())}


def _uses(
    leaf: Tensor, calls: Sequence[LayerCall], gradients: Sequence[Sequence[Tensor]], count: int
) -> list[Use] | None:
    found: list[Use | None] = []
    for call, parts in zip(calls, gradients, strict=True):
        if call.weight is leaf:
            found.append(call.of_weight(parts, count))
        if call.bias is leaf:
            found.append(call.of_bias(parts, count))
    uses = [use for use in found if use is not None]
    return uses if len(uses) == len(found) else None


def _keep(held: _Held, uses: Sequence[Use], leaf: Tensor, truth: Tensor | None, signs: Tensor, samples: int) -> bool:
    """Keep one batch of a parameter, formed or as factors, whichever is needed and smaller; False if it is wrong."""
    outer = merged([use for use in uses if isinstance(use, Outer)])
    direct = [use for use in uses if not isinstance(use, Outer)]
    if not uses:
        # Signs could cancel where the parameter is used in an unknown way; then autograd still gives a tensor.
        return truth is None and not held.formed and not held.uses
    copies = signs.shape[1]
    apart = bool(outer) and not direct
    if apart and not held.uses:
        stored = sum(factor.data[:1].numel() for use in outer for factor in (use.left, use.right))
        apart = not held.formed and (cheaper(outer, samples) == "pairs" or stored < copies * leaf.numel())
    scale = sum(norm(use) for use in direct) + sum(use.scale() for use in outer)
    if apart:
        mine = sum(use.combined(signs).reshape(-1) for use in outer)
    else:
        formed = sum(direct + [use.formed() for use in outer])
        assert isinstance(formed, Tensor)
        mine = torch.tensordot(signs, formed, 2)
    assert isinstance(mine, Tensor)
    if not _agrees(mine, truth, scale):
        return False
    if apart:
        held.uses.append(outer)
    else:
        held.formed.append(formed)
    return len(held.formed) == 0 or len(held.uses) == 0


def _agrees(mine: Tensor, truth: Tensor | None, scale: float) -> bool:
    """Whether two sums are the same; ``scale`` is the size of their terms, of which cancellation leaves rounding."""
    expected = torch.zeros_like(mine) if truth is None else truth.to_dense().reshape(-1)
    return norm(mine - expected) <= CHECK_TOLERANCE * norm(expected) + ROUNDING * scale


def _add(sums: GramSums, held: Mapping[str, _Held], budget: int) -> None:
    """Add the inner products of everything held."""
    rows: dict[str, Tensor] = {}
    used = 0
    for name, this in held.items():
        if this.uses:
            batches = compressed(behind(this.uses))
            if cheaper(batches[0], sums.samples) == "pairs":
                add_by_pairs(sums, name, batches)
            else:
                add_by_rows(sums, name, batches, budget)
        elif this.formed:
            size = sums.samples * sums.copies * this.formed[0].shape[2]
            if rows and used + size > budget:
                sums.add_rows(rows)
                rows, used = {}, 0
            rows[name] = torch.cat(this.formed)
            used += size
    if rows:
        sums.add_rows(rows)
