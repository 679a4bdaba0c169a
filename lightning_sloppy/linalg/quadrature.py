"""Stochastic Lanczos quadrature: the density of the whole spectrum from a few tridiagonal matrices.

For a probe vector v with ``||v||^2 = p`` the Gauss rule of its Lanczos process integrates the spectral measure
``sum_i (u_i . v)^2 delta(lambda_i)``, whose expectation over v is the whole spectrum (Ubaru, Chen and Saad 2017).
The brackets of the rules are proved in Golub and Meurant, "Matrices, Moments and Quadrature" (2010), chapters 6 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.linalg.lanczos import Lanczos, advance_together, tridiagonal
from lightning_sloppy.linalg.operator import DenseOperator, SymmetricOperator
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.records import Density

Enough = Callable[[Tensor, Tensor], bool]
"""Function that returns whether the quadrature is good enough, given the two diagonals of T so far."""


@dataclass(frozen=True)
class Known:
    """Converged eigenpairs.

    Attributes:
        values: (l,), float64.
        vectors: (p, l), orthonormal columns.
        residuals: (l,).
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def lanczos_density(
    operator: SymmetricOperator,
    probe_vectors: Tensor,
    *,
    steps: int,
    rng: torch.Generator,
    positive_semidefinite: bool,
    enough: Enough | None = None,
    check_every: int = 10,
    together: bool = False,
    known: Known | None = None,
) -> Density:
    """Run one Lanczos process for each probe vector, each to at most ``steps`` steps.

    Args:
        operator: The matrix.
        probe_vectors: (vectors, p), entries of unit variance, squared norm p (Rademacher).
        steps: Largest number m of Lanczos steps, one product each.
        rng: Generator of new vectors after breakdowns.
        positive_semidefinite: Whether the matrix is positive semidefinite by construction.
        enough: Function that is called every ``check_every`` steps; if it returns True, the process of this probe
            vector stops.
        check_every: Steps between two calls of ``enough``.
        known: Converged pairs. The probe vectors are projected onto their complement, where the matrix has a smaller
            norm, and the known eigenvalues are counted exactly. Hutchinson's variance of the trace is then that of the
            rest alone, as in Hutch++ (Meyer et al. 2021), without further products for the space.
        together: Whether to advance all processes together, with one ``matmat`` per step. This is cheaper if several
            vectors share a pass over the data, but all bases are in memory at once.

    Raises:
        NonFiniteProductError: If a product contains NaN or infinity.
    """
    diagonals, offdiagonals = [], []
    locked = None if known is None else known.vectors.T.contiguous().to(operator.device, operator.dtype)
    probe_vectors = probe_vectors.to(operator.device, operator.dtype)
    if locked is not None:
        probe_vectors = probe_vectors - (probe_vectors @ locked.T) @ locked
    masses = probe_vectors.double().square().sum(1) if operator.device.type != "mps" else probe_vectors.square().sum(1)
    for group in [probe_vectors] if together else list(torch.split(probe_vectors, 1)):
        processes = [Lanczos(operator, vector, rng=rng, locked=locked, capacity=min(steps, 64)) for vector in group]
        running = list(processes)
        while running:
            advance_together(running, min(check_every, steps - max(process.steps for process in running)))
            running = [process for process in running if not _finished(process, steps, enough)]
        for process in processes:
            # A breakdown decouples T: the first block alone is the exact quadrature of this vector's measure.
            broken = (process.offdiagonal == 0).nonzero()
            end = int(broken[0]) + 1 if len(broken) else process.steps
            diagonals.append(process.diagonal[:end].clone())
            offdiagonals.append(process.offdiagonal[:end].clone())
    density = _density(diagonals, offdiagonals, masses.to("cpu", torch.float64), positive_semidefinite)
    return density if known is None else replace(density, known=known.values, known_residuals=known.residuals)


def joined(first: Density, second: Density) -> Density:
    """One density from the probe vectors of both, which must have the same matrix and the same known pairs."""
    whole = _density(
        [*first.diagonals, *second.diagonals],
        [*first.offdiagonals, *second.offdiagonals],
        torch.cat([first.masses, second.masses]),
        first.positive_semidefinite,
    )
    return replace(whole, known=first.known, known_residuals=first.known_residuals)


def _finished(process: Lanczos, steps: int, enough: Enough | None) -> bool:
    if process.steps >= steps or process.exhausted or bool((process.offdiagonal == 0).any()):
        return True
    return enough is not None and enough(process.diagonal, process.offdiagonal)


def exact_density(eigenvalues: Tensor, *, positive_semidefinite: bool) -> Density:
    """The density of a matrix whose eigenvalues are all known. Its quadratures have no error.

    The spectral measure of the vector with equal weight on every eigenvector is the whole spectrum, so its exhausted
    Lanczos process is an exact quadrature. A second copy makes the standard error zero.

    Args:
        eigenvalues: All eigenvalues, (p,), float64.
        positive_semidefinite: Whether the matrix is positive semidefinite by construction.
    """
    operator = DenseOperator(torch.diag(eigenvalues))
    flat = torch.ones(1, operator.dim, dtype=torch.float64)
    once = lanczos_density(
        operator, flat, steps=operator.dim, rng=generator(0), positive_semidefinite=positive_semidefinite
    )
    return _density([*once.diagonals] * 2, [*once.offdiagonals] * 2, once.masses.repeat(2), positive_semidefinite)


def _density(
    diagonals: list[Tensor], offdiagonals: list[Tensor], masses: Tensor, positive_semidefinite: bool
) -> Density:
    """Tridiagonal matrices with their Gauss rules, padded with zeros."""
    rules = [gauss(d, o) for d, o in zip(diagonals, offdiagonals, strict=True)]
    depth = max(len(d) for d in diagonals)
    nodes = torch.zeros(len(rules), depth, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row, (node, weight) in enumerate(rules):
        nodes[row, : len(node)] = node
        weights[row, : len(node)] = weight * masses[row]
    return Density(tuple(diagonals), tuple(offdiagonals), nodes, weights, positive_semidefinite, masses)


def node_residuals(density: Density) -> Tensor:
    """Largest distance of each Gauss node from the nearest eigenvalue, shape (vectors, m), zeros where padded.

    The node theta with the eigenvector s of T has the residual ``|beta_m s_m|``, beta_m the norm of the last Lanczos
    residual: an eigenvalue lies within theta +- that (Parlett, The Symmetric Eigenvalue Problem, 13.2).

    >>> seen = _density([torch.tensor([2.0, 2.0])], [torch.tensor([1.0, 0.5])], torch.ones(1), True)
    >>> [[round(each, 4) for each in row] for row in node_residuals(seen).tolist()]
    [[0.3536, 0.3536]]
    """
    found = torch.zeros_like(density.nodes)
    for row, (diagonal, offdiagonal) in enumerate(zip(density.diagonals, density.offdiagonals, strict=True)):
        _, vectors = torch.linalg.eigh(tridiagonal(diagonal, offdiagonal))
        found[row, : len(diagonal)] = (offdiagonal[-1] * vectors[-1]).abs()
    return found


def gauss(diagonal: Tensor, offdiagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (ascending) and weights (sum 1) of the Gauss rule of T, each of shape (m,).

    >>> nodes, weights = gauss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]))
    >>> nodes.tolist(), [round(w, 6) for w in weights.tolist()]
    ([1.0, 3.0], [0.5, 0.5])
    """
    values, vectors = torch.linalg.eigh(tridiagonal(diagonal, offdiagonal))
    return values, vectors[0].square()


def gauss_radau(diagonal: Tensor, offdiagonal: Tensor, node: float) -> tuple[Tensor, Tensor]:
    """The Gauss rule extended by one prescribed node (Golub 1973): m + 1 nodes and weights.

    With the node at an end of the spectrum, it bounds integrals of completely monotone functions from the other side
    than the Gauss rule. With the node inside, the weight at the node bounds the error for a step function placed there
    (Chebyshev, Markov and Stieltjes). Rules of exhausted processes (last off-diagonal entry zero) are not extended, and
    neither is a Gauss rule that has the node already: the extension would add a node at infinity without weight.
    """
    last = float(offdiagonal[-1])
    if last == 0.0:
        return gauss(diagonal, offdiagonal)
    size = len(diagonal)
    unit = torch.zeros(size, dtype=diagonal.dtype)
    unit[-1] = last**2
    shifted = tridiagonal(diagonal, offdiagonal) - node * torch.eye(size, dtype=diagonal.dtype)
    solution, singular = torch.linalg.solve_ex(shifted, unit)
    extension = node + solution[-1:]
    if int(singular) != 0 or not bool(torch.isfinite(extension).all()):
        return gauss(diagonal, offdiagonal)
    return gauss(torch.cat([diagonal, extension]), offdiagonal)
