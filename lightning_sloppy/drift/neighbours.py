"""How long blocks of rows have to be, and how alike they still are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lightning_sloppy.drift.differences import Columns
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import CutMoments, RowParts

FEWEST_BLOCKS = 8
"""Blocks below which nothing is compared."""

FEWEST_INDEPENDENT = 4.0
"""Independent blocks of a column below which its numbers are not compared."""

MOST_ALIKE = 0.95
"""Correlation between neighbouring blocks above which it is not told from one."""

PAIR_STANDS_OUT = 3.0
"""Deviations by which a single pair has to stand out from its columns: there are many more pairs than columns."""


@dataclass(frozen=True)
class Neighbours:
    """How much blocks that follow one another are alike, by what is measured of each column.

    Attributes:
        mean, square, missing, correlation: Correlation between neighbouring blocks, (d,), 0 and above.
        pair: The same of the correlation of each pair of columns, (t,): that of its columns, or its own where this
            stands out, as between columns that a state of a machine moves together.
    """

    mean: Floats
    square: Floats
    missing: Floats
    correlation: Floats
    pair: Floats


def wanted_block(rows: float, autocorrelation: float) -> float:
    """Rows in a block: ``5 (1 + r) / (1 - r)``, at most a tenth of all.

    >>> wanted_block(2_000, 0.0), wanted_block(2_000, 0.6), wanted_block(100, 0.9)
    (1.0, 20.0, 10.0)
    """
    r = min(max(autocorrelation, 0.0), 0.99)
    length = 1.0 if r < 0.1 else 5 * (1 + r) / (1 - r)
    return max(1.0, min(round(length, 6), rows / 10))


def block_of(parts: int, rows: float, autocorrelation: float) -> int:
    """Parts in a block."""
    size = rows / parts
    return max(1, min(math.ceil(wanted_block(rows, autocorrelation) / size - 1e-9), parts // 10))


def neighbours(parts: RowParts, block: int, correlation: Floats, columns: Columns) -> Neighbours:
    """Correlations between neighbouring blocks.

    Args:
        parts: Of the reference.
        block: Parts in a block.
        correlation: Of the reference, (t,).
        columns: Which are compared.
    """
    count = len(parts.moments.rows) // block
    each = CutMoments(**{name: _grouped(array, count, block) for name, array in parts.moments.arrays().items()})
    whole = parts.whole
    rows = each.rows[:, None]
    seen = rows if each.count is None else each.count
    known = np.maximum(seen, 1e-12)
    all_seen = whole.rows if whole.count is None else whole.count
    mean, square = whole.sums / all_seen, whole.squares / all_seen
    # A block that misses a column says nothing of it.
    means = np.where(seen > 0, each.sums / known - mean, 0.0)
    squares = np.where(seen > 0, each.squares / known - square, 0.0)
    missing = np.zeros_like(means) if each.count is None else 1 - each.count / rows
    first, second = columns.below
    common = rows if each.pairs is None else each.pairs
    variance = np.maximum(square - mean * mean, 1e-12)
    scaled = squares / variance
    influence = np.where(common > 0, each.products / np.maximum(common, 1e-12), 0.0)
    influence /= np.sqrt(variance)[first] * np.sqrt(variance)[second]
    influence -= influence.mean(0)
    influence -= correlation * (scaled[:, first] + scaled[:, second]) / 2
    influence -= influence.mean(0)
    influence *= columns.defined
    lagged, spread = np.sum(influence[1:] * influence[:-1], 0), np.sum(influence * influence, 0)
    linked = np.zeros(columns.d)
    linked[columns.spectral] = _settled(
        _quotient(*(columns.matrix(each, 0.0).sum(-1) for each in (lagged, spread))), count
    )
    own = _unbiased(_quotient(lagged, spread), count)
    more = np.sqrt(more_spread(linked[first]) * more_spread(linked[second]))
    usual = (more - 1) / (more + 1)
    pair = np.where(own - usual > PAIR_STANDS_OUT / math.sqrt(count), np.minimum(own, MOST_ALIKE), usual)
    mean, square, absent = (_settled(lag_one(series), count) for series in (means, squares, missing))
    return Neighbours(mean, square, absent, linked, pair)


def _grouped(array: Floats, count: int, block: int) -> Floats:
    kept = np.asarray(array[: count * block], np.float64)
    grouped: Floats = kept.reshape(count, block, *array.shape[1:]).sum(1)
    return grouped


def lag_one(series: Floats) -> Floats:
    """Correlation of neighbouring rows of series, (n, s); 0 of a constant one."""
    centred = series - series.mean(0)
    spread = np.sum(centred * centred, 0)
    lagged = np.sum(centred[1:] * centred[:-1], 0)
    return _quotient(lagged, np.where(spread > 1e-12, spread, 0.0))


def _quotient(lagged: Floats, spread: Floats) -> Floats:
    return np.asarray(np.divide(lagged, spread, out=np.zeros_like(lagged), where=spread > 0))


def _unbiased(found: Floats, count: int) -> Floats:
    """Corrected for the bias of so few blocks."""
    return np.asarray(found + (1 + found) / count)


def _settled(found: Floats, count: int) -> Floats:
    """Corrected for the bias of so few blocks; the median of all columns where one does not stand out from it."""
    found = _unbiased(found, count)
    usual = float(np.median(found)) if len(found) else 0.0
    stands_out = np.abs(found - usual) > 1.64 / math.sqrt(count)
    return np.clip(np.where(stands_out, found, usual), 0.0, MOST_ALIKE)


def more_spread(alike: Floats) -> Floats:
    """How much more the mean of blocks varies than if they were independent: ``(1 + r) / (1 - r)``."""
    return np.asarray((1 + alike) / (1 - alike))


def independent(found: Floats, count: float) -> Floats:
    """Blocks that count as independent."""
    return np.asarray(count / more_spread(found))
