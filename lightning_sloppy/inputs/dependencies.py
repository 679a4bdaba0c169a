"""Columns that are exact linear combinations of others, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from lightning_sloppy.inputs.column_groups import natural
from lightning_sloppy.inputs.pairwise import Floats, shift_and_scale

EXACT = 1e-6
"""Deviation of what is left of a column, beside its own, up to which it counts as an exact combination: sums that were
once stored in float32 still do, two sensors of one temperature do not."""

NEGLIGIBLE = (1e-2, 1e-3, 1e-5)
"""Parts of a column's deviation up to which a term of the combination is tried to be left out as rounding."""

MOST_ROWS = 20_000
"""Rows in which combinations are looked for; they are checked in all."""

SPARE_ROWS = 10
"""Rows more than columns that are needed: with fewer, chance alone makes every column a combination."""

COMPLETE = (1.0, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)
"""Missing rates tried: columns up to which, in the rows that are complete there, leave enough rows."""


@dataclass(frozen=True)
class Dependency:
    """``column = constant + sum_k weights_k names_k`` in every row where all are observed.

    Attributes:
        column: Name.
        names: The columns that give it.
        weights: In the units of the table.
        constant: In the units of the column.
    """

    column: str
    names: tuple[str, ...]
    weights: tuple[float, ...]
    constant: float

    @property
    def in_words(self) -> str:
        """As an equation.

        >>> Dependency("sum", ("a", "b"), (1.0, -2.0), 0.5).in_words
        'sum = a - 2 b + 0.5'
        """
        terms = ""
        for weight, name in zip(self.weights, self.names, strict=True):
            size = "" if abs(abs(weight) - 1) < 1e-6 else f"{abs(weight):.6g} "
            terms += f" {'-' if weight < 0 else '+'} {size}{name}"
        if abs(self.constant) > 1e-9:
            terms += f" {'-' if self.constant < 0 else '+'} {abs(self.constant):.6g}"
        return f"{self.column} ={terms.removeprefix(' +')}"


@dataclass(frozen=True)
class Dependencies:
    """What was found, and where it was looked for.

    Attributes:
        found: The combinations.
        columns: How many columns were looked at.
        rows: In how many rows, all complete there; 0 when there were too few.
    """

    found: tuple[Dependency, ...]
    columns: int
    rows: int


def exact_dependencies(values: Floats, names: Sequence[str]) -> Dependencies:
    """Rank-revealing QR with column pivoting of the standardised columns, over rows that are complete.

    The pivots are a basis, and each column behind them is a combination of it; which of several dependent columns is
    named as the combination is a convention, the last by its name. Where values are missing, the columns with few of
    them are taken, in the rows where all of those are observed.

    Args:
        values: (n, d), NaN where missing.
        names: (d,).

    >>> rows = np.random.default_rng(0).standard_normal((99, 2))
    >>> found = exact_dependencies(np.column_stack([rows, rows @ [1.0, 2.0] + 7]), ["a", "b", "c"]).found
    >>> len(found), sorted([found[0].column, *found[0].names])
    (1, ['a', 'b', 'c'])
    """
    columns, rows = _complete_part(values)
    if not len(columns):
        return Dependencies((), 0, 0)
    part = values[np.ix_(rows, columns)]
    varying = np.ptp(part, axis=0) > 0
    columns, part = columns[varying], part[:, varying]
    if len(columns) < 2 or len(part) < len(columns) + SPARE_ROWS:
        return Dependencies((), len(columns), 0)
    mean, deviation = shift_and_scale(part)
    standard = (part - mean) / deviation
    step = max(1, len(standard) // max(MOST_ROWS, 4 * len(columns)))
    looked = standard[::step]
    triangle, order = linalg.qr(looked / np.sqrt(len(looked)), mode="r", pivoting=True, check_finite=False)
    rank = int((np.abs(np.diag(triangle)[: len(columns)]) > EXACT).sum())
    weights = linalg.solve_triangular(triangle[:rank, :rank], triangle[:rank, rank:])
    found: list[Dependency] = []
    for which, column in enumerate(order[rank:]):
        fitted = _fitted(standard, looked, column, order[:rank], weights[:, which])
        if fitted is None:
            continue
        basis, own = fitted
        # Which of them is named as the combination must not depend on rounding: the last by its name, if it is free.
        members = [column, *basis]
        factors = np.array([-1.0, *own])
        free = [at for at in range(len(members)) if names[columns[members[at]]] not in {one.column for one in found}]
        at = max(free or [0], key=lambda at: natural(names[columns[members[at]]]))
        column, basis = members[at], np.delete(members, at)
        units = np.delete(-factors / factors[at], at) * deviation[column] / deviation[basis]
        constant = float(mean[column] - mean[basis] @ units)
        # The constant is a difference of means: what rounding leaves of it is none.
        if abs(constant) <= 1e-7 * (abs(mean[column]) + np.abs(mean[basis] * units).sum()):
            constant = 0.0
        terms = sorted(zip(basis, units, strict=True), key=lambda term: natural(names[columns[term[0]]]))
        found.append(
            Dependency(
                names[columns[column]],
                tuple(names[columns[index]] for index, _ in terms),
                tuple(float(weight) for _, weight in terms),
                constant,
            )
        )
    return Dependencies(tuple(found), len(columns), len(standard))


def _fitted(
    standard: Floats, looked: Floats, column: int, basis: npt.NDArray[np.intp], weights: Floats
) -> tuple[npt.NDArray[np.intp], Floats] | None:
    """The fewest columns of the basis that give the column in every row, with their weights.

    Columns of the basis that are nearly dependent blow up the rounding in the weights of others, so large weights alone
    are tried first, fitted anew.
    """
    for least in NEGLIGIBLE:
        used = basis[np.abs(weights) > least]
        if not len(used):
            continue
        own, *_ = linalg.lstsq(looked[:, used], looked[:, column], check_finite=False)
        left = standard[:, column] - standard[:, used] @ own
        if left.std() <= EXACT and float(np.abs(left).max()) <= np.sqrt(len(left)) * EXACT:
            return used, np.asarray(own)
    return None


def _complete_part(values: Floats) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], ...]:
    """Columns and the rows that are complete in them: as many columns as leave twice as many rows."""
    missing = np.isnan(values)
    rate = missing.mean(0)
    for most in COMPLETE:
        columns = np.flatnonzero(rate <= most)
        rows = np.flatnonzero(~missing[:, columns].any(1))
        if len(columns) >= 2 and len(rows) >= 2 * len(columns) + SPARE_ROWS:
            return columns, rows
    columns = np.flatnonzero(rate == 0)
    return columns, np.arange(len(values))
