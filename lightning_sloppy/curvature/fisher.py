"""Products with the Fisher information, for matrices too large for the Gram matrix of per-sample gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.curvature.cotangents import Fisher, cotangents
from lightning_sloppy.curvature.gauss_newton import Linearised, OutputCurvatureOperator
from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective


class FisherOperator(OutputCurvatureOperator):
    """``F v = (1/W) sum_ir (J_i^T c_ir)(J_i^T c_ir)^T v``: a Gauss-Newton matrix with ``B_i = sum_r c_ir c_ir^T``.

    No per-sample gradient exists at any time. The exact kind is the Gauss-Newton matrix itself.

    Args:
        objective: Module and loss, outputs and loss apart.
        layout: Chosen parameters.
        batches: Prepared batches.
        fisher: The kind, empirical or sampled. Each sample has its own random stream, so that every product is with the
            same matrix.
        method: "auto" keeps the graphs when they fit.
    """

    def __init__(
        self,
        objective: Objective,
        layout: ParameterLayout,
        batches: list[Batch],
        *,
        fisher: Fisher,
        method: Method = "auto",
    ) -> None:
        self._fisher = fisher
        self._total = objective.total_weight(batches)
        self._looked_at: set[int] = set()
        super().__init__(objective, layout, batches, method=method)

    def _take(self, batches: list[Batch], fractions: list[float] | None = None) -> None:
        super()._take(batches, fractions)
        # Once: targets are on the device, and a product that is recomputed should not wait for them again.
        self._weights = [self._objective.sample_weights(batch) for batch in self._batches]
        self._looked_at = set()

    def _output_curvature(self, rows: Tensor, outputs: object, index: int) -> tuple[Tensor, Tensor | None]:
        first = self._fisher.first + sum(map(sample_count, self._batches[:index]))
        known = self._weights[index] if index in self._looked_at else None
        self._looked_at.add(index)
        return rows, cotangents(self._objective, self._fisher, rows, outputs, self._batches[index], first, known)

    def _weigh(self, graph: Linearised, pushed: Tensor) -> Tensor | None:
        directions = graph.curvature[1]
        assert directions is not None
        return torch.einsum("rnd,rn->nd", directions, torch.einsum("rnd,nd->rn", directions, pushed)) / self._total
