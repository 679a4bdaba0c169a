"""Columns that carry the same information: who belongs together, who may stand for the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster import hierarchy
from scipy.sparse import csgraph
from scipy.spatial.distance import squareform

from lightning_sloppy.inputs.pairwise import Floats

THRESHOLD = 0.95
"""Absolute correlation above which two columns carry the same information: they share 90 % of their variance."""

MOST_ORDERED = 2_000
"""Columns up to which a hierarchical order is found."""


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that are linked to one another, directly or through others, by correlations above the threshold.

    Attributes:
        names: All of them, the representative first, then by falling correlation with it.
        representative: Linked to the most others; among equals the one that is observed most often.
        lowest: The lowest absolute correlation of a member with the representative. It may be below the threshold,
            where two columns are linked through a third.
        drop: Those above the threshold to a column that stays, with that column and the correlation.
    """

    names: tuple[str, ...]
    representative: str
    lowest: float
    drop: tuple[tuple[str, str, float], ...]


def column_groups(
    correlation: Floats, names: Sequence[str], counts: Floats, threshold: float = THRESHOLD
) -> list[ColumnGroup]:
    """Connected components of ``|r| > threshold``, the largest first.

    Within a group the representative stays and all above the threshold *to it* may go; among those that are left, which
    are only linked through others, the same is done again. So every column that is listed to drop has one that stays
    and says nearly the same.

    Args:
        correlation: (d, d), zero where it is not defined.
        names: (d,).
        counts: Observed values of each column, (d,).
        threshold: Of the absolute correlation.

    >>> r = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.1], [0.0, 0.1, 1.0]])
    >>> [group.names for group in column_groups(r, ["a", "b", "c"], np.array([9, 9, 9]))]
    [('a', 'b')]
    """
    strength = np.abs(correlation)
    linked = strength > threshold
    np.fill_diagonal(linked, False)
    _, labels = csgraph.connected_components(linked, directed=False)
    order = np.argsort(labels, kind="stable")
    components = np.split(order, np.cumsum(np.bincount(labels))[:-1])
    groups = [_group(part, linked, strength, correlation, names, counts) for part in components if len(part) > 1]
    return sorted(groups, key=lambda group: (-len(group.names), natural(group.representative)))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts "sensor 9" before "sensor 10", whatever the order of the columns was."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def hierarchical_order(correlation: Floats) -> list[int]:
    """Columns in the order of an average-linkage tree on ``1 - |r|``: groups lie side by side in a picture."""
    d = len(correlation)
    if d < 3 or d > MOST_ORDERED:
        return list(range(d))
    distance = 1.0 - np.abs(correlation)
    np.fill_diagonal(distance, 0.0)
    distance = np.maximum((distance + distance.T) / 2, 0.0)
    return [int(index) for index in hierarchy.leaves_list(hierarchy.average(squareform(distance, checks=False)))]


def _group(
    members: np.ndarray[tuple[int], np.dtype[np.intp]],
    linked: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    strength: Floats,
    correlation: Floats,
    names: Sequence[str],
    counts: Floats,
) -> ColumnGroup:
    left = [int(member) for member in members]
    chosen: list[int] = []
    drop: list[tuple[str, str, float]] = []
    while left:
        inside = linked[np.ix_(left, left)].sum(1)
        # Rounding must not decide: equal columns have sums that differ in the last bits.
        sums = np.round(strength[np.ix_(left, left)].sum(1), 6)
        best = min(range(len(left)), key=lambda i: (-inside[i], -counts[left[i]], -sums[i], natural(names[left[i]])))
        stays = left[best]
        chosen.append(stays)
        near = [column for column in left if linked[stays, column]]
        near.sort(key=lambda column: (-round(strength[stays, column], 9), natural(names[column])))
        drop += [(names[column], names[stays], float(correlation[stays, column])) for column in near]
        left = [column for column in left if column != stays and not linked[stays, column]]
    first = chosen[0]
    others = [int(column) for column in members if column != first]
    others.sort(key=lambda column: (-round(strength[first, column], 9), natural(names[column])))
    return ColumnGroup(
        names=(names[first], *(names[column] for column in others)),
        representative=names[first],
        lowest=float(min(strength[first, column] for column in others)),
        drop=tuple(drop),
    )
