"""The largest eigenvalue of a sample: which others may be equal to it, and what its correction does to an error."""

from __future__ import annotations

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
    equal = 1
    for q in range(2, int((values > 0).sum()) + 1):
        top = values[:q]
        weight = max(rows - (2 * q + 1 + 2 / q) / 6, 1.0)
        statistic = weight * q * float(np.log(top.mean()) - np.log(top).mean())
        if statistic > stats.chi2.ppf(1 - LEVEL, q * (q + 1) / 2 - 1):
            break
        equal = q
    return equal


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
