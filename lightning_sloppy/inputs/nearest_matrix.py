"""What is done about negative eigenvalues of a pairwise correlation matrix: the nearest matrix that has none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from lightning_sloppy.inputs.pairwise import Floats


@dataclass(frozen=True)
class Repaired:
    """A symmetric matrix made positive semidefinite.

    Attributes:
        eigenvalues: Of the repaired matrix, descending, (d,): those of the given matrix with zeros for negative ones.
        eigenvectors: In their order, (d, d).
        negative_eigenvalues: How many the given matrix has below ``-rounding``.
        smallest_eigenvalue: Of the given matrix.
        negative_sum: Sum of the negative ones.
        rounding: ``2 eps d lambda_1``: magnitudes below are noise of the computation.
        largest_change: Furthest that an entry moved to become a correlation again (0 where nothing was repaired).
        correlation: The repaired matrix with its diagonal scaled back to one, (d, d).
    """

    eigenvalues: Floats
    eigenvectors: Floats
    negative_eigenvalues: int
    smallest_eigenvalue: float
    negative_sum: float
    rounding: float
    largest_change: float
    correlation: Floats

    @property
    def floor(self) -> float:
        """Magnitude up to which an eigenvalue is noise: an error that makes some negative hits small ones as well."""
        return max(self.rounding, -self.smallest_eigenvalue)


def repaired(matrix: Floats, *, rows: int = 1) -> Repaired:
    """The nearest positive semidefinite matrix in the Frobenius norm: negative eigenvalues become zero.

    The projection is that of Higham (Linear Algebra Appl. 103, 1988). Its diagonal exceeds one a little, so
    ``correlation`` scales it back; the eigenvalues are those before the scaling.

    Args:
        matrix: Symmetric, with ones on the diagonal, (d, d).
        rows: Samples behind it, for the rounding: sums over n products lose like ``sqrt(n)``.

    >>> fixed = repaired(np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.9], [0.0, 0.9, 1.0]]))
    >>> fixed.negative_eigenvalues, round(fixed.smallest_eigenvalue, 4), float(fixed.eigenvalues[-1])
    (1, -0.2728, 0.0)
    """
    values, vectors = linalg.eigh(matrix)
    values, vectors = values[::-1].copy(), vectors[:, ::-1]
    rounding = 2 * float(np.finfo(np.float64).eps) * max(len(matrix), rows**0.5) * float(values[0])
    negative = values < -rounding
    smallest, total = float(values[-1]), float(values[values < 0].sum())
    kept = np.maximum(values, 0.0)
    if not negative.any():
        return Repaired(kept, vectors, 0, smallest, total, rounding, 0.0, matrix)
    nearest = (vectors * kept) @ vectors.T
    scale = np.sqrt(nearest.diagonal())
    nearest = nearest / scale[:, None] / scale
    np.fill_diagonal(nearest, 1.0)
    change = float(np.abs(nearest - matrix).max())
    return Repaired(kept, vectors, int(negative.sum()), smallest, total, rounding, change, nearest)
