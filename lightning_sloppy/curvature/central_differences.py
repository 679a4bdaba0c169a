"""Products by differences of gradients, for modules without a double backward.

The step has length ``h = eps^(1/3)`` in the space of the parameters (4.9e-3 in float32, 6.1e-6 in float64), which
balances the truncation ``h^2`` against the rounding ``eps / h`` for third derivatives of order one. Measured against
exact products, the error relative to the largest eigenvalue is 2e-4 in float32 and 1e-9 in float64 with smooth
activations. A float32 step also crosses kinks of ReLU and max-pooling. They contribute to a difference, but not to a
derivative: the error is then 1e-2 on a trained network, and more than half on a small untrained one. In float64 hardly
any step crosses a kink. The error is measured each time (:meth:`CentralDifferences.measure_rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_sloppy.curvature.kept_graph import need_outputs
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import unit_gaussian


class CentralDifferences(SymmetricOperator):
    """``H v = (grad L(w + h v) - grad L(w - h v)) / (2 h)`` for v of unit length: two gradients per product.

    Args:
        objective: Module and loss.
        layout: Chosen parameters.
        batches: Prepared batches.

    Attributes:
        method: "central_differences".
        rounding: Error of a product relative to the largest magnitude, as measured.
        unused: Names of the parameters that the loss does not use. Known after a product.
    """

    method = "central_differences"

    def __init__(self, objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> None:
        super().__init__(layout.dim, dtype=objective.dtype, device=objective.device)
        self.layout = layout
        self._objective = objective
        self._batches = [
            (b, fraction)
            for b, fraction in zip(batches, objective.batch_fractions(batches), strict=True)
            if fraction > 0
        ]
        self._centre = layout.flatten(layout.leaves(objective.module, objective.dtype).values()).detach()
        self._seen: set[int] = set()
        self._step = step_of(objective.dtype)

    @property
    def unused(self) -> tuple[str, ...]:
        """Names of the parameters without a gradient."""
        return tuple(name for index, name in enumerate(self.layout.names) if index not in self._seen)

    def _apply(self, vector: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(vector)
        direction = vector / length.clamp_min(torch.finfo(vector.dtype).tiny)
        ahead, behind = self._centre + self._step * direction, self._centre - self._step * direction
        product: Tensor = (self._gradient(ahead) - self._gradient(behind)) * (length / (2 * self._step))
        return product

    def measure_rounding(self, rng: torch.Generator) -> None:
        """Set ``rounding`` to the change of a product at half the step, for a vector near the top eigenvectors.

        It takes four products: two steps of the power method from a random vector, then the whole and the half step.
        """
        vector = unit_gaussian(self.dim, rng).to(self.device, self.dtype)
        for _ in range(2):
            image = self.matvec(vector)
            length = torch.linalg.vector_norm(image)
            if float(length) == 0.0:
                return
            vector = image / length
        whole = self.matvec(vector)
        self._step /= 2
        half = self.matvec(vector)
        self._step *= 2
        size = float(torch.linalg.vector_norm(whole))
        if size > 0:
            self.rounding = max(self.rounding, float(torch.linalg.vector_norm(whole - half)) / size)

    def block_product(self, vectors: Tensor, where: Sequence[int]) -> Tensor:
        """Product of the block of the parameters ``where`` with (p_block, c) vectors, through the whole matrix."""
        starts = torch.tensor([0, *(shape.numel() for shape in self.layout.shapes)]).cumsum(0).tolist()
        rows = torch.cat([torch.arange(starts[i], starts[i + 1], device=self.device) for i in where])
        whole = torch.zeros(self.dim, vectors.shape[1], dtype=self.dtype, device=self.device)
        whole[rows] = vectors
        block: Tensor = self._apply_several(whole)[rows]
        return block

    def _gradient(self, point: Tensor) -> Tensor:
        leaves = self._leaves(point)
        total = torch.zeros_like(point)

        def gradient(batch: Batch, fraction: float) -> list[Tensor | None]:
            return grad([self._objective.loss(leaves, batch) * fraction], list(leaves.values()))

        for batch, fraction in self._batches:
            self._add(total, self._objective.swapped(leaves, partial(gradient, batch, fraction)))
        return self._objective.add_up(total)

    def _leaves(self, point: Tensor) -> dict[str, Tensor]:
        return {name: part.detach().requires_grad_() for name, part in self.layout.table(point).items()}

    def _add(self, total: Tensor, gradients: list[Tensor | None]) -> None:
        self._seen.update(index for index, gradient in enumerate(gradients) if gradient is not None)
        if any(gradient is not None for gradient in gradients):
            total += self.layout.flatten(gradients)


class GaussNewtonDifferences(CentralDifferences):
    """``J^T [grad_f L(f + h J v) - grad_f L(f - h J v)] / (2 h)`` with ``J v`` from the outputs at ``w +- h v``.

    Two forwards, two gradients of the loss in the outputs, and one gradient a product; both differences are central.
    """

    def __init__(self, objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> None:
        need_outputs(objective)
        super().__init__(objective, layout, batches)

    def _apply(self, vector: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(vector)
        direction = vector / length.clamp_min(torch.finfo(vector.dtype).tiny)
        leaves = self._leaves(self._centre)
        total = torch.zeros_like(vector)
        for batch, fraction in self._batches:
            parts = self._objective.swapped(leaves, partial(self._pulled, leaves, direction, batch, fraction))
            self._add(total, parts)
        product: Tensor = self._objective.add_up(total) * length
        return product

    def _pulled(
        self, leaves: dict[str, Tensor], direction: Tensor, batch: Batch, fraction: float
    ) -> list[Tensor | None]:
        """One batch's part of the product."""
        outputs = self._objective.outputs(leaves, private(batch)[0])
        self._objective.examine(outputs, batch)
        rows = self._objective.rows(outputs, sample_count(batch))
        ahead, behind = (self._rows_at(self._centre + sign * direction, batch) for sign in (self._step, -self._step))
        pushed = (ahead - behind) / (2 * self._step)
        tiny = torch.finfo(rows.dtype).tiny
        size = torch.linalg.vector_norm(rows.detach()).clamp_min(1.0)
        stride = self._step * size / torch.linalg.vector_norm(pushed).clamp_min(tiny)
        slopes = [self._slope(rows.detach() + sign * pushed, outputs, batch) for sign in (stride, -stride)]
        weighted = (slopes[0] - slopes[1]) * (fraction / (2 * stride))
        return grad([rows], list(leaves.values()), [weighted])

    def _rows_at(self, point: Tensor, batch: Batch) -> Tensor:
        outputs = self._objective.output_values(self.layout.table(point), private(batch)[0])
        return self._objective.rows(outputs, sample_count(batch)).detach()

    def _slope(self, rows: Tensor, outputs: Any, batch: Batch) -> Tensor:
        """Gradient of the batch's mean loss in its outputs."""
        point = rows.requires_grad_()
        (slope,) = grad([self._objective.loss_of_rows(point, outputs, batch)], [point])
        return torch.zeros_like(point) if slope is None else slope


def step_of(dtype: torch.dtype) -> float:
    """Length of the step, ``eps^(1/3)``."""
    return float(torch.finfo(dtype).eps ** (1 / 3))
