"""From a spectrum to a certificate: spend delta on a pair that was drawn and judged, and write down everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sloppy.bounds.drawing import Drawn, draw_and_judge
from lightning_sloppy.bounds.kl import log_xi
from lightning_sloppy.bounds.pac_bayes import PAC_SHARE, RISK_SHARE, pair_bound, scheduled_delta
from lightning_sloppy.bounds.selection import Risk
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.records import Certificate

_CLAMPED = "The right side of the inequality was negative and was taken as 0."
_SHRUNK = "The posterior mean is moreover scaled by tau lambda / (tau lambda + epsilon) in each direction."


def certify(
    *,
    weights: Tensor,
    prior_mean: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    trace: float | None,
    n: int,
    delta: float,
    evaluation: int,
    risk: Risk,
    generator: torch.Generator,
    risk_samples: int = 10_000,
    pilot_samples: int = 1_000,
    conditions: Sequence[str] = (),
    prior: str = "initialisation",
) -> Certificate:
    """Bound the mean true 0-1 error of two networks drawn around ``weights``.

    With probability at least ``1 - delta`` over the draw of the n examples and of the weights, the bounds of
    all evaluations of a run hold at once, hold-out bounds included. Provided: the examples are independent
    draws, ``prior_mean`` does not depend on them, each ``evaluation`` number is used once, and the network
    has no state but its weights.

    Args:
        weights: Trained weights, flat, shape (p,), float32 or float64: the type the network is evaluated in.
        prior_mean: Weights before the first step, flat, shape (p,).
        eigenvalues: Of the mean loss, shape (k,); any sign.
        eigenvectors: Shape (p, k); (p, 0) for an isotropic posterior.
        trace: Trace of the same matrix; None when unknown, at the price of a looser bound.
        n: Distinct training examples.
        delta: Failure probability of all that the run calls a bound; 0.6 of it is spent here on PAC-Bayes and
            0.2 on subsampled risks, both in parts 6/(pi^2 t^2).
        evaluation: Number t of this evaluation, from 1.
        risk: Counts the mistakes of flat weights on training examples given by their indices (CPU, int64).
        generator: Source of all randomness; the choice of the posterior gets a stream of its own.
        risk_samples: Examples looked at, half of them for each network. Where n is no larger, both networks
            see all n and the risk costs nothing. 10,000 cost .005 to .01 of bound.
        pilot_samples: Examples behind each of at most 20 pilot risks that choose the posterior.
        conditions: Statements under which the bound holds, kept in the certificate.
        prior: The user's statement about ``prior_mean``, kept in the certificate.

    Returns:
        A valid certificate of kind "pac_bayes_pair". Its ``log_ratio`` is that of the drawn pair, and so is
        its bound; the two KL parts are beside it to be looked at.

    Raises:
        ConfigurationError: If an argument is out of range, shapes disagree, or ``risk`` returns no count.
    """
    delta_pac, delta_risk = _spend(delta, evaluation)
    drawn = draw_and_judge(
        weights=weights,
        prior_mean=prior_mean,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors,
        trace=trace,
        n=n,
        delta_pac=delta_pac,
        risk=risk,
        generator=generator,
        risk_samples=risk_samples,
        pilot_samples=pilot_samples,
    )
    delta_risk = 0.0 if drawn.exact else delta_risk
    subsample = None if drawn.exact else drawn.looked_at
    bound = pair_bound(
        drawn.rate, drawn.log_ratio, n=n, delta_pac=delta_pac, delta_risk=delta_risk, subsample=subsample
    )
    return _certificate(
        drawn,
        n=n,
        delta=delta,
        prior=prior,
        evaluation=evaluation,
        conditions=(*conditions, _CLAMPED) if bound.clamped else conditions,
        value=bound.value,
        risk_upper=bound.risk_upper,
        delta_pac=delta_pac,
        delta_risk=delta_risk,
    )


def parts_only(
    *,
    weights: Tensor,
    prior_mean: Tensor,
    eigenvalues: Tensor,
    eigenvectors: Tensor,
    trace: float | None,
    n: int,
    delta: float,
    evaluation: int,
    risk: Risk,
    generator: torch.Generator,
    reasons: Sequence[str],
    risk_samples: int = 10_000,
    pilot_samples: int = 1_000,
    conditions: Sequence[str] = (),
    prior: str = "initialisation",
) -> Certificate:
    """The parts of :func:`certify` without a bound, when a condition of validity fails.

    Displacement, covariance, log-ratio and Gibbs error still tell how training goes; no delta is spent.

    Args:
        weights: As in :func:`certify`, and so for all others not named here.
        prior_mean: Where the distance is measured from.
        eigenvalues: Shape (k,).
        eigenvectors: Shape (p, k).
        trace: Trace, or None.
        n: Training examples.
        delta: Only steers the choice of the posterior.
        evaluation: Likewise.
        risk: Counts mistakes.
        generator: Source of all randomness.
        reasons: Why there is no bound: at least one sentence.
        risk_samples: Examples looked at.
        pilot_samples: Examples behind each pilot risk.
        conditions: Kept in the certificate.
        prior: Kept in the certificate.

    Returns:
        A certificate with ``valid=False``, value and risk limit NaN, and the parts filled in.

    Raises:
        ConfigurationError: As in :func:`certify`, and when no reason is given.
    """
    if not reasons:
        raise ConfigurationError("parts_only was called without a reason; say why there is no bound, or call certify.")
    drawn = draw_and_judge(
        weights=weights,
        prior_mean=prior_mean,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors,
        trace=trace,
        n=n,
        delta_pac=_spend(delta, evaluation)[0],
        risk=risk,
        generator=generator,
        risk_samples=risk_samples,
        pilot_samples=pilot_samples,
    )
    return _certificate(
        drawn, n=n, delta=delta, prior=prior, evaluation=evaluation, conditions=conditions, reasons=reasons
    )


def _spend(delta: float, evaluation: int) -> tuple[float, float]:
    """Parts of delta for the PAC-Bayes event and for the risk at evaluation t."""
    if not 0.0 < delta < 1.0:
        raise ConfigurationError(f"delta must lie strictly between 0 and 1, found {delta}; 0.05 is usual.")
    return scheduled_delta(PAC_SHARE * delta, evaluation), scheduled_delta(RISK_SHARE * delta, evaluation)


def _certificate(
    drawn: Drawn,
    *,
    n: int,
    delta: float,
    prior: str,
    evaluation: int,
    conditions: Sequence[str],
    reasons: Sequence[str] = (),
    value: float = math.nan,
    risk_upper: float = math.nan,
    delta_pac: float = 0.0,
    delta_risk: float = 0.0,
) -> Certificate:
    return Certificate(
        kind="pac_bayes_pair",
        certified_predictor="pair_of_draws",
        value=value,
        valid=not reasons,
        n=n,
        delta=delta,
        reasons=tuple(reasons),
        conditions=(*conditions, _SHRUNK) if drawn.choice.shrink else tuple(conditions),
        empirical_risk=drawn.rate,
        risk_upper=risk_upper,
        risk_samples=drawn.looked_at,
        log_ratio=drawn.log_ratio,
        kl_displacement=drawn.displacement,
        kl_covariance=drawn.covariance,
        log_xi=log_xi(n),
        delta_pac=delta_pac,
        delta_risk=delta_risk,
        evaluation=evaluation,
        epsilon=drawn.choice.epsilon,
        tau=drawn.choice.tau(n),
        mean_scale=drawn.choice.mean_scale,
        rank=drawn.rank,
        prior=prior,
    )
