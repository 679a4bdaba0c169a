"""What is said of columns one by one: copies, nearly constant ones, combinations, and the same columns shuffled."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_sloppy.inputs.column_groups import ColumnGroup, natural
from lightning_sloppy.inputs.dependencies import Dependencies, exact_dependencies
from lightning_sloppy.inputs.encoded_table import EncodedTable
from lightning_sloppy.inputs.pairwise import Floats

NEARLY_CONSTANT = 0.99
"""Part of the observed rows from which one value makes a column nearly constant."""


NO_COMBINATION = 1e-10
"""Smallest eigenvalue of a correlation matrix above which no column is an exact combination of others: what is left of
one is below a millionth of its deviation, so that the eigenvalue is below 1e-12."""


def columns_kept(names: Sequence[str], groups: Sequence[ColumnGroup]) -> npt.NDArray[np.intp]:
    """Indices of the columns that no group lists to drop."""
    dropped = {name for group in groups for name, _, _ in group.drop}
    return np.array([index for index, name in enumerate(names) if name not in dropped])


def nearly_constant(names: Sequence[str], values: Floats) -> dict[str, float]:
    """A value that fills more than half of a column is its median."""
    middle = np.nanmedian(values, axis=0)
    # Of an even number of values the median may lie between two: then none fills half.
    share = (values == middle).sum(0) / np.maximum((~np.isnan(values)).sum(0), 1)
    return {name: float(part) for name, part in zip(names, share, strict=True) if part >= NEARLY_CONSTANT}


def duplicates(table: EncodedTable, correlation: Floats) -> tuple[tuple[str, ...], ...]:
    """Columns of the same values in the same rows."""
    known: dict[tuple[bytes, float, float], list[int]] = {}
    for index in range(table.values.shape[1]):
        column = np.ascontiguousarray(table.values[:, index]) + 0.0  # no negative zeros
        key = column.tobytes(), float(table.shift[index]), float(table.scale[index])
        known.setdefault(key, []).append(index)
    same = [where for where in known.values() if len(where) > 1]
    return tuple(
        tuple(table.names[index] for index in where) for where in same if correlation[where[0], where[1]] > 1 - 1e-9
    )


def dependencies(table: EncodedTable, smallest: float) -> Dependencies:
    """In the units of the table, columns sorted by name: which one is named must not depend on their order.

    Args:
        table: Its values, or a part of them, are looked at.
        smallest: Eigenvalue of the correlation over all rows. Without missing values it is nearly zero if there is a
            combination; if it is not, nothing is computed.
    """
    if table.moments.count is None and smallest > NO_COMBINATION:
        return Dependencies((), len(table.names), len(table.values))
    order = sorted(range(len(table.names)), key=lambda index: natural(table.names[index]))
    units = table.values[:, order] * table.scale[order] + table.shift[order]
    return exact_dependencies(units, [table.names[index] for index in order])


def shuffled(names: Sequence[str], values: Floats, seed: int) -> Floats:
    """Each column with its observed values in another order, its own by its name; what is missing stays missing."""
    mixed = values.copy()
    for index, name in enumerate(names):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        seen = ~np.isnan(values[:, index])
        mixed[seen, index] = rng.permutation(values[seen, index])
    return mixed
