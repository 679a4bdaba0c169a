"""Data without structure, to compare a spectrum of the inputs with: shuffled columns, isotropic Gaussian samples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_sloppy.inputs.moments import Moments
from lightning_sloppy.inputs.rows import as_rows
from lightning_sloppy.inputs.spectrum import InputKind, moments_spectrum
from lightning_sloppy.records import Spectrum

NULLS: dict[InputKind, str] = {
    "correlation": "shuffled columns",
    "covariance": "isotropic Gaussian samples",
    "second_moment": "isotropic Gaussian samples",
}
"""The null of each kind of matrix, in words."""

MOST_DRAWN = 2_048
"""Features up to which a null is drawn; above, its eigenvalues are the quantiles of their limit."""

GRID = 20_001
"""Points at which the distribution function of Marchenko and Pastur is summed: its quantiles are good to 1e-4."""


def shuffled(inputs: Tensor, rng: torch.Generator) -> Tensor:
    """Each column in an order of its own, (n, d): every column keeps its values, and what they say of one another goes.

    Args:
        inputs: (n, ...).
        rng: On the CPU.
    """
    rows = as_rows(inputs)
    order = torch.rand(rows.shape, generator=rng).argsort(dim=0).to(rows.device)
    return rows.gather(0, order)


def isotropic_spectrum(spectrum: Spectrum, seed: int) -> Spectrum:
    """Of Gaussian samples with independent features of one variance: as many samples, features and trace.

    The scatter of n such samples has the Wishart distribution, so it is drawn as ``L L^T`` with a triangular L
    (Bartlett 1933) instead of from n samples; above 2,048 features its eigenvalues are the quantiles of
    :func:`marchenko_pastur`.

    Args:
        spectrum: Of covariance or second moment.
        seed: Of the draw.
    """
    n, d = spectrum.num_samples, spectrum.dim
    trace = float(spectrum.eigenvalues.sum())
    if d > MOST_DRAWN:
        values = marchenko_pastur(n, d)[: len(spectrum.eigenvalues)]
        return replace(
            spectrum,
            eigenvalues=values * trace / values.sum(),
            largest=float(values[0] * trace / values.sum()),
            smallest=0.0,
            floor=0.0,
            noise_floor=0.0,
        )
    # The mean of a centred matrix takes one degree of freedom.
    freedom = n if spectrum.matrix == "second_moment" else n - 1
    scatter = _wishart(freedom, d, np.random.default_rng(seed))
    scatter *= n * trace / scatter.diagonal().sum()
    return moments_spectrum(Moments(n, torch.zeros(d, dtype=torch.float64), scatter), "covariance")


def _wishart(freedom: int, d: int, rng: np.random.Generator) -> Tensor:
    """Scatter of so many standard normal samples of d features."""
    if freedom < d:
        samples = torch.from_numpy(rng.standard_normal((freedom, d)))
        return samples.T @ samples
    factor = np.tril(rng.standard_normal((d, d)), -1) + np.diag(np.sqrt(rng.chisquare(freedom - np.arange(d))))
    return torch.from_numpy(factor @ factor.T)


def marchenko_pastur(n: int, d: int) -> Tensor:
    """Expected eigenvalues of the covariance of n samples of d independent features of variance 1, descending, (d,).

    Quantiles of the limit for large n and d at one ratio ``q = d / n`` (Marchenko and Pastur 1967), with density
    ``sqrt((b - x)(x - a)) / (2 pi q x)`` between ``a, b = (1 -+ sqrt q)^2``, and ``1 - 1/q`` of them zero where q > 1.

    >>> values = marchenko_pastur(4_000, 1_000)
    >>> round(float(values.mean()), 3), round(float(values.square().mean()), 3)  # 1 and 1 + q
    (1.0, 1.25)
    """
    q = d / n
    root = math.sqrt(q)
    # x = 1 + q + 2 sqrt(q) cos(angle): the density is smooth in the angle.
    angle = torch.linspace(0, math.pi, GRID, dtype=torch.float64)
    x = (1 + q + 2 * root * angle.cos()).clamp_min(1e-300)
    mass = torch.cumulative_trapezoid(2 * angle.sin().square() / (math.pi * x), angle)
    mass = torch.cat([mass.new_zeros(1), mass]) / mass[-1] * min(1.0, 1 / q)
    wanted = (torch.arange(d, dtype=torch.float64) + 0.5) / d  # from the largest down, as the angle goes
    index = torch.searchsorted(mass, wanted).clamp(1, GRID - 1)
    left, right = mass[index - 1], mass[index]
    fraction = ((wanted - left) / (right - left).clamp_min(1e-300)).clamp(0, 1)
    values = torch.lerp(x[index - 1], x[index], fraction)
    return values.where(wanted <= min(1.0, 1 / q), torch.zeros_like(values))
