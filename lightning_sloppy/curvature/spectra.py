"""From a module with its loss to a Spectrum: one function for each matrix.

They run inside somebody's :func:`~lightning_sloppy.evaluation.preserve.preserved`, on prepared batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sloppy.curvature.cotangents import Kind
from lightning_sloppy.curvature.double_backward import double_backward, free_bytes
from lightning_sloppy.curvature.gauss_newton import GaussNewtonOperator
from lightning_sloppy.curvature.gram import fisher_gram
from lightning_sloppy.curvature.hessian import HessianOperator
from lightning_sloppy.curvature.kept_graph import Method
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.linalg.eigensolver import DENSE_LIMIT, Eigenpairs, top_eigenpairs
from lightning_sloppy.linalg.lanczos import NonFiniteProductError
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.quadrature import Enough, exact_density, lanczos_density
from lightning_sloppy.records import Cost, Density, Estimate, Spectrum, Status

BASIS_SHARE = 0.5
"""Share of the free memory that a Lanczos basis may take."""

EXTRA_VECTORS = 50
"""Vectors beyond k that a top-k basis usually grows to (28 products for k = 10 on a trained network)."""


def hessian_of(
    objective: Objective,
    batches: list[Batch],
    *,
    k: int,
    probe_vectors: Tensor | None,
    steps: int,
    rng: torch.Generator,
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
    eigenvectors: bool = False,
    method: Method = "auto",
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """The ``min(k, p)`` eigenpairs of the Hessian of largest magnitude, and its density with probe vectors.

    The arguments are those of :func:`~lightning_sloppy.analysis.hessian_spectrum`. Where the whole matrix is formed
    the density is exact and needs no probe vectors.
    """
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    count = sum(sample_count(batch) for batch in batches)
    if not _fits(objective, layout.dim, k + EXTRA_VECTORS):
        return _without_values("hessian", layout.dim, count, Status.OUT_OF_MEMORY)
    try:
        with double_backward(objective.module):
            operator = HessianOperator(objective, layout, batches, method=method)
            operator.on_product = on_product
            with torch.no_grad():
                loss = float(objective.mean_loss(layout.leaves(objective.module, objective.dtype), batches))
            pairs = top_eigenpairs(
                operator, k, rng=rng, tol=tol, max_products=max_products, verify_multiplicity=verify_multiplicity
            )
            density = None
            if pairs.spectrum is not None and k < layout.dim:
                density = exact_density(pairs.spectrum, positive_semidefinite=False)
            elif pairs.spectrum is None and probe_vectors is not None:
                density = lanczos_density(operator, probe_vectors, steps=steps, rng=rng, positive_semidefinite=False)
    except NonFiniteProductError:
        return _without_values("hessian", layout.dim, count, Status.NON_FINITE)
    return Spectrum(
        eigenvalues=pairs.values,
        residuals=pairs.residuals,
        eigenvectors=pairs.vectors if eigenvectors else None,
        largest=pairs.largest[0],
        largest_residual=pairs.largest[1],
        smallest=pairs.smallest[0],
        smallest_residual=pairs.smallest[1],
        # One step tells the trace and nothing of the shape.
        density=density if steps > 1 or pairs.spectrum is not None else None,
        dim=layout.dim,
        num_samples=count,
        trace=_trace(pairs, density, layout.dim),
        matrix="hessian",
        floor=_floor(objective.dtype, float(pairs.values.abs().max())),
        truncated=len(pairs.values) < layout.dim,
        cost=_cost(operator, start, operator.method),
        status=pairs.status,
        detail={"loss": loss, "tolerance": pairs.tolerance},
    )


def gauss_newton_of(
    objective: Objective,
    batches: list[Batch],
    *,
    probe_vectors: Tensor,
    steps: int,
    rng: torch.Generator,
    enough: Enough | None = None,
    method: Method = "auto",
    on_product: Callable[[int], None] | None = None,
) -> Spectrum:
    """Whole-spectrum view of the Gauss-Newton matrix by quadrature; exact where it is small enough to form."""
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    count = sum(sample_count(batch) for batch in batches)
    if not _fits(objective, layout.dim, steps):
        return _without_values("gauss_newton", layout.dim, count, Status.OUT_OF_MEMORY)
    try:
        with double_backward(objective.module):
            operator = GaussNewtonOperator(objective, layout, batches, method=method)
            operator.on_product = on_product
            pairs = top_eigenpairs(operator, layout.dim, rng=rng) if layout.dim <= DENSE_LIMIT else None
            density = None
            if pairs is None:
                density = lanczos_density(
                    operator, probe_vectors, steps=steps, rng=rng, positive_semidefinite=True, enough=enough
                )
    except NonFiniteProductError:
        return _without_values("gauss_newton", layout.dim, count, Status.NON_FINITE)
    values = pairs.values if pairs is not None else torch.zeros(0, dtype=torch.float64)
    seen = values if density is None else density.nodes
    largest, smallest = float(seen.max()), float(seen.min())
    floor = _floor(objective.dtype, max(largest, -smallest))
    if density is not None and smallest < -floor:
        # The loss is not convex in the outputs: what holds for positive semidefinite matrices brackets nothing here.
        density = replace(density, positive_semidefinite=False)
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=largest,
        smallest=smallest,
        density=density,
        dim=layout.dim,
        num_samples=count,
        trace=_trace(pairs, density, layout.dim),
        matrix="gauss_newton",
        floor=floor,
        truncated=pairs is None,
        cost=_cost(operator, start, operator.method),
        status=Status.EXACT if pairs is not None else Status.CONVERGED,
    )


def fisher_of(objective: Objective, batches: list[Batch], *, kind: Kind, rng: torch.Generator) -> Spectrum:
    """All eigenvalues of a Fisher matrix: see :func:`~lightning_sloppy.analysis.fisher_spectrum`."""
    start = time.perf_counter()
    layout = ParameterLayout.of(objective.module)
    # A fused attention kernel has no rule for vmap either, so the same context serves.
    with double_backward(objective.module):
        gram = fisher_gram(objective, layout, batches, kind, rng)
    if not bool(torch.isfinite(gram.matrix).all()):
        return _without_values(f"fisher_{kind}", layout.dim, gram.num_samples, Status.NON_FINITE)
    values = _descending(gram.matrix)[: layout.dim]
    half = _half_matrix(gram.matrix, gram.num_samples)
    trace = float(gram.matrix.diagonal().sum())
    return Spectrum(
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=float(values[0]),
        smallest=0.0 if len(values) < layout.dim else float(values[-1]),
        dim=layout.dim,
        rank_bound=min(len(gram.matrix), layout.dim),
        num_samples=gram.num_samples,
        trace=Estimate(trace),
        matrix=f"fisher_{kind}",
        floor=_floor(objective.dtype, float(values[0])),
        truncated=False,
        half_eigenvalues=None if half is None else _descending(half)[: layout.dim],
        cost=Cost(seconds=time.perf_counter() - start, method=gram.method),
        status=Status.EXACT,
    )


def _trace(pairs: Eigenpairs | None, density: Density | None, dim: int) -> Estimate | None:
    """Exact from the whole spectrum, else Hutchinson's estimate: the first entry of every T is ``v^T A v / p``."""
    if pairs is not None and pairs.spectrum is not None:
        return Estimate(float(pairs.spectrum.sum()))
    if density is None:
        return None
    samples = torch.stack([diagonal[0] for diagonal in density.diagonals]) * dim
    error = float(samples.std(unbiased=True)) / len(samples) ** 0.5
    return Estimate(float(samples.mean()), standard_error=error, status=Status.CONVERGED)


def _descending(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.flip(0).to("cpu", torch.float64)


def _half_matrix(matrix: Tensor, count: int) -> Tensor | None:
    """Gram matrix of the first half of the samples, rescaled to their mean; None for a single sample."""
    half = count // 2
    if half == 0:
        return None
    rows = (torch.arange(len(matrix), device=matrix.device) % count) < half
    return matrix[rows][:, rows] * (count / half)


def _floor(dtype: torch.dtype, largest: float) -> float:
    """Rounding of the products, relative to the largest magnitude: 2.5e-7 was seen in float32, 8 eps is 9.5e-7."""
    return 8 * torch.finfo(dtype).eps * abs(largest)


def _cost(operator: SymmetricOperator, start: float, method: str) -> Cost:
    return Cost(
        products=operator.products,
        seconds=time.perf_counter() - start,
        product_seconds=operator.product_seconds,
        method=method,
    )


def _fits(objective: Objective, dim: int, vectors: int) -> bool:
    """Whether a basis of so many vectors leaves half of the free memory to the products and the training."""
    return dim <= DENSE_LIMIT or dim * objective.dtype.itemsize * vectors <= BASIS_SHARE * free_bytes(objective.device)


def _without_values(matrix: str, dim: int, count: int, status: Status) -> Spectrum:
    empty = torch.zeros(0, dtype=torch.float64)
    nan = float("nan")
    return Spectrum(
        eigenvalues=empty,
        residuals=empty,
        largest=nan,
        smallest=nan,
        dim=dim,
        num_samples=count,
        matrix=matrix,
        floor=nan,
        truncated=True,
        status=status,
    )
