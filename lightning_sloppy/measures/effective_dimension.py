"""How many directions count at a curvature scale: functionals of the *whole* spectrum.

``N_eff(z) = sum_i lambda_i / (lambda_i + z)`` (MacKay 1992) and ``p(n, epsilon) = #{lambda_i >= z}`` with
``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022): at z the data and a prior of precision epsilon
weigh the same. Pairs cut at k never feed them: such a sum is k itself.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.brackets import (
    HALF,
    positive_soft_count_bracket,
    soft,
    soft_count_bracket,
    step_count_bracket,
)
from lightning_sloppy.measures.functionals import averaged
from lightning_sloppy.records import Estimate, Spectrum, Status


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
        return Estimate(float(soft(_clean(spectrum), z).sum()))
    if spectrum.density is None:
        return Estimate(math.nan, status=Status.UNAVAILABLE)
    if spectrum.density.positive_semidefinite:
        bracket = partial(soft_count_bracket, z=z)
    else:
        bracket = partial(positive_soft_count_bracket, z=z)
    return averaged(spectrum.density, bracket, lambda values: float(soft(values, z).sum()), slope=1 / z)


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
    return averaged(
        spectrum.density,
        lambda d, o: step_count_bracket(d, o, z),
        lambda values: float((values >= z).sum()),
        absolute=HALF,
    )


def converged_above(spectrum: Spectrum, z: float) -> Estimate:
    """The number of known eigenvalues that are above z by more than their residual: a lower bound of the count."""
    above = (spectrum.eigenvalues - spectrum.residuals) > z
    return Estimate(float(above.sum()), lower_bound=True)


def _clean(spectrum: Spectrum) -> Tensor:
    """Eigenvalues with rounding noise set to zero."""
    values = spectrum.eigenvalues
    return values.where(values.abs() > spectrum.floor, torch.zeros_like(values))


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
