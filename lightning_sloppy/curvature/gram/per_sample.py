"""Per-sample gradients of any parameter, by ``vmap``, or by a loop over samples if ``vmap`` fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad as func_grad
from torch.func import vmap

from lightning_sloppy.curvature.gram.sums import GramSums
from lightning_sloppy.curvature.parameters import grad
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, cut, private, rows_in, sample_count
from lightning_sloppy.evaluation.nests import tensors_of, with_tensors
from lightning_sloppy.evaluation.objective import Objective

VMAP_CHUNK = 128
"""Number of samples differentiated at a time, which limits the activations that vmap keeps."""


@dataclass(frozen=True)
class _Piece:
    """Some entries of a flattened parameter."""

    name: str
    start: int
    stop: int

    def of(self, gradient: Tensor) -> Tensor:
        """These entries of gradients (..., *shape) whose leading dimensions are already flat."""
        return gradient[..., self.start : self.stop]


def add_formed(
    sums: GramSums,
    objective: Objective,
    leaves: Mapping[str, Tensor],
    names: Sequence[str],
    pulled: Sequence[Tensor],
    batches: Sequence[Batch],
    budget: int,
) -> dict[str, str]:
    """Add parameters by forming their per-sample gradients; returns "vmap" or "loop" for each.

    The gradients of all samples together never take more than the budget: a larger parameter is differentiated
    several times, and some of its entries kept each time.

    Args:
        sums: Where inner products go.
        objective: Module and loss.
        leaves: Trainable parameters by name.
        names: Those to add.
        pulled: Cotangents of each batch, (R, n, D).
        batches: Prepared batches.
        budget: Bytes for formed gradients.
    """
    numbers = budget // objective.dtype.itemsize
    sizes = {name: leaves[name].numel() for name in names}
    paths: dict[str, str] = {}
    refused = False
    for pieces in _groups(sizes, max(1, numbers // (sums.samples * sums.copies))):
        formed: dict[str, list[Tensor]] | None = None
        if not refused:
            chunk = max(1, min(VMAP_CHUNK, numbers // sum(sizes[piece.name] for piece in pieces)))
            formed = _mapped(objective, leaves, pieces, pulled, batches, chunk)
        if formed is None:
            # The same forward is refused for every parameter.
            refused = True
            formed = _looped(objective, leaves, pieces, pulled, batches)
        sums.add_rows({name: torch.cat(parts) for name, parts in formed.items()})
        for name in formed:
            paths[name] = "loop" if refused else "vmap"
    return paths


def _groups(sizes: Mapping[str, int], most: int) -> Iterator[list[_Piece]]:
    """All entries of all parameters, so many at a time."""
    group: list[_Piece] = []
    room = most
    for name, size in sizes.items():
        start = 0
        while start < size:
            stop = min(size, start + room)
            group.append(_Piece(name, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group


def _mapped(
    objective: Objective,
    leaves: Mapping[str, Tensor],
    pieces: Sequence[_Piece],
    pulled: Sequence[Tensor],
    batches: Sequence[Batch],
    chunk: int,
) -> dict[str, list[Tensor]] | None:
    """Gradients (n, R, entries) of each batch by vmap, or None where it refuses."""
    wanted = {piece.name: leaves[piece.name].detach() for piece in pieces}
    fixed = {name: leaf.detach() for name, leaf in leaves.items() if name not in wanted}
    formed: dict[str, list[Tensor]] = {piece.name: [] for piece in pieces}

    def derived(batch: Batch, direction: Tensor) -> list[Tensor]:
        nest = private(batch)[0]
        tensors, where = tensors_of(nest), rows_in(batch).inputs
        if not rows_in(batch).apart:
            raise UnsupportedError("The samples of this batch cannot be separated.")

        def scalar(table: dict[str, Tensor], row: Tensor, *own: Tensor) -> Tensor:
            single = [t if axis is None else t.unsqueeze(axis) for t, axis in zip(own, where, strict=True)]
            outputs = objective.outputs({**fixed, **table}, with_tensors(nest, single))
            return (objective.rows(outputs, 1)[0] * row).sum()

        def entries(row: Tensor, *own: Tensor) -> list[Tensor]:
            gradients = func_grad(scalar)(wanted, row, *own)
            return [piece.of(gradients[piece.name].flatten()) for piece in pieces]

        found: list[Tensor] = vmap(entries, in_dims=(0, *where), chunk_size=chunk)(direction, *tensors)
        return found

    with warnings.catch_warnings():
        # Where vmap has no batching rule torch falls back to a loop and asks the reader to file an issue.
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        try:
            for batch, directions in zip(batches, pulled, strict=True):
                copies = [derived(batch, direction) for direction in directions]
                for index, piece in enumerate(pieces):
                    formed[piece.name].append(torch.stack([copy[index] for copy in copies], dim=1))
        except Exception:  # vmap refuses in many ways; the loop meets again what is the module's own error
            return None
    return formed


def _looped(
    objective: Objective,
    leaves: Mapping[str, Tensor],
    pieces: Sequence[_Piece],
    pulled: Sequence[Tensor],
    batches: Sequence[Batch],
) -> dict[str, list[Tensor]]:
    """The same by one backward per sample and cotangent. It always works, but it is slow."""
    formed: dict[str, list[Tensor]] = {piece.name: [] for piece in pieces}
    for batch, directions in zip(batches, pulled, strict=True):
        rows: list[list[Tensor]] = [[] for _ in pieces]
        for outputs, cotangents in _singles(objective, leaves, batch, directions):
            gradients = [
                grad([outputs], [leaves[piece.name] for piece in pieces], [one], retain_graph=True)
                for one in cotangents
            ]
            for index, piece in enumerate(pieces):
                like = leaves[piece.name]
                own = [torch.zeros_like(like) if g[index] is None else g[index] for g in gradients]
                rows[index].append(torch.stack([piece.of(g.to_dense().flatten()) for g in own if g is not None]))
        for piece, parts in zip(pieces, rows, strict=True):
            formed[piece.name].append(torch.stack(parts))
    return formed


def _singles(
    objective: Objective, leaves: Mapping[str, Tensor], batch: Batch, directions: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each sample outputs with a graph, and cotangents (R, ...) of their shape that leave the others out.

    In train mode samples are not taken out of their batch: the random stream would then be another one. Nor are they
    where they cannot be.
    """
    count = sample_count(batch)
    if any(child.training for child in objective.module.modules()) or not rows_in(batch).apart:
        outputs = objective.rows(objective.outputs(leaves, private(batch)[0]), count)
        for index in range(count):
            cotangents = torch.zeros_like(directions)
            cotangents[:, index] = directions[:, index]
            yield outputs, cotangents
        return

    for index in range(count):
        single = private(cut(batch, slice(index, index + 1)))[0]
        yield objective.rows(objective.outputs(leaves, single), 1), directions[:, index : index + 1]
