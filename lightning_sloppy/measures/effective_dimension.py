"""Effective dimensions at a curvature scale, over the whole spectrum.

``N_eff(z) = sum_i lambda_i / (lambda_i + z)`` (MacKay 1992) and ``p(n, epsilon) = #{lambda_i >= z}`` with
``z = epsilon / (2 (n - 1))`` (Yang, Mao and Chaudhari, ICML 2022). At z the data and a prior of precision epsilon have
equal weight. The k largest eigenvalues alone are not enough: the sum over them is often close to k.
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
    """Return ``z = epsilon / (2 (n - 1))``, the eigenvalue at which n samples and the prior have equal weight.

    Args:
        epsilon: Precision of the prior, positive.
        n: Number of training samples, at least 2.

    Raises:
        ConfigurationError: If either is out of range.

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
    """Effective dimension ``N_eff(z) = sum_i lambda_i / (lambda_i + z)``, over the positive eigenvalues.

    * If all eigenvalues are known, the value is exact.
    * From a density of a positive semidefinite matrix, the Gauss rule is an upper bound and the Gauss-Radau rule with a
      node at 0 a lower bound (Golub and Meurant 2010, theorem 6.4). The value is the middle of the bracket, and the
      truncation error is half its width.
    * From a density of an indefinite matrix, the integrand has a kink at 0, where most eigenvalues are. The Gauss rule
      can be wrong by a factor there, and by the same factor at several numbers of steps. The bracket then comes from
      the counts above every threshold (:func:`positive_soft_count_bracket`). It is wide, and the estimate is often
      UNRESOLVED.
    * With neither, the estimate is UNAVAILABLE.

    Args:
        spectrum: Spectrum of the Hessian, the Gauss-Newton matrix or a Fisher matrix.
        z: Curvature scale, positive.

    Raises:
        ConfigurationError: If z is not positive.
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
    """Number of eigenvalues at or above z, ``p(n, epsilon) = #{lambda_i >= z}``, for positive z.

    From a density, a quadrature node is placed at z. The weight of the nodes above it is a lower bound of the count,
    and the weight at z is the most that can be missing (Chebyshev, Markov and Stieltjes). This holds for indefinite
    matrices as well.

    Args:
        spectrum: Spectrum of the Hessian, the Gauss-Newton matrix or a Fisher matrix.
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
    """Number of known eigenvalues that exceed z by more than their residual: a lower bound of the count."""
    above = (spectrum.eigenvalues - spectrum.residuals) > z
    return Estimate(float(above.sum()), lower_bound=True)


def _clean(spectrum: Spectrum) -> Tensor:
    """The eigenvalues, with those below the rounding floor set to zero."""
    values = spectrum.eigenvalues
    return values.where(values.abs() > spectrum.floor, torch.zeros_like(values))


def of_half_the_samples(spectrum: Spectrum) -> Spectrum | None:
    """Spectrum of the same matrix from the first half of the samples, if its eigenvalues were kept, else None.

    The comparison of the two shows how much N matters.
    """
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
