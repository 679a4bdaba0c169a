"""What occurs now and never did, or the other way round: tests on the parts of the rows in which something occurs.

A column that never varied in the reference, or hardly ever, has no deviation to compare with. What can be compared is
in how many blocks it varies: if both tables are alike, the blocks in which something occurs are spread over both as a
random draw would (Fisher's exact test). What lasts for many blocks once it occurs, such as a state of a machine or an
outage, says less: its blocks are made longer, by how alike neighbouring blocks of the reference are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from lightning_sloppy.drift.neighbours import lag_one
from lightning_sloppy.inputs.pairwise import Floats

Mask = npt.NDArray[np.bool_]


def more_often(old: Mask, new: Mask, block: int) -> Floats:
    """Probability that something occurs in so many of the later blocks, if both tables are alike, (s,).

    Args:
        old: Whether it occurs in each part of the reference, (P, s).
        new: The same of the later rows, (V, s).
        block: Parts in a block.

    >>> never, always = np.zeros((20, 1), bool), np.ones((20, 1), bool)
    >>> float(more_often(never, always, 2)[0]) < 1e-6, float(more_often(never, never, 2)[0])
    (True, 1.0)
    """
    return _tail(old, new, block, more=True)


def less_often(old: Mask, new: Mask, block: int) -> Floats:
    """Probability that something occurs in so few of the later blocks, see :func:`more_often`."""
    return _tail(old, new, block, more=False)


def _tail(old: Mask, new: Mask, block: int, *, more: bool) -> Floats:
    # What occurs in every part of one table and in none of the other does not come in bursts, so that parts count.
    apart = np.zeros(old.shape[1], np.bool_)
    sides = ((~old, new), (old, ~new))
    for first, second in sides:
        apart |= first.all(0) & second.all(0)
    found = np.empty(old.shape[1])
    sizes = _lasting(_blocks(old, block)) * block
    for size in np.unique(sizes):
        own = sizes == size
        found[own] = _hypergeometric(_blocks(old[:, own], size), _blocks(new[:, own], size), more)
    if apart.any():
        found = np.where(apart, np.minimum(found, _hypergeometric(old, new, more)), found)
    return found


def _hypergeometric(old: Mask, new: Mask, more: bool) -> Floats:
    count, later = len(old) + len(new), new.sum(0)
    total = old.sum(0) + later
    if more:
        return np.asarray(stats.hypergeom.sf(later - 1, count, total, len(new)))
    return np.asarray(stats.hypergeom.cdf(later, count, total, len(new)))


def _lasting(occurs: Mask) -> npt.NDArray[np.intp]:
    """Blocks that make an independent one, (s,): ``(1 + r) / (1 - r)``, r the lag-1 autocorrelation."""
    r = lag_one(occurs.astype(np.float64))
    r = np.where(r > 2 / np.sqrt(len(occurs)), np.minimum(r + (1 + r) / len(occurs), 0.95), 0.0)
    return np.ceil((1 + r) / (1 - r) - 1e-9).astype(np.intp)


def _blocks(occurs: Mask, block: int) -> Mask:
    return np.asarray(np.logical_or.reduceat(occurs, np.arange(0, len(occurs), block), axis=0))
