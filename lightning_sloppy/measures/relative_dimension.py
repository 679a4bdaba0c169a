"""Effective dimensions without a scale of their own: how many directions hold a part of the trace, each or together.

``relative_dimension(A, c) = sum_i lambda_i / (lambda_i + z)`` at ``z = c tr A``: a direction that holds the fraction c
of the whole counts one half, one that holds much more counts one. Multiplying the matrix by a number changes nothing.
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
"""The usual fraction c: a direction that holds a thousandth of the trace counts one half."""

_STEP = 0.05
"""Relative step of the difference that gives the slope of the dimension in z: its curvature there is mild."""


def relative_dimension(spectrum: Spectrum, c: float = THOUSANDTH) -> Estimate:
    """``sum_i lambda_i / (lambda_i + c tr A)`` of a positive semidefinite matrix: at most ``1 / c``.

    A flat spectrum of rank r gives ``r / (1 + c r)``, so that values near the cap ``1 / c`` say that the cap is reached
    and not how many directions there are.

    * All eigenvalues known: exact, up to rounding; noise below the floor counts as zero.
    * A density with probe vectors: the brackets of :func:`effective_dimension` at z, with the trace estimated from the
      same probe vectors, unless it is known. The standard error is that of both together, by the delta method: the
      trace and the sum move together from probe vector to probe vector.
    * Eigenvalues cut at k, or an indefinite matrix: UNAVAILABLE.

    Args:
        spectrum: Of the Jacobian, the Fisher matrix, the Gauss-Newton part, or the inputs.
        c: Fraction of the trace, in (0, 1). 1e-3: the cap is 1,000, and float32 spectra are resolved there.

    Raises:
        ConfigurationError: For c outside (0, 1).

    >>> import torch
    >>> from lightning_sloppy.records import Spectrum, Status
    >>> flat = torch.ones(50, dtype=torch.float64)
    >>> spectrum = Spectrum(flat, 80, 64, "covariance", 0.0, Status.EXACT, 0 * flat, 1.0, 0.0)
    >>> round(relative_dimension(spectrum).value, 3)  # 50 / (1 + 0.05)
    47.619
    """
    if not 0 < c < 1:
        raise ConfigurationError(f"c={c} is no fraction of the trace; pass a number between 0 and 1 such as 1e-3.")
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
    """The fewest eigenvalues that hold this fraction of the trace together: n90 for 0.9.

    Only where all eigenvalues of a positive semidefinite matrix are known, else UNAVAILABLE.

    Args:
        spectrum: Of the Jacobian, the Fisher matrix, or the inputs.
        fraction: Of the trace, in (0, 1).

    Raises:
        ConfigurationError: For a fraction outside (0, 1).

    >>> import torch
    >>> from lightning_sloppy.records import Spectrum, Status
    >>> values = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    >>> spectrum = Spectrum(values, 3, 64, "covariance", 0.0, Status.EXACT, 0 * values, 6.0, 1.0)
    >>> directions_holding(spectrum, 0.9).value, directions_holding(spectrum, 0.91).value
    (2.0, 3.0)
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction={fraction} of a trace was asked for; pass a number between 0 and 1.")
    if spectrum.truncated or spectrum.smallest < -spectrum.floor:
        return UNAVAILABLE
    values = _resolved(spectrum).sort(descending=True).values
    total = float(values.sum())
    if total <= 0:
        return Estimate(0.0)
    # A sum that falls short by a rounding error is as good as the fraction itself.
    missing = values.cumsum(0) < fraction * total * (1 - 1e-12)
    return Estimate(float(missing.sum()) + 1.0)


def relative_estimates(spectrum: Spectrum, prefix: str = "") -> dict[str, Estimate]:
    """The dimension at c = 1e-3 with its band at 10 c and c / 10, n90, and both from half of the samples.

    Args:
        spectrum: Positive semidefinite.
        prefix: Before each name, for a matrix that is not the headline of its group.

    Returns:
        ``effective_dimension``, ``effective_dimension_coarse`` (10 c), ``effective_dimension_fine`` (c / 10), ``n90``
        where all eigenvalues are known; ``effective_dimension_half_samples`` and ``n90_half_samples`` where the
        eigenvalues of half of the samples are.
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
    """Eigenvalues with rounding noise set to zero."""
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
    # The delta method: what one probe vector more or less does to the sum, at its own z and through z.
    error = standard_error(middle if trace is not None else middle + slope * c * traces)
    truncation = float((bounds[:, 1] - bounds[:, 0]).mean()) / 2 + coupling(density) / z
    found = float(middle.mean()) + float(soft(density.known, z).sum())
    resolved = truncation <= RESOLVED * abs(found) and math.isfinite(error)
    return Estimate(found, error, truncation, Status.CONVERGED if resolved else Status.UNRESOLVED)
