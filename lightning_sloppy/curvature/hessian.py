"""Products with the Hessian of the mean loss, reverse over reverse."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_sloppy.curvature.kept_graph import KeptGraphOperator
from lightning_sloppy.curvature.parameters import grad


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
