"""Posteriors from a spectrum: stiff directions from the curvature, one precision for all others.

Whatever the posterior is, the bound holds: eigenpairs may be stale, approximate, or from few samples, and
the numbers (epsilon, tau, mean_scale, shrink) may be chosen on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.families import LowRankGaussian
from lightning_sloppy.posteriors.gaussian import double, relative_cost

NEARLY = 0.01
"""Largest entry of ``V^T V - I`` at which one Cholesky step leaves rounding alone."""


@dataclass(frozen=True)
class PosteriorFamily:
    """All posteriors that one spectrum offers, waiting for (epsilon, tau, mean_scale, shrink).

    Attributes:
        prior_mean: w0, shape (p,), float64.
        displacement: w - w0, shape (p,), float64.
        vectors: V, orthonormal columns, shape (p, k), float64.
        coordinates: ``V^T (w - w0)``, shape (k,).
        squared_distance: ``||w - w0||^2``.
        eigenvalues: Curvature along V, clipped at 0, shape (k,).
        residual_eigenvalue: Mean curvature of the p - k other directions; 0 when the trace is not known.
    """

    prior_mean: Tensor
    displacement: Tensor
    vectors: Tensor
    coordinates: Tensor
    squared_distance: float
    eigenvalues: Tensor
    residual_eigenvalue: float


def posterior_family(
    weights: Tensor, prior_mean: Tensor, *, eigenvalues: Tensor, eigenvectors: Tensor, trace: float | None = None
) -> PosteriorFamily:
    """Prepare what all posteriors around ``weights`` share; memory 8 p k bytes.

    Negative eigenvalues are clipped at 0: they would ask for a negative precision. Eigenvectors are made
    orthonormal again by a QR decomposition, because the KL takes them to be so. The residual eigenvalue is
    ``(trace - sum of the k eigenvalues) / (p - k)``, clipped at 0.

    Args:
        weights: Trained weights w, flat, shape (p,).
        prior_mean: Prior mean w0, flat, shape (p,).
        eigenvalues: Shape (k,), any sign, of the mean loss per example.
        eigenvectors: Shape (p, k), columns in the order of the eigenvalues; (p, 0) for an isotropic posterior.
        trace: Trace of the same matrix, or None.

    Returns:
        The family, in float64 on the device of ``weights`` (on the CPU for MPS, which has no float64).

    Raises:
        ConfigurationError: If shapes disagree or something is not finite.
    """
    p, k = weights.numel(), eigenvalues.numel()
    if weights.shape != (p,) or prior_mean.shape != (p,) or eigenvectors.shape != (p, k) or not 0 < p >= k:
        raise ConfigurationError(
            f"A posterior needs flat weights (p,), prior mean (p,), eigenvalues (k,) and eigenvectors (p, k); found "
            f"{tuple(weights.shape)}, {tuple(prior_mean.shape)}, {tuple(eigenvalues.shape)} and "
            f"{tuple(eigenvectors.shape)}: flatten the parameters in one order."
        )
    device = torch.device("cpu") if weights.device.type == "mps" else weights.device
    origin, values, vectors = (double(tensor, device) for tensor in (prior_mean, eigenvalues, eigenvectors))
    displacement = double(weights, device) - origin
    # Of the vectors their Gram matrix tells, k numbers squared instead of p k.
    gram = vectors.T @ vectors
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in (displacement, values, gram))
    if not finite or not (trace is None or math.isfinite(trace)):
        raise ConfigurationError(
            "A posterior was asked of weights or a spectrum that hold NaN or infinity; measure again before bounding."
        )
    basis = _orthonormal(vectors, gram) if k else vectors
    rest = 0.0 if trace is None or p == k else max(trace - float(values.sum()), 0.0) / (p - k)
    return PosteriorFamily(
        prior_mean=origin,
        displacement=displacement,
        vectors=basis,
        coordinates=basis.T @ displacement,
        squared_distance=float(displacement.square().sum()),
        eigenvalues=values.clamp(min=0.0),
        residual_eigenvalue=rest,
    )


def _orthonormal(vectors: Tensor, gram: Tensor) -> Tensor:
    """An orthonormal basis; by Cholesky where the columns are nearly one already, which is faster than QR."""
    excess = gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if float(excess.abs().max()) > NEARLY:
        basis: Tensor = torch.linalg.qr(vectors).Q
    else:
        basis = vectors @ torch.linalg.inv(torch.linalg.cholesky(gram, upper=True))
    return basis


def low_rank_posterior(
    family: PosteriorFamily, *, epsilon: float, tau: float, mean_scale: float = 1.0, shrink: bool = False
) -> LowRankGaussian:
    """The member ``lambda_bar = tau lambda + epsilon`` of a family.

    For a quadratic loss this precision minimises any bound that rises with risk and KL, at
    ``tau = (dB/drisk)/(dB/dKL)``, between n and 3n for the inverted kl. The mean is
    ``w0 + mean_scale (w - w0)``; with ``shrink`` each direction is moreover scaled by
    ``tau lambda / (tau lambda + epsilon)``, the minimiser for a quadratic loss: flat directions go back to w0.

    Args:
        family: From :func:`posterior_family`.
        epsilon: Prior precision, positive.
        tau: Weight of the curvature, in samples, at least 0.
        mean_scale: Interpolation of the mean towards w0, in [0, 1].
        shrink: Whether to shrink the mean direction by direction.

    Returns:
        The posterior.

    Raises:
        ConfigurationError: If epsilon, tau or mean_scale lie outside their range.
    """
    require_numbers(epsilon, tau, mean_scale)
    parts = member_parts(family, epsilon=epsilon, tau=tau, mean_scale=mean_scale, shrink=shrink)
    return LowRankGaussian(
        mean=family.prior_mean + parts.kept * family.displacement + family.vectors @ parts.along,
        vectors=family.vectors,
        precisions=parts.precisions,
        residual_precision=parts.residual_precision,
    )


@dataclass(frozen=True)
class MemberParts:
    """The few numbers that make a member of a family out of its large vectors.

    Attributes:
        kept: How much of ``w - w0`` the mean keeps: ``mu = w0 + kept (w - w0) + V along``.
        along: Shape (k,).
        precisions: lambda_bar, shape (k,).
        residual_precision: Of all other directions.
    """

    kept: float
    along: Tensor
    precisions: Tensor
    residual_precision: float


def member_parts(
    family: PosteriorFamily, *, epsilon: float, tau: float, mean_scale: float, shrink: bool
) -> MemberParts:
    """The numbers of a member; arguments as for :func:`low_rank_posterior`."""
    curvature = tau * family.eigenvalues
    residual = tau * family.residual_eigenvalue
    rest = float(kept(torch.tensor(residual, dtype=torch.float64), epsilon, mean_scale, shrink))
    along = (kept(curvature, epsilon, mean_scale, shrink) - rest) * family.coordinates
    return MemberParts(rest, along, curvature + epsilon, residual + epsilon)


def family_kl(
    family: PosteriorFamily, epsilons: Sequence[float], *, tau: float, mean_scale: float, shrink: bool
) -> Tensor:
    """KL of a member to the prior of the same epsilon, for many epsilons: free, while its risk costs a pass.

    Args:
        family: From :func:`posterior_family`.
        epsilons: Prior precisions, J of them.
        tau: Weight of the curvature.
        mean_scale: Interpolation of the mean towards w0.
        shrink: Whether the mean is shrunk direction by direction.

    Returns:
        The sums of the two parts of ``kl_parts``, shape (J,), in nats, on the CPU.
    """
    grid = torch.as_tensor(epsilons, dtype=torch.float64)[:, None]
    squared_along = family.coordinates.cpu().square()
    squared_rest = max(family.squared_distance - float(squared_along.sum()), 0.0)
    curvature = tau * family.eigenvalues.cpu()
    residual = torch.full_like(grid[:, 0], tau * family.residual_eigenvalue)
    top, rest = (
        kept(part, epsilon, mean_scale, shrink) for part, epsilon in ((curvature, grid), (residual, grid[:, 0]))
    )
    squared = (top.square() * squared_along).sum(1) + rest.square() * squared_rest
    bulk = family.displacement.numel() - family.coordinates.numel()
    covariance = 0.5 * (relative_cost(curvature / grid).sum(1) + bulk * relative_cost(residual / grid[:, 0]))
    return 0.5 * grid[:, 0] * squared + covariance


def posterior_dimension(family: PosteriorFamily, *, epsilon: float, tau: float) -> float:
    """``N_eff = sum_i tau lambda_i / (tau lambda_i + epsilon)``: how many directions a member determines.

    The risk that its noise adds is ``N_eff / (2 tau)`` for a quadratic loss. The p - k directions without a computed
    eigenvalue count with their mean one.

    Args:
        family: From :func:`posterior_family`.
        epsilon: Prior precision.
        tau: Weight of the curvature.
    """
    stiff, rest = tau * family.eigenvalues, tau * family.residual_eigenvalue
    others = family.displacement.numel() - family.eigenvalues.numel()
    return float((stiff / (stiff + epsilon)).sum()) + others * rest / (rest + epsilon)


def kept(curvature: Tensor, epsilon: Tensor | float, mean_scale: float, shrink: bool) -> Tensor:
    """Fraction of w - w0 that the mean keeps in directions of the given ``tau lambda``."""
    kept = curvature / (curvature + epsilon) if shrink else torch.ones_like(curvature + epsilon)
    return mean_scale * kept


def require_numbers(epsilon: float, tau: float, mean_scale: float) -> None:
    """Check what every member needs.

    Raises:
        ConfigurationError: Out of range.
    """
    if not 0.0 < epsilon < math.inf or not 0.0 <= tau < math.inf or not 0.0 <= mean_scale <= 1.0:
        raise ConfigurationError(
            f"A posterior needs epsilon > 0, tau >= 0 and mean_scale in [0, 1]; found {epsilon}, {tau}, {mean_scale}."
        )
