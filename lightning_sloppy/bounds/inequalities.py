"""PAC-Bayes inequalities on the Gibbs risk, from the tightest to the ones that are printed most often.

The setting of all: n independent examples, a prior P over networks that does not depend on them, a posterior Q that
may, a loss in [0, 1], ``q = E_Q`` of the mean loss on the n examples, ``K = KL(Q || P)``, and the wanted ``E_Q`` of the
true risk. The first five are consequences of one event (Seeger 2002; Maurer 2004, theorem 5),

    with probability at least 1 - delta, for all Q at once:  n kl(q || true risk) <= K + ln(xi(n) / delta),

so that any of them, or the least, holds without paying twice, along a whole training and for every checkpoint. What is
measured by drawing networks is not q itself; see :mod:`lightning_sloppy.bounds.gibbs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from lightning_sloppy.bounds.concentration import catoni_limit, event_nats, require_probability
from lightning_sloppy.bounds.relative_entropy import (
    closed_limits,
    probability,
    scalar_kl_inverse,
    scalar_kl_inverse_lower,
)
from lightning_sloppy.errors import ConfigurationError

CATONI_GRID: Final[tuple[float, ...]] = tuple(0.1 * 2.0**power for power in range(10))
"""Ten inverse temperatures from 0.1 to 51.2, written down before any data: ln 10 nats for the choice among them."""


def budget(complexity: float, *, n: int, delta: float) -> float:
    """``c = (K + ln(xi(n) / delta)) / n``, the nats for each example that the event allows.

    Args:
        complexity: ``KL(Q || P)`` in nats. Of a mixture prior, that to the mixture.
        n: Distinct examples in the empirical risk.
        delta: Failure probability.

    Returns:
        c; infinite for a KL that is NaN or infinite, so that every bound is vacuous.

    Raises:
        ConfigurationError: For a negative KL, n below 1 or a delta outside (0, 1).

    >>> round(budget(0.0, n=1000, delta=0.05), 6)
    0.006692
    """
    if complexity < 0:
        raise ConfigurationError(
            f"A KL of {complexity} nats was given, and none is negative; look at the terms it is the sum of."
        )
    return event_nats(complexity, n=n, delta=delta) / n


def maurer_seeger_bound(risk: float, complexity: float, *, n: int, delta: float) -> float:
    """``kl_inverse(q, c)``: the event itself, inverted; no bound that rests on it is smaller.

    Statement and assumptions: those of the module. Source: Seeger, JMLR 2002; Maurer, arXiv cs/0411099.

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.

    Returns:
        Upper limit of the true Gibbs risk.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> round(maurer_seeger_bound(0.028, 5144.0, n=55_000, delta=0.025), 10)
    0.160644654
    """
    return scalar_kl_inverse(risk, budget(complexity, n=n, delta=delta))


def mcallester_bound(risk: float, complexity: float, *, n: int, delta: float) -> float:
    """``q + sqrt(c/2)``, by Pinsker's inequality ``kl(q || p) >= 2 (p - q)^2``.

    Statement and assumptions: those of the module. Source: McAllester, Machine Learning 51, 2003, with Maurer's
    constant.

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.

    Returns:
        Upper limit of the true Gibbs risk, at most 1.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> c = budget(10.0, n=1000, delta=0.05)
    >>> mcallester_bound(0.1, 10.0, n=1000, delta=0.05) == 0.1 + math.sqrt(c / 2)
    True
    """
    risk = probability(risk, "risk")
    return min(risk + math.sqrt(budget(complexity, n=n, delta=delta) / 2), 1.0)


def quadratic_bound(risk: float, complexity: float, *, n: int, delta: float) -> float:
    """``(sqrt(q + c/2) + sqrt(c/2))^2``, by ``kl(q || p) >= (p - q)^2 / (2 p)``.

    Statement and assumptions: those of the module. Source: Rivasplata et al., ICML 2019 workshop; Perez-Ortiz et al.,
    JMLR 22(227), 2021, "f_quad".

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.

    Returns:
        Upper limit of the true Gibbs risk, at most 1.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> quadratic_bound(0.0, 10.0, n=1000, delta=0.05) == 2 * budget(10.0, n=1000, delta=0.05)
    True
    """
    risk, half = probability(risk, "risk"), budget(complexity, n=n, delta=delta) / 2
    return min((math.sqrt(risk + half) + math.sqrt(half)) ** 2, 1.0)


def lambda_bound(risk: float, complexity: float, *, n: int, delta: float, trade_off: float | None = None) -> float:
    """``q / (1 - l/2) + c / (l (1 - l/2))``, for all l in (0, 2) at once.

    At the best ``l = 2 / (sqrt(2 q / c + 1) + 1)`` it is the quadratic bound; for a fixed l it is linear in risk and
    KL, which is what one can descend on. Statement and assumptions: those of the module. Source: Thiemann, Igel,
    Wintenberger and Seldin, ALT 2017, theorem 3.

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.
        trade_off: ``l``; None takes the best. It may depend on the data.

    Returns:
        Upper limit of the true Gibbs risk, at most 1.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> round(lambda_bound(0.1, 0.0, n=1000, delta=0.05) - quadratic_bound(0.1, 0.0, n=1000, delta=0.05), 12)
    0.0
    """
    risk, c = probability(risk, "risk"), budget(complexity, n=n, delta=delta)
    if trade_off is None:
        trade_off = 2 / (math.sqrt(2 * risk / c + 1) + 1)
    if not 0 < trade_off < 2:
        raise ConfigurationError(f"trade_off={trade_off} was asked for; it must lie strictly between 0 and 2.")
    keep = 1 - trade_off / 2
    return min(risk / keep + c / (trade_off * keep), 1.0)


def closed_form_bound(risk: float, complexity: float, *, n: int, delta: float) -> float:
    """The least of four closed forms above ``kl_inverse(q, c)``, for where no root can be searched.

    Pinsker's; ``q + sqrt(2 q c) + c`` (Garcia-Perez et al., arXiv 2510.07935); ``(sqrt(q + h) + sqrt(h))^2`` with
    ``h = c (1-q) / 2`` (the same), and ``1 - exp(-(c + entropy(q)) / (1-q))``, from
    ``kl(q || p) >= (1-q) ln(1/(1-p)) - entropy(q)``. Statement and assumptions: those of the module.

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.

    Returns:
        Upper limit of the true Gibbs risk, at most 1.

    Raises:
        ConfigurationError: For numbers out of range.

    >>> closed_form_bound(0.0, 10.0, n=1000, delta=0.05) == -math.expm1(-budget(10.0, n=1000, delta=0.05))
    True
    """
    risk, c = probability(risk, "risk"), budget(complexity, n=n, delta=delta)
    if risk == 0.0:
        return -math.expm1(-c)
    return 1.0 if risk >= 1.0 or math.isinf(c) else min(*closed_limits(risk, c), 1.0)


def catoni_bound(risk: float, complexity: float, *, n: int, delta: float, grid: Sequence[float] = CATONI_GRID) -> float:
    """``min_b (1 - exp(-b q - (K + ln(J/delta)) / n)) / (1 - exp(-b))`` over a grid of J inverse temperatures b.

    With probability at least 1 - delta, for all Q and all b of the grid at once. Another event than that of the module,
    without xi(n): better where K is a few nats, as after a good data-dependent prior. Assumes that the grid was fixed
    before the examples were seen. Source: Catoni, IMS Lecture Notes 56, 2007, theorem 1.2.6, and a union over the grid.

    Args:
        risk: ``q``, exact.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.
        grid: Positive inverse temperatures.

    Returns:
        Upper limit of the true Gibbs risk, at most 1.

    Raises:
        ConfigurationError: For numbers out of range or an empty grid.

    >>> expected = (1 - 20 ** (-1 / 100)) / (1 - math.exp(-1))  # q = K = 0
    >>> math.isclose(catoni_bound(0.0, 0.0, n=100, delta=0.05, grid=[1.0]), expected, rel_tol=1e-12)
    True
    """
    return catoni_limit(risk, complexity, n=n, delta=delta, grid=grid)


def split_kl_bound(
    above: float, below: float, complexity: float, *, n: int, delta: float, low: float, middle: float, high: float
) -> float:
    """``m + (b-m) kl_inverse(above/(b-m), c) - (m-a) kl_inverse_lower(below/(m-a), c)`` for losses in [a, b].

    For a loss with three or more values, such as the difference of two errors in {-1, 0, 1}, of which most are ``m``.
    Both events hold together at ``c = (K + ln(2 xi(n) / delta)) / n``. Assumptions: those of the module, for a loss in
    [a, b]. Source: Wu and Seldin, NeurIPS 2022, theorem 7.

    Args:
        above: ``E_Q`` of the mean of ``max(loss - m, 0)`` on the examples.
        below: ``E_Q`` of the mean of ``max(m - loss, 0)``.
        complexity: ``K`` in nats.
        n: Distinct examples.
        delta: Failure probability.
        low: a.
        middle: m, fixed before the examples were seen.
        high: b.

    Returns:
        Upper limit of the true mean loss, at most b.

    Raises:
        ConfigurationError: Unless ``a < m < b`` and the parts fit into it.

    >>> round(split_kl_bound(0.004, 0.003, 100.0, n=30_000, delta=0.05, low=-1.0, middle=0.0, high=1.0), 5)
    0.01162
    """
    if not low < middle < high:
        raise ConfigurationError(f"A loss in [{low}, {high}] was split at {middle}; split it strictly inside.")
    require_probability(delta, "delta")
    if above / (high - middle) + below / (middle - low) > 1 + 1e-12:
        raise ConfigurationError(
            f"Parts of {above} above and {below} below the middle belong to no loss in [{low}, {high}]: every example "
            "is on one side only; give means over all examples."
        )
    c = budget(complexity, n=n, delta=delta / 2)
    upper = scalar_kl_inverse(above / (high - middle), c)
    lower = scalar_kl_inverse_lower(below / (middle - low), c)
    return middle + (high - middle) * upper - (middle - low) * lower
