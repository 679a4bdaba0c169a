"""How two sets of rows differ: means, deviations, missing values, correlations and spectrum, from their moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.sparse.linalg import ArpackError, eigsh

from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import CutMoments

Mask = npt.NDArray[np.bool_]

TINY = 1e-9
"""Variance (of values in deviations of the reference) up to which a column is constant."""

STRAIGHT = 0.999
"""Absolute correlation beyond which Fisher's transform is cut off: rounding and single rows decide there."""

LEAST_GAP = 1.3
"""Ratio of neighbouring eigenvalues below which the space before them is not compared."""

MOST_TOP = 20

SMALL = 128
"""Columns up to which all eigenvectors are computed, of many matrices at once."""


@dataclass(frozen=True)
class Described:
    """What sets of rows are like, one or several at once.

    Attributes:
        mean, deviation, missing: (..., d); missing is the part of the cells without a value.
        correlation: (..., t), of pairs below the diagonal; 0 where a column is constant.
    """

    mean: Floats
    deviation: Floats
    missing: Floats
    correlation: Floats


class Columns:
    """The columns that are compared, and the pairs of them.

    Args:
        mean, deviation, missing: Columns whose means, deviations and rates of missing values are compared, (d,).
        linked: Columns whose correlations are, (d,).
        defined: Pairs of which both tables have a correlation, (t,).
    """

    def __init__(self, mean: Mask, deviation: Mask, missing: Mask, linked: Mask, defined: Mask) -> None:
        d = len(mean)
        self.d, self.mean, self.deviation, self.missing, self.linked = d, mean, deviation, missing, linked
        self.below = np.tril_indices(d, -1)
        self.defined = defined & linked[self.below[0]] & linked[self.below[1]]
        self.spectral = np.flatnonzero(linked)
        u = len(self.spectral)
        inside = np.tril_indices(u, -1)
        first, second = self.spectral[inside[0]], self.spectral[inside[1]]
        self._pairs = None if u == d else first * (first - 1) // 2 + second
        self._places = inside[0] * u + inside[1]

    def matrix(self, pairs: Floats, diagonal: float) -> Floats:
        """Symmetric matrices of the linked columns, (..., u, u), from their pairs, (..., t)."""
        u = len(self.spectral)
        full = np.zeros((*pairs.shape[:-1], u * u), dtype=pairs.dtype)
        full[..., self._places] = pairs if self._pairs is None else pairs[..., self._pairs]
        square = full.reshape(*pairs.shape[:-1], u, u)
        square = square + np.swapaxes(square, -1, -2)
        square[..., range(u), range(u)] = diagonal
        return square

    @property
    def compared(self) -> Mask:
        """Columns of which anything is compared, (d,)."""
        return np.asarray(self.mean | self.deviation | self.linked)


def described(moments: CutMoments, columns: Columns) -> Described:
    """Means, deviations, missing values and correlations.

    A correlation is over the rows that both columns have, with means and deviations over all that each has.

    Args:
        moments: Of one or several sets.
        columns: Which are compared; pairs that are not have the correlation 0.
    """
    first, second = columns.below
    rows = moments.rows[..., None]
    count = np.maximum(rows if moments.count is None else moments.count, 1e-12)
    common = np.maximum(rows if moments.pairs is None else moments.pairs, 1e-12)
    mean = moments.sums / count
    variance = moments.squares / count - mean * mean
    varies = variance > TINY
    deviation = np.sqrt(np.where(varies, variance, 1.0))
    found = moments.products / common - mean[..., first] * mean[..., second]
    found /= deviation[..., first]
    found /= deviation[..., second]
    np.clip(found, -1.0, 1.0, out=found)
    found *= columns.defined
    if not varies.all():
        found *= varies[..., first] & varies[..., second]
    missing = np.zeros_like(mean) if moments.count is None else 1 - moments.count / rows
    return Described(mean, np.where(varies, deviation, 0.0), np.clip(missing, 0.0, 1.0), found)


@dataclass(frozen=True)
class TopSpace:
    """The space of the leading eigenvectors that is compared.

    Attributes:
        k: Its dimension; 0 for none.
        gap: Eigenvalue k by eigenvalue k + 1, of the reference.
        start: Leading eigenvector of the reference, from which iterations start.
    """

    k: int
    gap: float = 0.0
    start: Floats | None = None


def top_space(reference: Described, columns: Columns) -> TopSpace:
    """Where the spectrum of the reference has its largest gap.

    Among nearly equal eigenvalues the leading space turns with every sample. So it ends where one eigenvalue is largest
    beside the next one, of those above the mean; at most half of the columns, and twenty. No gap is below 1.3.

    Args:
        reference: The reference.
        columns: Which are compared.
    """
    u = len(columns.spectral)
    if u < 3:
        return TopSpace(0)
    matrix = np.asarray(columns.matrix(reference.correlation, 1.0), np.float64)
    last = min(u // 2, MOST_TOP)
    values, vectors = linalg.eigh(matrix, subset_by_index=(u - last - 1, u - 1))
    values = values[::-1]
    ends = int(np.sum(values[:last] > 1.0))
    if not ends:
        return TopSpace(0)
    ratios = values[:ends] / np.maximum(values[1 : ends + 1], 1e-9)
    k = int(np.argmax(ratios)) + 1
    gap = float(ratios[k - 1])
    return TopSpace(k if gap >= LEAST_GAP else 0, gap, vectors[:, -1])


def leading(matrix: Floats, top: TopSpace) -> Floats:
    """Eigenvectors of the largest eigenvalues, (..., d, k)."""
    d, k = matrix.shape[-1], top.k
    if d <= SMALL:
        return np.asarray(np.linalg.eigh(np.asarray(matrix, np.float64))[1][..., d - k :])
    found = np.empty((*matrix.shape[:-1], k))
    for place in np.ndindex(matrix.shape[:-2]):
        each = np.asarray(matrix[place], np.float64)
        try:
            found[place] = eigsh(each, k, which="LA", v0=top.start, tol=1e-6)[1]
        except ArpackError:  # nearly equal eigenvalues
            found[place] = linalg.eigh(each, subset_by_index=(d - k, d - 1))[1]
    return found


@dataclass(frozen=True)
class Differences:
    """What differs between two sets of rows, one pair of sets or several at once.

    Attributes:
        mean: Of each column, in deviations of the first set, (..., d).
        deviation: Logarithm of the second set's by the first's, (..., d).
        missing: Difference of the arcsines of the roots of the rates, which have the same spread at every rate.
        one_pair: Of each column, its largest change of a correlation with another in Fisher's transform, (..., d).
        all_pairs: Of each column, the root of the mean squared change of its correlations, (..., d).
        distance: Frobenius distance of the correlation matrices in Fisher's transform, (...,).
        angle: ``sqrt(1 - overlap)`` of the top spaces, (...,); None where there is no gap.
        squared: Sum of the squared correlations of each set, (..., 2), which gives the participation ratio.
        change: Of each pair, the difference in Fisher's transform, (..., t).
    """

    mean: Floats
    deviation: Floats
    missing: Floats
    one_pair: Floats
    all_pairs: Floats
    distance: Floats
    angle: Floats | None
    squared: Floats
    change: Floats


def differences(first: Described, second: Described, columns: Columns, top: TopSpace) -> Differences:
    """Compare sets of rows.

    Args:
        first: The reference, or sets as long.
        second: Later rows, or sets as long.
        columns: Which are compared.
        top: The spaces that are compared.
    """
    safe = np.where(first.deviation > 0, first.deviation, 1.0)
    with np.errstate(divide="ignore"):
        both = (first.deviation > 0) & (second.deviation > 0)
        ratio = np.log(np.where(both, second.deviation / safe, 1.0))
    change = fisher(second.correlation) - fisher(first.correlation)
    full = columns.matrix(change, 0.0)
    row = np.sqrt(np.sum(full * full, axis=-1) / max(len(columns.spectral), 1))
    largest = np.abs(full).max(-1, initial=0.0)
    angle = None
    if top.k:
        spaces = [leading(columns.matrix(each.correlation, 1.0), top) for each in (first, second)]
        overlap = np.sum((np.swapaxes(spaces[0], -1, -2) @ spaces[1]) ** 2, axis=(-1, -2)) / top.k
        angle = np.sqrt(np.clip(1 - overlap, 0.0, 1.0))
    return Differences(
        np.clip((second.mean - first.mean) / safe, -1e6, 1e6),
        ratio,
        np.arcsin(np.sqrt(second.missing)) - np.arcsin(np.sqrt(first.missing)),
        _spread(largest, columns),
        _spread(row, columns),
        np.sqrt(2 * np.sum(change * change, axis=-1)),
        angle,
        np.stack([squared(first, columns), squared(second, columns)], axis=-1),
        change,
    )


def squared(found: Described, columns: Columns) -> Floats:
    """Sum of all squared correlations, the ones on the diagonal among them, (...,)."""
    return np.asarray(len(columns.spectral) + 2 * np.sum(found.correlation**2, axis=-1))


def fisher(correlation: Floats) -> Floats:
    """Fisher's transform, whose spread depends little on the correlation, cut off at .999."""
    return np.arctanh(np.clip(correlation, -STRAIGHT, STRAIGHT))


def _spread(found: Floats, columns: Columns) -> Floats:
    """Numbers of the linked columns, in the places of all columns."""
    if len(columns.spectral) == columns.d:
        return found
    full = np.zeros((*found.shape[:-1], columns.d), dtype=found.dtype)
    full[..., columns.spectral] = found
    return full
