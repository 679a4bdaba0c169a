"""Posteriors from a diagonal of the curvature, and from Kronecker factors of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.families import DiagonalGaussian, JoinedGaussian, KroneckerGaussian
from lightning_sloppy.posteriors.gaussian import Gaussian, double
from lightning_sloppy.posteriors.posterior import kept, require_numbers


def diagonal_posterior(
    weights: Tensor,
    prior_mean: Tensor,
    curvature: Tensor,
    *,
    epsilon: float,
    tau: float,
    mean_scale: float = 1.0,
    shrink: bool = False,
) -> DiagonalGaussian:
    """Precision ``tau h_i + epsilon`` for each weight, from a diagonal of the curvature.

    The diagonal may be that of the Fisher matrix (``curvature.diagonal.fisher_diagonal``), or Adam's second moment
    times the batch size (``adam_second_moment``), which costs nothing; it may be stale or approximate.

    Args:
        weights: Trained weights w, flat, shape (p,).
        prior_mean: Prior mean w0, flat, shape (p,).
        curvature: h, of the mean loss per example, shape (p,); what is negative counts as 0.
        epsilon: Prior precision, positive.
        tau: Weight of the curvature, in samples, at least 0.
        mean_scale: Interpolation of the mean towards w0, in [0, 1].
        shrink: Whether each weight moves moreover by ``tau h / (tau h + epsilon)`` of its way alone: what is flat goes
            back to w0.

    Raises:
        ConfigurationError: If shapes disagree, a number is out of range, or something is not finite.

    >>> zeros = torch.zeros(2)
    >>> diagonal_posterior(zeros + 1, zeros, torch.tensor([0.0, 3.0]), epsilon=1.0, tau=1.0, shrink=True).mean
    tensor([0.0000, 0.7500], dtype=torch.float64)
    """
    require_numbers(epsilon, tau, mean_scale)
    if not weights.shape == prior_mean.shape == curvature.shape == (weights.numel(),):
        raise ConfigurationError(
            f"A diagonal posterior needs weights, prior mean and curvature (p,); found {tuple(weights.shape)}, "
            f"{tuple(prior_mean.shape)} and {tuple(curvature.shape)}: flatten the parameters in one order."
        )
    device = torch.device("cpu") if weights.device.type == "mps" else weights.device
    origin, diagonal = double(prior_mean, device), tau * double(curvature, device).clamp(min=0.0)
    displacement = double(weights, device) - origin
    if not bool(torch.isfinite(displacement).all() and torch.isfinite(diagonal).all()):
        raise ConfigurationError("A posterior was asked of weights or a curvature that hold NaN or infinity.")
    return DiagonalGaussian(origin + kept(diagonal, epsilon, mean_scale, shrink) * displacement, diagonal + epsilon)


def kronecker_posterior(
    weights: Tensor,
    factors: Sequence[tuple[Tensor, Tensor] | None],
    sizes: Sequence[int],
    *,
    epsilon: float,
    tau: float,
) -> JoinedGaussian:
    """Precision ``tau B x A + epsilon`` for each layer, in the eigenbases of its two factors.

    Args:
        weights: Posterior mean, flat, shape (p,).
        factors: For each parameter tensor, in order, the factors of its rows and of its columns: B (o, o) and A (i, i)
            of a weight of o i entries, B and [[1]] of a bias (``curvature.kfac.kronecker_factors``); None for a tensor
            that keeps the prior's precision.
        sizes: Entries of each tensor.
        epsilon: Prior precision, positive.
        tau: Weight of the curvature, in samples, at least 0.

    Raises:
        ConfigurationError: If sizes disagree, or a number is out of range.
    """
    require_numbers(epsilon, tau, 1.0)
    if len(factors) != len(sizes) or sum(sizes) != weights.numel():
        raise ConfigurationError(
            f"A Kronecker posterior of {weights.numel()} weights was given {len(factors)} pairs of factors and sizes "
            f"of {list(sizes)}; give one entry for each parameter tensor."
        )
    device = torch.device("cpu") if weights.device.type == "mps" else weights.device
    parts: list[Gaussian] = []
    for mean, pair in zip(torch.split(double(weights, device), list(sizes)), factors, strict=True):
        if pair is None:
            parts.append(DiagonalGaussian(mean, torch.full_like(mean, epsilon)))
            continue
        (of_outputs, outputs), (of_inputs, inputs) = (torch.linalg.eigh(double(factor, device)) for factor in pair)
        curvature = of_outputs.clamp(min=0.0)[:, None] * of_inputs.clamp(min=0.0)
        parts.append(KroneckerGaussian(mean, outputs, inputs, tau * curvature + epsilon))
    return JoinedGaussian(tuple(parts))
