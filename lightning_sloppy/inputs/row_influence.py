"""Rows that rule a correlation matrix, and what it is without their power: ranks, and values cut off."""

from __future__ import annotations

import numpy as np
from scipy import linalg, stats

from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments, fewest_defined, rows_at_once, shift_and_scale

CLIPPED_AT = 5.0
"""Deviations from the mean at which values are cut off."""

TIMES_AVERAGE = 20
"""How many times the average row a row must weigh to be looked at."""

MOST_LOOKED_AT = 20

MOST_SUBTRACTED = 0.1
"""Share up to which a row is subtracted from the sums; what a heavier one leaves is summed anew, for its digits."""

MOVES = 0.05
"""Relative change of the participation ratio without a row, from which the row dominates."""


def row_shares(values: Floats, moments: PairwiseMoments) -> Floats:
    """The part of all squared standardised values that each row holds, (n',); those of all rows sum to one.

    Args:
        values: Rows that are looked at, (n', d), NaN where missing.
        moments: Of all rows.
    """
    count, mean, variance = moments.of_columns()
    varying = variance > 0
    weights = np.divide(1.0, variance, out=np.zeros_like(variance), where=varying)
    own = np.empty(len(values))
    at_once = rows_at_once(values)
    for start in range(0, len(values), at_once):
        squares = np.square(values[start : start + at_once] - mean)
        np.copyto(squares, 0.0, where=np.isnan(squares))
        own[start : start + at_once] = squares @ weights
    return own / max(float(count[varying].sum()), 1.0)


def dominating_rows(values: Floats, moments: PairwiseMoments) -> list[int]:
    """Rows that move the participation ratio by 5 % and more, those included behind which such a row hides.

    The row of the largest share is taken away, then the one that is the largest then, and so on, as long as it weighs
    20 times the average. All up to the last that moved the participation ratio are named.

    Args:
        values: Rows that are looked at, standardised, (n', d).
        moments: Of all rows.

    Returns:
        Positions of the rows, counted from 0, the heaviest first.
    """
    left, complete = np.arange(len(values)), len(values) == moments.rows
    named: list[int] = []
    ratio, last = _participation_ratio(moments), 0
    while len(named) < MOST_LOOKED_AT and len(left) > 2:
        shares = row_shares(values[left], moments)
        heaviest = int(shares.argmax())
        if shares[heaviest] <= min(TIMES_AVERAGE / moments.rows, 0.5):
            break
        named.append(int(left[heaviest]))
        left = np.delete(left, heaviest)
        if complete and shares[heaviest] > MOST_SUBTRACTED:
            rest = values[left]
            shift, scale = shift_and_scale(rest)
            moments, values = PairwiseMoments.of((rest - shift) / scale), (values - shift) / scale
        else:
            moments = _without(moments, values[named[-1:]])
        before, ratio = ratio, _participation_ratio(moments)
        if not abs(ratio - before) < MOVES * before:
            last = len(named)
    return named[:last]


def clipped_correlation(values: Floats) -> Floats:
    """Correlation of values cut off at five deviations, (d, d).

    Args:
        values: Standardised, (n, d).
    """
    cut = np.clip(values, -CLIPPED_AT, CLIPPED_AT)
    return PairwiseMoments.of(cut).correlation(fewest_defined(len(cut)))[0]


def rank_correlation(values: Floats) -> Floats:
    """Correlation of the ranks within each column (Spearman; ties share their mean rank), (d, d).

    Args:
        values: (n, d), NaN where missing.
    """
    ranks = np.full(values.shape, np.nan)
    for index, column in enumerate(values.T):  # one at a time: copies of all would fill the memory
        seen = ~np.isnan(column)
        own = stats.rankdata(column[seen])
        ranks[seen, index] = (own - own.mean()) / len(values) if len(own) else own
    return PairwiseMoments.of(ranks).correlation(fewest_defined(len(ranks)))[0]


def _without(moments: PairwiseMoments, rows: Floats) -> PairwiseMoments:
    taken = PairwiseMoments.of(rows)
    if moments.count is None:
        return PairwiseMoments(
            moments.rows - taken.rows, None, moments.sums - taken.sums, None, moments.products - taken.products
        )
    count, sums, squares = taken.full()
    full = moments.full()
    return PairwiseMoments(
        moments.rows - taken.rows,
        full[0] - count,
        full[1] - sums,
        full[2] - squares,
        moments.products - taken.products,
    )


def _participation_ratio(moments: PairwiseMoments) -> float:
    values = np.maximum(linalg.eigvalsh(moments.correlation(fewest_defined(moments.rows))[0], check_finite=False), 0.0)
    return float(values.sum() ** 2 / (values * values).sum())
