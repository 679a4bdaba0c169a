"""How far numbers of a spectrum move from sample to sample: eigenvalues of random halves of the rows.

A half that is drawn without replacement differs from the whole by as much as the whole differs from the truth: the
variance of a mean over m of n units around that over all is ``S^2 (1/m - 1/n)``, which is ``S^2 / n`` for ``m = n /
2`` (the delete-half jackknife; Shao and Wu, Annals of Statistics 17, 1989). Unlike a bootstrap with replacement it
repeats no row, so that ranks and small eigenvalues mean the same as in the data. Where rows follow one another in
time, whole blocks are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, stats

from lightning_sloppy.inputs.pairwise import FEWEST_COMMON, Floats, PairwiseMoments

BLOCKS_FROM = 0.1
"""Median lag-1 autocorrelation from which whole blocks of rows are drawn."""

MOST_DIRECT = 4_096
"""Rows up to which halves are multiplied anew; above, sums over at most 128 parts are kept and added."""

PART_BYTES = 256 * 1024**2
"""Memory for the sums over parts."""

FEWEST_BLOCKS = 8
"""Blocks below which no interval is given."""


@dataclass(frozen=True)
class Halves:
    """Correlation matrices of halves.

    Attributes:
        units: How many rows, blocks or parts there are to draw from.
        block: Rows in one block: 1 for single rows.
        quantile: Of Student's distribution at 97.5 %, with one degree of freedom less than units.
        draw: Gives the correlation matrix of one half after the other.
        scale: What deviations between halves are multiplied with: 1 for an even number of units.
    """

    units: int
    block: int
    quantile: float
    draw: Callable[[], Iterator[Floats]]
    scale: float


def block_length(rows: int, autocorrelation: float) -> int:
    """Rows in a block: 1 below an autocorrelation of .1, else five times ``(1 + r) / (1 - r)``, ten at least.

    >>> block_length(2_000, 0.05), block_length(2_000, 0.6), block_length(100, 0.9)
    (1, 20, 5)
    """
    if autocorrelation < BLOCKS_FROM:
        return 1
    r = min(autocorrelation, 0.99)
    return max(1, min(max(10, math.ceil(5 * (1 + r) / (1 - r) - 1e-9)), rows // 20))


def halves_of(values: Floats, autocorrelation: float, seed: int, fewest_common: int = FEWEST_COMMON) -> Halves | None:
    """Halves of rows that are in memory.

    Args:
        values: Shifted and scaled, (n, d), NaN where missing, in the order of time.
        autocorrelation: Median lag-1; decides between rows and blocks.
        seed: Of the draws.
        fewest_common: See :meth:`PairwiseMoments.correlation`; a half needs half as many.

    Returns:
        None where there are fewer than eight units.
    """
    rows, d = values.shape
    block = block_length(rows, autocorrelation)
    units = rows // block
    if units < FEWEST_BLOCKS:
        return None
    if rows > MOST_DIRECT:
        matrices = 4 if np.isnan(values).any() else 1
        parts = int(min(128, units, max(16, PART_BYTES // (8 * matrices * d * d))))
        # Without autocorrelation every part takes rows from everywhere; with it, neighbours stay together.
        cuts = (
            [values[part::parts] for part in range(parts)]
            if block == 1
            else np.array_split(values, parts)  # parts are then longer than a block
        )
        return halves_of_parts([PairwiseMoments.of(cut) for cut in cuts], seed, fewest_common, block=max(block, 1))
    taken = units // 2
    index = np.arange(units * block).reshape(units, block)

    def draw() -> Iterator[Floats]:
        rng = np.random.default_rng(seed)
        while True:
            chosen = np.sort(rng.permutation(units)[:taken])
            half = values[index[chosen].reshape(-1)]
            yield PairwiseMoments.of(half).correlation(max(2, fewest_common // 2))[0]

    return Halves(units, block, _student(units), draw, math.sqrt(taken / (units - taken)))


def halves_of_parts(
    parts: Sequence[PairwiseMoments], seed: int, fewest_common: int = FEWEST_COMMON, *, block: int = 1
) -> Halves | None:
    """Halves of parts whose sums are known.

    Args:
        parts: Of about equal size.
        seed: Of the draws.
        fewest_common: As for :func:`halves_of`.
        block: Said in the result.
    """
    units = len(parts)
    if units < FEWEST_BLOCKS:
        return None
    taken = units // 2

    def draw() -> Iterator[Floats]:
        rng = np.random.default_rng(seed)
        while True:
            chosen = rng.permutation(units)[:taken]
            total = parts[chosen[0]]
            for part in chosen[1:]:
                total = total + parts[part]
            yield total.correlation(max(2, fewest_common // 2))[0]

    return Halves(units, block, _student(units), draw, math.sqrt(taken / (units - taken)))


def half_eigenvalues(
    halves: Halves, repeats: int, kept: Sequence[npt.NDArray[np.intp]], advance: Callable[[], None]
) -> list[Floats]:
    """Signed eigenvalues of halves, descending, for each choice of columns, (repeats, columns) each.

    Args:
        halves: To draw from.
        repeats: How many.
        kept: Indices of the columns of each choice.
        advance: Told after each half.
    """
    found: list[list[Floats]] = [[] for _ in kept]
    for _, matrix in zip(range(repeats), halves.draw(), strict=False):
        for place, columns in zip(found, kept, strict=True):
            part = matrix if len(columns) == len(matrix) else matrix[np.ix_(columns, columns)]
            place.append(linalg.eigvalsh(part, check_finite=False)[::-1])
        advance()
    return [np.array(place) for place in found]


def _student(units: int) -> float:
    return float(stats.t.ppf(0.975, max(units - 1, 1)))
