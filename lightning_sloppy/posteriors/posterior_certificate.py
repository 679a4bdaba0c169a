"""Certificates of a posterior from new draws evaluated on all examples: one for the pair, one for a single network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.bounds.concentration import require_probability
from lightning_sloppy.bounds.pair_inequality import PAC_BAYES_FRACTION, scheduled_delta
from lightning_sloppy.bounds.relative_entropy import log_xi
from lightning_sloppy.bounds.statements import conditions
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.posteriors.coordinates import Coordinates
from lightning_sloppy.posteriors.drawing import Among, Judged, judge_pair
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID, Gaussian, kl_parts
from lightning_sloppy.posteriors.pair_certificate import bounded, software, weights_hash
from lightning_sloppy.posteriors.posterior_search import Risk


@dataclass(frozen=True)
class FinalCertificates:
    """What a posterior was certified for.

    Attributes:
        pair: For picking one of the two networks at random.
        single: For the first network: one that can be deployed.
        networks: Their flat weights, (p,) each.
        judged: The draws behind them.
    """

    pair: Certificate
    single: Certificate
    networks: tuple[Tensor, Tensor]


def certify_posterior(
    posterior: Gaussian,
    prior_mean: Tensor,
    risk: Risk,
    *,
    n: int,
    delta: float,
    generator: torch.Generator,
    evaluation: int = 1,
    dtype: torch.dtype = torch.float32,
    template: Certificate | None = None,
    coordinates: Coordinates | None = None,
    distinct: Tensor | None = None,
) -> FinalCertificates:
    """Certify draws from a posterior that was chosen in any way, with risks on all n examples.

    Both certificates are PAC-Bayes-kl for drawn networks (Rivasplata et al. 2020, theorem 1; docs/certificates.md),
    each at half of ``6 (0.6 delta) / (pi^2 t^2)``, so that they hold together with all others of the run. One draw lets
    its log-ratio fluctuate by the root of ``1/2 sum_i (1 - epsilon/x_i)^2 + epsilon^2 Delta^T Lambda^-1 Delta`` around
    the KL; the pair is rid of the second part.

    Args:
        posterior: Q; its choice must not have seen this generator.
        prior_mean: w0, shape (p,).
        risk: Counts mistakes on indices below n.
        n: Distinct examples, none of which the prior depends on.
        delta: Failure probability of all that the run calls a bound.
        generator: A stream of its own.
        evaluation: Number t in the schedule of the run.
        dtype: Type in which the networks are evaluated, float32 or float64.
        template: Conditions, prior and the like, which are copied.
        coordinates: In which posterior, prior's mean (the origin: zeros) and the points handed to ``risk`` are given,
            in float64; None: they are weights.
        distinct: Indices of examples of different content, where others may be copies of these: the larger of the
            bounds on all and on these is given, with the same draws.

    Returns:
        Both certificates, and the networks.

    Raises:
        ConfigurationError: For fewer than two examples, or delta out of range.
    """
    if n < 2:
        raise ConfigurationError(f"A certificate needs at least 2 examples, but there are {n}; pass more examples.")
    require_probability(delta, "delta")
    if coordinates is not None and coordinates.origin.dtype != torch.float64:
        raise ConfigurationError("The coordinates of a certificate must be float64; pass those.")
    drawn_as = dtype if coordinates is None else torch.float64  # a network is rounded when its weights are known
    judged = judge_pair(posterior, prior_mean, risk, n=n, generator=generator, dtype=drawn_as, samples=n)
    first, second = judged.networks
    others = () if distinct is None else tuple(risk(network, distinct) / len(distinct) for network in judged.networks)
    if coordinates is not None:
        first, second = coordinates.weights(first).to(dtype), coordinates.weights(second).to(dtype)
    parts = [kl_parts(posterior, prior_mean, epsilon) for epsilon in PRIOR_GRID]
    place = min(range(len(parts)), key=lambda j: sum(parts[j]))
    if not math.isfinite(sum(parts[place])) or not all(map(math.isfinite, judged.log_ratios)):
        raise ConfigurationError(
            "The KL divergence of the posterior is not finite, so there is no bound; check the weights for NaN."
        )
    rank = getattr(posterior, "rank", 0)
    base = template or Certificate("", "", math.nan, valid=True, n=n, delta=delta)
    common = replace(
        base,
        n=n,
        delta=delta,
        risk_samples=n,
        kl_displacement=parts[place][0],
        kl_covariance=parts[place][1],
        log_xi=log_xi(n),
        delta_pac=scheduled_delta(PAC_BAYES_FRACTION * delta, evaluation) / 2,
        evaluation=evaluation,
        epsilon=PRIOR_GRID[place],
        rank=rank,
        posterior=base.posterior + (" and low rank" if rank and base.posterior else ""),
        prior_hash=weights_hash(prior_mean if coordinates is None else coordinates.prior),
        software=software(),
    )
    judged = replace(judged, networks=(first, second))
    among = None if distinct is None else (len(distinct), others)
    return FinalCertificates(
        pair=_completed(replace(common, kind="pac_bayes_pair", certified_predictor="pair_of_draws"), judged, 2, among),
        single=_completed(replace(common, kind="pac_bayes_draw", certified_predictor="single_draw"), judged, 1, among),
        networks=judged.networks,
    )


def _completed(
    certificate: Certificate, judged: Judged, draws: int, among: tuple[int, tuple[float, ...]] | None
) -> Certificate:
    """With the error, the log-ratio and the bound of the first draws; the larger bound, where only some may count.

    Args:
        certificate: All else.
        judged: The draws.
        draws: How many of them are certified.
        among: The different examples, and the error rate of each draw on them.
    """
    rate, log_ratio = sum(judged.rates[:draws]) / draws, sum(judged.log_ratios[:draws]) / draws
    seen = replace(
        certificate,
        empirical_risk=rate,
        log_ratio=log_ratio,
        conditions=(*conditions(certificate.certified_predictor, certificate.examples), *certificate.conditions),
        network_hashes=tuple(weights_hash(network) for network in judged.networks[:draws]),
    )
    if among is None:
        return bounded(seen)
    count, rates = among
    return bounded(seen, among=Among(count, sum(rates[:draws]) / draws, count))
