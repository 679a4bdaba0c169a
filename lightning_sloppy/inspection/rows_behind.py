"""How many rows a relation between columns rests on: common rows, and rows in which a column varies at all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.inputs.column_groups import ColumnGroup
from lightning_sloppy.inputs.dependencies import Dependency
from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments

FEW_ROWS = 10
"""Rows up to which a relation that rests on them is marked, and up to which they are named."""

RARE = 0.05
"""Part of the observed rows that these few may be at most."""


@dataclass(frozen=True)
class Departures:
    """Rows in which a column is not at the value that it usually has.

    Attributes:
        count: How many.
        rows: The first :data:`FEW_ROWS` of them, counted from 0.
        before: Observed rows before the first of them.
        returns: Whether the column is at its usual value again in the last row where it is observed.
    """

    count: int
    rows: tuple[int, ...]
    before: int
    returns: bool


@dataclass(frozen=True)
class RowsBehind:
    """What the relations in a group rest on.

    Attributes:
        common: Fewest rows that a column to drop has in common with the one that stays for it.
        few: Fewest rows in which one of such a pair departs from its usual value; None where all vary in many rows. A
            covariance with a column that is constant elsewhere comes from these rows alone.
    """

    common: int
    few: int | None


def departures(names: Sequence[str], values: Floats, late: Collection[str]) -> dict[str, Departures]:
    """Of columns that vary in few rows, and of those that vary only from a later row on.

    Args:
        names: Of the columns, (d,).
        values: All rows in their order, NaN where missing, (n, d).
        late: Columns that are constant at first; their usual value is the first.
    """
    seen = ~np.isnan(values)
    usual = np.nanmedian(values, axis=0)
    for index in (index for index, name in enumerate(names) if name in late):
        usual[index] = values[seen[:, index].argmax(), index]
    away = seen & (values != usual)
    counts, most = away.sum(0), np.minimum(FEW_ROWS, RARE * seen.sum(0))
    found = {}
    for index, name in enumerate(names):
        if name in late or counts[index] <= most[index]:
            last = len(values) - 1 - int(seen[::-1, index].argmax())
            rows = np.flatnonzero(away[:, index])
            found[name] = Departures(
                count=len(rows),
                rows=tuple(map(int, rows[:FEW_ROWS])),
                before=int(seen[: rows[0], index].sum()) if len(rows) else 0,
                returns=not bool(away[last, index]),
            )
    return found


def few_rows(column: str, other: str, departures: Mapping[str, Departures]) -> int | None:
    """Rows that the correlation of two columns rests on, where they are few."""
    counts = [departures[name].count for name in (column, other) if name in departures]
    few = min(counts, default=FEW_ROWS + 1)
    return few if few <= FEW_ROWS else None


def few_rows_of_combination(found: Dependency, departures: Mapping[str, Departures]) -> int | None:
    """Rows that an exact combination rests on, where they are few: in all others every column in it is constant."""
    members = [departures.get(name) for name in (found.column, *found.names)]
    if any(each is None or each.count > FEW_ROWS for each in members):
        return None
    rows = {row for each in members if each is not None for row in each.rows}
    return len(rows) if len(rows) <= FEW_ROWS else None


def rows_behind(
    groups: Sequence[ColumnGroup],
    names: Sequence[str],
    parts: Sequence[PairwiseMoments],
    departures: Mapping[str, Departures],
) -> Iterator[RowsBehind]:
    """For each group.

    Args:
        groups: Of columns that carry the same information.
        names: Of all columns used, (d,).
        parts: Moments of parts of the rows, which together are all of them.
        departures: See :func:`departures`.
    """
    place = {name: index for index, name in enumerate(names)}
    counts = _common(parts)
    rows = sum(part.rows for part in parts)
    for group in groups:
        common = [rows if counts is None else int(counts[place[a], place[b]]) for a, b, _ in group.drop]
        few = [few for a, b, _ in group.drop if (few := few_rows(a, b, departures)) is not None]
        yield RowsBehind(min(common, default=rows), min(few, default=None))


def groups_in_detail(groups: Sequence[ColumnGroup], behind: Sequence[RowsBehind]) -> list[dict[str, Any]]:
    """For the JSON."""
    return [
        {
            "representative": group.representative,
            "lowest": group.lowest,
            "drop": [list(entry) for entry in group.drop],
            "common_rows": rows.common,
            "few_rows": rows.few,
        }
        for group, rows in zip(groups, behind, strict=True)
    ]


def _common(parts: Sequence[PairwiseMoments]) -> npt.NDArray[Any] | None:
    """Common rows of all pairs, (d, d); None where nothing is missing."""
    if all(part.count is None for part in parts):
        return None
    total: npt.NDArray[Any] = sum(np.asarray(part.full()[0]) for part in parts)  # type: ignore[assignment]
    return np.round(total)
