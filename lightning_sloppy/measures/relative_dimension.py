"""Effective dimensions relative to the trace, which need no curvature scale.

``relative_dimension(A, c) = sum_i lambda_i / (lambda_i + z)`` at ``z = c tr A``. An eigenvalue equal to the fraction c
of the trace counts 1/2, a much larger one counts nearly 1. Multiplying the matrix by a positive number does not change
the value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.brackets import RESOLVED, soft, soft_count_bracket
from lightning_sloppy.measures.functionals import UNAVAILABLE, coupling, pairs, standard_error
from lightning_sloppy.records import Density, Estimate, Spectrum, Status

THOUSANDTH = 1e-3
"""The usual fraction c: an eigenvalue that is a thousandth of the trace counts 1/2."""

_STEP = 0.05
"""Relative step of the difference quotient for the slope of the dimension in z, whose curvature there is small."""


def relative_dimension(spectrum: Spectrum, c: float = THOUSANDTH) -> Estimate:
    """Effective dimension ``sum_i lambda_i / (lambda_i + c tr A)`` of a positive semidefinite matrix A.

    It is at most ``1 / c``. A flat spectrum of rank r gives ``r / (1 + c r)``. So a value near ``1 / c`` says that this
    limit is reached, not how many directions there are.

    * If all eigenvalues are known, the value is exact up to rounding. Eigenvalues below the floor count as zero.
    * From a density with probe vectors, the value is bracketed as in :func:`effective_dimension` at z. The trace is
      estimated from the same probe vectors unless it is known. The standard error accounts for both by the delta
      method, because the trace and the sum are correlated over the probe vectors.
    * If only the k largest eigenvalues are known, or the matrix is indefinite, the estimate is UNAVAILABLE.

    Args:
        spectrum: Spectrum of the Jacobian, the Fisher matrix, the Gauss-Newton part, or the inputs.
        c: Fraction of the trace, in (0, 1). With 1e-3 the limit is 1,000, and float32 spectra are resolved there.

    Raises:
        ConfigurationError: If c is not in (0, 1).

    >>> import torch
    >>> from lightning_sloppy.records import Spectrum, Status
    >>> flat = torch.ones(50, dtype=torch.float64)
    >>> spectrum = Spectrum(flat, 80, 64, "covariance", 0.0, Status.EXACT, 0 * flat, 1.0, 0.0)
    >>> round(relative_dimension(spectrum).value, 3)  # 50 / (1 + 0.05)
    47.619
    """
    if not 0 < c < 1:
        raise ConfigurationError(f"c={c} is not a fraction of the trace; pass a number between 0 and 1 such as 1e-3.")
    if spectrum.smallest < -spectrum.floor:
        return UNAVAILABLE
    if not spectrum.truncated:
        values = _resolved(spectrum)
        total = float(values.sum())
        return Estimate(float(soft(values, c * total).sum()) if total > 0 else 0.0)
    density = spectrum.density
    if density is None or not density.positive_semidefinite:
        return UNAVAILABLE
    trace = spectrum.trace
    known = None if trace is None or trace.status is not Status.EXACT or trace.total_error else trace.value
    return _from_density(density, c, known)


def directions_holding(spectrum: Spectrum, fraction: float) -> Estimate:
    """Smallest number of eigenvalues whose sum is at least this fraction of the trace: n90 for 0.9.

    UNAVAILABLE unless all eigenvalues of a positive semidefinite matrix are known.

    Args:
        spectrum: Spectrum of the Jacobian, the Fisher matrix, or the inputs.
        fraction: Fraction of the trace, in (0, 1).

    Raises:
        ConfigurationError: If the fraction is not in (0, 1).

    >>> import torch
    >>> from lightning_sloppy.records import Spectrum, Status
    >>> values = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    >>> spectrum = Spectrum(values, 3, 64, "covariance", 0.0, Status.EXACT, 0 * values, 6.0, 1.0)
    >>> directions_holding(spectrum, 0.9).value, directions_holding(spectrum, 0.91).value
    (2.0, 3.0)
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction={fraction} is not a fraction of the trace; pass a number between 0 and 1.")
    if spectrum.truncated or spectrum.smallest < -spectrum.floor:
        return UNAVAILABLE
    values = _resolved(spectrum).sort(descending=True).values
    total = float(values.sum())
    if total <= 0:
        return Estimate(0.0)
    # A sum that is too small only by a rounding error counts as reaching the fraction.
    missing = values.cumsum(0) < fraction * total * (1 - 1e-12)
    return Estimate(float(missing.sum()) + 1.0)


def relative_estimates(spectrum: Spectrum, prefix: str = "") -> dict[str, Estimate]:
    """The dimension at c = 1e-3, its band at 10 c and c / 10, n90, and both from half of the samples.

    Args:
        spectrum: Spectrum of a positive semidefinite matrix.
        prefix: Prefix of each name, for a matrix that is not the headline of its group.

    Returns:
        ``effective_dimension``, ``effective_dimension_coarse`` (10 c) and ``effective_dimension_fine`` (c / 10). If all
        eigenvalues are known, ``n90``. If those of half of the samples are known,
        ``effective_dimension_half_samples`` and ``n90_half_samples``.
    """
    from lightning_sloppy.measures.effective_dimension import of_half_the_samples

    found = {
        "effective_dimension": relative_dimension(spectrum),
        "effective_dimension_coarse": relative_dimension(spectrum, 10 * THOUSANDTH),
        "effective_dimension_fine": relative_dimension(spectrum, THOUSANDTH / 10),
    }
    if not spectrum.truncated:
        found["n90"] = directions_holding(spectrum, 0.9)
    half = of_half_the_samples(spectrum)
    if half is not None:
        found["effective_dimension_half_samples"] = relative_dimension(half)
        found["n90_half_samples"] = directions_holding(half, 0.9)
    return {prefix + name: estimate for name, estimate in found.items()}


def _resolved(spectrum: Spectrum) -> Tensor:
    """The eigenvalues, with those below the rounding floor set to zero."""
    values = spectrum.eigenvalues
    return values.where(values > max(spectrum.floor, 0.0), torch.zeros_like(values))


def _from_density(density: Density, c: float, trace: float | None) -> Estimate:
    traces = torch.stack([diagonal[0] for diagonal, _ in pairs(density)]) * density.masses
    total = float(traces.mean() + density.known.sum()) if trace is None else trace
    if not total > 0:
        return Estimate(0.0) if total == 0 else Estimate(math.nan, status=Status.UNRESOLVED)
    z = c * total

    def brackets(scale: float) -> Tensor:
        bounds = [soft_count_bracket(d, o, scale) for d, o in pairs(density)]
        return torch.tensor(bounds, dtype=torch.float64) * density.masses.unsqueeze(1)

    def value(scale: float) -> float:
        return float(brackets(scale).mean()) + float(soft(density.known, scale).sum())

    bounds = brackets(z)
    middle = bounds.mean(dim=1)
    slope = (value(z * (1 + _STEP)) - value(z * (1 - _STEP))) / (2 * _STEP * z)
    # The delta method: how one probe vector changes the sum, directly and through z.
    error = standard_error(middle if trace is not None else middle + slope * c * traces)
    truncation = float((bounds[:, 1] - bounds[:, 0]).mean()) / 2 + coupling(density) / z
    found = float(middle.mean()) + float(soft(density.known, z).sum())
    resolved = truncation <= RESOLVED * abs(found) and math.isfinite(error)
    return Estimate(found, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)
