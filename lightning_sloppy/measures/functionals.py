"""Functionals of a whole spectrum: exact from all eigenvalues, or estimated from a density with two separate errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_sloppy.measures.brackets import RESOLVED
from lightning_sloppy.records import Density, Estimate, Spectrum, Status

UNAVAILABLE = Estimate(math.nan, status=Status.UNAVAILABLE)


def averaged(
    density: Density,
    bracket: Callable[[Tensor, Tensor], tuple[float, float]],
    exact: Callable[[Tensor], float],
    *,
    slope: float = 0.0,
    absolute: float = 0.0,
) -> Estimate:
    """Estimate a functional ``sum_i f(lambda_i)``: exact over the known eigenvalues, bracketed over the rest.

    Over the rest, the value is the middle of the brackets. The known pairs and the rest are coupled by off-diagonal
    blocks of norm r_i, the residuals. Neglecting them changes the functional, to second order, by at most
    ``sum_i r_i^2 slope / gap_i``, where gap_i is the distance from the spectrum of the rest. This is part of the
    truncation error.

    Args:
        density: The quadrature.
        bracket: Function that returns the lower and upper bound for one probe vector of unit norm.
        exact: Function that returns the functional of given eigenvalues.
        slope: Largest ``|f'(a) - f'(b)|`` between two eigenvalues.
        absolute: Truncation error that is accepted for any value.
    """
    bounds = torch.tensor([bracket(d, o) for d, o in pairs(density)], dtype=torch.float64)
    bounds = bounds * density.masses.unsqueeze(1)
    middle = bounds.mean(dim=1)
    value = float(middle.mean()) + exact(density.known)
    truncation = float((bounds[:, 1] - bounds[:, 0]).mean()) / 2 + slope * coupling(density)
    error = standard_error(middle)
    resolved = truncation <= max(RESOLVED * abs(value), absolute) and math.isfinite(error)
    return Estimate(value, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)


def frobenius_norm(spectrum: Spectrum) -> Estimate:
    """Frobenius norm ``||A||_F = (sum_i lambda_i^2)^(1/2)``.

    From a density, ``||A v||^2`` is the sum of the squares of the first diagonal and the first off-diagonal entry of T,
    so there is no truncation error. The blocks that couple known pairs and the rest are counted by their residuals.
    """
    if not spectrum.truncated:
        return Estimate(float(spectrum.eigenvalues.square().sum()) ** 0.5)
    density = spectrum.density
    if density is None:
        return UNAVAILABLE
    squares = torch.stack([d[0] ** 2 + o[0] ** 2 for d, o in pairs(density)]) * density.masses
    known = float(density.known.square().sum() + 2 * density.known_residuals.square().sum())
    value = (float(squares.mean()) + known) ** 0.5
    # The delta method for the square root of a mean.
    error = standard_error(squares) / (2 * value) if value > 0 else 0.0
    return Estimate(value, error, status=Status.CONVERGED if math.isfinite(error) else Status.UNRESOLVED)


def standard_error(samples: Tensor) -> float:
    """Standard error of the mean; infinite for a single sample."""
    return float(samples.std(unbiased=True)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf


def pairs(density: Density) -> list[tuple[Tensor, Tensor]]:
    """Diagonal and off-diagonal of T for each probe vector."""
    return list(zip(density.diagonals, density.offdiagonals, strict=True))


def cut(diagonal: Tensor, offdiagonal: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The leading part of T. A T of an exhausted Lanczos process is exact and is returned whole."""
    if float(offdiagonal[-1]) == 0.0:
        return diagonal, offdiagonal
    size = max(1, round(len(diagonal) * fraction))
    return diagonal[:size], offdiagonal[:size]


def coupling(density: Density) -> float:
    """``sum_i r_i^2 / gap_i`` over the known pairs: how strongly they are coupled to the rest."""
    if len(density.known) == 0:
        return 0.0
    low, high = float(density.nodes.min()), float(density.nodes.max())
    gaps = torch.maximum(density.known - high, low - density.known)
    squares = density.known_residuals.square()
    # The known values and the rest may overlap by the error of the known ones, which is at most the residual.
    return float((squares / torch.maximum(gaps, density.known_residuals).clamp_min(1e-300)).sum())
