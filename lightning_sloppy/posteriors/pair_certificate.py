"""The certificate of a pair drawn from a posterior that is built from a spectrum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sloppy.bounds.concentration import require_probability
from lightning_sloppy.bounds.pair_inequality import PAC_BAYES_FRACTION, RISK_FRACTION, pair_bound, scheduled_delta
from lightning_sloppy.bounds.relative_entropy import log_xi, scalar_kl_inverse
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.posteriors.drawing import Among, Evidence, draw_and_judge
from lightning_sloppy.posteriors.gaussian import PRIOR_GRID
from lightning_sloppy.posteriors.posterior_search import Choice
from lightning_sloppy.version import __version__

_CLAMPED = "The right side of the inequality was negative and was replaced by 0."
_EDGE = "The precision of the prior is an end of its grid. A wider grid, fixed beforehand, might give a better bound."
_SHRUNK = "The posterior mean is also scaled by tau lambda / (tau lambda + epsilon) in each direction."


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a bound.

    Attributes:
        certificate: The bound, or its parts.
        choice: The posterior that was judged, whole: where the next evaluation may begin. A certificate tells it in
            numbers for people, from which it cannot be made again.
    """

    certificate: Certificate
    choice: Choice


def certify(
    evidence: Evidence,
    *,
    delta: float,
    evaluation: int,
    generator: torch.Generator,
    reasons: Sequence[str] = (),
    conditions: Sequence[str] = (),
    prior: str = "initialization",
) -> Evaluated:
    """Bound the mean true 0-1 error of two networks drawn around the weights, or return only the parts of a bound.

    With probability at least ``1 - delta`` over the draw of the n examples and of the weights, the bounds of all
    evaluations of a run hold together, including hold-out bounds. This requires that the examples are independent
    draws, the prior mean does not depend on them, each ``evaluation`` number is used once, and the network has no state
    except its weights. If one of these conditions fails, ``reasons`` must contain it. There is then no bound: the value
    is NaN and no delta is used, but displacement, covariance, log-ratio and Gibbs error are still computed.

    Args:
        evidence: Weights, prior, spectrum and examples.
        delta: Failure probability of all bounds of the run together; 0.6 of it is used here for PAC-Bayes and 0.2 for
            subsampled risks, both in parts 6/(pi^2 t^2).
        evaluation: Number t of this evaluation, from 1.
        generator: Source of all randomness; the choice of the posterior uses a separate stream.
        reasons: Sentences that say why there is no bound; empty for a bound.
        conditions: Conditions of the bound, which are stored in the certificate.
        prior: The user's statement about the prior mean, which is stored in the certificate.

    Returns:
        A certificate of kind "pac_bayes_pair", and the posterior. ``log_ratio`` and the bound are those of the drawn
        pair; the two parts of the KL divergence are for information.

    Raises:
        ConfigurationError: If an argument is out of range, shapes disagree, or ``risk`` returns no count.
    """
    require_probability(delta, "delta")
    delta_pac = scheduled_delta(PAC_BAYES_FRACTION * delta, evaluation)
    drawn = draw_and_judge(evidence, delta_pac=delta_pac, generator=generator)
    delta_risk = 0.0 if drawn.exact else scheduled_delta(RISK_FRACTION * delta, evaluation)
    parts = Certificate(
        kind="pac_bayes_pair",
        certified_predictor="pair_of_draws",
        value=math.nan,
        valid=not reasons,
        n=evidence.n,
        delta=delta,
        reasons=tuple(reasons),
        conditions=tuple(conditions),
        remarks=(_SHRUNK,) if drawn.choice.shrink else (),
        empirical_risk=drawn.rate,
        risk_samples=drawn.looked_at,
        log_ratio=drawn.log_ratio,
        kl_displacement=drawn.displacement,
        kl_covariance=drawn.covariance,
        log_xi=log_xi(evidence.n),
        delta_pac=0.0 if reasons else delta_pac,
        delta_risk=0.0 if reasons else delta_risk,
        evaluation=evaluation,
        epsilon=drawn.choice.epsilon,
        tau=drawn.choice.tau(evidence.n),
        mean_scale=drawn.choice.mean_scale,
        rank=drawn.rank,
        effective_dimension=drawn.dimension,
        stiff_directions=drawn.stiff,
        posterior="low_rank" if drawn.rank else "isotropic",
        prior=prior,
        prior_hash=weights_hash(evidence.prior_mean),
        software=software(),
    )
    subsample = None if drawn.exact else drawn.looked_at
    found = parts if reasons else bounded(parts, subsample=subsample, among=drawn.among)
    return Evaluated(found, drawn.choice)


def bounded(parts: Certificate, *, subsample: int | None = None, among: Among | None = None) -> Certificate:
    """The certificate with the bound that follows from its parts, its largest term, and remarks.

    Args:
        parts: Certificate with error, log-ratio and both probabilities.
        subsample: Number of evaluated examples, if not every network was evaluated on all n.
        among: The same draws on the different examples; the larger of both bounds is returned. Each of them holds with
            the probability of the certificate in one of two cases (all examples are draws, or the others are copies),
            so no additional failure probability is used.
    """
    if among is not None:
        alternative = replace(
            parts, n=among.n, log_xi=log_xi(among.n), empirical_risk=among.rate, risk_samples=among.looked_at
        )
        seen_all = among.looked_at == among.n
        both = (
            bounded(parts, subsample=subsample),
            bounded(alternative, subsample=None if seen_all else among.looked_at),
        )
        return max(both, key=lambda certificate: certificate.value)
    bound = pair_bound(
        parts.empirical_risk,
        parts.log_ratio,
        n=parts.n,
        delta_pac=parts.delta_pac,
        delta_risk=parts.delta_risk,
        subsample=subsample,
    )
    weakest = weakest_term(
        rate=parts.empirical_risk,
        risk_upper=bound.risk_upper,
        budget=bound.budget,
        displacement=parts.kl_displacement,
        covariance=parts.kl_covariance,
        n=parts.n,
    )
    edge = parts.epsilon in (PRIOR_GRID[0], PRIOR_GRID[-1])
    remarks = [text for text, said in ((_CLAMPED, bound.clamped), (_EDGE, edge)) if said]
    return replace(
        parts,
        value=bound.value,
        risk_upper=bound.risk_upper,
        weakest=weakest,
        remarks=(*remarks, *parts.remarks),
    )


def weakest_term(
    *, rate: float, risk_upper: float, budget: float, displacement: float, covariance: float, n: int
) -> str:
    """Which term a bound would fall most without: "risk", "subsample", "displacement", "covariance" or "sample".

    Args:
        rate: Error rate seen.
        risk_upper: Upper limit of the error rate on all examples, if only a subsample was evaluated.
        budget: Nats for each example inside the inverted kl.
        displacement: KL of the mean, nats.
        covariance: KL of the covariance, nats.
        n: Examples.

    >>> weakest_term(rate=0.0, risk_upper=0.0, budget=0.1, displacement=90.0, covariance=5.0, n=1000)
    'displacement'
    """
    without = {
        "risk": scalar_kl_inverse(0.0, budget),
        "subsample": scalar_kl_inverse(rate, budget),
        "displacement": scalar_kl_inverse(risk_upper, max(budget - displacement / n, 0.0)),
        "covariance": scalar_kl_inverse(risk_upper, max(budget - covariance / n, 0.0)),
        "sample": scalar_kl_inverse(risk_upper, min(budget, (displacement + covariance) / n)),
    }
    return min(without, key=lambda name: without[name])


def weights_hash(weights: Tensor) -> str:
    """SHA-256 of flat weights as little-endian float32."""
    plain = weights.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
    return hashlib.sha256(plain.tobytes()).hexdigest()


def software() -> str:
    """Versions of this package and of torch."""
    # Not from the metadata of an installed package: a source tree on the path has none.
    return f"lightning-sloppy {__version__}, torch {torch.__version__}"
