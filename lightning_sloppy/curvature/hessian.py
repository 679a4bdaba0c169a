"""Products with the Hessian of the mean loss, reverse over reverse."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.curvature.kept_graph import KeptGraphOperator
from lightning_sloppy.curvature.parameters import grad


class HessianOperator(KeptGraphOperator[list[Tensor]]):
    """``H v`` with ``H = (1/N) sum_i grad^2 loss_i`` over the whole probe (Pearlmutter 1994).

    The graph that is kept is that of the gradient, so a product is one more backward.
    """

    def _build(self, index: int) -> list[Tensor]:
        """Gradients of the batch's share of the mean loss, with their graph."""
        loss = self._objective.loss(self._leaves, self._batches[index]) * self._shares[index]
        leaves = list(self._leaves.values())
        gradients = grad([loss], leaves, create_graph=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]

    def _multiply(self, graph: list[Tensor], pieces: list[Tensor]) -> list[Tensor | None]:
        return grad(graph, list(self._leaves.values()), pieces, retain_graph=True)
