"""Functionals of a whole spectrum, exact from all eigenvalues or estimated from a density with both errors apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import t as student
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.linalg.quadrature import gauss
from lightning_sloppy.measures.brackets import RESOLVED, concave_bracket
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


def log_determinant(spectrum: Spectrum, kappa: float) -> Estimate:
    """``log det(I + kappa A) = sum_i log(1 + kappa lambda_i)`` of a positive semidefinite matrix.

    From a density the Gauss and Gauss-Radau rules bracket it. Of an indefinite matrix it is UNAVAILABLE: it need not
    exist.

    Args:
        spectrum: Of the Gauss-Newton or a Fisher matrix.
        kappa: Positive.

    Raises:
        ConfigurationError: When kappa is not positive.
    """
    if not kappa > 0:
        raise ConfigurationError(f"log det(I + kappa A) needs kappa > 0, but kappa is {kappa}; pass a positive number.")

    def exact(values: Tensor) -> float:
        return float(torch.log1p(kappa * values.clamp_min(0)).sum())

    if spectrum.smallest < -spectrum.floor:
        return UNAVAILABLE
    if not spectrum.truncated:
        return Estimate(exact(spectrum.eigenvalues))
    density = spectrum.density
    if density is None or not density.positive_semidefinite:
        return UNAVAILABLE
    return averaged(
        density, lambda d, o: concave_bracket(d, o, lambda nodes: torch.log1p(kappa * nodes)), exact, slope=kappa
    )


def density_curve(spectrum: Spectrum, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """The spectral density smoothed by a Gaussian, and its standard error over the probe vectors, at each grid point.

    ``sum_i exp(-(x - lambda_i)^2 / (2 width^2)) / (p width sqrt(2 pi))``: it integrates to one over the whole line.

    Args:
        spectrum: With all eigenvalues, or with a density.
        grid: Points, (g,).
        width: Standard deviation of the Gaussian, in units of the eigenvalues.

    Raises:
        ConfigurationError: For a width that is not positive, or a spectrum that knows only some eigenvalues.
    """
    if not width > 0:
        raise ConfigurationError(f"A density is smoothed by a positive width, but width is {width}.")

    def smoothed(values: Tensor, weights: Tensor) -> Tensor:
        heights = torch.exp(-((grid.double().unsqueeze(1) - values) ** 2) / (2 * width**2))
        result: Tensor = heights @ weights / (width * math.sqrt(2 * math.pi))
        return result

    if not spectrum.truncated:
        values = spectrum.eigenvalues
        missing = spectrum.dim - len(values)
        curve = smoothed(
            torch.cat([values, values.new_zeros(1)]), torch.tensor([*[1.0] * len(values), missing]).double()
        )
        return curve / spectrum.dim, torch.zeros_like(curve)
    density = spectrum.density
    if density is None:
        raise ConfigurationError("A density needs all eigenvalues or probe vectors; pass probes= to hessian_spectrum.")
    known = smoothed(density.known, torch.ones_like(density.known))
    curves = torch.stack([smoothed(n, w) for n, w in zip(density.nodes, density.weights, strict=True)]) + known
    curves = curves / (density.masses + len(density.known)).unsqueeze(1)
    error = curves.std(0) / len(curves) ** 0.5 if len(curves) > 1 else torch.full_like(curves[0], math.inf)
    return curves.mean(0), error


def confidence_interval(spectrum: Spectrum, estimate: Estimate, level: float = 0.99) -> tuple[float, float]:
    """Student-t interval of an estimate from the probe vectors of a spectrum, widened by the truncation error.

    Args:
        spectrum: What the estimate was made from.
        estimate: A functional of it.
        level: Nominal coverage.
    """
    count = 2 if spectrum.density is None else len(spectrum.density.diagonals)
    quantile = float(student.ppf((1 + level) / 2, count - 1))
    reach = quantile * estimate.standard_error + estimate.truncation_error
    return estimate.value - reach, estimate.value + reach


def negative_mass(spectrum: Spectrum) -> Estimate:
    """Fraction of the absolute trace that lies below zero, ``sum |lambda^-| / sum |lambda|``, in [0, 1].

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

    density = spectrum.density
    known = torch.tensor([float(-density.known.clamp_max(0).sum()), float(density.known.abs().sum())]).double()
    masses, coarse = (
        torch.tensor([_masses(*cut(d, o, fraction)) for d, o in pairs(density)], dtype=torch.float64)
        * density.masses.unsqueeze(1)
        + known
        for fraction in (1.0, 0.5)
    )
    below, total = masses.mean(dim=0).tolist()
    value = below / total if total else 0.0
    halfway = float(coarse[:, 0].sum() / coarse[:, 1].sum().clamp_min(1e-300)) if total else 0.0
    truncation = abs(value - halfway)
    # The delta method: the ratio varies as the part below zero varies beside its fraction of the whole.
    beside = masses[:, 0] - value * masses[:, 1]
    error = standard_error(beside) / total if total else 0.0
    # A mass close to zero is resolved although its relative error is large.
    resolved = truncation <= max(RESOLVED * value, RESOLVED / 10) and math.isfinite(error)
    return Estimate(value, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)


def _masses(diagonal: Tensor, offdiagonal: Tensor) -> tuple[float, float]:
    """Mean of ``|t|`` over the Gauss rule: its part below zero, and all of it."""
    nodes, weights = gauss(diagonal, offdiagonal)
    return float(-(weights * nodes.clamp_max(0)).sum()), float((weights * nodes.abs()).sum())


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
