"""Choose a posterior, draw a fresh pair of networks, count their mistakes on a fresh subsample.

The order is what makes the rest a bound: the pair is drawn after the posterior is chosen, the subsample
after the pair, and neither has been looked at by the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.gaussian import (
    PRIOR_GRID,
    Gaussian,
    draw_pair,
    kl_parts,
    log_density_ratio,
    mixture_log_ratio,
)
from lightning_sloppy.posteriors.posterior import posterior_dimension, posterior_family
from lightning_sloppy.posteriors.posterior_search import Choice, Risk, member, select_posterior


@dataclass(frozen=True)
class Judged:
    """Two opposite draws, and what they did.

    Attributes:
        networks: Their weights, in the type in which they were evaluated.
        log_ratios: ln dQ/dP of each to the mixture prior, nats.
        rates: Error rate of each.
        looked_at: Examples behind the two rates together.
        exact: Whether each network saw all n examples.
    """

    networks: tuple[Tensor, Tensor]
    log_ratios: tuple[float, float]
    rates: tuple[float, float]
    looked_at: int
    exact: bool


@dataclass(frozen=True)
class Among:
    """Errors on the examples of different content, where others may be copies of these.

    Attributes:
        n: Different examples.
        rate: Mean error rate of the draws on those looked at.
        looked_at: Examples behind the rate; n where each network saw all.
    """

    n: int
    rate: float
    looked_at: int


@dataclass(frozen=True)
class Drawn:
    """A pair that was drawn and judged: all of a certificate but the bound.

    Attributes:
        choice: The member of the family.
        rank: Number of eigenpairs in it.
        displacement: KL of the mean, nats.
        covariance: KL of the covariance, nats.
        dimension: ``N_eff = sum tau lambda / (tau lambda + epsilon)`` of the posterior, the other directions by their
            mean curvature.
        stiff: ``p(n, epsilon)``: directions among the k with ``tau lambda >= epsilon``.
        log_ratio: ln dQ/dP to the mixture prior, mean of the pair, nats.
        rate: Mean error rate of the pair.
        looked_at: Examples behind the rate.
        exact: Whether each network saw all n examples.
        among: What it did on the different examples; None where all are.
    """

    choice: Choice
    rank: int
    displacement: float
    covariance: float
    dimension: float
    stiff: int
    log_ratio: float
    rate: float
    looked_at: int
    exact: bool
    among: Among | None = None


@dataclass(frozen=True)
class Evidence:
    """What a posterior is built from and judged on.

    Attributes:
        weights: Trained weights, flat, shape (p,), float32 or float64: the type the network is evaluated in.
        prior_mean: Weights before the first step, flat, shape (p,).
        eigenvalues: Of the mean loss, shape (k,); any sign.
        eigenvectors: Shape (p, k); (p, 0) for an isotropic posterior.
        trace: Trace of the same matrix; None when unknown, at the price of a looser bound.
        n: Distinct training examples.
        risk: Counts the mistakes of flat weights on training examples given by their indices (CPU, int64).
        risk_samples: Examples looked at, half of them for each network. Where n is no larger, both networks
            see all n and the risk costs nothing. 10,000 cost .005 to .01 of bound.
        pilot_samples: Number of examples for each of at most 20 pilot risks that choose the posterior.
        start: Where the search for the posterior begins, when a good choice was known a little earlier.
        search: Whether to search from there; False takes the start as it is, and costs no passes.
        distinct: Indices of examples of different content, where others may be copies of these.

    Raises:
        ConfigurationError: For low-precision weights or numbers out of range.
    """

    weights: Tensor
    prior_mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    trace: float | None
    n: int
    risk: Risk
    risk_samples: int = 10_000
    pilot_samples: int = 1_000
    start: Choice | None = None
    search: bool = True
    distinct: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what can be checked before anything is drawn."""
        if self.weights.dtype not in (torch.float32, torch.float64):
            raise ConfigurationError(
                f"The weights are in {self.weights.dtype}, whose rounding errors are as large as the noise of the "
                "posterior; keep the parameters in float32 (mixed precision does)."
            )
        if self.n < 1 or self.risk_samples < 2 or self.pilot_samples < 1:
            raise ConfigurationError(
                "A bound needs n >= 1, risk_samples >= 2 and pilot_samples >= 1; "
                f"found {self.n}, {self.risk_samples}, {self.pilot_samples}."
            )

    def mistakes(self, flat: Tensor, indices: Tensor) -> int:
        """What ``risk`` counts, checked.

        Raises:
            ConfigurationError: If it is no count.
        """
        errors = self.risk(flat.to(self.weights.device), indices)
        if not 0 <= errors <= indices.numel():
            raise ConfigurationError(
                f"risk(weights, indices) returned {errors} for {indices.numel()} examples; "
                "return the number of mistakes."
            )
        return int(errors)


def draw_and_judge(evidence: Evidence, *, delta_pac: float, generator: torch.Generator) -> Drawn:
    """Choose a posterior around the weights, draw a pair from it, count its mistakes.

    Args:
        evidence: Weights, prior, spectrum and examples.
        delta_pac: Failure probability of the PAC-Bayes event.
        generator: Source of all randomness.

    Raises:
        ConfigurationError: If shapes disagree, or ``risk`` returns no count.
    """
    n, dtype = evidence.n, evidence.weights.dtype
    family = posterior_family(
        evidence.weights,
        evidence.prior_mean,
        eigenvalues=evidence.eigenvalues,
        eigenvectors=evidence.eigenvectors,
        trace=evidence.trace,
    )
    pilot = _own_stream(generator)
    choice = evidence.start
    if choice is None or evidence.search:
        choice = select_posterior(
            family,
            n=n,
            log_penalty=log_xi(n) - math.log(delta_pac),
            risk=evidence.mistakes,
            generator=pilot,
            dtype=dtype,
            pilot_samples=evidence.pilot_samples,
            start=choice,
        )
    posterior = member(family, choice, n)
    judged = judge_pair(
        posterior,
        family.prior_mean,
        evidence.mistakes,
        n=n,
        generator=generator,
        dtype=dtype,
        samples=evidence.risk_samples,
    )
    among = None
    if evidence.distinct is not None:
        among = _among(evidence, judged.networks, evidence.distinct, generator)
    displacement, covariance = kl_parts(posterior, family.prior_mean, choice.epsilon)
    return Drawn(
        choice=choice,
        rank=posterior.rank,
        displacement=displacement,
        covariance=covariance,
        dimension=posterior_dimension(family, epsilon=choice.epsilon, tau=choice.tau(n)),
        stiff=int((choice.tau(n) * family.eigenvalues >= choice.epsilon).sum()),
        log_ratio=sum(judged.log_ratios) / 2,
        rate=sum(judged.rates) / 2,
        looked_at=judged.looked_at,
        exact=judged.exact,
        among=among,
    )


def _among(evidence: Evidence, networks: tuple[Tensor, Tensor], distinct: Tensor, generator: torch.Generator) -> Among:
    """Judge the drawn pair on the different examples as well, with as many looks."""
    n = len(distinct)
    exact = n <= evidence.risk_samples
    each = n if exact else evidence.risk_samples // 2
    errors = [evidence.mistakes(drawn, distinct[_subsample(n, each, generator)]) for drawn in networks]
    return Among(n, sum(errors) / (2 * each), n if exact else 2 * each)


def judge_pair(
    posterior: Gaussian,
    prior_mean: Tensor,
    risk: Risk,
    *,
    n: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    samples: int,
) -> Judged:
    """Draw a pair from a posterior that is chosen, and count its mistakes on examples drawn after it.

    Args:
        posterior: Q.
        prior_mean: w0, shape (p,).
        risk: Counts mistakes.
        n: Examples.
        generator: A stream that nothing has looked at.
        dtype: Type in which the networks are evaluated.
        samples: Examples looked at, half of them for each network; where n is no larger, both see all n.
    """
    first, second = draw_pair(posterior, generator, dtype=dtype)
    exact = n <= samples
    each = n if exact else samples // 2
    ratios = [
        mixture_log_ratio(log_density_ratio(posterior, prior_mean, PRIOR_GRID, drawn)) for drawn in (first, second)
    ]
    rates = [risk(drawn, _subsample(n, each, generator)) / each for drawn in (first, second)]
    return Judged(
        networks=(first, second),
        log_ratios=(ratios[0], ratios[1]),
        rates=(rates[0], rates[1]),
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
