"""The k eigenpairs of largest magnitude, with residuals, counted products and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.linalg.lanczos import Lanczos, NonFiniteProductError
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import unit_gaussian
from lightning_sloppy.records import Status

DENSE_LIMIT = 256
"""Up to this size the whole matrix is formed: p products of a tiny network cost less than any cleverness."""

VERIFY_LIMIT = 2_000
"""Up to this size multiplicities are verified unless told otherwise: it costs products."""


@dataclass(frozen=True)
class Eigenpairs:
    """What a solve found.

    Attributes:
        values: (k,), CPU float64, descending by signed value.
        vectors: (p, k), orthonormal columns on the operator's device, in the order of the values.
        residuals: (k,), upper estimates of ``||A u - lambda u||``.
        largest: Algebraically largest value seen, and its residual.
        smallest: Algebraically smallest value seen, and its residual.
        spectrum: All eigenvalues, descending, when the whole matrix was formed, else None.
        tolerance: The absolute residual that was asked for.
        status: EXACT, CONVERGED, NOT_CONVERGED.
        method: "dense" or "lanczos".
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    largest: tuple[float, float]
    smallest: tuple[float, float]
    spectrum: Tensor | None
    tolerance: float
    status: Status
    method: str


def default_tolerance(dtype: torch.dtype) -> float:
    """Residual relative to the largest magnitude: 1e-8 in float64, 1e-3 below (products are good to 1e-6)."""
    return 1e-8 if dtype == torch.float64 else 1e-3


def top_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    rng: torch.Generator,
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
) -> Eigenpairs:
    """Compute the ``min(k, p)`` eigenpairs of largest magnitude.

    For p <= 256 the matrix is formed and diagonalised. Above, Lanczos from one random vector until every wanted
    Ritz pair has a residual below ``tol`` times the largest magnitude. One starting vector sees one copy of a
    repeated eigenvalue; ``verify_multiplicity`` searches the complement of what was found until nothing larger is
    left there.

    Args:
        operator: The matrix.
        k: Wanted pairs, at least 1.
        rng: CPU generator of the starting vectors.
        tol: Relative residual; None for the default of the data type.
        max_products: Bound on the cost; None for ``20 k + 200``. The first k Ritz pairs are found even beyond it.
        verify_multiplicity: None verifies up to p = 2,000.

    Raises:
        NonFiniteProductError: When a product held NaN or infinity.
    """
    tol = default_tolerance(operator.dtype) if tol is None else tol
    k = min(k, operator.dim)
    if operator.dim <= DENSE_LIMIT:
        return _dense(operator, k, tol)
    budget = operator.products + (20 * k + 200 if max_products is None else max_products)
    found = _search(operator, k, tol, rng, budget, locked=None)
    verify = operator.dim <= VERIFY_LIMIT if verify_multiplicity is None else verify_multiplicity
    if verify and found.status is Status.CONVERGED:
        found = _with_hidden_copies(operator, found, k, rng, budget)
    return found


def _dense(operator: SymmetricOperator, k: int, tol: float) -> Eigenpairs:
    matrix = operator.dense()
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteProductError("a matrix-vector product held NaN or infinity")
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = _by_magnitude(values, k)
    return Eigenpairs(
        values=values[keep],
        vectors=vectors[:, keep].to(operator.device, operator.dtype),
        residuals=torch.zeros(k, dtype=torch.float64),
        largest=(float(values[0]), 0.0),
        smallest=(float(values[-1]), 0.0),
        spectrum=values,
        tolerance=tol * float(values.abs().max()),
        status=Status.EXACT,
        method="dense",
    )


def _by_magnitude(values: Tensor, k: int) -> Tensor:
    """Indices of the k values of largest magnitude, ordered by descending signed value."""
    chosen = values.abs().argsort(descending=True, stable=True)[:k]
    return chosen[values[chosen].argsort(descending=True, stable=True)]


def _search(
    operator: SymmetricOperator,
    k: int,
    tol: float,
    rng: torch.Generator,
    budget: int,
    *,
    locked: Tensor | None,
    threshold: float = 0.0,
    tolerance: float | None = None,
) -> Eigenpairs:
    """Lanczos until the wanted Ritz pairs meet the tolerance.

    Without ``threshold`` the wanted pairs are the k of largest magnitude; with it, those of the k whose magnitude
    exceeds it, and at least the first: it decides whether anything above the threshold is left.
    """
    process = Lanczos(operator, unit_gaussian(operator.dim, rng), rng=rng, locked=locked, capacity=2 * k + 32)
    limit = operator.dim - (0 if locked is None else locked.shape[0])
    k = min(k, limit)
    # On an accelerator a look at the residuals waits for the device, so there are fewer looks.
    pace = 1 if operator.device.type == "cpu" else 4
    process.advance(k if threshold == 0.0 else 2)
    while True:
        values, weights = torch.linalg.eigh(process.tridiagonal())
        residuals = _ritz_residuals(weights, process.offdiagonal)
        keep = _by_magnitude(values, k)
        absolute = tol * float(values.abs().max()) if tolerance is None else tolerance
        first = values[keep].abs().argmax()
        wanted = values[keep].abs() > threshold
        wanted[first] = True
        enough = len(values) >= k or process.exhausted or threshold > 0.0
        if enough and bool((residuals[keep][wanted] <= absolute).all()):
            status = Status.CONVERGED
            break
        if process.exhausted or (enough and operator.products >= budget):
            status = Status.CONVERGED if process.exhausted else Status.NOT_CONVERGED
            break
        process.advance(max(1, min(pace, budget - operator.products)))
    rotation = weights[:, keep].to(operator.device, operator.dtype)
    return Eigenpairs(
        values=values[keep],
        vectors=process.basis.T @ rotation,
        residuals=residuals[keep],
        largest=(float(values[-1]), float(residuals[-1])),
        smallest=(float(values[0]), float(residuals[0])),
        spectrum=None,
        tolerance=absolute,
        status=status,
        method="lanczos",
    )


def _ritz_residuals(weights: Tensor, offdiagonal: Tensor) -> Tensor:
    """``||A u - theta u|| = beta_m |s_m|`` for every Ritz pair (Parlett 1980, section 13.2)."""
    return float(offdiagonal[-1]) * weights[-1].abs()


def _with_hidden_copies(
    operator: SymmetricOperator, found: Eigenpairs, k: int, rng: torch.Generator, budget: int
) -> Eigenpairs:
    """Search the complement of the found vectors until nothing larger than the smallest kept value is left."""
    while True:
        threshold = float(found.values.abs().min()) + found.tolerance
        if operator.dim <= found.vectors.shape[1]:
            break
        if operator.products >= budget:
            return replace(found, status=Status.NOT_CONVERGED)
        extra = _search(
            operator,
            k,
            0.0,
            rng,
            budget,
            locked=found.vectors.T.contiguous(),
            threshold=threshold,
            tolerance=found.tolerance,
        )
        if extra.status is not Status.CONVERGED:
            return _merge(found, extra, k, threshold, Status.NOT_CONVERGED)
        if float(extra.values.abs().max()) <= threshold:
            break
        found = _merge(found, extra, k, threshold, Status.CONVERGED)
    return found


def _merge(found: Eigenpairs, extra: Eigenpairs, k: int, threshold: float, status: Status) -> Eigenpairs:
    """Unite two sets of pairs and keep the k of largest magnitude."""
    fresh = (extra.values.abs() > threshold) & (extra.residuals <= found.tolerance)
    values = torch.cat([found.values, extra.values[fresh]])
    vectors = torch.cat([found.vectors, extra.vectors[:, fresh.to(extra.vectors.device)]], dim=1)
    # A pair (u, lambda) of the complement is one of P A P. What A u has along the locked vectors V is
    # V^T A u = R^T u with the residuals R of V, and ||R||_2 <= ||R||_F.
    lost = torch.linalg.vector_norm(found.residuals)
    residuals = torch.cat([found.residuals, torch.hypot(extra.residuals[fresh], lost)])
    keep = _by_magnitude(values, k)
    return Eigenpairs(
        values=values[keep],
        vectors=vectors[:, keep.to(vectors.device)],
        residuals=residuals[keep],
        largest=max(found.largest, (float(values.max()), float(residuals[values.argmax()]))),
        smallest=min(found.smallest, (float(values.min()), float(residuals[values.argmin()]))),
        spectrum=None,
        tolerance=found.tolerance,
        status=status,
        method=found.method,
    )
