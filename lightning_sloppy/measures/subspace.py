"""Fractions of vectors in the top eigenspace, with those of a random vector for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.records import Estimate


def fraction_inside(vectors: Tensor, direction: Tensor) -> Estimate | None:
    """Fraction of the squared norm of g in a space, ``||U^T g||^2 / ||g||^2``, in [0, 1]; None for a zero vector.

    For the gradient and the top eigenspace see Gur-Ari, Roberts and Dyer (2018, arXiv 1812.04754). A random direction
    has ``k / p`` on average (:func:`random_fraction`).

    Args:
        vectors: U, shape (p, k), orthonormal columns.
        direction: g, shape (p,).
    """
    size = float(torch.linalg.vector_norm(direction))
    if size == 0.0:
        return None
    inside = vectors.T.to(direction.dtype) @ (direction / size)
    return Estimate(min(float(inside.double().square().sum()), 1.0))


def random_fraction(dim: int, k: int) -> Estimate:
    """Mean fraction of a random direction, ``k / p``, with the standard deviation of one draw as its standard error.

    The fraction is Beta-distributed with parameters k/2 and (p - k)/2, of variance ``2 k (p - k) / (p^2 (p + 2))``.

    >>> random_fraction(100, 10).value
    0.1
    """
    spread = (2 * k * max(dim - k, 0) / (dim**2 * (dim + 2))) ** 0.5
    return Estimate(k / dim, standard_error=spread)


def overlap(first: Tensor, second: Tensor) -> Estimate:
    """Overlap ``tr(P_1 P_2) / min(k_1, k_2)`` of two spaces: 1 if one contains the other, 0 if they are orthogonal.

    Two random spaces of dimension k have an overlap of ``k / p`` on average.

    Args:
        first: (p, k_1), orthonormal columns.
        second: (p, k_2), orthonormal columns.
    """
    cosines = first.T @ second.to(first.device, first.dtype)
    return Estimate(min(float(cosines.double().square().sum()) / min(first.shape[1], second.shape[1]), 1.0))


def sharpness(learning_rate: float, largest: float) -> Estimate:
    """Learning rate times the largest eigenvalue. For plain gradient descent, 2 is the edge of stability.

    See Cohen et al. (2021, arXiv 2103.00065). With heavy-ball momentum beta the edge is at ``2 (1 + beta)``. For
    optimisers that scale each coordinate (Adam) there is no such threshold, because the stability depends on the
    preconditioned Hessian.
    """
    return Estimate(learning_rate * largest)
