"""The other published dimensions of a positive semidefinite spectrum, each under its own name.

Relations: ``effective_rank <= participation_ratio <= entropy_rank <= rank`` (Renyi entropies of the fractions
``lambda / sum lambda`` of order infinity, 2, 1, 0), and ``df_2(z) <= df_1(z)``.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.brackets import increasing_bracket, soft
from lightning_sloppy.measures.effective_dimension import effective_dimension
from lightning_sloppy.measures.functionals import UNAVAILABLE, averaged, frobenius_norm, log_determinant
from lightning_sloppy.records import Estimate, Spectrum


def degrees_of_freedom(spectrum: Spectrum, z: float, order: int = 1) -> Estimate:
    """Ridge degrees of freedom: ``df_1(z) = tr A (A + z)^-1`` or ``df_2(z) = tr A^2 (A + z)^-2``.

    The first is the effective dimension; the second is that of the variance of a ridge estimate (Caponnetto and De Vito
    2007; Hastie, Tibshirani and Friedman, section 3.4). From a density both are bracketed: the second by the counts
    above every threshold, which is wide.

    Args:
        spectrum: Of a positive semidefinite matrix.
        z: Ridge, positive.
        order: 1 or 2.

    Raises:
        ConfigurationError: For another order, or z that is not positive.

    >>> from lightning_sloppy.records import Status
    >>> values = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64)
    >>> spectrum = Spectrum(values, 3, 9, "covariance", 1e-15, Status.EXACT, torch.zeros(3), 4.0, 0.0)
    >>> round(degrees_of_freedom(spectrum, 1.0).value, 6), round(degrees_of_freedom(spectrum, 1.0, 2).value, 6)
    (1.3, 0.89)
    """
    if order == 1:
        return effective_dimension(spectrum, z)
    if order != 2 or not z > 0:
        raise ConfigurationError(f"Degrees of freedom have order 1 or 2 and z > 0, but got order={order} and z={z}.")

    def exact(values: Tensor) -> float:
        return float(soft(values, z).square().sum())

    if not spectrum.truncated:
        return Estimate(exact(spectrum.eigenvalues.where(spectrum.eigenvalues.abs() > spectrum.floor, 0.0)))
    if spectrum.density is None or not spectrum.density.positive_semidefinite:
        return UNAVAILABLE
    bracket = partial(
        increasing_bracket,
        function=lambda nodes: soft(nodes, z).square(),
        threshold=lambda level: z * math.sqrt(level) / (1 - math.sqrt(level)),
    )
    return averaged(spectrum.density, bracket, exact, slope=0.6 / z)  # the largest derivative is 8 / (27 z)


def stable_rank(spectrum: Spectrum) -> Estimate:
    """``||A||_F^2 / ||A||_2^2``; UNAVAILABLE without all eigenvalues or a density, or when the largest is noise."""
    norm = frobenius_norm(spectrum)
    top = max(abs(spectrum.largest), abs(spectrum.smallest))
    if not norm.status.ok or not top > spectrum.floor:
        return UNAVAILABLE
    value = (norm.value / top) ** 2
    return Estimate(value, 2 * value * norm.standard_error / norm.value, status=norm.status)


def singular_entropy_rank(spectrum: Spectrum) -> Estimate:
    """``exp(-sum q log q)`` with ``q = sigma / sum sigma`` over the singular values (Roy and Vetterli, EUSIPCO 2007).

    A covariance or a Fisher matrix is a Gram matrix: the singular values of the data, or of the per-sample gradients,
    are the square roots of its eigenvalues. The form over the eigenvalues themselves is ``entropy_rank``.
    """
    values = spectrum.eigenvalues[spectrum.eigenvalues > max(spectrum.floor, 0.0)]
    if spectrum.truncated or not len(values) or spectrum.smallest < -spectrum.floor:
        return UNAVAILABLE
    roots = (values / values[0]).sqrt()
    return Estimate(math.exp(float(torch.special.entr(roots / roots.sum()).sum())))


def normalised_effective_dimension(spectrum: Spectrum, n: int, gamma: float = 1.0) -> Estimate:
    """``sum_i log(1 + kappa p lambda_i / sum lambda) / (p log kappa)`` with ``kappa = gamma n / (2 pi log n)``.

    The local, single-point form of Abbas et al. (2021, arXiv 2011.00027 and 2112.04807), as a fraction of p in [0, 1].

    Args:
        spectrum: Of a Fisher matrix, with its trace.
        n: Training samples.
        gamma: In (0, 1].

    Raises:
        ConfigurationError: When kappa is not above 1, where the definition has no meaning: n >= 19 for gamma = 1.
    """
    kappa = gamma * n / (2 * math.pi * math.log(n)) if n > 1 else 0.0
    if not 0 < gamma <= 1 or not kappa > 1:
        raise ConfigurationError(
            f"This dimension needs gamma n / (2 pi log n) > 1 with gamma in (0, 1], but got n={n} and gamma={gamma}; "
            "use at least 19 samples at gamma = 1."
        )
    trace = spectrum.trace
    if trace is None or not trace.value > 0:
        return UNAVAILABLE
    log_det = log_determinant(spectrum, kappa * spectrum.dim / trace.value)
    if not log_det.status.ok:
        return log_det
    scale = spectrum.dim * math.log(kappa)
    # An error of the trace moves kappa by as much, and log det by at most the effective dimension times that.
    shift = (
        trace.standard_error / trace.value * effective_dimension(spectrum, trace.value / (kappa * spectrum.dim)).value
    )
    return Estimate(
        log_det.value / scale,
        (log_det.standard_error + shift) / scale,
        log_det.truncation_error / scale,
        status=log_det.status,
    )
