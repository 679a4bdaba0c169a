"""Mean and covariance of Gaussian samples with missing values, by expectation and maximisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import linalg

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.pairwise import Floats, shift_and_scale

TOLERANCE = 2e-3
"""Largest change of an entry of the correlation matrix between two iterations at which the iteration ends."""

RIDGE = 1e-6
"""Added to the variance of each standardised column: exact copies would leave the matrix without an inverse."""

MOST_ITERATIONS = 200

Pattern: TypeAlias = "tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]"
"""Rows that miss the same columns, and those columns."""


@dataclass(frozen=True)
class GaussianFit:
    """The Gaussian model that makes the observed values most likely.

    Attributes:
        mean: (d,).
        covariance: (d, d), divided by n.
        iterations: How many were made.
        change: Largest change of a correlation in the last one.
        converged: Whether it is below the tolerance.
    """

    mean: Floats
    covariance: Floats
    iterations: int
    change: float
    converged: bool

    @property
    def correlation(self) -> Floats:
        """The covariance with its diagonal scaled to one, (d, d)."""
        return _correlation(self.covariance)


def gaussian_em(
    values: Floats,
    *,
    tolerance: float = TOLERANCE,
    ridge: float = RIDGE,
    most_iterations: int = MOST_ITERATIONS,
    advance: Callable[[], None] | None = None,
) -> GaussianFit:
    """Maximum likelihood of a Gaussian whose values are missing at random (Dempster, Laird and Rubin 1977).

    Each iteration fills a row with its conditional mean given what was observed of it, and adds the conditional
    covariance of what was not. With ``K`` the inverse of the covariance, missing columns m and observed ones o:
    ``x_m = mean_m - K_mm^-1 K_mo (x_o - mean_o)``, with covariance ``K_mm^-1``. So one inverse serves all rows, and
    rows that miss the same columns share a factorisation.

    Args:
        values: (n, d), NaN where missing; every column is observed somewhere and varies.
        tolerance: Largest change of a correlation at which to stop.
        ridge: Variance added to each standardised column.
        most_iterations: Then it ends without ``converged``.
        advance: Told after each iteration.

    Raises:
        ConfigurationError: For a column without a value, or fewer than two rows.

    >>> fit = gaussian_em(np.array([[1.0, 2.0], [2.0, 4.1], [3.0, 5.9], [4.0, np.nan]]))
    >>> bool(fit.mean[1] > 4.5), fit.converged  # pulled up by the row that is large in the other column
    (True, True)
    """
    seen = ~np.isnan(values)
    if len(values) < 2 or not seen.any(0).all():
        raise ConfigurationError(
            f"The Gaussian model of {values.shape[0]} rows and {values.shape[1]} columns was asked for, but it "
            f"needs two "
            "rows and a value in every column; leave out empty columns."
        )
    shift, scale = shift_and_scale(values)
    filled = np.where(seen, (values - shift) / scale, 0.0)
    patterns = _patterns(seen)
    n, d = values.shape
    mean = np.zeros(d)
    # Start: missing values at the mean, with the variance of what was observed.
    covariance = filled.T @ filled / n
    covariance[np.diag_indices(d)] = 1.0 + ridge
    correlation, change, iterations = _correlation(covariance), np.inf, 0
    while change >= tolerance and iterations < most_iterations:
        iterations += 1
        extra = _expect(filled, patterns, mean, covariance)
        mean = filled.mean(0)
        centred = filled - mean
        covariance = (centred.T @ centred + extra) / n
        covariance[np.diag_indices(d)] += ridge
        before, correlation = correlation, _correlation(covariance)
        change = float(np.abs(correlation - before).max())
        if advance is not None:
            advance()
    covariance[np.diag_indices(d)] -= ridge
    return GaussianFit(
        shift + scale * mean, covariance * scale[:, None] * scale, iterations, change, bool(change < tolerance)
    )


def _patterns(seen: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> list[Pattern]:
    """Rows that miss the same columns, with those columns; complete rows need no filling."""
    packed = np.packbits(~seen, axis=1)
    _, first, which = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(which.reshape(-1)))[:-1])
    found = [(rows, np.flatnonzero(~seen[row])) for rows, row in zip(groups, first, strict=True)]
    return [(rows, missing) for rows, missing in found if len(missing)]


def _expect(filled: Floats, patterns: list[Pattern], mean: Floats, covariance: Floats) -> Floats:
    """Fill the missing values in place; return the sum of their conditional covariances, (d, d)."""
    d = len(mean)
    extra = np.zeros((d, d))
    precision = linalg.cho_solve(linalg.cho_factor(covariance, lower=True), np.eye(d))
    for rows, missing in patterns:
        block = precision[np.ix_(missing, missing)]
        inverse = linalg.inv(block, check_finite=False) if len(missing) > 1 else 1.0 / block
        centred = filled[rows] - mean
        centred[:, missing] = 0.0
        filled[np.ix_(rows, missing)] = mean[missing] - (centred @ precision[:, missing]) @ inverse
        extra[np.ix_(missing, missing)] += len(rows) * inverse
    return (extra + extra.T) / 2


def _correlation(covariance: Floats) -> Floats:
    scale = np.sqrt(covariance.diagonal())
    found = covariance / scale[:, None] / scale
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)
