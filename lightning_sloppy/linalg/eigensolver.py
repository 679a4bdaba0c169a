"""k eigenpairs of a symmetric operator, with residuals, number of products, and status."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_sloppy.linalg.basis import Storage, item_bytes, rows_that_fit
from lightning_sloppy.linalg.eigenpairs import Eigenpairs, Search, merged, rayleigh_ritz
from lightning_sloppy.linalg.lanczos import Lanczos, NonFiniteProductError
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.vectors import unit_gaussian
from lightning_sloppy.linalg.which import Which, chosen, sides, urgency
from lightning_sloppy.records import Status

DENSE_LIMIT = 256
"""Up to this size the whole matrix is formed, because p products of a tiny network cost less than Lanczos."""

VERIFY_LIMIT = 2_000
"""Up to this size multiplicities are verified by default. The verification costs products."""


def default_tolerance(dtype: torch.dtype) -> float:
    """Residual relative to the largest magnitude: 1e-8 in float64, else 1e-3 (the error of products is 1e-6)."""
    return 1e-8 if dtype == torch.float64 else 1e-3


def top_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    rng: torch.Generator,
    which: Which = "magnitude",
    tol: float | None = None,
    max_products: int | None = None,
    verify_multiplicity: bool | None = None,
    eigenvectors: bool = False,
    basis_memory: int | None = None,
    basis: Storage = "device",
    start: Tensor | None = None,
) -> Eigenpairs:
    """Compute ``min(k, p)`` eigenpairs.

    For p <= 256 the matrix is formed and diagonalised. Above, Lanczos runs from one random vector until each of the
    Ritz pairs has a residual below ``tol`` times the largest magnitude. If the basis reaches ``basis_memory``, it does
    a thick restart (Wu and Simon 2000). One starting vector finds only one copy of a repeated eigenvalue.
    ``verify_multiplicity`` therefore searches the complement of the pairs found, until no further pair there belongs to
    the k.

    Args:
        operator: The matrix.
        k: Number of eigenpairs, at least 1.
        rng: CPU generator of the starting vectors.
        which: "magnitude", "largest", "smallest", or "both" ends (the larger half of k from the top).
        tol: Relative residual. None: the default of the data type.
        max_products: Limit on the products. None: ``20 k + 200``. The first k Ritz pairs are found even above it.
        verify_multiplicity: Whether to search for further copies. None: up to p = 2,000.
        eigenvectors: Whether to return the vectors, (p, k).
        basis_memory: Bytes for the basis, at least those of k + 10 vectors. Without restarts it takes ``(m + 1) p``
            numbers, plus the old rows while it grows. The k vectors of a verification are additional.
        basis: "device", "host", or "half" (bfloat16). Rows rounded to three digits span a slightly wrong space. The
            pairs are then recomputed by k further products in full precision, and judged by their true residuals, which
            stay near 1e-2 of the largest magnitude. The error of the eigenvalues is the square of that.
        start: First vector, (p,), for instance a combination of earlier eigenvectors. None: a random vector.

    Raises:
        NonFiniteProductError: If a product contains NaN or infinity.
        BasisMemoryError: If k + 10 vectors do not fit.
    """
    tol = default_tolerance(operator.dtype) if tol is None else tol
    k = min(k, operator.dim)
    if operator.dim <= DENSE_LIMIT:
        return _dense(operator, k, which, tol, eigenvectors)
    budget = operator.products + (20 * k + 200 if max_products is None else max_products)
    search = Search(k, which, tol, budget, rng, basis_memory, basis)
    verify = operator.dim <= VERIFY_LIMIT if verify_multiplicity is None else verify_multiplicity
    found = _search(operator, search, start=start, vectors=eigenvectors or verify or basis == "half")
    if basis == "half":
        found = rayleigh_ritz(operator, found)
    if verify and found.status is Status.CONVERGED:
        for side, count in sides(which, k):
            found = _with_hidden_copies(operator, found, replace(search, k=count, which=side), search)
    return found if eigenvectors else replace(found, vectors=None)


def _dense(operator: SymmetricOperator, k: int, which: Which, tol: float, eigenvectors: bool) -> Eigenpairs:
    matrix = operator.dense()
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteProductError("a matrix-vector product held NaN or infinity")
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = chosen(values, k, which)
    return Eigenpairs(
        values=values[keep],
        vectors=vectors[:, keep].to(operator.device, operator.dtype) if eigenvectors else None,
        residuals=torch.zeros(k, dtype=torch.float64),
        converged=torch.ones(k, dtype=torch.bool),
        largest=(float(values[0]), 0.0),
        smallest=(float(values[-1]), 0.0),
        spectrum=values,
        tolerance=tol * float(values.abs().max()),
        status=Status.EXACT,
        method="dense",
    )


def _search(
    operator: SymmetricOperator,
    search: Search,
    *,
    vectors: bool,
    start: Tensor | None = None,
    locked: Tensor | None = None,
    threshold: float | None = None,
    tolerance: float | None = None,
) -> Eigenpairs:
    """Run Lanczos until the requested Ritz pairs meet the tolerance.

    With ``threshold`` (a search in the complement of locked vectors), the requested pairs are those of the k whose
    urgency exceeds it, and at least the first, which decides whether further pairs belong to the k.
    """
    hidden = 0 if locked is None else len(locked)
    rows = rows_that_fit(operator.dim, search.k, item_bytes(operator.dtype, search.storage), search.memory)
    first = unit_gaussian(operator.dim, search.rng) if start is None else start
    process = Lanczos(
        operator,
        first,
        rng=search.rng,
        locked=locked,
        capacity=2 * search.k + 32,
        most=rows,
        storage=search.storage,
    )
    k = min(search.k, operator.dim - hidden)
    # On an accelerator a look at the residuals waits for the device, so there are fewer looks.
    pace = 1 if operator.device.type == "cpu" else 4
    restarts = 0
    process.advance(k if threshold is None else 2)
    while True:
        values, weights = torch.linalg.eigh(process.projected())
        # ||A u - theta u|| = beta_m |s_m| for every Ritz pair (Parlett 1980, section 13.2).
        residuals = float(process.offdiagonal[-1]) * weights[-1].abs()
        keep = chosen(values, k, search.which)
        absolute = search.tolerance * float(values.abs().max()) if tolerance is None else tolerance
        urgent = urgency(values, search.which)[keep]
        wanted = torch.ones_like(urgent, dtype=torch.bool) if threshold is None else urgent > threshold
        wanted[urgent.argmax()] = True
        enough = len(values) >= k or process.exhausted or threshold is not None
        if enough and bool((residuals[keep][wanted] <= absolute).all()):
            status = Status.CONVERGED
            break
        if process.exhausted or (enough and operator.products >= search.budget):
            status = Status.CONVERGED if process.exhausted else Status.NOT_CONVERGED
            break
        if process.full:
            # Half of the room beyond the wanted pairs goes to the next best ones, half to new directions.
            kept = chosen(values, k + (process.steps - k) // 2, search.which)
            process.restart(values[kept], weights[:, kept])
            restarts += 1
        process.advance(max(1, min(pace, search.budget - operator.products)))
    return Eigenpairs(
        values=values[keep],
        vectors=process.combined(weights[:, keep]) if vectors else None,
        residuals=residuals[keep],
        converged=residuals[keep] <= absolute,
        largest=(float(values[-1]), float(residuals[-1])),
        smallest=(float(values[0]), float(residuals[0])),
        spectrum=None,
        tolerance=absolute,
        status=status,
        method="lanczos",
        basis_bytes=process.peak_bytes,
        restarts=restarts,
    )


def _with_hidden_copies(operator: SymmetricOperator, found: Eigenpairs, side: Search, whole: Search) -> Eigenpairs:
    """Search the complement of the vectors found, until no pair there has a higher urgency than the last one kept."""
    while True:
        assert found.vectors is not None
        mine = chosen(found.values, side.k, side.which)
        threshold = float(urgency(found.values, side.which)[mine].min()) + found.tolerance
        if operator.dim <= found.vectors.shape[1]:
            return found
        if operator.products >= side.budget:
            return replace(found, status=Status.NOT_CONVERGED)
        extra = _search(
            operator,
            replace(side, tolerance=0.0),
            vectors=True,
            locked=found.vectors.T.contiguous(),
            threshold=threshold,
            tolerance=found.tolerance,
        )
        fresh = (urgency(extra.values, side.which) > threshold) & (extra.residuals <= found.tolerance)
        if extra.status is not Status.CONVERGED:
            return merged(found, extra, fresh, whole, Status.NOT_CONVERGED)
        if not bool((urgency(extra.values, side.which) > threshold).any()):
            return found
        found = merged(found, extra, fresh, whole, Status.CONVERGED)
