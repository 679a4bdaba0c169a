"""How many directions count at a curvature scale: functionals of the *whole* spectrum.

``N_eff(z) = sum_i lambda_i / (lambda_i + z)`` (MacKay 1992) and ``p(n, epsilon) = #{lambda_i >= z}`` with
``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022): at z the data and a prior of precision epsilon
weigh the same. Pairs cut at k never feed them: such a sum is k itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.linalg.quadrature import gauss, gauss_radau
from lightning_sloppy.records import Density, Estimate, Spectrum, Status

LEVELS = 24
"""Thresholds at which the mass of an indefinite spectrum is bracketed: twice as many change the width by 1 to 2 %."""

HALF = 0.5
"""A count known to half an eigenvalue is known."""

RESOLVED = 0.10
"""A value whose truncation error is above this share of it is unresolved. A tenth: curves are read by eye."""


def curvature_scale(epsilon: float, n: int) -> float:
    """``z = epsilon / (2 (n - 1))``: the eigenvalue at which n samples and the prior weigh the same.

    Args:
        epsilon: Prior precision, positive.
        n: Training samples, at least 2.

    Raises:
        ConfigurationError: When either is out of range.

    >>> curvature_scale(4.0, 3)
    1.0
    """
    if not (epsilon > 0 and math.isfinite(epsilon)) or n < 2:
        raise ConfigurationError(
            f"The curvature scale needs epsilon > 0 and n >= 2, but got epsilon={epsilon} and n={n}; "
            "pass a positive epsilon= and at least two training samples."
        )
    return epsilon / (2 * (n - 1))


def effective_dimension(spectrum: Spectrum, z: float) -> Estimate:
    """``N_eff(z) = sum_i lambda_i / (lambda_i + z)`` over the eigenvalues above zero.

    * All eigenvalues known: exact.
    * A density of a positive semidefinite matrix: the Gauss rule lies above, the Gauss-Radau rule with a node at 0
      below (Golub and Meurant 2010, theorem 6.4); the middle is the value, half the width its truncation error.
    * A density of an indefinite matrix: the integrand has a kink at 0, where most eigenvalues sit, so that the Gauss
      rule can be wrong by a factor, even at several depths alike. The brackets of the counts above every threshold
      bound it (:func:`positive_soft_count_bracket`); they are wide, and it is often UNRESOLVED.
    * Neither: UNAVAILABLE.

    Args:
        spectrum: Of the Hessian, the Gauss-Newton or a Fisher matrix.
        z: Curvature scale, positive.

    Raises:
        ConfigurationError: When z is not positive.
    """
    if not z > 0:
        raise ConfigurationError(f"The curvature scale z must be positive, but is {z}; see curvature_scale().")
    if not spectrum.truncated:
        return Estimate(_soft_count(_clean(spectrum), z))
    if spectrum.density is None:
        return Estimate(math.nan, status=Status.UNAVAILABLE)
    if spectrum.density.positive_semidefinite:
        return _averaged(spectrum, lambda d, o: soft_count_bracket(d, o, z))
    return _averaged(spectrum, lambda d, o: positive_soft_count_bracket(d, o, z))


def eigenvalue_count(spectrum: Spectrum, z: float) -> Estimate:
    """``p(n, epsilon) = #{lambda_i >= z}`` for positive z.

    From a density: with a quadrature node placed at z, the nodes above it bound the count from below and the weight
    at z is all that can be missing (Chebyshev, Markov and Stieltjes); this holds for indefinite matrices as well.

    Args:
        spectrum: Of the Hessian, the Gauss-Newton or a Fisher matrix.
        z: Threshold, positive.
    """
    if not spectrum.truncated:
        return Estimate(float((_clean(spectrum) >= z).sum()))
    if spectrum.density is None:
        return Estimate(math.nan, status=Status.UNAVAILABLE)
    return _averaged(spectrum, lambda d, o: step_count_bracket(d, o, z), absolute=HALF)


def converged_above(spectrum: Spectrum, z: float) -> Estimate:
    """The number of known eigenvalues that are above z by more than their residual: a lower bound of the count."""
    above = (spectrum.eigenvalues - spectrum.residuals) > z
    return Estimate(float(above.sum()), lower_bound=True)


def negative_mass(spectrum: Spectrum) -> Estimate:
    """Share of the absolute trace that lies below zero, ``sum |lambda^-| / sum |lambda|``, in [0, 1].

    Exact from all eigenvalues; from a density by its Gauss nodes, as a ratio of means over the probe vectors (a mean
    of ratios would be biased where one eigenvalue carries the trace), with the change from half the depth as
    truncation error.
    """
    if not spectrum.truncated:
        values = spectrum.eigenvalues
        total = float(values.abs().sum())
        return Estimate(float(-values.clamp_max(0).sum()) / total if total else 0.0)
    if spectrum.density is None:
        return Estimate(math.nan, status=Status.UNAVAILABLE)

    masses = torch.tensor([_masses(d, o) for d, o in _pairs(spectrum.density)], dtype=torch.float64)
    coarse = torch.tensor([_masses(*_cut(d, o, 0.5)) for d, o in _pairs(spectrum.density)], dtype=torch.float64)
    below, total = masses.mean(dim=0).tolist()
    value = below / total if total else 0.0
    halfway = float(coarse[:, 0].sum() / coarse[:, 1].sum().clamp_min(1e-300)) if total else 0.0
    truncation = abs(value - halfway)
    # The delta method: the ratio varies as the part below zero varies beside its share of the whole.
    beside = masses[:, 0] - value * masses[:, 1]
    error = _standard_error(beside) / total if total else 0.0
    # A mass close to zero is resolved although its relative error is large.
    resolved = truncation <= max(RESOLVED * value, RESOLVED / 10) and math.isfinite(error)
    return Estimate(value, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)


def _masses(diagonal: Tensor, offdiagonal: Tensor) -> tuple[float, float]:
    """Mean of ``|t|`` over the Gauss rule: its part below zero, and all of it."""
    nodes, weights = gauss(diagonal, offdiagonal)
    return float(-(weights * nodes.clamp_max(0)).sum()), float((weights * nodes.abs()).sum())


def soft_count_bracket(diagonal: Tensor, offdiagonal: Tensor, z: float) -> tuple[float, float]:
    """Lower and upper bound of ``sum_j w_j t_j / (t_j + z)`` for one unit probe vector, T positive semidefinite."""
    nodes, weights = gauss(diagonal, offdiagonal)
    upper = float((weights * _soft(nodes, z)).sum())
    if float(offdiagonal[-1]) == 0.0:
        return upper, upper
    nodes, weights = gauss_radau(diagonal, offdiagonal, 0.0)
    lower = float((weights * _soft(nodes, z)).sum())
    # Rounding can make a Ritz value cross zero; then the rules may swap by a rounding error.
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
    """Lower and upper bound of ``sum_j w_j t_j / (t_j + z)`` over t_j > 0, for one unit probe vector, T indefinite.

    With ``u = t / (t + z)`` the sum is the integral over u in (0, 1) of the mass at or above ``t(u) = z u / (1 - u)``,
    and that mass is bracketed at every threshold. The integral is a Gauss-Legendre sum of 24 terms.
    """
    nodes, weights = gauss(diagonal, offdiagonal)
    seen = float((weights * _soft(nodes, z)).sum())
    if float(offdiagonal[-1]) == 0.0:
        return seen, seen
    points, shares = np.polynomial.legendre.leggauss(LEVELS)
    levels = [step_count_bracket(diagonal, offdiagonal, z * (1 + x) / (1 - x)) for x in points.tolist()]
    lower, upper = (shares / 2 @ np.array(levels)).tolist()
    # The Gauss rule lies inside the bracket; so it stays, whatever the sum of 24 terms makes of a step.
    return min(lower, seen), max(upper, seen)


def _averaged(
    spectrum: Spectrum, bracket: Callable[[Tensor, Tensor], tuple[float, float]], *, absolute: float = 0.0
) -> Estimate:
    """Mean over the probe vectors of the middle of the brackets, with both errors; resolved to a tenth or so far."""
    density = spectrum.density
    assert density is not None
    bounds = torch.tensor([bracket(d, o) for d, o in _pairs(density)], dtype=torch.float64) * spectrum.dim
    middle = bounds.mean(dim=1)
    value = float(middle.mean())
    truncation = float((bounds[:, 1] - bounds[:, 0]).mean()) / 2
    error = _standard_error(middle)
    resolved = truncation <= max(RESOLVED * abs(value), absolute) and math.isfinite(error)
    return Estimate(value, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)


def _standard_error(samples: Tensor) -> float:
    """Of the mean; infinite for one sample, which tells nothing about the others."""
    return float(samples.std(unbiased=True)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf


def _pairs(density: Density) -> list[tuple[Tensor, Tensor]]:
    return list(zip(density.diagonals, density.offdiagonals, strict=True))


def _cut(diagonal: Tensor, offdiagonal: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The leading part of T; an exhausted T is exact and stays whole."""
    if float(offdiagonal[-1]) == 0.0:
        return diagonal, offdiagonal
    size = max(1, round(len(diagonal) * share))
    return diagonal[:size], offdiagonal[:size]


def _clean(spectrum: Spectrum) -> Tensor:
    """Eigenvalues with rounding noise set to zero."""
    values = spectrum.eigenvalues
    return values.where(values.abs() > spectrum.floor, torch.zeros_like(values))


def _soft_count(values: Tensor, z: float) -> float:
    return float(_soft(values, z).sum())


def _soft(values: Tensor, z: float) -> Tensor:
    """``t / (t + z)`` for t above zero, else zero: the sum over a negative tail has a pole at -z."""
    positive = values.clamp_min(0)
    return positive / (positive + z)


def density_is_resolved(diagonal: Tensor, offdiagonal: Tensor, scales: tuple[float, ...], rel_tol: float) -> bool:
    """Whether the bracket of N_eff is narrower than ``rel_tol`` of its middle at every scale: when to stop Lanczos."""
    for z in scales:
        lower, upper = soft_count_bracket(diagonal, offdiagonal, z)
        if upper - lower > rel_tol * (upper + lower) / 2:
            return False
    return True


def count_is_resolved(diagonal: Tensor, offdiagonal: Tensor, z: float, dim: int) -> bool:
    """Whether the count above z is known to a tenth of it, or to half an eigenvalue, for one probe vector."""
    lower, upper = step_count_bracket(diagonal, offdiagonal, z)
    return (upper - lower) / 2 <= max(RESOLVED * (upper + lower) / 2, HALF / dim)


def of_half_the_samples(spectrum: Spectrum) -> Spectrum | None:
    """The same matrix from the first half of the samples, when its eigenvalues were kept: how much does N matter?"""
    values = spectrum.half_eigenvalues
    if values is None:
        return None
    return replace(
        spectrum,
        eigenvalues=values,
        residuals=torch.zeros_like(values),
        largest=float(values[0]),
        rank_bound=len(values),
        num_samples=spectrum.num_samples // 2,
        half_eigenvalues=None,
        trace=None,
    )
