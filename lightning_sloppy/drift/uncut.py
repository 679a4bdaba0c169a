"""Means and deviations of later values as they are, beside those of values that are cut off.

What is called drift rests on values that are cut off far out, so that one wild row decides nothing. But a column in
another unit lies out there altogether: its cut-off mean says where the cut is, not where the column is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import FAR

MANY = 2 * FAR
"""Part of the later values that must be cut off before they are shown as they are: of the reference it is less."""

MOST = 0.5
"""Part of the later values that must be cut off before another unit is thought of."""

LEAST_RATIO = 3.0
"""Ratio of the deviations from which another unit is thought of."""

ALIKE = 0.1
"""Difference of the logarithms (base 10) of two ratios up to which they are one ratio."""

CENTRED = 0.25
"""Deviations by which a mean may be off the one that another unit would give."""


@dataclass(frozen=True)
class Uncut:
    """Of each column, (d,): observed values, their mean, sum of squares about it, and how many are cut off."""

    count: Floats
    mean: Floats
    squares: Floats
    outside: Floats

    @classmethod
    def of(cls, values: Floats, low: Floats, high: Floats) -> Uncut:
        """Of rows.

        Args:
            values: Standardised by the reference, (n, d), NaN where missing.
            low: Where values are cut off below, (d,).
            high: And above.
        """
        known = ~np.isnan(values)
        count = known.sum(0).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.where(known, values, 0.0).sum(0) / np.maximum(count, 1)
            squares = (np.where(known, values - mean, 0.0) ** 2).sum(0)
            outside = ((values < low) | (values > high)).sum(0).astype(np.float64)
        return cls(count, mean, squares, outside)

    def __add__(self, other: Uncut) -> Uncut:
        """Of both sets of rows (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        part = other.count / np.maximum(count, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = other.mean - self.mean
            mean = self.mean + part * apart
            squares = self.squares + other.squares + apart**2 * self.count * part
        return Uncut(count, mean, squares, self.outside + other.outside)

    @property
    def deviation(self) -> Floats:
        """Standard deviation, (d,)."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.count, 1)))

    @property
    def share(self) -> Floats:
        """Part of the observed values that are cut off, (d,)."""
        return np.asarray(self.outside / np.maximum(self.count, 1))


def times_as_large(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """How many times as large the numbers of a column became, as in another unit; None where they did not.

    Args:
        before: Mean and standard deviation.
        after: The same of the later rows.

    >>> times_as_large((6.0, 0.5), (6000.0, 490.0))
    1000.0
    >>> times_as_large((6.0, 0.5), (60.0, 0.5)) is None
    True
    """
    if not (all(map(math.isfinite, after)) and before[1] > 0 and after[1] > 0):
        return None
    ratio = after[1] / before[1]
    if not max(ratio, 1 / ratio) >= LEAST_RATIO:
        return None
    same_mean = abs(after[0] - ratio * before[0]) <= CENTRED * after[1]
    of_means = after[0] / before[0] if before[0] else 0.0
    same_ratio = of_means > 0 and abs(math.log10(of_means / ratio)) <= ALIKE
    if same_ratio:
        return of_means if abs(before[0]) > before[1] else ratio
    return ratio if same_mean else None
