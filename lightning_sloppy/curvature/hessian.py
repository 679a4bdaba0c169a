"""Products with the Hessian of the mean loss, reverse over reverse."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import counted_graph, free_bytes
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator

Method = Literal["auto", "kept graph", "recomputed"]

GRAPH_SHARE = 0.25
"""Share of the free memory that kept graphs may take: training needs the rest at its next step."""


class HessianOperator(SymmetricOperator):
    """``H v`` with ``H = (1/N) sum_i grad^2 loss_i`` over the whole probe (Pearlmutter 1994).

    Batches are weighted by their sample counts, so H is that of the mean loss whatever the batch sizes. The graph of
    the gradient is built once for each batch and kept, so that a product is one more backward (about half of a
    product from scratch); when the graphs would not fit, each batch is evaluated anew for every product.

    Args:
        objective: Module and loss.
        layout: Trainable parameters.
        batches: Prepared batches.
        method: "auto" decides by memory.
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        super().__init__(layout.dim, dtype=objective.dtype, device=objective.device)
        self._objective = objective
        self._layout = layout
        self._batches = batches
        self._leaves = layout.leaves(objective.module, objective.dtype)
        total = sum(sample_count(batch) for batch in batches)
        self._shares = [sample_count(batch) / total for batch in batches]
        self._kept: list[list[Tensor]] = []
        self.loss = 0.0
        self.method: str = "recomputed"
        if method != "recomputed":
            self._keep(forced=method == "kept graph")

    def _keep(self, *, forced: bool) -> None:
        """Build the gradient graphs, and give them up again when the first one says they will not fit."""
        kept, value = [], 0.0
        for index, batch in enumerate(self._batches):
            with counted_graph() as graph_bytes:
                gradients, loss = self._gradients(index)
            needed = graph_bytes[0] * len(self._batches)
            if index == 0 and not forced and needed > GRAPH_SHARE * free_bytes(self.device):
                return
            kept.append(gradients)
            value += loss * self._shares[index]
            del batch
        self._kept, self.loss, self.method = kept, value, "kept graph"

    def _gradients(self, index: int) -> tuple[list[Tensor], float]:
        """Gradients of a batch's share of the mean loss, with their graph, and the loss."""
        loss = self._objective.loss(self._leaves, self._batches[index])
        gradients = grad([loss * self._shares[index]], list(self._leaves.values()), create_graph=True)
        zeros = [torch.zeros_like(leaf) for leaf in self._leaves.values()]
        return [zero if g is None else g for g, zero in zip(gradients, zeros, strict=True)], float(loss.detach())

    def _apply(self, vector: Tensor) -> Tensor:
        leaves = list(self._leaves.values())
        pieces = self._layout.unflatten(vector)
        result = torch.zeros_like(vector)
        value = 0.0
        for index in range(len(self._batches)):
            if self._kept:
                gradients = self._kept[index]
            else:
                gradients, loss = self._gradients(index)
                value += loss * self._shares[index]
            product = grad(gradients, leaves, pieces, retain_graph=bool(self._kept))
            if any(part is not None for part in product):
                result += self._layout.flatten(product)
        if not self._kept:
            self.loss = value
        return result
