"""Stochastic Lanczos quadrature: the whole spectrum through a few tridiagonal matrices.

For a probe vector v with ``||v||^2 = p`` the Gauss rule of its Lanczos process integrates the spectral measure
``sum_i (u_i . v)^2 delta(lambda_i)``, whose expectation over v is the whole spectrum (Ubaru, Chen and Saad 2017).
What the rules bracket is proved in Golub and Meurant, "Matrices, Moments and Quadrature" (2010), chapters 6 and 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_sloppy.linalg.lanczos import Lanczos, advance_together, tridiagonal
from lightning_sloppy.linalg.operator import DenseOperator, SymmetricOperator
from lightning_sloppy.linalg.vectors import generator
from lightning_sloppy.records import Density

Enough = Callable[[Tensor, Tensor], bool]
"""Given the diagonals of T so far: is the quadrature good enough?"""


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
) -> Density:
    """Run one Lanczos process for each probe vector, each to at most ``steps`` steps.

    Args:
        operator: The matrix.
        probe_vectors: (vectors, p), entries of unit variance, squared norm p (Rademacher).
        steps: Depth m at the most; one product each.
        rng: For breakdowns.
        positive_semidefinite: Whether the matrix is so by construction.
        enough: Asked every ``check_every`` steps; stops the process of this probe vector when it says so.
        check_every: Steps between two questions.
        together: Advance all processes in lockstep, one ``matmat`` a step: cheaper where several vectors share a pass
            over the data, at the price of all bases in memory at once.

    Raises:
        NonFiniteProductError: When a product held NaN or infinity.
    """
    diagonals, offdiagonals = [], []
    for group in [probe_vectors] if together else list(torch.split(probe_vectors, 1)):
        processes = [
            Lanczos(operator, vector.to(operator.device, operator.dtype), rng=rng, capacity=min(steps, 64))
            for vector in group
        ]
        running = list(processes)
        while running:
            advance_together(running, min(check_every, steps - max(process.steps for process in running)))
            running = [process for process in running if not _finished(process, steps, enough)]
        for process in processes:
            # A breakdown decouples T: the first block alone carries this vector's measure, exactly.
            broken = (process.offdiagonal == 0).nonzero()
            end = int(broken[0]) + 1 if len(broken) else process.steps
            diagonals.append(process.diagonal[:end].clone())
            offdiagonals.append(process.offdiagonal[:end].clone())
    return _density(diagonals, offdiagonals, operator.dim, positive_semidefinite)


def _finished(process: Lanczos, steps: int, enough: Enough | None) -> bool:
    if process.steps >= steps or process.exhausted or bool((process.offdiagonal == 0).any()):
        return True
    return enough is not None and enough(process.diagonal, process.offdiagonal)


def exact_density(eigenvalues: Tensor, *, positive_semidefinite: bool) -> Density:
    """The density of a matrix whose eigenvalues are all known: its quadratures have no error.

    The vector with the same weight on every eigenvector has the whole spectrum as its spectral measure, so that its
    exhausted Lanczos process is a quadrature of it; a second one says that the standard error is zero.

    Args:
        eigenvalues: All of them, (p,), float64.
        positive_semidefinite: Whether the matrix is so by construction.
    """
    operator = DenseOperator(torch.diag(eigenvalues))
    flat = torch.ones(1, operator.dim, dtype=torch.float64)
    once = lanczos_density(
        operator, flat, steps=operator.dim, rng=generator(0), positive_semidefinite=positive_semidefinite
    )
    return _density([*once.diagonals] * 2, [*once.offdiagonals] * 2, operator.dim, positive_semidefinite)


def _density(diagonals: list[Tensor], offdiagonals: list[Tensor], dim: int, positive_semidefinite: bool) -> Density:
    """Tridiagonal matrices with their Gauss rules, padded with zeros."""
    rules = [gauss(d, o) for d, o in zip(diagonals, offdiagonals, strict=True)]
    depth = max(len(d) for d in diagonals)
    nodes = torch.zeros(len(rules), depth, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row, (node, weight) in enumerate(rules):
        nodes[row, : len(node)] = node
        weights[row, : len(node)] = weight * dim
    return Density(tuple(diagonals), tuple(offdiagonals), nodes, weights, positive_semidefinite)


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

    With the node at an end of the spectrum it bounds integrals of completely monotone functions from the other
    side than the Gauss rule; with the node inside, the weight at the node bounds what a step function placed
    there can miss (Chebyshev, Markov and Stieltjes). Exhausted rules (last off-diagonal zero) stay as they are,
    and so does a Gauss rule that has the node already: the extension would add a node at infinity without weight.
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
