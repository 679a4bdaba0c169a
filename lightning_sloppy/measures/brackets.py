"""Rigorous bounds of spectral integrals from the tridiagonal matrix of one probe vector of unit norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from lightning_sloppy.linalg.quadrature import gauss, gauss_radau

LEVELS = 24
"""Thresholds at which the mass of an indefinite spectrum is bracketed. Doubling them changes the width by 1 to 2 %."""

HALF = 0.5
"""A count with an error of at most half an eigenvalue is resolved."""

RESOLVED = 0.10
"""A value whose truncation error exceeds this fraction of it is unresolved. A tenth, as curves are read by eye."""


def soft_count_bracket(diagonal: Tensor, offdiagonal: Tensor, z: float) -> tuple[float, float]:
    """Lower and upper bound of ``sum_j w_j t_j / (t_j + z)`` for one unit probe vector, T positive semidefinite.

    The derivatives of ``t / (t + z)`` alternate in sign, and the first is positive. So the Gauss rule is an upper
    bound, and the Gauss-Radau rule with a node at 0 is a lower bound (Golub and Meurant 2010, theorem 6.4).
    """
    nodes, weights = gauss(diagonal, offdiagonal)
    upper = float((weights * soft(nodes.clamp_min(0), z)).sum())
    if float(offdiagonal[-1]) == 0.0:
        return upper, upper
    nodes, weights = gauss_radau(diagonal, offdiagonal, 0.0)
    lower = float((weights * soft(nodes.clamp_min(0), z)).sum())
    # Rounding can make a Ritz value cross zero. Then the two rules may be in the wrong order by a rounding error.
    return min(lower, upper), max(lower, upper)


def step_count_bracket(diagonal: Tensor, offdiagonal: Tensor, z: float) -> tuple[float, float]:
    """Lower and upper bound of the spectral mass at or above z, for one probe vector of unit norm."""
    nodes, weights = gauss_radau(diagonal, offdiagonal, z)
    if float(offdiagonal[-1]) == 0.0:
        mass = float(weights[nodes >= z].sum())
        return mass, mass
    at = int((nodes - z).abs().argmin())
    above = nodes > z
    above[at] = False
    mass = float(weights[above].sum())
    return mass, mass + float(weights[at])


def positive_soft_count_bracket(diagonal: Tensor, offdiagonal: Tensor, z: float) -> tuple[float, float]:
    """Lower and upper bound of ``sum_j w_j t_j / (t_j + z)`` over t_j > 0, for one unit probe vector, T indefinite."""
    return increasing_bracket(
        diagonal, offdiagonal, lambda nodes: soft(nodes, z), lambda level: z * level / (1 - level)
    )


def increasing_bracket(
    diagonal: Tensor,
    offdiagonal: Tensor,
    function: Callable[[Tensor], Tensor],
    threshold: Callable[[float], float],
) -> tuple[float, float]:
    """Lower and upper bound of ``sum_j w_j f(t_j)`` over t_j > 0 for f that increases from 0 to 1; T may be indefinite.

    The sum is the integral over u in (0, 1) of the mass at or above the t with f(t) = u. That mass is bracketed at each
    threshold. The integral is computed as a Gauss-Legendre sum of 24 terms.

    Args:
        diagonal: Diagonal of T.
        offdiagonal: Off-diagonal of T.
        function: f, zero for t <= 0.
        threshold: Inverse of f.
    """
    nodes, weights = gauss(diagonal, offdiagonal)
    seen = float((weights * function(nodes)).sum())
    if float(offdiagonal[-1]) == 0.0:
        return seen, seen
    points, rule = np.polynomial.legendre.leggauss(LEVELS)
    levels = [step_count_bracket(diagonal, offdiagonal, threshold((1 + x) / 2)) for x in points.tolist()]
    lower, upper = (rule / 2 @ np.array(levels)).tolist()
    # The true bracket contains the Gauss rule. The sum of 24 terms may miss it at a step, so it is included here.
    return min(lower, seen), max(upper, seen)


def soft(values: Tensor, z: float) -> Tensor:
    """``t / (t + z)`` for t > 0, else zero, because the function has a pole at -z."""
    positive = values.clamp_min(0)
    return positive / (positive + z)


def density_is_resolved(diagonal: Tensor, offdiagonal: Tensor, scales: tuple[float, ...], rel_tol: float) -> bool:
    """Whether the bracket of N_eff is narrower than ``rel_tol`` times its middle at every scale; then Lanczos stops."""
    for z in scales:
        lower, upper = soft_count_bracket(diagonal, offdiagonal, z)
        if upper - lower > rel_tol * (upper + lower) / 2:
            return False
    return True


def count_is_resolved(diagonal: Tensor, offdiagonal: Tensor, z: float, dim: int) -> bool:
    """Whether the error of the count above z is at most a tenth of it, or half an eigenvalue, for one probe vector."""
    lower, upper = step_count_bracket(diagonal, offdiagonal, z)
    return (upper - lower) / 2 <= max(RESOLVED * (upper + lower) / 2, HALF / dim)
