"""Functionals of a whole spectrum, exact from all eigenvalues or estimated from a density with both errors apart."""

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
    """A functional ``sum_i f(lambda_i)``: exact over the known eigenvalues, the middle of the brackets over the rest.

    The known pairs and the rest share off-diagonal blocks of norm r_i, the residuals. To second order in them the
    functional of the two blocks apart differs from that of the matrix by at most ``sum_i r_i^2 slope / gap_i`` with
    the distance gap_i from the spectrum of the rest; it is part of the truncation error.

    Args:
        density: The quadrature.
        bracket: Lower and upper bound for one probe vector of unit norm.
        exact: The functional of some eigenvalues.
        slope: Largest ``|f'(a) - f'(b)|`` between two eigenvalues.
        absolute: Truncation error that is fine whatever the value.
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
    """``||A||_F = (sum_i lambda_i^2)^(1/2)``.

    From a density ``||A v||^2`` is the first diagonal entry of T squared plus the first off-diagonal one squared, so
    there is no truncation error; the blocks that known pairs share with the rest count by their residuals.
    """
    if not spectrum.truncated:
        return Estimate(float(spectrum.eigenvalues.square().sum()) ** 0.5)
    density = spectrum.density
    if density is None:
        return UNAVAILABLE
    squares = torch.stack([d[0] ** 2 + o[0] ** 2 for d, o in pairs(density)]) * density.masses
    known = float(density.known.square().sum() + 2 * density.known_residuals.square().sum())
    value = (float(squares.mean()) + known) ** 0.5
    # The delta method: the root of a mean.
    error = standard_error(squares) / (2 * value) if value > 0 else 0.0
    return Estimate(value, error, status=Status.CONVERGED if math.isfinite(error) else Status.UNRESOLVED)


def standard_error(samples: Tensor) -> float:
    """Of the mean; infinite for one sample, which tells nothing about the others."""
    return float(samples.std(unbiased=True)) / math.sqrt(len(samples)) if len(samples) > 1 else math.inf


def pairs(density: Density) -> list[tuple[Tensor, Tensor]]:
    """Diagonal and off-diagonal of T for each probe vector."""
    return list(zip(density.diagonals, density.offdiagonals, strict=True))


def cut(diagonal: Tensor, offdiagonal: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The leading part of T; an exhausted T is exact and stays whole."""
    if float(offdiagonal[-1]) == 0.0:
        return diagonal, offdiagonal
    size = max(1, round(len(diagonal) * fraction))
    return diagonal[:size], offdiagonal[:size]


def coupling(density: Density) -> float:
    """``sum_i r_i^2 / gap_i`` over the known pairs: how far they and the rest are from being apart."""
    if len(density.known) == 0:
        return 0.0
    low, high = float(density.nodes.min()), float(density.nodes.max())
    gaps = torch.maximum(density.known - high, low - density.known)
    squares = density.known_residuals.square()
    # Beside one another known and rest may overlap by the error of the known: then by the residual at most.
    return float((squares / torch.maximum(gaps, density.known_residuals).clamp_min(1e-300)).sum())
