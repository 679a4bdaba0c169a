"""What the bounds are made of: the nats that an event allows, the upper limit of a mean, Catoni's limit on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_sloppy.bounds.relative_entropy import log_xi, probability, scalar_kl_inverse
from lightning_sloppy.errors import ConfigurationError


def require_probability(delta: float, name: str) -> None:
    """Check a failure probability.

    Raises:
        ConfigurationError: Outside (0, 1).
    """
    if not 0.0 < delta < 1.0:
        raise ConfigurationError(f"{name} must lie strictly between 0 and 1, found {delta}; 0.05 is usual.")


def event_nats(complexity: float, *, n: int, delta: float) -> float:
    """``K + ln(xi(n) / delta)``: right side of the event of Seeger and Maurer; a NaN counts as infinite.

    Args:
        complexity: KL divergence, or a log-ratio, which may be negative.
        n: Distinct examples.
        delta: Failure probability.

    >>> round(event_nats(0.0, n=1000, delta=0.05), 6)
    6.692163
    """
    require_probability(delta, "delta")
    nats = complexity + log_xi(n) - math.log(delta)
    return math.inf if math.isnan(nats) else nats


def mean_upper(mean: float, count: int, delta: float, *, effective: float | None = None) -> float:
    """``kl_inverse(mean, ln(1/delta) / m)``: upper limit of the mean of m independent variables in [0, 1].

    With probability at least 1 - delta (Hoeffding, JASA 1963, theorem 1; theorem 4 for draws without replacement).

    Args:
        mean: Of the variables.
        count: m, at least 1.
        delta: Failure probability.
        effective: What m counts as, where weights make it no whole number.

    Raises:
        ConfigurationError: For no variable, or numbers out of range.

    >>> math.isclose(mean_upper(0.0, 100, 0.01), 1 - 0.01 ** (1 / 100), rel_tol=1e-12)
    True
    """
    require_probability(delta, "delta")
    if count < 1:
        raise ConfigurationError(f"An upper limit was asked of {count} draws or examples; it needs one at least.")
    return scalar_kl_inverse(mean, -math.log(delta) / (count if effective is None else effective))


def catoni_limit(mean: float, nats: float, *, n: int, delta: float, grid: Sequence[float]) -> float:
    """``min_b (1 - exp(-b mean - (nats + ln(J/delta)) / n)) / (1 - exp(-b))`` over J values b, at most 1.

    Args:
        mean: Mean loss, in [0, 1].
        nats: Complexity.
        n: Examples.
        delta: Failure probability, shared by the grid.
        grid: Positive b, fixed beforehand.

    Raises:
        ConfigurationError: For an empty grid or numbers out of range.

    >>> math.isclose(catoni_limit(0.0, 0.0, n=100, delta=0.05, grid=[1.0]), (1 - 20**-0.01) / (1 - math.exp(-1)))
    True
    """
    require_probability(delta, "delta")
    mean = probability(mean, "mean loss")
    if not grid or min(grid) <= 0:
        raise ConfigurationError(f"grid={list(grid)} was asked for; give at least one positive number.")
    if nats < 0 or n < 1:
        raise ConfigurationError(f"{nats} nats and {n} examples were given; neither may be negative, examples not 0.")
    spent = (nats + math.log(len(grid) / delta)) / n
    if not spent < math.inf:
        return 1.0
    return min(*(math.expm1(-b * mean - spent) / math.expm1(-b) for b in grid), 1.0)
