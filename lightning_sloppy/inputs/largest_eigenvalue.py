"""Which eigenvalues of a sample may be equal, and what the correction of the largest does to an error."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats

from lightning_sloppy.inputs.pairwise import Floats

LEVEL = 0.01
"""Of the test that eigenvalues are equal: only clearly different ones are told apart."""

LARGEST_FACTOR = 4.0
"""Where the largest eigenvalue leaves the bulk of the others, its correction has no bounded derivative."""


def equal_to_the_largest(values: Floats, rows: float) -> int:
    """How many of the largest eigenvalues may be equal in the population.

    The likelihood-ratio test that q eigenvalues are equal compares ``(n - (2 q + 1 + 2 / q) / 6) q log(mean / geometric
    mean)`` with chi-square of ``q (q + 1) / 2 - 1`` degrees of freedom (Anderson, Annals of Mathematical Statistics 34,
    1963). Here q grows until it is rejected.

    Args:
        values: Of the sample, descending, (d,).
        rows: Independent rows n.

    >>> equal_to_the_largest(np.array([4.2, 4.0, 3.9, 1.0, 0.9]), 200)
    3
    """
    known = values[: int((values > 0).sum())]
    if len(known) < 2:
        return 1
    q = np.arange(2, len(known) + 1)
    weight = np.maximum(rows - (2 * q + 1 + 2 / q) / 6, 1.0)
    means, logs = np.cumsum(known)[1:] / q, np.cumsum(np.log(known))[1:] / q
    rejected = weight * q * (np.log(means) - logs) > _critical(1 << len(known).bit_length())[: len(q)]
    return int(np.argmax(rejected)) + 1 if rejected.any() else len(known)


@lru_cache(maxsize=4)
def _critical(most: int) -> Floats:
    """Values that the statistic of 2, 3, ... equal eigenvalues exceeds with probability :data:`LEVEL`."""
    q = np.arange(2, most + 1)
    return np.asarray(stats.chi2.ppf(1 - LEVEL, q * (q + 1) / 2 - 1))


def equal_runs(values: Floats, population: Floats, rows: float, floor: float = 0.0) -> Floats:
    """For each eigenvalue the means of the run of those below, and of those above, that may be equal to it.

    Args:
        values: Of the sample, descending, (d,).
        population: What the means are of: the same eigenvalues, corrected, (d,).
        rows: Independent rows n.
        floor: Eigenvalues that are not above it are equal to none.

    Returns:
        (2, d): means of the run that starts there, and of the run that ends there.

    >>> equal_runs(np.array([9.0, 1.2, 1.0, 0.1]), np.array([9.0, 1.1, 1.1, 0.1]), 100).round(2).tolist()
    [[9.0, 1.1, 1.1, 0.1], [9.0, 1.1, 1.1, 0.1]]
    """
    known = int((values > floor).sum())
    found = np.tile(population, (2, 1))
    for start in range(known):
        equal = equal_to_the_largest(values[start:known], rows)
        found[0, start] = population[start : start + equal].mean()
    for end in range(known):
        # Upwards, in the same test: the statistic does not depend on the order.
        equal = equal_to_the_largest(values[: end + 1][::-1], rows)
        found[1, end] = population[end + 1 - equal : end + 1].mean()
    return found


def correction_factor(values: Floats, equal: int, rows: float) -> float:
    """By how much taking back the bias of the largest eigenvalue multiplies a relative error of it, 1 or more.

    The others push the largest eigenvalue l of a sample up from ``-1 / m(l)`` with ``m(l) = -(1 - d' / n) / l + sum_j 1
    / (n (l_j - l))`` (Silverstein, Journal of Multivariate Analysis 55, 1995), so a relative error of l is one of
    ``-l m'(l) / m(l)`` times its size there.

    Args:
        values: Of the sample, descending, (d,).
        equal: How many may be equal to the largest; the sum is over the other d'.
        rows: Independent rows n.

    >>> round(correction_factor(np.array([9.0, 0.5, 0.5]), 1, 100), 3), correction_factor(np.ones(1), 1, 100)
    (1.001, 1.0)
    """
    largest, others = float(values[0]), values[equal:]
    part = len(others) / rows
    transform = -(1 - part) / largest + float((1 / (others - largest)).sum()) / rows
    derivative = (1 - part) / largest**2 + float((1 / (others - largest) ** 2).sum()) / rows
    if transform >= 0:
        return LARGEST_FACTOR
    return float(np.clip(-largest * derivative / transform, 1.0, LARGEST_FACTOR))
