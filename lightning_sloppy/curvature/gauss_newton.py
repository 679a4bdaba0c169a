"""Products with the Gauss-Newton part of the Hessian: positive semidefinite for every convex loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.curvature.kept_graph import KeptGraphOperator, Method
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, private
from lightning_sloppy.evaluation.objective import Objective, checked_scalar


@dataclass(frozen=True)
class _Linearised:
    """One batch: outputs f(w), ``J^T u`` as a function of u, the gradient of the loss in f as a function of f."""

    outputs: Tensor
    direction: Tensor
    pulled_back: list[Tensor | None]
    logits: Tensor
    logit_gradient: Tensor | None


class GaussNewtonOperator(KeptGraphOperator[_Linearised]):
    """``G v`` with ``G = (1/N) sum_i J_i^T [grad^2_f loss_i] J_i`` (Schraudolph 2002).

    For cross-entropy it equals the exact Fisher information. ``J v`` is the derivative of ``J^T u`` in u, so that
    all graphs are built once and kept: a product is then two backwards through them.

    Args:
        objective: Module and loss, outputs a single tensor.
        layout: Trainable parameters.
        batches: Prepared batches.
        method: "auto" keeps the graphs when they fit.

    Raises:
        UnsupportedError: When outputs and loss are not known apart.
        ConfigurationError: When the outputs are not a single tensor.
    """

    def __init__(
        self, objective: Objective, layout: ParameterLayout, batches: list[Batch], *, method: Method = "auto"
    ) -> None:
        if not objective.has_outputs:
            raise UnsupportedError(
                "The Gauss-Newton matrix needs outputs and loss apart, but the loss is only known as a whole "
                "training step; pass objective=, the mean-reduced loss of (outputs, targets)."
            )
        super().__init__(objective, layout, batches, method=method)

    def _build(self, index: int) -> _Linearised:
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

    def _multiply(self, graph: _Linearised, pieces: list[Tensor]) -> list[Tensor | None]:
        nothing: list[Tensor | None] = [None] * len(pieces)
        if graph.logit_gradient is None:
            return nothing  # a loss that is linear in the outputs
        used = [(g, v) for g, v in zip(graph.pulled_back, pieces, strict=True) if g is not None]
        (pushed,) = grad([g for g, _ in used], [graph.direction], [v for _, v in used], retain_graph=True)
        if pushed is None:
            return nothing
        (weighted,) = grad([graph.logit_gradient], [graph.logits], [pushed], retain_graph=True)
        if weighted is None:
            return nothing
        return grad([graph.outputs], list(self._leaves.values()), [weighted], retain_graph=True)
