"""Eigenpairs with their residuals: parameters and result of a search, and merging of two results."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.linalg.basis import Storage
from lightning_sloppy.linalg.operator import SymmetricOperator
from lightning_sloppy.linalg.which import Which, chosen
from lightning_sloppy.records import Status


@dataclass(frozen=True)
class Eigenpairs:
    """The result of a search for eigenpairs.

    Attributes:
        values: (k,), CPU float64, descending by signed value.
        vectors: (p, k), orthonormal columns on the operator's device, in the order of the values, or None.
        residuals: (k,), upper estimates of ``||A u - lambda u||``.
        converged: (k,), whether each residual is within the tolerance.
        largest: Algebraically largest value seen, and its residual.
        smallest: Algebraically smallest value seen, and its residual.
        spectrum: All eigenvalues, descending, if the whole matrix was formed, else None.
        tolerance: The absolute tolerance for the residuals.
        status: EXACT, CONVERGED, NOT_CONVERGED.
        method: "dense" or "lanczos".
        basis_bytes: Peak memory of a basis.
        restarts: Number of thick restarts.
    """

    values: Tensor
    vectors: Tensor | None
    residuals: Tensor
    converged: Tensor
    largest: tuple[float, float]
    smallest: tuple[float, float]
    spectrum: Tensor | None
    tolerance: float
    status: Status
    method: str
    basis_bytes: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Search:
    """Parameters of a search for eigenpairs.

    Attributes:
        k: Number of eigenpairs.
        which: Which eigenpairs.
        tolerance: Relative residual.
        budget: Number of products of the operator at which to stop.
        rng: Generator of the starting vectors.
        memory: Bytes for the basis, or None.
        storage: Where the basis is kept.
    """

    k: int
    which: Which
    tolerance: float
    budget: int
    rng: torch.Generator
    memory: int | None
    storage: Storage


def rayleigh_ritz(operator: SymmetricOperator, found: Eigenpairs) -> Eigenpairs:
    """Recompute the pairs in the span of the vectors, in full precision and with true residuals: k products."""
    assert found.vectors is not None
    space = torch.linalg.qr(found.vectors).Q
    images = operator.matmat(space)
    inner = (space.T @ images).to("cpu", torch.float64)
    values, rotation = torch.linalg.eigh((inner + inner.T) / 2)
    values, rotation = values.flip(0), rotation.flip(1)
    turned = rotation.to(space.device, space.dtype)
    vectors = space @ turned
    gaps = images @ turned - vectors * values.to(space.device, space.dtype)
    residuals = torch.linalg.vector_norm(gaps, dim=0).to("cpu", torch.float64)
    converged = residuals <= found.tolerance
    met = found.status is Status.CONVERGED and bool(converged.all())
    return replace(
        found,
        values=values,
        vectors=vectors,
        residuals=residuals,
        converged=converged,
        largest=max(found.largest, (float(values[0]), float(residuals[0]))),
        smallest=min(found.smallest, (float(values[-1]), float(residuals[-1]))),
        status=Status.CONVERGED if met else Status.NOT_CONVERGED,
    )


def merged(found: Eigenpairs, extra: Eigenpairs, fresh: Tensor, whole: Search, status: Status) -> Eigenpairs:
    """Merge two sets of pairs, and keep the k that were searched for."""
    assert found.vectors is not None
    assert extra.vectors is not None
    values = torch.cat([found.values, extra.values[fresh]])
    vectors = torch.cat([found.vectors, extra.vectors[:, fresh.to(extra.vectors.device)]], dim=1)
    # A pair (u, lambda) of the complement is one of P A P. The part of A u along the locked vectors V is
    # V^T A u = R^T u with the residuals R of V, and ||R||_2 <= ||R||_F.
    lost = torch.linalg.vector_norm(found.residuals)
    residuals = torch.cat([found.residuals, torch.hypot(extra.residuals[fresh], lost)])
    keep = chosen(values, whole.k, whole.which)
    return replace(
        found,
        values=values[keep],
        vectors=vectors[:, keep.to(vectors.device)],
        residuals=residuals[keep],
        converged=residuals[keep] <= found.tolerance,
        largest=max(found.largest, (float(values.max()), float(residuals[values.argmax()]))),
        smallest=min(found.smallest, (float(values.min()), float(residuals[values.argmin()]))),
        status=status,
        basis_bytes=max(found.basis_bytes, extra.basis_bytes),
        restarts=found.restarts + extra.restarts,
    )
