"""Moments of consecutive parts of the rows, of values that are cut off far out: what drift is told from.

A value is standardised by a reference and cut off at robust limits, so that one wild row decides nothing. Of columns i
and j, with sums over the rows of a part:

* ``count_i`` rows where i is observed, ``pairs_ij`` those where both are (neither is kept of complete rows),
* ``sums_i``, ``squares_i``, ``products_ij`` of the values.

Pairs are those below the diagonal, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.inputs.pairwise import Floats

Mask = npt.NDArray[np.bool_]

MOST_PARTS = 256

FEWEST_PARTS = 16
"""Parts that are kept whatever memory they take, as long as there are so many rows."""

MOST_COLUMNS = 2_048
"""Columns above which no parts are kept: sixteen would take 512 MiB."""

KEPT_BYTES = 64 * 1024**2
"""Memory for the parts that are kept, beyond the fewest."""

CUT = 5.0
"""Robust deviations from the median at which values are cut off: of Gaussian ones, one in two million."""

FAR = 0.01
"""Part of the values on either side that are cut off at most."""

SAME = 1e-9
"""Relative difference up to which two values are one: what rounding does to a value that was standardised."""

ROBUST = 1.4826
"""Deviation of Gaussian values beside their median absolute deviation."""


@dataclass(frozen=True)
class CutMoments:
    """Sums over rows, of one set of them or of several at once.

    Attributes:
        rows: (...,).
        sums, squares: (..., d).
        products: (..., t), t = d (d - 1) / 2 pairs.
        count: (..., d); None for complete rows.
        pairs: (..., t); None for complete rows.
    """

    rows: Floats
    sums: Floats
    squares: Floats
    products: Floats
    count: Floats | None = None
    pairs: Floats | None = None

    @classmethod
    def of(cls, values: Floats) -> CutMoments:
        """Of rows (n, d), NaN where a value is missing."""
        seen = ~np.isnan(values)
        below = np.tril_indices(values.shape[1], -1)
        rows = np.array(float(len(values)))
        if seen.all():
            products = values.T @ values
            return cls(rows, values.sum(0), products.diagonal().copy(), products[below])
        filled = np.where(seen, values, 0.0)
        products, observed = filled.T @ filled, seen.astype(np.float64)
        pairs = observed.T @ observed
        return cls(rows, filled.sum(0), products.diagonal().copy(), products[below], pairs.diagonal().copy(),
                   pairs[below])  # fmt: skip

    def with_counts(self) -> CutMoments:
        """The same with counts, also of complete rows."""
        if self.count is not None:
            return self
        ones = np.ones(1, dtype=self.sums.dtype)
        rows = self.rows[..., None] * ones
        return CutMoments(
            self.rows,
            self.sums,
            self.squares,
            self.products,
            np.broadcast_to(rows, self.sums.shape),
            np.broadcast_to(rows, self.products.shape),
        )

    def __add__(self, other: CutMoments) -> CutMoments:
        """Sums over both sets of rows."""
        if self.count is None and other.count is None:
            return CutMoments(
                self.rows + other.rows,
                self.sums + other.sums,
                self.squares + other.squares,
                self.products + other.products,
            )
        mine, others = self.with_counts(), other.with_counts()
        return CutMoments(*(np.add(getattr(mine, name), getattr(others, name)) for name in NAMES))

    def total(self) -> CutMoments:
        """Sums over all sets."""
        return CutMoments(**{name: np.asarray(each, np.float64).sum(0) for name, each in self.arrays().items()})

    def arrays(self) -> dict[str, Floats]:
        """Its arrays by name, without counts where there are none."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}


NAMES = ("rows", "sums", "squares", "products", "count", "pairs")


@dataclass(frozen=True)
class Presence:
    """What occurs in each of P parts of the rows, (P, d) each.

    Attributes:
        departs: A column takes another value than its usual one.
        varies: A column takes another value than in the row before.
        gaps: A column misses a value.
    """

    departs: Mask
    varies: Mask
    gaps: Mask

    @classmethod
    def of(
        cls,
        values: Floats,
        usual: Floats,
        before: Floats | None,
        starts: npt.NDArray[np.intp],
        rounding: Floats | float = 0.0,
    ) -> Presence:
        """Of rows in their order.

        Args:
            values: Standardised, not cut off, (n, d), NaN where missing.
            usual: Usual value of each column, (d,).
            before: The row before the first one, or None.
            starts: Where parts begin, the first of them at 0.
            rounding: How far a value may be from the usual one because it was rounded, (d,).
        """
        above = np.concatenate([values[:1] if before is None else before[None], values[:-1]])
        with np.errstate(invalid="ignore"):  # beside a missing value nothing is known
            departs = np.abs(values - usual) > SAME * (1 + np.abs(usual)) + rounding
            varies = np.abs(values - above) > SAME * (1 + np.abs(above))
        return cls(*(np.logical_or.reduceat(each, starts, axis=0) for each in (departs, varies, np.isnan(values))))

    def joined(self, size: int) -> Presence:
        """The same of blocks of so many parts; the last one may be shorter."""
        starts = np.arange(0, len(self.departs), size)
        return Presence(
            *(np.logical_or.reduceat(each, starts, axis=0) for each in (self.departs, self.varies, self.gaps))
        )


@dataclass(frozen=True)
class RowParts:
    """Parts of the rows of a table, and how its values were cut off.

    Attributes:
        low, high: Limits of the standardised values, (d,).
        usual: The median of each column, standardised, (d,).
        moments: Of P parts, float32.
        presence: What occurs in each part.
    """

    low: Floats
    high: Floats
    usual: Floats
    moments: CutMoments
    presence: Presence

    @cached_property
    def whole(self) -> CutMoments:
        """Of all rows, float64."""
        return self.moments.total()


def limits(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Where values are cut off below and above, and their medians, (d,) each.

    Args:
        values: Standardised, (n, d), NaN where missing; every column has a value.
    """
    low, median, high = np.nanquantile(values, [FAR, 0.5, 1 - FAR], axis=0)
    spread = CUT * ROBUST * np.nanmedian(np.abs(values - median), axis=0)
    # Where most values are equal, the deviation of all of them is what there is.
    around, spread = np.where(spread > 0, median, 0.0), np.where(spread > 0, spread, CUT)
    return np.minimum(low, around - spread), np.maximum(high, around + spread), median


def row_parts(values: Floats) -> RowParts | None:
    """Parts of the rows of a table.

    Args:
        values: Standardised rows in their order, (n, d), NaN where missing.

    Returns:
        None for more than 2,048 columns.
    """
    d = values.shape[1]
    if d > MOST_COLUMNS:
        return None
    low, high, usual = limits(values)
    complete = not np.isnan(values).any()
    size = 4 * (1 if complete else 2) * (d * (d - 1) // 2 + 2 * d)
    most = max(FEWEST_PARTS, min(MOST_PARTS, KEPT_BYTES // max(size, 1)))
    cuts = np.array_split(np.arange(len(values)), min(most, len(values)))
    parts = [CutMoments.of(np.clip(values[rows[0] : rows[-1] + 1], low, high)) for rows in cuts]
    if not complete:
        parts = [part.with_counts() for part in parts]
    stacked: dict[str, Any] = {
        name: np.stack([getattr(part, name) for part in parts]).astype(np.float32)
        for name in NAMES
        if getattr(parts[0], name) is not None
    }
    presence = Presence.of(values, usual, None, np.array([rows[0] for rows in cuts]))
    return RowParts(low, high, usual, CutMoments(**stacked), presence)
