"""Choice of how products are computed: by a double backward, or by central differences if there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_sloppy.curvature.central_differences import CentralDifferences, GaussNewtonDifferences
from lightning_sloppy.curvature.cotangents import Fisher
from lightning_sloppy.curvature.double_backward import double_backward, refusing_layers
from lightning_sloppy.curvature.fisher import FisherOperator
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.kept_graph import KeptGraphOperator, Method
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.errors import UnsupportedError
from lightning_sloppy.evaluation.batches import Batch, private
from lightning_sloppy.evaluation.objective import Objective

Result = TypeVar("Result")

CurvatureOperator = KeptGraphOperator[Any] | CentralDifferences


@dataclass(frozen=True)
class Curvature:
    """A matrix that is asked for: of which function, in which parameters, on which samples.

    Attributes:
        matrix: "hessian", "gauss_newton", or "fisher_..." with ``fisher``.
        objective: Module and loss.
        layout: Chosen parameters.
        batches: Prepared batches.
        fisher: Which Fisher information, or None.
    """

    matrix: str
    objective: Objective
    layout: ParameterLayout
    batches: list[Batch]
    fisher: Fisher | None = None

    def _by_double_backward(self, method: Method) -> CurvatureOperator:
        if self.fisher is not None and self.fisher.kind != "exact":
            return FisherOperator(self.objective, self.layout, self.batches, fisher=self.fisher, method=method)
        build = HessianOperator if self.matrix == "hessian" else GaussNewtonOperator
        return build(self.objective, self.layout, self.batches, method=method)

    def _by_differences(self) -> CurvatureOperator:
        if self.fisher is not None and self.fisher.kind != "exact":
            raise UnsupportedError(
                f"Products with the {self.fisher.kind} Fisher information need a second backward through the outputs, "
                f"which {type(self.objective.module).__name__} does not support; use fewer samples, so that the Gram "
                "matrix is used, or kind='exact'."
            )
        build = CentralDifferences if self.matrix == "hessian" else GaussNewtonDifferences
        return build(self.objective, self.layout, self.batches)

    def measured(self, use: Callable[[CurvatureOperator], Result], method: Method) -> tuple[Result, str]:
        """Run ``use`` on products of this matrix. With "auto" and no double backward, run it again on differences.

        Returns:
            The result of ``use``, and a sentence if differences were used instead.

        Raises:
            UnsupportedError: If the given method is not supported; the message names the layers.
        """
        module = self.objective.module
        with double_backward(module):
            if method == "central_differences":
                return use(self._by_differences()), ""
        try:
            with double_backward(module):
                return use(self._by_double_backward(method)), ""
        except UnsupportedError as error:
            layers = self._refusing()
            if method != "auto":
                raise UnsupportedError(f"{error} {layers}".strip()) from error
        with double_backward(module):
            return use(self._by_differences()), f"No double backward: central differences were used. {layers}".strip()

    def _refusing(self) -> str:
        """The layers without a double backward, in words; empty if it is the loss or a function instead."""
        if not self.batches:
            return ""
        leaves = self.layout.leaves(self.objective.module, self.objective.dtype)
        with double_backward(self.objective.module):
            names = refusing_layers(
                self.objective.module,
                lambda: self.objective.output_values(leaves, private(self.batches[0])[0]),
            )
        return f"Without a double backward: {', '.join(names)}." if names else ""
