"""Other published dimensions of a positive semidefinite spectrum.

Relations: ``effective_rank <= participation_ratio <= entropy_rank <= rank`` (Renyi entropies of the fractions
``lambda / sum lambda`` of order infinity, 2, 1, 0), and ``df_2(z) <= df_1(z)``.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.brackets import increasing_bracket, soft
from lightning_sloppy.measures.effective_dimension import effective_dimension
from lightning_sloppy.measures.functionals import UNAVAILABLE, averaged, frobenius_norm
from lightning_sloppy.records import Estimate, Spectrum


def degrees_of_freedom(spectrum: Spectrum, z: float, order: int = 1) -> Estimate:
    """Ridge degrees of freedom: ``df_1(z) = tr A (A + z)^-1`` or ``df_2(z) = tr A^2 (A + z)^-2``.

    The first is the effective dimension. The second is that of the variance of a ridge estimate (Caponnetto and De Vito
    2007; Hastie, Tibshirani and Friedman, section 3.4). From a density both are bracketed; the bracket of the second
    comes from the counts above every threshold, and it is wide.

    Args:
        spectrum: Spectrum of a positive semidefinite matrix.
        z: Ridge, positive.
        order: 1 or 2.

    Raises:
        ConfigurationError: If ``order`` is neither 1 nor 2, or z is not positive.

    >>> import torch
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
    """``||A||_F^2 / ||A||_2^2``.

    UNAVAILABLE if neither all eigenvalues nor a density are known, or if the largest eigenvalue is below the floor.
    """
    norm = frobenius_norm(spectrum)
    top = max(abs(spectrum.largest), abs(spectrum.smallest))
    if not norm.status.ok or not top > spectrum.floor:
        return UNAVAILABLE
    value = (norm.value / top) ** 2
    return Estimate(value, 2 * value * norm.standard_error / norm.value, status=norm.status)
