"""Moments of rows with missing values, from sums over pairs of columns or from the Gaussian model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.gaussian_em import RIDGE, gaussian_em
from lightning_sloppy.inputs.pairwise import (
    CONSTANT,
    LEAST_OBSERVED,
    MOST_UNDEFINED,
    Floats,
    fewest_common,
    fewest_defined,
)
from lightning_sloppy.inputs.shifted_pairs import ShiftedPairs

Missing = Literal["error", "pairwise", "em"]
"""What is done about missing values."""

FEWEST_PAIRS = 2
"""Rows in common, on average, for each column, below which no half is resampled."""

Mask: TypeAlias = "npt.NDArray[np.bool_]"


@dataclass(frozen=True)
class IncompleteMoments:
    """Means, variances and correlations of rows of which values are missing.

    Attributes:
        num_samples: Rows n, complete or not.
        mean: Of each column over what is observed, (d,); of the model with "em".
        variance: Likewise, divided by the count, (d,).
        correlation: Of the columns used, (u, u). From pairs it need not be positive semidefinite.
        used: Columns that vary and are observed often enough, (d,).
        constant: Columns with one value, (d,).
        method: "pairwise" or "em".
        missing_rate: Part of the cells of columns that are not set aside.
        overlap_limit: Rows that two columns need in common; with fewer their correlation is taken as 0.
        smallest_overlap: The fewest rows that two of the used columns have in common.
        undefined_pairs: Pairs below the limit.
        overlap: Rows that two used columns have in common, (u, u); None where that is all of them.
        resolution: Eigenvalues below this part of the mean eigenvalue are errors of the method.
        iterations: Of the model; 0 for pairs.
        converged: Whether they came to an end.
    """

    num_samples: int
    mean: Floats
    variance: Floats
    correlation: Floats
    used: Mask
    constant: Mask
    method: str
    missing_rate: float
    overlap_limit: int
    smallest_overlap: int
    undefined_pairs: int
    overlap: Floats | None = None
    resolution: float = 0.0
    iterations: int = 0
    converged: bool = True

    @property
    def set_aside(self) -> Mask:
        """Columns that are observed too seldom, (d,)."""
        return ~(self.used | self.constant)

    @property
    def mean_overlap(self) -> float:
        """Rows that two of the used columns have in common, on average."""
        return float(self.num_samples) if self.overlap is None or not len(self.overlap) else float(self.overlap.mean())

    @property
    def enough_for_halves(self) -> bool:
        """Whether pairs have so many rows in common, and so few have no correlation, that intervals can be had."""
        d = len(self.correlation)
        return self.mean_overlap >= FEWEST_PAIRS * d and self.undefined_pairs <= MOST_UNDEFINED * d * (d - 1) / 2

    def detail(self) -> dict[str, str | int | float]:
        """What was done, for :attr:`Spectrum.detail`."""
        found: dict[str, str | int | float] = {
            "missing": self.method,
            "missing_rate": self.missing_rate,
            "overlap_limit": self.overlap_limit,
            "smallest_overlap": self.smallest_overlap,
            "mean_overlap": self.mean_overlap,
            "undefined_pairs": self.undefined_pairs,
            "set_aside_columns": int(self.set_aside.sum()),
        }
        return found if self.method != "em" else {**found, "iterations": self.iterations}

    def matrix(self, kind: str) -> Floats:
        """The matrix of this kind: of the used columns, for covariance and second moment of the constant ones, too."""
        if kind == "correlation":
            return self.correlation
        kept = self.used | self.constant
        covariance = np.zeros((int(kept.sum()),) * 2)
        inside = np.flatnonzero(self.used[kept])
        deviation = np.sqrt(self.variance[self.used])
        covariance[np.ix_(inside, inside)] = self.correlation * deviation[:, None] * deviation
        if kind == "second_moment":
            covariance += np.outer(self.mean[kept], self.mean[kept])
        return covariance


def pairwise_moments(pairs: ShiftedPairs, like: IncompleteMoments | None = None) -> IncompleteMoments:
    """Each correlation over the rows that both columns have.

    Args:
        pairs: The sums.
        like: The moments of all rows, where ``pairs`` are those of a part: the same columns are used, and pairs may
            have half as many rows in common.

    Raises:
        ConfigurationError: Fewer than two rows, or no column that can be used.
    """
    moments = pairs.moments
    if moments is None or moments.rows < 2:
        raise ConfigurationError(
            f"A spectrum of the inputs needs at least two samples, but {pairs.rows} was given; pass more."
        )
    n = moments.rows
    limit = fewest_defined(n) if like is None else max(2, like.overlap_limit // 2)
    with np.errstate(over="ignore", invalid="ignore"):
        counts, offset, variance = moments.of_columns()
        sizes = moments.products.diagonal() / np.maximum(counts, 1.0)
    if not np.isfinite(sizes).all():
        raise ConfigurationError("Squares of the inputs overflow; scale the features, for instance by their deviation.")
    if like is None:
        aside = (counts < n) & (counts < max(fewest_common(n), LEAST_OBSERVED * n))
        constant = ~aside & (variance <= CONSTANT * sizes)
        used = ~(aside | constant)
    else:
        used, constant = like.used, like.constant
    whole, undefined = moments.correlation(limit)
    index = np.ix_(used, used)
    overlap = n if moments.count is None or not used.any() else int(moments.count[index].min())
    seen = counts[used | constant]
    return IncompleteMoments(
        num_samples=n,
        mean=np.nan_to_num(pairs.shift, nan=0.0) + offset,
        variance=variance,
        correlation=whole[index],
        used=used,
        constant=constant,
        method="pairwise",
        missing_rate=1.0 - float(seen.sum()) / (n * len(seen)) if len(seen) else 1.0,
        overlap_limit=limit,
        smallest_overlap=overlap,
        undefined_pairs=int(undefined[index].sum()) // 2,
        overlap=None if moments.count is None else moments.count[index],
    )


def model_moments(values: Floats, pairs: ShiftedPairs) -> IncompleteMoments:
    """Of the Gaussian model that makes the observed values most likely.

    Args:
        values: All rows, (n, d), NaN where missing.
        pairs: Their pairwise sums, which tell the columns that can be used.
    """
    seen = pairwise_moments(pairs)
    if not seen.used.any():
        return seen
    fit = gaussian_em(values[:, seen.used])
    mean, variance = seen.mean.copy(), seen.variance.copy()
    mean[seen.used], variance[seen.used] = fit.mean, fit.covariance.diagonal()
    return IncompleteMoments(
        num_samples=seen.num_samples,
        mean=mean,
        variance=variance,
        correlation=fit.correlation,
        used=seen.used,
        constant=seen.constant,
        method="em",
        missing_rate=seen.missing_rate,
        overlap_limit=seen.overlap_limit,
        smallest_overlap=seen.smallest_overlap,
        undefined_pairs=seen.undefined_pairs,
        overlap=seen.overlap,
        resolution=RIDGE,
        iterations=fit.iterations,
        converged=fit.converged,
    )
