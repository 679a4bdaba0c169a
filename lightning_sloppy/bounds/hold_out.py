"""The hold-out bound: fixed networks judged on examples that nothing was fitted or chosen on."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.special import betainccinv

from lightning_sloppy.bounds.concentration import mean_upper, require_probability
from lightning_sloppy.bounds.pair_inequality import HOLD_OUT_FRACTION, scheduled_delta
from lightning_sloppy.certificate import Certificate
from lightning_sloppy.errors import ConfigurationError


def hold_out_bound(errors: int, n: int, delta: float) -> float:
    """Upper limit of the true error after ``errors`` mistakes on n fresh examples (Clopper and Pearson 1934).

    The largest rate under which so few mistakes still have probability delta: the ``1 - delta`` quantile of
    Beta(errors + 1, n - errors). No upper limit for a fixed network can be smaller.

    Args:
        errors: Mistakes of one network that does not depend on the n examples.
        n: Examples.
        delta: Failure probability.

    Returns:
        The upper limit; 1 when all were mistakes.

    Raises:
        ConfigurationError: If the counts or delta make no sense.

    >>> round(hold_out_bound(0, 10_000, 0.05), 10)  # 1 - delta^(1/n)
    0.0002995284
    """
    if n < 1 or not 0 <= errors <= n:
        raise ConfigurationError(f"A hold-out bound needs 0 <= errors <= n and n >= 1, found {errors} of {n}.")
    require_probability(delta, "delta")
    if errors == n:
        return 1.0
    return float(betainccinv(errors + 1, n - errors, delta))


def chernoff_bound(mean: float, n: int, delta: float) -> float:
    """Upper limit ``kl_inverse(mean, ln(1/delta) / n)`` of the true mean of a loss in [0, 1], on n fresh examples.

    For losses between 0 and 1; of an error, which is 0 or 1, :func:`hold_out_bound` is smaller. Assumes a network that
    does not depend on the n examples. Source: Hoeffding, JASA 1963, theorem 1.

    Args:
        mean: Mean loss.
        n: Examples.
        delta: Failure probability.

    Returns:
        The upper limit.

    Raises:
        ConfigurationError: If the numbers make no sense.

    >>> round(chernoff_bound(0.0127, 10_000, 0.05), 10)
    0.0156384541
    """
    return mean_upper(mean, n, delta)


def hold_out_certificate(
    errors: int, n: int, *, delta: float, evaluation: int, conditions: Sequence[str] = ()
) -> Certificate:
    """The hold-out bound of evaluation t, at its part of the hold-out's fraction of delta.

    Valid for every evaluation of a run at once, hence also for the network that looks best; not valid
    for a network that was trained on these examples.

    Args:
        errors: Mistakes of the network.
        n: Hold-out examples.
        delta: Total failure probability of the run; a fifth of it is spent on hold-out bounds.
        evaluation: Number t of the evaluation, from 1.
        conditions: Statements under which the bound holds.

    Returns:
        A certificate of kind "hold_out" on the "fixed_network".

    Raises:
        ConfigurationError: If the counts, delta or t make no sense.
    """
    spent = scheduled_delta(HOLD_OUT_FRACTION * delta, evaluation)
    value = hold_out_bound(errors, n, spent)
    return Certificate(
        kind="hold_out",
        certified_predictor="fixed_network",
        value=value,
        valid=True,
        n=n,
        delta=delta,
        conditions=tuple(conditions),
        empirical_risk=errors / n,
        risk_upper=value,
        risk_samples=n,
        delta_risk=spent,
        evaluation=evaluation,
    )
