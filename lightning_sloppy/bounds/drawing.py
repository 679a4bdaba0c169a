"""Choose a posterior, draw a fresh pair of networks, count their mistakes on a fresh subsample.

The order is what makes the rest a bound: the pair is drawn after the posterior is chosen, the subsample
after the pair, and neither has been looked at by the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.bounds.gaussian import draw_pair, kl_parts, log_density_ratio
from lightning_sloppy.bounds.kl import log_xi
from lightning_sloppy.bounds.mixture import PRIOR_GRID, mixture_log_ratio
from lightning_sloppy.bounds.posterior import posterior_family
from lightning_sloppy.bounds.selection import Choice, Risk, member, select_posterior
from lightning_sloppy.errors import ConfigurationError


@dataclass(frozen=True)
class Drawn:
    """A pair that was drawn and judged: all of a certificate but the bound.

    Attributes:
        choice: The member of the family.
        rank: Number of eigenpairs in it.
        displacement: KL of the mean, nats.
        covariance: KL of the covariance, nats.
        log_ratio: ln dQ/dP to the mixture prior, mean of the pair, nats.
        rate: Mean error rate of the pair.
        looked_at: Examples behind the rate.
        exact: Whether each network saw all n examples.
    """

    choice: Choice
    rank: int
    displacement: float
    covariance: float
    log_ratio: float
    rate: float
    looked_at: int
    exact: bool


def draw_and_judge(
    *,
    weights: Tensor,
    prior_mean: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    trace: float | None,
    n: int,
    delta_pac: float,
    risk: Risk,
    generator: torch.Generator,
    risk_samples: int,
    pilot_samples: int,
) -> Drawn:
    """Choose a posterior around ``weights``, draw a pair from it, count its mistakes.

    Args:
        weights: Flat, shape (p,).
        prior_mean: Flat, shape (p,).
        eigenvalues: Shape (k,).
        eigenvectors: Shape (p, k).
        trace: Trace of the matrix, or None.
        n: Training examples.
        delta_pac: Failure probability of the PAC-Bayes event.
        risk: Counts mistakes.
        generator: Source of all randomness.
        risk_samples: Examples looked at by the pair together.
        pilot_samples: Examples behind each pilot risk.

    Returns:
        The judged pair.

    Raises:
        ConfigurationError: If an argument is out of range, shapes disagree, or ``risk`` returns no count.
    """
    if weights.dtype not in (torch.float32, torch.float64):
        raise ConfigurationError(
            f"A bound was asked for weights in {weights.dtype}, whose rounding is as large as the posterior's noise; "
            "keep the parameters in float32 (mixed precision does)."
        )
    if n < 1 or risk_samples < 2 or pilot_samples < 1:
        raise ConfigurationError(
            "A bound needs n >= 1, risk_samples >= 2 and pilot_samples >= 1; "
            f"found {n}, {risk_samples}, {pilot_samples}."
        )
    family = posterior_family(weights, prior_mean, eigenvalues=eigenvalues, eigenvectors=eigenvectors, trace=trace)
    counted = _checked(risk, weights.device)
    choice = select_posterior(
        family,
        n=n,
        log_penalty=log_xi(n) - math.log(delta_pac),
        risk=counted,
        generator=_own_stream(generator),
        dtype=weights.dtype,
        pilot_samples=pilot_samples,
    )
    posterior = member(family, choice, n)
    pair = draw_pair(posterior, generator, dtype=weights.dtype)
    ratios = [mixture_log_ratio(log_density_ratio(posterior, family.prior_mean, PRIOR_GRID, drawn)) for drawn in pair]
    exact = n <= risk_samples
    each = n if exact else risk_samples // 2
    errors = sum(counted(drawn, _subsample(n, each, generator)) for drawn in pair)
    displacement, covariance = kl_parts(posterior, family.prior_mean, choice.epsilon)
    return Drawn(
        choice=choice,
        rank=posterior.rank,
        displacement=displacement,
        covariance=covariance,
        log_ratio=sum(ratios) / len(ratios),
        rate=errors / (2 * each),
        looked_at=n if exact else 2 * each,
        exact=exact,
    )


def _subsample(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Uniform indices without repetition; all of them, in order, when none is left out."""
    if size == n:
        return torch.arange(n)
    return torch.randperm(n, generator=generator, device=generator.device)[:size].cpu()


def _own_stream(generator: torch.Generator) -> torch.Generator:
    """A generator seeded from another: what the choice draws, the certificate never sees."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device=generator.device).manual_seed(int(seed))


def _checked(risk: Risk, device: torch.device) -> Risk:
    def counted(flat: Tensor, indices: Tensor) -> int:
        errors = risk(flat.to(device), indices)
        if not 0 <= errors <= indices.numel():
            raise ConfigurationError(
                f"risk(weights, indices) returned {errors} for {indices.numel()} examples; "
                "return the number of mistakes."
            )
        return int(errors)

    return counted
