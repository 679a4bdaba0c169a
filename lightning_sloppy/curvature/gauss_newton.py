"""Products with the Gauss-Newton part of the Hessian: positive semidefinite for every convex loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import counted_graph, free_bytes
from lightning_sloppy.curvature.hessian import GRAPH_SHARE, Method
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective, checked_scalar
from lightning_sloppy.linalg.operator import SymmetricOperator


@dataclass(frozen=True)
class _Linearised:
    """One batch: outputs f(w), ``J^T u`` as a function of u, the gradient of the loss in f as a function of f."""

    outputs: Tensor
    direction: Tensor
    pulled_back: list[Tensor | None]
    logits: Tensor
    logit_gradient: Tensor | None


class GaussNewtonOperator(SymmetricOperator):
    """``G v`` with ``G = (1/N) sum_i J_i^T [grad^2_f loss_i] J_i`` (Schraudolph 2002).

    For cross-entropy it equals the exact Fisher information. ``J v`` is the derivative of ``J^T u`` in u, so that
    all graphs are built once and kept: a product is then two backwards through them.

    Args:
        objective: Module and loss, outputs a single tensor.
        layout: Trainable parameters.
        batches: Prepared batches.
        method: "auto" keeps the graphs when they fit.
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        if not objective.has_outputs:
            raise UnsupportedError(
                "The Gauss-Newton matrix needs outputs and loss apart, but the loss is only known as a whole "
                "training step; pass objective=, the mean-reduced loss of (outputs, targets)."
            )
        super().__init__(layout.dim, dtype=objective.dtype, device=objective.device)
        self._objective = objective
        self._layout = layout
        self._batches = batches
        self._leaves = layout.leaves(objective.module, objective.dtype)
        total = sum(sample_count(batch) for batch in batches)
        self._shares = [sample_count(batch) / total for batch in batches]
        self._kept: list[_Linearised] = []
        self.method: str = "recomputed"
        if method != "recomputed":
            self._keep(forced=method == "kept graph")

    def _keep(self, *, forced: bool) -> None:
        kept: list[_Linearised] = []
        for index in range(len(self._batches)):
            with counted_graph() as graph_bytes:
                kept.append(self._linearise(index))
            needed = graph_bytes[0] * len(self._batches)
            if index == 0 and not forced and needed > GRAPH_SHARE * free_bytes(self.device):
                return
        self._kept, self.method = kept, "kept graph"

    def _linearise(self, index: int) -> _Linearised:
        inputs, targets = private(self._batches[index])
        outputs = self._objective.outputs(self._leaves, inputs)
        if not isinstance(outputs, Tensor):
            raise ConfigurationError(
                f"The module must return one tensor, but it returned a {type(outputs).__name__}; "
                "wrap it so that forward gives the outputs alone."
            )
        direction = torch.zeros_like(outputs, requires_grad=True)
        pulled_back = grad([outputs], list(self._leaves.values()), [direction], create_graph=True)
        logits = outputs.detach().requires_grad_()
        assert self._objective.loss_fn is not None
        loss = checked_scalar(self._objective.loss_fn(logits, targets)) * self._shares[index]
        (logit_gradient,) = grad([loss], [logits], create_graph=True)
        return _Linearised(outputs, direction, pulled_back, logits, logit_gradient)

    def _apply(self, vector: Tensor) -> Tensor:
        result = torch.zeros_like(vector)
        pieces = self._layout.unflatten(vector)
        leaves = list(self._leaves.values())
        for index in range(len(self._batches)):
            batch = self._kept[index] if self._kept else self._linearise(index)
            if batch.logit_gradient is None:
                continue
            used = [(g, v) for g, v in zip(batch.pulled_back, pieces, strict=True) if g is not None]
            (pushed,) = grad([g for g, _ in used], [batch.direction], [v for _, v in used], retain_graph=True)
            if pushed is None:
                continue
            (weighted,) = grad([batch.logit_gradient], [batch.logits], [pushed], retain_graph=True)
            if weighted is None:
                continue
            product = grad([batch.outputs], leaves, [weighted], retain_graph=True)
            if any(part is not None for part in product):
                result += self._layout.flatten(product)
        return result
