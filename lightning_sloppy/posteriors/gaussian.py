"""Gaussians over all weights: their KL to an isotropic prior, their draws, their log-ratios, and the mixture prior.

Prior ``P = N(w0, I/epsilon)``, mixed over a fixed grid of epsilon: a grid written down after looking at which epsilon
worked would be no grid, so it stands here, before any data. Posterior ``Q = N(mu, Lambda^-1)``, of which a family knows
four things (see :class:`Gaussian`). A bound holds whatever Q is, but the arithmetic on Q must be exact: sums of p terms
cancel to a small rest, hence float64 throughout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor

PRIOR_GRID: Final[tuple[float, ...]] = tuple(10.0 ** (-2.0 + 8.0 * j / 99.0) for j in range(100))
"""Precisions epsilon_j of the prior: 100, log-spaced from 1e-2 to 1e6, of equal weight."""

LOG_GRID_COST: Final[float] = math.log(len(PRIOR_GRID))
"""What the mixture costs at most against its best member: ln 100 = 4.6 nats."""


class Gaussian(ABC):
    """``N(mu, Lambda^-1)`` over p weights.

    Attributes:
        mean: mu, shape (p,), float64.
    """

    mean: Tensor

    @property
    def dim(self) -> int:
        """Number of weights p."""
        return self.mean.numel()

    @abstractmethod
    def root_covariance_times(self, noise: Tensor) -> Tensor:
        """``L z`` with ``L L^T = Lambda^-1``; for standard normal z, (p,) float64, a draw of ``w - mu``."""

    @abstractmethod
    def precision_form(self, step: Tensor) -> float:
        """``step^T Lambda step`` for a step (p,), float64."""

    @abstractmethod
    def log_det_precision(self) -> float:
        """``ln det Lambda``."""

    @abstractmethod
    def covariance_cost(self, epsilon: float) -> float:
        """What the covariance adds to ``KL(Q || N(w0, I/epsilon))``: ``1/2 sum_i [ln(x_i/epsilon) + epsilon/x_i - 1]``.

        The ``x_i`` are the eigenvalues of Lambda; see :func:`relative_cost`.
        """


def kl_parts(posterior: Gaussian, prior_mean: Tensor, epsilon: float) -> tuple[float, float]:
    """``KL(Q || N(w0, I/epsilon))``, split into what the mean and what the covariance costs.

    Displacement ``epsilon/2 ||mu - w0||^2``, and the covariance's cost.

    Args:
        posterior: Q.
        prior_mean: w0, shape (p,).
        epsilon: Prior precision.

    Returns:
        (displacement, covariance), in nats, both at least 0; they are 0 if and only if Q is the prior.
    """
    squared_distance = float((posterior.mean - double(prior_mean, posterior.mean.device)).square().sum())
    return 0.5 * epsilon * squared_distance, posterior.covariance_cost(epsilon)


def draw_pair(
    posterior: Gaussian, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Two weight vectors ``mu + L z`` and ``mu - L z``: each a draw from Q, antithetic to the other.

    Opposite signs cancel the linear part of the log-ratio, most of its fluctuation.

    Args:
        posterior: Q.
        generator: Source of z; fresh for each certificate, never one that helped to choose Q.
        dtype: Type in which the network is evaluated; the weights are rounded to it here, so that the
            log-ratio is that of the networks that were looked at.

    Returns:
        Two flat tensors of shape (p,) and type ``dtype``, on the device of the posterior.
    """
    step = posterior.root_covariance_times(draw_noise(posterior.mean, generator))
    return (posterior.mean + step).to(dtype), (posterior.mean - step).to(dtype)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and type and on the device of ``like``, drawn where the generator lives."""
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return noise.to(like.device)


def log_density_ratio(
    posterior: Gaussian, prior_mean: Tensor, epsilons: Tensor | tuple[float, ...], weights: Tensor
) -> Tensor:
    """``ln dQ/dP_j (w)`` for each prior ``P_j = N(w0, I/epsilon_j)``.

    ``1/2 [ln det Lambda - p ln epsilon_j] - 1/2 (w-mu)^T Lambda (w-mu) + epsilon_j/2 ||w-w0||^2``. Its mean
    over w from Q is KL(Q || P_j). Rounding w to float32 moves it by far less than the digits of the sum.

    Args:
        posterior: Q.
        prior_mean: w0, shape (p,).
        epsilons: Prior precisions, shape (J,).
        weights: The rounded weights that are evaluated, shape (p,).

    Returns:
        Shape (J,), float64, on the CPU, in nats.
    """
    device = posterior.mean.device
    drawn = double(weights, device)
    constant = posterior.log_det_precision() - posterior.precision_form(drawn - posterior.mean)
    squared_distance = (drawn - double(prior_mean, device)).square().sum()
    grid = torch.as_tensor(epsilons, dtype=torch.float64)
    return 0.5 * (constant - posterior.dim * grid.log() + grid * float(squared_distance))


def relative_cost(excess: Tensor) -> Tensor:
    """``ln(1+t) - t/(1+t)``: twice what a direction of precision ``(1+t) epsilon`` adds to the KL, in nats.

    Equal to ``ln(x/epsilon) + epsilon/x - 1``, but exact where x is close to epsilon.

    Args:
        excess: t, any shape, above -1.

    Returns:
        The same shape, at least 0.
    """
    return (torch.log1p(excess) - excess / (1.0 + excess)).clamp(min=0.0)


def double(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in float64 on a device, detached: nothing here is ever differentiated."""
    # Device first: MPS cannot hold float64.
    return tensor.detach().to(device).to(torch.float64)


def mixture_log_ratio(log_ratios: Tensor) -> float:
    """``ln dQ/dP (w)`` for the uniform mixture P of J priors: ``-logsumexp_j(-ln J - ln dQ/dP_j (w))``.

    It is at most ``min_j ln dQ/dP_j (w) + ln J``, so a mixture never costs more than a union over its members.
    The same formula with KLs in place of log-ratios bounds the KL to the mixture from above.

    Args:
        log_ratios: ``ln dQ/dP_j (w)`` for every member, shape (J,), float64.

    Returns:
        The log-ratio to the mixture, in nats.

    >>> round(mixture_log_ratio(torch.full((100,), 3.0, dtype=torch.float64)), 12)
    3.0
    """
    return float(math.log(log_ratios.numel()) - torch.logsumexp(-log_ratios.to(torch.float64), dim=0))
