"""The gradient of the mean loss over the whole probe, and products with its Hessian, reverse over reverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import backward_in_eval
from lightning_sloppy.curvature.kept_graph import KeptGraphOperator
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective


def mean_gradient(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> Tensor:
    """Compute ``grad (1/W) sum_i w_i loss_i``, (p,), batch by batch."""
    leaves = layout.leaves(objective.module, objective.dtype)
    total = torch.zeros(layout.dim, dtype=objective.dtype, device=objective.device)

    def add() -> None:
        for batch, fraction in zip(batches, objective.batch_fractions(batches), strict=True):
            if fraction > 0:
                parts = grad([objective.loss(leaves, batch) * fraction], list(leaves.values()))
                if any(part is not None for part in parts):
                    total.add_(layout.flatten(parts))

    with backward_in_eval(objective.module):
        objective.swapped(leaves, add)
    return objective.add_up(total)


class HessianOperator(KeptGraphOperator[list[Tensor | None]]):
    """``H v`` with ``H = (1/W) sum_i w_i grad^2 loss_i`` over the whole probe (Pearlmutter 1994).

    The graph that is kept is that of the gradient, so a product is one more backward.
    """

    def _build(self, index: int) -> list[Tensor | None]:
        """Gradients of the batch's part of the mean loss, with their graph; None where a parameter is not used."""
        loss = self._objective.loss(self._leaves, self._batches[index]) * self._fractions[index]
        gradients = grad([loss], self._sources, create_graph=True)
        self._seen.update(index for index, gradient in enumerate(gradients) if gradient is not None)
        return gradients

    def _multiply(
        self, graph: list[Tensor | None], pieces: Sequence[Tensor], where: Sequence[int]
    ) -> list[Tensor | None]:
        used = [(gradient, piece) for i, piece in zip(where, pieces, strict=True) if (gradient := graph[i]) is not None]
        return grad(
            [gradient for gradient, _ in used],
            [self._sources[i] for i in where],
            [piece for _, piece in used],
            retain_graph=True,
        )
