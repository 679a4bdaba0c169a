"""The bound on a pair of drawn networks, and how the failure probability of a run is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from lightning_sloppy.bounds.concentration import event_nats, mean_upper, require_probability
from lightning_sloppy.bounds.relative_entropy import scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError

PAC_BAYES_FRACTION: Final[float] = 0.6
RISK_FRACTION: Final[float] = 0.2
HOLD_OUT_FRACTION: Final[float] = 0.2
"""Shares of delta: the PAC-Bayes events, the subsampled risks, the hold-out bounds; together 1."""


@dataclass(frozen=True)
class PairBound:
    """A bound on the mean true error of two drawn networks.

    Attributes:
        value: Upper limit of the mean true error of the pair.
        risk_upper: Upper limit of its mean error on all n examples; the error itself where all were looked at.
        budget: Nats for each example inside the inverted kl.
        clamped: Whether the right side came out negative and was taken as 0.
    """

    value: float
    risk_upper: float
    budget: float
    clamped: bool


def pair_bound(
    empirical_risk: float,
    log_ratio: float,
    *,
    n: int,
    delta_pac: float,
    delta_risk: float = 0.0,
    subsample: int | None = None,
) -> PairBound:
    """Bound the mean true error of networks ``w_1, w_2`` drawn from Q, in whatever way they depend on one another.

    With probability at least ``1 - delta_pac`` over the n examples and the draw,
    ``n kl(mean_j risk(w_j) || mean_j error(w_j)) <= mean_j ln dQ/dP(w_j) + ln(xi(n) / delta_pac)``.
    For one draw this is Rivasplata et al. 2020, theorem 1 (also Viallard et al. 2024); for two, the mean of
    the exponents is at most the exponent of the larger mean (Jensen), and kl is convex. Where the risk was
    counted on a subsample of m examples drawn after the weights, it is first replaced by
    ``kl_inverse(risk, ln(1/delta_risk) / m)`` (Hoeffding 1963, theorems 1 and 4).

    Args:
        empirical_risk: Mean error rate of the pair on the examples looked at.
        log_ratio: Mean of ``ln dQ/dP`` at the two weight vectors, nats.
        n: Distinct training examples.
        delta_pac: Failure probability of the PAC-Bayes event.
        delta_risk: Failure probability of the subsampled risk; unused without a subsample.
        subsample: Examples looked at, m, over both members; None when each member saw all n.

    Returns:
        The bound and its ingredients.

    Raises:
        ConfigurationError: If a probability is outside (0, 1) or a count below 1.

    >>> round(pair_bound(0.1, 0.0, n=1000, delta_pac=0.05).value, 10)
    0.1382341336
    """
    require_probability(delta_pac, "delta_pac")
    upper = empirical_risk
    if subsample is not None:
        require_probability(delta_risk, "delta_risk")
        upper = mean_upper(empirical_risk, subsample, delta_risk)
    right_side = event_nats(log_ratio, n=n, delta=delta_pac)
    budget = max(right_side, 0.0) / n
    return PairBound(value=scalar_kl_inverse(upper, budget), risk_upper=upper, budget=budget, clamped=right_side < 0.0)


def scheduled_delta(delta: float, evaluation: int) -> float:
    """Part ``6 delta / (pi^2 t^2)`` of delta that evaluation t may spend; over all t they sum to delta.

    So the bounds of a whole run hold at once, however long it lasts.

    Args:
        delta: What the run may spend in all, in (0, 1).
        evaluation: Number t of the evaluation, from 1; each number may be used once.

    Returns:
        The failure probability of this evaluation.

    Raises:
        ConfigurationError: If delta is outside (0, 1) or t below 1.

    >>> round(scheduled_delta(0.05, 1), 10), round(scheduled_delta(0.05, 2), 10)
    (0.0303963551, 0.0075990888)
    """
    require_probability(delta, "delta")
    if evaluation < 1:
        raise ConfigurationError(
            f"An evaluation is numbered from 1, found {evaluation}; count the evaluations of the run."
        )
    return 6.0 * delta / (math.pi**2 * evaluation**2)


def spent_delta(delta: float, pairs: int, held_out: int) -> float:
    """What a run has spent of delta after so many evaluations on pairs and so many hold-out bounds.

    >>> spent_delta(0.05, 0, 0), spent_delta(0.05, 10**5, 10**5) < 0.05
    (0.0, True)
    """
    series = [6 / math.pi**2 * math.fsum(1 / t**2 for t in range(1, count + 1)) for count in (pairs, held_out)]
    return delta * ((PAC_BAYES_FRACTION + RISK_FRACTION) * series[0] + HOLD_OUT_FRACTION * series[1])
