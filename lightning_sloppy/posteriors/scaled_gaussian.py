"""Gaussians with a deviation for each weight and k directions of their own: what an optimised posterior is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.families import ORTHONORMAL, LowRankGaussian
from lightning_sloppy.posteriors.gaussian import Gaussian, double


@dataclass(frozen=True)
class ScaledGaussian(Gaussian):
    """``Lambda^-1 = S (I + V diag(1/f - 1) V^T) S`` with ``S = diag(sigma)``; a draw costs O(p k).

    It holds the others: constant sigma is a :class:`LowRankGaussian`, k = 0 a diagonal one, a sigma that is constant
    in each layer one of scales for layers.

    Attributes:
        mean: mu, shape (p,), float64.
        deviations: sigma, shape (p,), float64, positive.
        vectors: V, orthonormal columns, shape (p, k), float64.
        factors: f, how many times more precise each direction is, shape (k,), float64, positive.

    Raises:
        ConfigurationError: For shapes that do not fit, numbers that are not positive, or vectors that are not
            orthonormal to 1e-6: the KL takes them to be so.
    """

    mean: Tensor
    deviations: Tensor
    vectors: Tensor
    factors: Tensor

    def __post_init__(self) -> None:
        """Check what the KL relies on."""
        p, k = self.mean.numel(), self.factors.numel()
        if self.mean.shape != (p,) or self.deviations.shape != (p,) or self.vectors.shape != (p, k):
            raise ConfigurationError(
                f"A scaled posterior needs mean and deviations (p,), vectors (p, k) and factors (k,); found "
                f"{tuple(self.mean.shape)}, {tuple(self.deviations.shape)}, {tuple(self.vectors.shape)} and "
                f"{tuple(self.factors.shape)}: flatten the parameters in one order."
            )
        if not bool((self.deviations > 0).all()) or not bool((self.factors > 0).all()):
            raise ConfigurationError(
                "A scaled posterior has deviations or factors that are not positive numbers; take the exponential of "
                "what is optimised."
            )
        excess = self.vectors.T @ self.vectors - torch.eye(k, dtype=torch.float64, device=self.vectors.device)
        if k and not float(excess.abs().max()) < ORTHONORMAL:
            raise ConfigurationError(
                f"The vectors of a posterior are orthonormal only to {float(excess.abs().max()):.1g}, and its KL would "
                "be wrong; take the Q of a QR decomposition in float64."
            )

    @property
    def rank(self) -> int:
        """Number of directions k with a factor of their own."""
        return self.factors.numel()

    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """``S (z + V (f^(-1/2) - 1) V^T z)``."""
        return self.deviations * (noise + self.vectors @ ((self.factors.rsqrt() - 1.0) * (self.vectors.T @ noise)))

    def precision_form(self, step: Tensor) -> float:
        """``||u||^2 + sum_i (f_i - 1) (v_i^T u)^2`` of ``u = step / sigma``."""
        whitened = step / self.deviations
        along = self.vectors.T @ whitened
        return float(whitened.square().sum() + ((self.factors - 1.0) * along.square()).sum())

    def log_det_precision(self) -> float:
        """``sum_i ln f_i - 2 sum_j ln sigma_j``."""
        return float(self.factors.log().sum()) - 2.0 * float(self.deviations.log().sum())

    def covariance_cost(self, epsilon: float) -> float:
        """``1/2 (epsilon tr(Lambda^-1) - p + ln det Lambda - p ln epsilon)``."""
        variances = epsilon * self.deviations.square()
        # Weight by weight first: each term is small where its variance is near the prior's, and so stays exact.
        weights = (variances - 1.0 - variances.log()).sum()
        directions = ((1.0 / self.factors - 1.0) * (self.vectors.square().T @ variances) + self.factors.log()).sum()
        return 0.5 * float(weights + directions)


def scaled(posterior: LowRankGaussian) -> ScaledGaussian:
    """The same posterior as a scaled one, as a start for optimising it."""
    return ScaledGaussian(
        mean=posterior.mean,
        deviations=torch.full_like(posterior.mean, posterior.residual_precision**-0.5),
        vectors=posterior.vectors,
        factors=posterior.precisions / posterior.residual_precision,
    )


def isotropic(mean: Tensor, deviation: float) -> ScaledGaussian:
    """One deviation for all weights.

    Raises:
        ConfigurationError: For a deviation that is not positive.
    """
    flat = double(mean, mean.device)
    none = flat.new_zeros(len(flat), 0)
    return ScaledGaussian(flat, torch.full_like(flat, deviation), none, none.new_ones(0))
