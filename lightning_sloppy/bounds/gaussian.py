"""A Gaussian over all weights with a low-rank precision: its KL to a prior, its draws, its log-ratio.

Prior ``P = N(w0, I/epsilon)``; posterior ``Q = N(mu, Lambda^-1)`` with
``Lambda = V diag(lambda_bar) V^T + epsilon_r (I - V V^T)``. A bound holds whatever Q is, but the
arithmetic on Q must be exact: sums of p terms cancel to a small rest, hence float64 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankGaussian:
    """A Gaussian over all p weights whose precision differs from a multiple of I in k directions.

    Attributes:
        mean: mu, shape (p,), float64.
        vectors: V, orthonormal columns, shape (p, k), float64.
        precisions: lambda_bar, shape (k,), float64, positive.
        residual_precision: epsilon_r, the precision in every direction orthogonal to V.
    """

    mean: Tensor
    vectors: Tensor
    precisions: Tensor
    residual_precision: float

    @property
    def dim(self) -> int:
        """Number of weights p."""
        return self.mean.numel()

    @property
    def rank(self) -> int:
        """Number of directions k with a precision of their own."""
        return self.precisions.numel()


def kl_parts(posterior: LowRankGaussian, prior_mean: Tensor, epsilon: float) -> tuple[float, float]:
    """``KL(Q || N(w0, I/epsilon))``, split into what the mean and what the covariance costs.

    Displacement ``epsilon/2 ||mu - w0||^2``; covariance
    ``1/2 [sum_i h(lambda_bar_i) + (p-k) h(epsilon_r)]`` with ``h(x) = ln(x/epsilon) + epsilon/x - 1``.

    Args:
        posterior: Q.
        prior_mean: w0, shape (p,).
        epsilon: Prior precision.

    Returns:
        (displacement, covariance), in nats, both at least 0; they are 0 if and only if Q is the prior.
    """
    squared_distance = float((posterior.mean - double(prior_mean, posterior.mean.device)).square().sum())
    rest = torch.tensor(posterior.residual_precision / epsilon - 1.0, dtype=torch.float64)
    bulk = (posterior.dim - posterior.rank) * float(relative_cost(rest))
    return 0.5 * epsilon * squared_distance, 0.5 * (
        float(relative_cost(posterior.precisions / epsilon - 1.0).sum()) + bulk
    )


def root_covariance_times(posterior: LowRankGaussian, noise: Tensor) -> Tensor:
    """``Lambda^(-1/2) z`` with the symmetric square root, in O(p k).

    Args:
        posterior: Q.
        noise: z, shape (p,), float64.

    Returns:
        Shape (p,), float64; for standard normal z a draw of ``w - mu``.
    """
    rest = posterior.residual_precision**-0.5
    along = posterior.vectors.T @ noise
    step: Tensor = rest * noise + posterior.vectors @ ((posterior.precisions.rsqrt() - rest) * along)
    return step


def draw_pair(
    posterior: LowRankGaussian, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
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
    step = root_covariance_times(posterior, draw_noise(posterior.mean, generator))
    return (posterior.mean + step).to(dtype), (posterior.mean - step).to(dtype)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal float64 noise of the shape and on the device of ``like``, drawn where the generator lives."""
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return noise.to(like.device)


def log_density_ratio(
    posterior: LowRankGaussian, prior_mean: Tensor, epsilons: Tensor | tuple[float, ...], weights: Tensor
) -> Tensor:
    """``ln dQ/dP_j (w)`` for each prior ``P_j = N(w0, I/epsilon_j)``, in O(p k).

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
    from_mean = drawn - posterior.mean
    along = posterior.vectors.T @ from_mean
    rest = posterior.residual_precision
    quadratic = rest * from_mean.square().sum() + ((posterior.precisions - rest) * along.square()).sum()
    log_det = posterior.precisions.log().sum() + (posterior.dim - posterior.rank) * math.log(rest)
    squared_distance = (drawn - double(prior_mean, device)).square().sum()
    grid = torch.as_tensor(epsilons, dtype=torch.float64)
    constant = float(log_det - quadratic)
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
