"""Which columns of a table stay, what becomes of the others, and the directions onto which rows are projected.

The columns are judged by the functions of ``inspect``, so that both drop the same ones. z are the columns that stay,
less their means and, if standardised, divided by their deviations; V are the leading eigenvectors of the matrix of z.
A row is projected to ``z V``. A missing value has ``z = 0``: the mean of its column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_groups import column_groups
from lightning_sloppy.inputs.encoded_table import EncodedTable, encoded_table
from lightning_sloppy.inputs.nearest_matrix import Repaired, repaired
from lightning_sloppy.inputs.pairwise import Floats, fewest_common, fewest_defined
from lightning_sloppy.inputs.table_in_memory import CHUNK_CELLS, of_matrix
from lightning_sloppy.inspection.column_facts import columns_kept
from lightning_sloppy.inspection.spectrum_numbers import as_spectrum, participation_ratio
from lightning_sloppy.measures.relative_dimension import directions_holding

Places: TypeAlias = "npt.NDArray[np.intp]"

NO_LINK = 1.0
"""A threshold that no correlation exceeds: only constant columns and those hardly observed are dropped."""

Count = Callable[[Repaired, int], int]
"""Number of directions to keep, from a matrix and the number of rows behind it."""


@dataclass(frozen=True)
class DroppedColumn:
    """Why a column was dropped.

    Attributes:
        reason: "constant", "duplicate", "no value at all", or "hardly observed" with the number of rows.
        representative: The column that stays in place of a duplicate; None for other reasons.
        correlation: Of the duplicate with its representative; None for other reasons.
    """

    reason: str
    representative: str | None = None
    correlation: float | None = None


@dataclass(frozen=True)
class ColumnReduction:
    """What is known after looking at the training rows; d columns, k of them stay, m directions.

    Attributes:
        names: Of all columns, (d,).
        columns: Places of those that stay, (k,), rising.
        dropped: The others by name, in the order of the table.
        means: Of each column over its observed rows, (d,); NaN where there is no value.
        scale: What the centred columns are divided by before the projection, (k,): deviations, or ones.
        slopes, intercepts, sources: Column i is given back as ``intercept + slope * x``, with x the column at
            ``sources[i]``, one that stays; (d,) each. A slope of 0 needs no other column.
        errors: Of giving back each column: root mean square over the training rows where it is observed, in deviations
            of that column, (d,); NaN where there is no value.
        eigenvalues: Of the matrix of the columns that stay, falling, (k,); empty without projection.
        directions: The leading m of its eigenvectors, (k, m); None without projection.
    """

    names: tuple[str, ...]
    columns: Places
    dropped: dict[str, DroppedColumn]
    means: Floats
    scale: Floats
    slopes: Floats
    intercepts: Floats
    sources: Places
    errors: Floats
    eigenvalues: Floats
    directions: Floats | None

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the columns that stay, (k,)."""
        return tuple(self.names[place] for place in self.columns)

    @property
    def outputs(self) -> int:
        """Numbers in a reduced row: k, or m with a projection."""
        return len(self.columns) if self.directions is None else self.directions.shape[1]

    @property
    def energy(self) -> float:
        """Fraction of the trace that the directions hold; 1 without projection."""
        return (
            1.0 if self.directions is None else float(self.eigenvalues[: self.outputs].sum() / self.eigenvalues.sum())
        )

    def reduced(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The columns that stay, NaN where missing, or their projection, in which a missing value is the mean.

        Args:
            values: (n, d).

        Returns:
            (n, k) or (n, m).
        """
        chosen = values[:, self.columns]
        if self.directions is None:
            return chosen
        centred = (chosen - self.means[self.columns]) / self.scale
        return np.asarray(np.where(np.isnan(centred), 0.0, centred) @ self.directions)

    def restored(self, values: Floats) -> Floats:
        """All columns from reduced rows: by the transpose, the lines of duplicates, and the values of constants.

        Args:
            values: (n, k) or (n, m).

        Returns:
            (n, d).
        """
        if self.directions is not None:
            values = self.means[self.columns] + self.scale * (values @ self.directions.T)
        every = np.zeros((len(values), len(self.names)))
        every[:, self.columns] = values
        linked = np.flatnonzero(self.slopes)
        found = np.broadcast_to(self.intercepts, every.shape).copy()
        found[:, linked] += self.slopes[linked] * every[:, self.sources[linked]]
        return found


def column_reduction(
    names: Sequence[str],
    values: npt.NDArray[Any],
    *,
    threshold: float = NO_LINK,
    count: Count | None = None,
    standardize: bool = True,
    origin: str = "The table",
) -> ColumnReduction:
    """Judge the columns of training rows, and find the directions to project onto.

    Args:
        names: Of the columns, (d,), all different.
        values: Rows of real numbers, NaN where missing, (n, d).
        threshold: Absolute correlation above which a column is dropped for a representative.
        count: How many directions; None: no projection.
        standardize: Directions of the correlation matrix; else of the covariance matrix.
        origin: What the table is called in errors.

    Raises:
        ConfigurationError: No column is left, more than 8,192 columns, fewer than two rows, or a count that is too
            large.

    >>> rows = np.array([[1.0, 2.0, 7.0], [2.0, 4.0, 7.0], [4.0, 8.0, 7.0], [3.0, 6.0, 7.0]])
    >>> found = column_reduction(["a", "b", "c"], rows, threshold=0.95)
    >>> found.kept, {name: dropped.reason for name, dropped in found.dropped.items()}
    (('a',), {'b': 'duplicate', 'c': 'constant'})
    >>> found.restored(np.array([[5.0]])).round(12).tolist()
    [[5.0, 10.0, 7.0]]
    """
    table = encoded_table(replace(of_matrix(values, origin), names=tuple(names)), (), (), _untold)
    moments, place_of = table.moments, {name: place for place, name in enumerate(names)}
    used = np.array([place_of[name] for name in table.names], dtype=np.intp)
    counts, mean, variance = moments.of_columns()
    linked, _ = moments.correlation(fewest_common(table.rows))
    groups = column_groups(linked, table.names, counts, threshold) if threshold < NO_LINK else []
    kept = columns_kept(table.names, groups)
    links = {name: (stays, r) for group in groups for name, stays, r in group.drop}
    deviations = table.scale * np.sqrt(variance)
    columns = used[kept]
    scale = deviations[kept] if standardize else np.ones(len(kept))
    means, dropped, intercepts = _outside(names, values, table, links)
    means[used] = table.shift + table.scale * mean
    slopes, sources = np.zeros(len(names)), np.zeros(len(names), dtype=np.intp)
    slopes[columns], sources[columns], intercepts[columns] = 1.0, columns, 0.0
    at = {name: index for index, name in enumerate(table.names)}
    pairs = [(at[name], at[stays]) for name, (stays, _) in links.items()]
    for copy, stays in pairs:
        place = used[copy]
        slopes[place], intercepts[place] = _line(table, copy, stays)
        sources[place] = used[stays]
    eigenvalues, directions = np.empty(0), None
    if count is not None:
        matrix = _matrix(table, kept, None if standardize else deviations[kept])
        eigenvalues, directions = matrix.eigenvalues, _signed(matrix.eigenvectors[:, : count(matrix, table.rows)])
    found = ColumnReduction(
        tuple(names), columns, dropped, means, scale, slopes, intercepts, sources, np.zeros(len(names)), eigenvalues,
        directions,
    )  # fmt: skip
    units = np.ones(len(names))
    units[used] = table.scale
    return replace(found, errors=_errors(found, values, units))


def directions_of(project: str | float) -> Count:
    """The number of directions that a setting asks for.

    Args:
        project: "n90", "n95", "n99" or a fraction in (0, 1): the fewest that hold this fraction of the trace.
            "participation_ratio": that number, rounded up. A whole number: itself.

    Raises:
        ConfigurationError: Another word, a number that is neither.
    """
    if project == "participation_ratio":
        return lambda matrix, _: math.ceil(participation_ratio(matrix.eigenvalues) - 1e-9)
    named = {"n90": 0.9, "n95": 0.95, "n99": 0.99}
    asked = named.get(project) if isinstance(project, str) else project
    if isinstance(asked, float) and 0 < asked < 1:
        fraction = asked
        return lambda matrix, rows: int(
            directions_holding(as_spectrum(matrix.eigenvalues, rows, matrix.rounding), fraction).value
        )
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1:
        return lambda matrix, _: _at_most(asked, len(matrix.eigenvalues))
    raise ConfigurationError(
        f"project={project!r} is no number of directions; pass 'n90', 'n95', 'n99', 'participation_ratio', a fraction "
        "of the variance between 0 and 1, a whole number from 1, or None for no projection."
    )


def _at_most(asked: int, kept: int) -> int:
    if asked > kept:
        raise ConfigurationError(
            f"project={asked} directions were asked for, but only {kept} columns stay; pass at most {kept}."
        )
    return asked


def _outside(
    names: Sequence[str], values: npt.NDArray[Any], table: EncodedTable, links: dict[str, tuple[str, float]]
) -> tuple[Floats, dict[str, DroppedColumn], Floats]:
    """Means (d,), reasons, and the number that gives back each column that needs no other one, (d,)."""
    means, dropped = np.full(len(names), np.nan), {}
    constant = set(table.constant)
    for place, name in enumerate(names):
        if name in constant:
            dropped[name] = DroppedColumn("constant")
            means[place] = table.kinds[name].first
        elif name in table.set_aside:
            dropped[name] = DroppedColumn(table.set_aside[name])
            cells = np.asarray(values[:, place], dtype=np.float64)
            seen = cells[~np.isnan(cells)]
            means[place] = seen.mean() if len(seen) else np.nan
        elif name in links:
            dropped[name] = DroppedColumn("duplicate", *links[name])
    return means, dropped, means.copy()


def _line(table: EncodedTable, copy: int, stays: int) -> tuple[float, float]:
    """Slope and intercept of the least-squares line of one column on another, over the rows where both are observed."""
    count, sums, squares = (np.asarray(part) for part in table.moments.full())
    n = count[copy, stays]
    mean_copy, mean_stays = sums[copy, stays] / n, sums[stays, copy] / n
    covariance = table.moments.products[copy, stays] / n - mean_copy * mean_stays
    slope = covariance / (squares[stays, copy] / n - mean_stays**2)
    unit, shift = table.scale, table.shift
    rise = slope * unit[copy] / unit[stays]
    start = shift[copy] + unit[copy] * (mean_copy - slope * mean_stays) - rise * shift[stays]
    return float(rise), float(start)


def _matrix(table: EncodedTable, kept: Places, deviations: Floats | None) -> Repaired:
    """Correlation of the columns that stay or, with their deviations, their covariance; no eigenvalue is negative."""
    pairwise, _ = table.moments.correlation(fewest_defined(table.rows))
    matrix = repaired(pairwise[np.ix_(kept, kept)], rows=table.rows)
    if deviations is None:
        return matrix
    return repaired(matrix.correlation * deviations[:, None] * deviations, rows=table.rows)


def _signed(vectors: Floats) -> Floats:
    """Eigenvectors whose largest entry is positive: their sign must not depend on the library that found them."""
    largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0))


def _errors(reduction: ColumnReduction, values: npt.NDArray[Any], units: Floats) -> Floats:
    """Root mean square of what is given back less what was observed, divided by that of the latter less its mean.

    Args:
        reduction: Whose means, lines and directions are known.
        values: Training rows, (n, d).
        units: Numbers to divide the columns by, (d,), so that no square overflows.
    """
    wrong, whole, seen = np.zeros((3, len(reduction.names)))
    rows = max(1, CHUNK_CELLS // len(reduction.names))
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64)
        off = (reduction.restored(reduction.reduced(part)) - part) / units
        # Where the representative is missing, a duplicate is not given back: that is no error of its line.
        both = ~np.isnan(off)
        seen += both.sum(0)
        wrong += np.square(np.where(both, off, 0.0)).sum(0)
        whole += np.square(np.where(both, (part - reduction.means) / units, 0.0)).sum(0)
    return np.where(seen > 0, np.sqrt(wrong / np.where(whole > 0, whole, 1.0)), np.nan)


def _untold(_: int) -> None:
    """Nobody wants to know how many rows were read."""
