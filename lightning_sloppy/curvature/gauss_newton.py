"""Products with the Gauss-Newton part of the Hessian, which is positive semidefinite for every convex loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.curvature.kept_graph import KeptGraphOperator, Method, need_outputs
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective


@dataclass(frozen=True)
class Linearised:
    """One batch: outputs f(w) as rows, and ``J^T u`` as a function of u.

    Attributes:
        rows: (n, D), with the graph to the parameters.
        direction: u, (n, D), zeros that require gradients.
        pulled_back: ``J^T u`` for each parameter, with the graph to u; None where a parameter is not used.
        index: Index of the batch.
        outputs: What ``forward`` gave, detached.
    """

    rows: Tensor
    direction: Tensor
    pulled_back: list[Tensor | None]
    index: int
    curvature: tuple[Tensor, Tensor | None]


class OutputCurvatureOperator(KeptGraphOperator[Linearised]):
    """``J^T B J v`` with any symmetric matrix B between outputs; ``J v`` is the derivative of ``J^T u`` in u.

    All graphs are built once and kept, so a product is two backwards through them.

    Args:
        objective: Module and loss, which must be known as a function of the outputs.
        layout: Chosen parameters.
        batches: Prepared batches.
        method: "auto" keeps the graphs if they fit.

    Raises:
        UnsupportedError: If the loss is not known as a function of the outputs.
        ConfigurationError: If the outputs do not have one row per sample.
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        need_outputs(objective)
        super().__init__(objective, layout, batches, method=method)

    def _build(self, index: int) -> Linearised:
        batch = self._batches[index]
        count = sample_count(batch)
        outputs = self._objective.outputs(self._leaves, private(batch)[0])
        self._objective.examine(outputs, batch)
        rows = self._objective.rows(outputs, count)
        direction = torch.zeros_like(rows, requires_grad=True)
        pulled_back = grad([rows], self._sources, [direction], create_graph=True)
        self._seen.update(i for i, piece in enumerate(pulled_back) if piece is not None)
        return Linearised(rows, direction, pulled_back, index, self._output_curvature(rows.detach(), outputs, index))

    def _output_curvature(self, rows: Tensor, outputs: object, index: int) -> tuple[Tensor, Tensor | None]:
        """The data of the loss at these outputs that :meth:`_weigh` needs."""
        logits = rows.requires_grad_()
        loss = self._objective.loss_of_rows(logits, outputs, self._batches[index]) * self._fractions[index]
        (gradient,) = grad([loss], [logits], create_graph=True)
        return logits, gradient

    def _weigh(self, graph: Linearised, pushed: Tensor) -> Tensor | None:
        """``B u`` for u of shape (n, D); None if it is zero."""
        logits, gradient = graph.curvature
        if gradient is None:
            return None  # a loss that is linear in the outputs
        return grad([gradient], [logits], [pushed], retain_graph=True)[0]

    def _multiply(self, graph: Linearised, pieces: Sequence[Tensor], where: Sequence[int]) -> list[Tensor | None]:
        nothing: list[Tensor | None] = [None] * len(pieces)
        used = [(g, v) for i, v in zip(where, pieces, strict=True) if (g := graph.pulled_back[i]) is not None]
        (pushed,) = grad([g for g, _ in used], [graph.direction], [v for _, v in used], retain_graph=True)
        weighted = None if pushed is None else self._weigh(graph, pushed)
        if weighted is None:
            return nothing
        return grad([graph.rows], [self._sources[i] for i in where], [weighted], retain_graph=True)


class GaussNewtonOperator(OutputCurvatureOperator):
    """``G v`` with ``G = (1/W) sum_i w_i J_i^T [grad^2_f loss_i] J_i`` (Schraudolph 2002).

    For cross-entropy it equals the exact Fisher information.
    """
