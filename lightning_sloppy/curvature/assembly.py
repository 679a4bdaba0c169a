"""Build a Spectrum from eigenpairs and quadrature: floors, traces, costs, blocks of layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.curvature.memory import free_bytes
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, sample_count, some_of
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.eigenpairs import Eigenpairs
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.records import Cost, Density, Estimate, Spectrum, Status

NUMPY_ROWS = 1_500
"""Up to here numpy's LAPACK is faster than that of torch on one thread (1.1 times at 1,000 rows); on two it always is,
2 times at 1,000 rows and 1.4 at 2,000."""

REPEATABLE = 100
"""If two evaluations of a loss differ by more than this many roundings, the module is not deterministic."""


@dataclass(frozen=True)
class SpectrumBuilder:
    """The parts that all spectra of one measurement share."""

    matrix: str
    objective: Objective
    batches: list[Batch]
    start: float = field(default_factory=time.perf_counter)

    @property
    def count(self) -> int:
        """Number of probe samples N."""
        count = sum(sample_count(batch) for batch in self.batches)
        return round(self.objective.add_up(torch.tensor(float(count), device=self.objective.device)).item())

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def nothing(self, dim: int, status: Status, **detail: str | int | float) -> Spectrum:
        """A spectrum without values."""
        empty = torch.zeros(0, dtype=torch.float64)
        nan = float("nan")
        return Spectrum(
            eigenvalues=empty,
            residuals=empty,
            largest=nan,
            smallest=nan,
            dim=dim,
            num_samples=self.count,
            matrix=self.matrix,
            floor=nan,
            truncated=True,
            status=status,
            detail=detail,
        )

    def pairs(
        self, operator: SymmetricOperator, found: Eigenpairs, *, density: Density | None = None, method: str = ""
    ) -> Spectrum:
        """The spectrum with these eigenpairs."""
        largest = float(found.values.abs().max())
        return Spectrum(
            eigenvalues=found.values,
            residuals=found.residuals,
            converged=found.converged,
            eigenvectors=found.vectors,
            largest=found.largest[0],
            largest_residual=found.largest[1],
            smallest=found.smallest[0],
            smallest_residual=found.smallest[1],
            density=density,
            dim=operator.dim,
            num_samples=self.count,
            trace=trace_of(found, density),
            matrix=self.matrix,
            floor=operator.rounding * largest,
            truncated=len(found.values) < operator.dim,
            cost=self.cost(operator, method),
            status=found.status,
            detail={"tolerance": found.tolerance, "basis_bytes": found.basis_bytes, "restarts": found.restarts},
        )

    def cost(self, operator: SymmetricOperator, method: str) -> Cost:
        """Cost of the measurement so far."""
        return Cost(
            products=operator.products,
            seconds=self.seconds,
            product_seconds=operator.product_seconds,
            method=method,
        )


LOOKED_AT = 8
"""Number of samples on which two evaluations are compared."""


def steady(objective: Objective, batches: list[Batch]) -> tuple[Objective, str]:
    """The objective, and a sentence if two evaluations of it differ by more than rounding.

    One that draws random numbers is then given the same random stream in every forward, so that there is one matrix.
    """
    if not batches:  # another rank has them all
        return objective, ""
    few, table = some_of(batches[0], LOOKED_AT), objective.copied_parameters()

    def twice(one: Objective) -> tuple[float, float]:
        return float(one.loss_value(table, few)), float(one.loss_value(table, few))

    return _steadied(objective, twice)


def steady_mean(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> tuple[Objective, float, str]:
    """The same by the mean loss over the whole probe, which is returned as well."""
    leaves = layout.leaves(objective.module, objective.dtype)
    seen: list[float] = []

    def twice(one: Objective) -> tuple[float, float]:
        seen[:] = [float(one.mean_loss(leaves, batches, graph=False)) for _ in range(2)]
        return seen[0], seen[1]

    found, sentence = _steadied(objective, twice)
    return found, seen[0], sentence


def _steadied(objective: Objective, twice: Callable[[Objective], tuple[float, float]]) -> tuple[Objective, str]:
    first, second = twice(objective)
    if not _differ(objective, first, second):
        return objective, ""
    fixed = objective.seeded(0)
    said = f"two evaluations of its loss gave {first:.8g} and {second:.8g}"
    look = "look for dropout, noise or sampled actions that are on in eval mode"
    if _differ(fixed, *twice(fixed)):
        return objective, f"The module is not deterministic: {said}, so that no two products are of one matrix; {look}."
    return (
        fixed,
        f"The module is not deterministic: {said}. Values are those of one draw of its random numbers; {look}.",
    )


def _differ(objective: Objective, first: float, second: float) -> bool:
    rounding = REPEATABLE * torch.finfo(objective.dtype).eps
    return abs(first - second) > rounding * max(abs(first), abs(second))


def of_one_draw(spectrum: Spectrum, sentence: str) -> Spectrum:
    """Mark the spectrum of a module that is not deterministic as neither exact nor converged."""
    if not sentence:
        return spectrum
    known = spectrum.status in (Status.EXACT, Status.CONVERGED)
    return replace(
        spectrum,
        status=Status.ONE_DRAW if known else spectrum.status,
        detail={**spectrum.detail, "unsteady": sentence},
    )


def trace_of(found: Eigenpairs | None, density: Density | None) -> Estimate | None:
    """Exact from the whole spectrum, else Hutchinson's: the first entry of every T is ``v^T A v / ||v||^2``.

    Where the probe vectors are kept orthogonal to known pairs, their values are added: that splits the trace exactly.
    """
    if found is not None and found.spectrum is not None:
        return Estimate(float(found.spectrum.sum()))
    if density is None:
        return None
    samples = torch.stack([diagonal[0] for diagonal in density.diagonals]) * density.masses + density.known.sum()
    error = float(samples.std(unbiased=True)) / len(samples) ** 0.5
    return Estimate(float(samples.mean()), standard_error=error, status=Status.CONVERGED)


def descending(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, CPU float64, descending."""
    if matrix.device.type == "cpu" and (torch.get_num_threads() > 1 or len(matrix) <= NUMPY_ROWS):
        return torch.from_numpy(np.linalg.eigvalsh(matrix.double().numpy())[::-1].copy())
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.flip(0).to("cpu", torch.float64)


BASIS_FRACTION = 0.25
"""Default fraction of the free memory that a Lanczos basis may take. Products and training need the rest."""


def basis_memory(objective: Objective, wanted: int | None) -> int:
    """Bytes for the Lanczos basis, equal on all ranks, because restarts and joint advances depend on it."""
    return int(objective.ranks.least(BASIS_FRACTION * free_bytes(objective.device) if wanted is None else wanted))
