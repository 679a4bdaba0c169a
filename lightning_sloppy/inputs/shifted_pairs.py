"""Pairwise moments of rows as they come: a shift of each column, found when its first value is seen, and the sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments

SHIFT_ROWS = 64
"""Observed values whose median becomes the shift of a column."""

MOST_PAIRED = 4_096
"""Largest d with missing values: four matrices are kept in place of one, and as many again are formed from them."""


@dataclass
class ShiftedPairs:
    """Sums over pairs of columns, relative to a shift of each column.

    A shift near the mean keeps the digits of columns whose mean is large beside their deviation. It is a value of the
    column, so a constant column has sums of exactly zero. Sums can be added over blocks of rows and over processes,
    whatever their shifts were.

    Attributes:
        shift: (d,), NaN for a column without a value so far.
        moments: Sums of the rows minus the shift; None before the first row.

    >>> pairs = ShiftedPairs.empty(2)
    >>> pairs.add(np.array([[1e9 + 1, np.nan], [1e9 + 3, 5.0]]))
    >>> pairs.mean.tolist()
    [1000000002.0, 5.0]
    """

    shift: Floats
    moments: PairwiseMoments | None = None

    @classmethod
    def empty(cls, features: int) -> ShiftedPairs:
        """Of no rows."""
        return cls(np.full(features, np.nan))

    @classmethod
    def of_complete(cls, count: int, shift: Floats, offset: Floats, scatter: Floats) -> ShiftedPairs:
        """Of complete rows whose centred scatter (d, d) and mean minus shift (d,) are known."""
        products = scatter + count * np.outer(offset, offset)
        return cls(shift.copy(), PairwiseMoments(count, None, count * offset, None, products))

    @property
    def rows(self) -> int:
        """Rows that were added."""
        return 0 if self.moments is None else self.moments.rows

    @property
    def mean(self) -> Floats:
        """Mean of each column over its observed values, (d,); NaN without one."""
        return self.shift if self.moments is None else self.shift + self.moments.of_columns()[1]

    def add(self, values: Floats) -> None:
        """Add rows (n, d), NaN where a value is missing."""
        new = np.isnan(self.shift)
        if new.any():
            self.shift = self.shift.copy()
            for column in np.flatnonzero(new):
                seen = values[~np.isnan(values[:, column]), column][:SHIFT_ROWS]
                if len(seen):
                    self.shift[column] = np.sort(seen)[(len(seen) - 1) // 2]
        with np.errstate(over="ignore", invalid="ignore"):  # refused where the moments are taken
            found = PairwiseMoments.of(values - np.nan_to_num(self.shift, nan=0.0))
            self.moments = found if self.moments is None else self.moments + found

    def moved(self, shift: Floats) -> PairwiseMoments:
        """The sums relative to another shift (d,).

        With ``y' = y + delta``: ``sum y'_i = sum y_i + delta_i count``, and likewise for squares and products. A column
        without a value has only zeros and needs no delta.
        """
        assert self.moments is not None
        delta = np.nan_to_num(self.shift - shift, nan=0.0)
        own = self.moments
        if not delta.any():
            return own
        if own.count is None:
            cross = np.outer(own.sums, delta)
            products = own.products + cross + cross.T + own.rows * np.outer(delta, delta)
            return PairwiseMoments(own.rows, None, own.sums + own.rows * delta, None, products)
        count, sums, squares = own.full()
        first = delta[:, None]
        # sums_ij belongs to column i over the rows of j; in the product it meets the delta of j.
        cross = sums * delta
        return PairwiseMoments(
            own.rows,
            count,
            sums + first * count,
            squares + 2 * first * sums + first**2 * count,
            own.products + cross + cross.T + np.outer(delta, delta) * count,
        )


def joined_pairs(parts: Sequence[ShiftedPairs]) -> ShiftedPairs:
    """The rows of several parts together, relative to the first known shift of each column.

    Args:
        parts: One at least, of equally many columns.
    """
    shift = common_shift([part.shift for part in parts])
    total: PairwiseMoments | None = None
    for part in parts:
        if part.moments is not None:
            moved = part.moved(shift)
            total = moved if total is None else total + moved
    return ShiftedPairs(shift, total)


def common_shift(shifts: Sequence[Floats]) -> Floats:
    """The first of several shifts (d,) that is known, column by column."""
    found = shifts[0].copy()
    for shift in shifts[1:]:
        unknown = np.isnan(found)
        found[unknown] = shift[unknown]
    return found
