"""The spectrum as a raw histogram of log10 |lambda|, in the form TensorBoard stores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.linalg.quadrature import node_residuals
from lightning_sloppy.quantities import Declaration
from lightning_sloppy.records import Measurement, Spectrum, Status
from lightning_sloppy.reporting.tags import tag

BINS_PER_DECADE = 4
"""Bins are aligned to quarters of a decade, so those of two steps coincide; the web page re-bins to 30 anyway."""


@dataclass(frozen=True)
class RawHistogram:
    """The arguments of ``SummaryWriter.add_histogram_raw`` without tag and step.

    Attributes:
        minimum: Left edge of the first bin, which is not empty.
        maximum: Right edge of the last bin, which is not empty.
        num: Number of eigenvalues; a float, since quadrature weights are fractions.
        total: Sum of the log10 values.
        sum_squares: Sum of their squares.
        bucket_limits: Right edge of each bin.
        bucket_counts: Eigenvalues in each bin, same length.
    """

    minimum: float
    maximum: float
    num: float
    total: float
    sum_squares: float
    bucket_limits: tuple[float, ...]
    bucket_counts: tuple[float, ...]


def histograms(measurement: Measurement, declaration: Declaration) -> dict[str, RawHistogram]:
    """Return the declared histograms of a measurement under their tags; empty when there is no usable spectrum.

    Positive and negative eigenvalues go under separate tags, because a logarithm has no sign.
    """
    spectrum = measurement.spectrum
    if spectrum is None or not (measurement.status.ok or measurement.status is Status.UNRESOLVED):
        return {}
    found: dict[str, RawHistogram] = {}
    for declared in declaration.histograms:
        shown = measurement.companions.get(declared.companion) if declared.companion else spectrum
        histogram = None if shown is None else log10_histogram(shown, negative=declared.negative)
        if histogram is not None:
            found[tag(declaration.name, declared.name)] = histogram
    return found


def log10_histogram(spectrum: Spectrum, *, negative: bool = False) -> RawHistogram | None:
    """Count ``log10 |lambda|`` of the eigenvalues of one sign whose magnitude exceeds the floor.

    The eigenvalues themselves are counted when all are there; where some are missing, the Gauss nodes of the density
    with the mean of their weights over the probe vectors; without a density, the eigenvalues that were computed. A
    node whose residual reaches zero is left out: it stands for eigenvalues of unknown magnitude, in networks mostly for
    those that are exactly zero.

    Args:
        spectrum: Eigenvalues or density, and the floor.
        negative: Count the negative eigenvalues instead of the positive ones.

    Returns:
        The histogram, or None when no eigenvalue qualifies.

    >>> values = torch.tensor([100.0, 10.0, 10.0, 1e-12], dtype=torch.float64)
    >>> spectrum = Spectrum(values, 4, 8, "hessian", 1e-9, Status.EXACT, torch.zeros(4), 100.0, 1e-12)
    >>> histogram = log10_histogram(spectrum)
    >>> histogram.minimum, histogram.maximum, histogram.bucket_counts
    (1.0, 2.25, (2.0, 0.0, 0.0, 0.0, 1.0))
    """
    values, weights = atoms(spectrum)
    signed = -values if negative else values
    kept = (signed > max(spectrum.floor, spectrum.noise_floor, 0.0)) & (weights > 0) & torch.isfinite(signed)
    if not bool(kept.any()):
        return None
    return _bin(signed[kept].log10(), weights[kept])


def atoms(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Return values and their weights, both 1-D float64 on the CPU."""
    density = spectrum.density
    if density is None or not spectrum.truncated:
        values = spectrum.eigenvalues.detach().to("cpu", torch.float64).flatten()
        return values, torch.ones_like(values)
    nodes = density.nodes.detach().to("cpu", torch.float64)
    weights = density.weights.detach().to("cpu", torch.float64) / max(1, nodes.shape[0])
    weights[nodes.abs() <= node_residuals(density).to("cpu", torch.float64)] = 0.0
    known = density.known.to("cpu", torch.float64)
    return torch.cat([nodes.flatten(), known]), torch.cat([weights.flatten(), torch.ones_like(known)])


def _bin(values: Tensor, weights: Tensor) -> RawHistogram:
    """Bin so that the end bins are not empty: TensorBoard drops empty ones and would then stretch their neighbours."""
    index = torch.floor(values * BINS_PER_DECADE).to(torch.int64)
    first, last = int(index.min()), int(index.max())
    counts = torch.zeros(last - first + 1, dtype=torch.float64).index_add_(0, index - first, weights)
    limits = tuple((first + i + 1) / BINS_PER_DECADE for i in range(len(counts)))
    return RawHistogram(
        minimum=first / BINS_PER_DECADE,
        maximum=limits[-1],
        num=math.fsum(weights.tolist()),
        total=float((weights * values).sum()),
        sum_squares=float((weights * values**2).sum()),
        bucket_limits=limits,
        bucket_counts=tuple(counts.tolist()),
    )
