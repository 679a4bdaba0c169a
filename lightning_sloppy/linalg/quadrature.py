"""Stochastic Lanczos quadrature: the whole spectrum through a few tridiagonal matrices.

For a probe vector v with ``||v||^2 = p`` the Gauss rule of its Lanczos process integrates the spectral measure
``sum_i (u_i . v)^2 delta(lambda_i)``, whose expectation over v is the whole spectrum (Ubaru, Chen and Saad 2017).
What the rules bracket is proved in Golub and Meurant, "Matrices, Moments and Quadrature" (2010), chapters 6 and 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_sloppy.linalg.lanczos import Lanczos, tridiagonal
from lightning_sloppy.linalg.operator import SymmetricOperator
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

    Raises:
        NonFiniteProductError: When a product held NaN or infinity.
    """
    diagonals, offdiagonals = [], []
    for vector in probe_vectors:
        process = Lanczos(operator, vector.to(operator.device, operator.dtype), rng=rng, capacity=min(steps, 64))
        while process.steps < steps and not process.exhausted:
            process.advance(min(check_every, steps - process.steps))
            # A breakdown decouples T: the first block alone carries this vector's measure, exactly.
            broken = (process.offdiagonal == 0).nonzero()
            if len(broken):
                break
            if enough is not None and enough(process.diagonal, process.offdiagonal):
                break
        end = int(broken[0]) + 1 if len(broken) else process.steps
        diagonals.append(process.diagonal[:end].clone())
        offdiagonals.append(process.offdiagonal[:end].clone())
    rules = [gauss(d, o) for d, o in zip(diagonals, offdiagonals, strict=True)]
    depth = max(len(d) for d in diagonals)
    nodes = torch.zeros(len(rules), depth, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row, (node, weight) in enumerate(rules):
        nodes[row, : len(node)] = node
        weights[row, : len(node)] = weight * operator.dim
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
    there can miss (Chebyshev, Markov and Stieltjes). Exhausted rules (last off-diagonal zero) stay as they are.
    """
    last = float(offdiagonal[-1])
    if last == 0.0:
        return gauss(diagonal, offdiagonal)
    size = len(diagonal)
    unit = torch.zeros(size, dtype=diagonal.dtype)
    unit[-1] = last**2
    shifted = tridiagonal(diagonal, offdiagonal) - node * torch.eye(size, dtype=diagonal.dtype)
    extension = node + torch.linalg.solve(shifted, unit)[-1]
    return gauss(torch.cat([diagonal, extension.reshape(1)]), offdiagonal)
