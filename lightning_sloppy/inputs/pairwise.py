"""Second moments over the rows that two columns have in common: streamed in blocks, with missing values, float64.

For columns i and j, with M the 0/1 matrix of what is observed and Y the values with zeros where they are missing:

* ``count_ij = (M^T M)_ij`` rows in common,
* ``sums_ij = (Y^T M)_ij`` the sum of column i over them, ``squares_ij = (Y^2)^T M`` that of its squares,
* ``products_ij = (Y^T Y)_ij``.

From these comes the correlation of each pair over its common rows, the definition of ``pandas.DataFrame.corr``. Values
are taken relative to a shift and a scale of each column, so that a mean of 1e6 beside a deviation of 1 costs no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = "npt.NDArray[np.float64]"

FEWEST_LINKED = 6
"""Rows that two columns need in common, also in the smallest table, to be called alike."""

FEWEST_COMMON = 30
"""Rows that two columns need in common: with fewer, the error of a correlation, about ``1 / sqrt(n)``, is large."""

MOST_UNDEFINED = 0.02
"""Part of the pairs of columns without a correlation above which no interval is given. They count as uncorrelated,
which raises a participation ratio by up to as much, and nothing in the data shows by how much."""

LEAST_OBSERVED = 0.05
"""Part of the rows in which a column has to be observed, and never in fewer than two columns need in common."""

CONSTANT = 1e-12
"""Variance beside the mean square below which a column is constant over the rows in common."""


@dataclass
class PairwiseMoments:
    """The sums over one block of rows, or over several that were added; see the module. Complete rows keep one matrix.

    Attributes:
        rows: Rows that were added.
        count: (d, d), rows in common; None while no value was missing.
        sums: (d, d), or (d,) while no value was missing.
        squares: (d, d); None while no value was missing: it is the diagonal of the products.
        products: (d, d).
    """

    rows: int
    count: Floats | None
    sums: Floats
    squares: Floats | None
    products: Floats

    @classmethod
    def of(cls, values: Floats) -> PairwiseMoments:
        """Of rows (n, d), shifted and scaled, NaN where a value is missing.

        >>> moments = PairwiseMoments.of(np.array([[1.0, 2.0], [3.0, np.nan]]))
        >>> moments.count.tolist(), moments.sums.tolist()
        ([[2.0, 1.0], [1.0, 1.0]], [[4.0, 1.0], [2.0, 2.0]])
        """
        seen = ~np.isnan(values)
        if seen.all():
            return cls(len(values), None, values.sum(0), None, values.T @ values)
        observed = seen.astype(np.float64)
        filled = np.where(seen, values, 0.0)
        return cls(
            len(values),
            observed.T @ observed,
            filled.T @ observed,
            (filled * filled).T @ observed,
            filled.T @ filled,
        )

    def __add__(self, other: PairwiseMoments) -> PairwiseMoments:
        """Sums over both blocks of rows."""
        if self.count is None and other.count is None:
            return PairwiseMoments(
                self.rows + other.rows, None, self.sums + other.sums, None, self.products + other.products
            )
        mine, others = self.full(), other.full()
        return PairwiseMoments(
            self.rows + other.rows,
            mine[0] + others[0],
            mine[1] + others[1],
            mine[2] + others[2],
            self.products + other.products,
        )

    def full(self) -> tuple[Floats, Floats, Floats]:
        """Count, sums and squares as (d, d) matrices."""
        if self.count is not None and self.squares is not None:
            return self.count, self.sums, self.squares
        d = len(self.products)
        count = np.full((d, d), float(self.rows))
        sums = np.broadcast_to(self.sums.reshape(-1, 1), (d, d))
        return count, sums, np.broadcast_to(self.products.diagonal().reshape(-1, 1), (d, d))

    def of_columns(self) -> tuple[Floats, Floats, Floats]:
        """Of each column its count, mean and variance (of n, not n - 1) over all rows where it is observed."""
        if self.count is None:
            count = np.full(len(self.products), float(self.rows))
            total, squares = self.sums, self.products.diagonal()
        else:
            count, total, squares = self.count.diagonal(), self.sums.diagonal(), self.products.diagonal()
        safe = np.maximum(count, 1.0)
        mean = total / safe
        return count, mean, np.maximum(squares / safe - mean * mean, 0.0)

    def correlation(self, fewest_common: int = FEWEST_COMMON) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Pairwise correlation, zero where it is not defined, and where that is.

        Args:
            fewest_common: Pairs with fewer rows in common are not defined, like pairs of which one is constant there.

        Returns:
            The matrix (d, d) with ones on its diagonal, and a mask (d, d) of the pairs without a correlation. It need
            not be positive semidefinite once values are missing.
        """
        if self.count is None:
            return self._complete(fewest_common)
        count, sums, squares = self.full()
        safe = np.maximum(count, 1.0)
        mean = sums / safe
        variance = squares / safe - mean * mean
        variance[variance <= CONSTANT * (squares / safe)] = 0.0
        covariance = self.products / safe - mean * mean.T
        deviation = np.sqrt(variance)
        scale = deviation * deviation.T
        undefined = (count < fewest_common) | (scale <= 0)
        scale[undefined] = 1.0
        found = np.clip(covariance / scale, -1.0, 1.0)
        found[undefined] = 0.0
        np.fill_diagonal(found, 1.0)
        np.fill_diagonal(undefined, False)
        return found, undefined

    def _complete(self, fewest_common: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        mean = self.sums / max(self.rows, 1)
        covariance = self.products / max(self.rows, 1) - np.outer(mean, mean)
        variance = covariance.diagonal().copy()
        variance[variance <= CONSTANT * (self.products.diagonal() / max(self.rows, 1))] = 0.0
        deviation = np.sqrt(variance)
        constant = deviation <= 0
        deviation[constant] = 1.0
        found = np.clip(covariance / deviation[:, None] / deviation, -1.0, 1.0)
        undefined = constant[:, None] | constant
        if self.rows < min(fewest_common, 2):
            undefined[:] = True
        found[undefined] = 0.0
        np.fill_diagonal(found, 1.0)
        np.fill_diagonal(undefined, False)
        return found, undefined


def fewest_common(rows: int) -> int:
    """Rows that two columns of a table need in common: 30, in a table of fewer than 60 half of all.

    >>> fewest_common(1_000), fewest_common(40)
    (30, 20)
    """
    return min(FEWEST_COMMON, max(2, rows // 2))


def fewest_linked(rows: int) -> int:
    """Rows that two columns need in common to be called alike: as many as for :func:`fewest_common`, and at least 6.

    The correlation of two independent columns exceeds 0.95 in absolute value with a probability of 100 % in 2 rows,
    20 % in 3, 5 % in 4, 1.3 % in 5 and 0.4 % in 6.

    >>> fewest_linked(3), fewest_linked(40)
    (6, 20)
    """
    return max(FEWEST_LINKED, fewest_common(rows))


def fewest_defined(rows: int) -> int:
    """Rows in common from which a correlation enters a spectrum: 30, in a table of fewer than 120 a quarter of all.

    To say that two columns repeat each other takes :func:`fewest_common`. A spectrum loses more by a correlation that
    counts as zero than by a noisy one.

    >>> fewest_defined(1_000), fewest_defined(64), fewest_defined(4)
    (30, 16, 2)
    """
    return min(FEWEST_COMMON, max(2, rows // 4))


def shift_and_scale(values: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of each column, (d,) each, over what is observed; 0 and 1 where nothing is or nothing varies.

    Args:
        values: (n, d), NaN where missing.
    """
    parts = [slice(start, start + rows_at_once(values)) for start in range(0, len(values), rows_at_once(values))]
    width = values.shape[1]
    count, size = np.zeros(width), np.zeros(width)
    for part in parts:
        count += np.count_nonzero(~np.isnan(values[part]), axis=0)
        size = np.fmax(size, np.fmax.reduce(np.abs(values[part]), axis=0, initial=0.0))
    count = np.maximum(count, 1.0)
    # Beside the largest magnitude no square overflows or vanishes.
    size[size == 0] = 1.0
    mean, deviation = np.zeros(width), np.zeros(width)
    for _ in range(2):  # a second pass takes out what rounding left in the mean
        mean = mean + sum(_filled(values[part] / size - mean).sum(0) for part in parts) / count
    for part in parts:
        centred = _filled(values[part] / size - mean)
        deviation += np.einsum("ij,ij->j", centred, centred)
    deviation = np.sqrt(deviation / count)
    return mean * size, np.where(deviation > 0, deviation, 1.0) * size


def rows_at_once(values: Floats) -> int:
    """Rows whose copies stay in the cache of a processor."""
    return max(1, 65_536 // max(int(values.shape[1]), 1))


def _filled(values: Floats) -> Floats:
    """The values with zeros for NaN, in place."""
    np.copyto(values, 0.0, where=np.isnan(values))
    return values


def smallest_overlap(moments: PairwiseMoments) -> int:
    """The fewest rows that two columns have in common."""
    return moments.rows if moments.count is None else int(moments.count.min())
