"""Intervals of error rates, mean losses, and sums and differences of them. Pure functions of counts and sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import t as student

from lightning_sloppy.bounds.hold_out import hold_out_bound

LEVEL = 0.95
"""Probability with which an interval holds the number of the population."""

FEWEST = 10
"""Samples below which a number is marked: it is hardly known."""


@dataclass(frozen=True)
class Rate:
    """An error rate or a mean loss, with its interval.

    Attributes:
        value: NaN without samples.
        low: Lower end of the interval; NaN if there is none.
        high: Upper end.
        count: Number of samples.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def few(self) -> bool:
        """Whether it rests on fewer than 10 samples."""
        return self.count < FEWEST

    @property
    def known(self) -> bool:
        """Whether it is a number with an interval."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))


UNKNOWN = Rate(math.nan, math.nan, math.nan, 0)
"""A rate without samples."""


def error_rate(mistakes: int, count: int, level: float = LEVEL) -> Rate:
    """An error rate with the exact two-sided binomial interval (Clopper and Pearson, Biometrika 26, 1934).

    Each end is exceeded with probability ``(1 - level) / 2`` at most.

    >>> rate = error_rate(3, 20)
    >>> rate.value, round(rate.low, 6), round(rate.high, 6)
    (0.15, 0.032071, 0.378927)
    """
    if count == 0:
        return UNKNOWN
    beyond = (1 - level) / 2
    low, high = 1 - hold_out_bound(count - mistakes, count, beyond), hold_out_bound(mistakes, count, beyond)
    return Rate(mistakes / count, low, high, count)


def mean_loss(total: float, squares: float, count: int, level: float = LEVEL) -> Rate:
    """A mean with Student's t interval, from the sum and the sum of squares.

    The interval is that of a normal mean: of few samples of a skewed loss it is too short at its upper end.
    """
    if count == 0:
        return UNKNOWN
    mean = total / count
    if count < 2 or not math.isfinite(squares):
        return Rate(mean, math.nan, math.nan, count)
    half = float(student.ppf((1 + level) / 2, count - 1)) * _standard_error(total, squares, count)
    return Rate(mean, mean - half, mean + half, count)


def combined(weights: Sequence[float], rates: Sequence[Rate]) -> Rate:
    """A weighted sum of independent rates, with an interval from theirs.

    With l and u the ends of the intervals of the parts, for positive weights the ends are
    ``value - sqrt(sum w^2 (value_i - l_i)^2)`` and ``value + sqrt(sum w^2 (u_i - value_i)^2)``; a negative weight
    exchanges l and u (Zou and Donner, Statistics in Medicine 27, 2008). From exact intervals it is slightly too long.

    Args:
        weights: Of the parts.
        rates: The parts.
    """
    value = sum(weight * rate.value for weight, rate in zip(weights, rates, strict=True))
    below = above = 0.0
    for weight, rate in zip(weights, rates, strict=True):
        down, up = rate.value - rate.low, rate.high - rate.value
        below += (weight * (down if weight > 0 else up)) ** 2
        above += (weight * (up if weight > 0 else down)) ** 2
    return Rate(value, value - math.sqrt(below), value + math.sqrt(above), sum(rate.count for rate in rates))


def difference(first: Rate, second: Rate) -> Rate:
    """``first - second`` of two independent rates or means, as :func:`combined`."""
    return combined((1.0, -1.0), (first, second))


def balanced(rates: Sequence[Rate]) -> Rate:
    """The mean of the rates of the classes that have samples; NaN without any."""
    present = [rate for rate in rates if rate.count]
    if not present:
        return UNKNOWN
    found = combined([1 / len(present)] * len(present), present)
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def level_of_each(looked_at: int, level: float = LEVEL) -> float:
    """The level of each of several intervals at which all of them hold together with probability ``level``.

    By the union bound (Bonferroni). So the interval of whichever is picked after looking at all of them holds as well.
    """
    return 1 - (1 - level) / max(looked_at, 1)


def _standard_error(total: float, squares: float, count: int) -> float:
    variance = max(squares - total * total / count, 0.0) / (count - 1)
    return math.sqrt(variance / count)
