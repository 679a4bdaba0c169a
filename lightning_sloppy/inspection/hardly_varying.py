"""Words for columns that vary in few rows, or only from a later row on, and for relations that rest on few rows."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_sloppy.inputs.dependencies import Dependency
from lightning_sloppy.inspection.data_report import DataReport
from lightning_sloppy.inspection.rows_behind import FEW_ROWS, Departures, few_rows, few_rows_of_combination

MOST_NAMES = 12
"""Names of one kind in a sentence."""


def rows_in_words(count: int) -> str:
    """A number of rows.

    >>> rows_in_words(1), rows_in_words(1200)
    ('1 row', '1,200 rows')
    """
    return f"{count:,} row{'' if count == 1 else 's'}"


def departure(found: Departures) -> str:
    """Where a column departs from its usual value, and whether it goes back.

    >>> departure(Departures(1, (1458,), 1458, True)), departure(Departures(40, (60, 61), 60, False))
    ('in 1 row (1458), then the old value again', 'in 40 rows from row 60 on, to the end')
    """
    where = (
        f"in {rows_in_words(found.count)} ({', '.join(map(str, found.rows))})"
        if found.count <= FEW_ROWS
        else f"in {rows_in_words(found.count)} from row {found.rows[0]} on"
    )
    return where + (", then the old value again" if found.returns else ", to the end")


def varying_in(report: DataReport) -> str:
    """In which rows the nearly constant columns vary; empty where that is not known."""
    found = {name: report.departures[name] for name in report.nearly_constant if name in report.departures}
    if not found:
        return ""
    by_words: dict[str, list[str]] = {}
    for name, each in found.items():
        by_words.setdefault(departure(each), []).append(name)
    same = [f"{_some(names)}: {words}" for words, names in [*by_words.items()][:MOST_NAMES]]
    more = "; ..." if len(by_words) > MOST_NAMES else ""
    rows = {row for each in found.values() for row in each.rows}
    rule = [row for row in report.dominating_rows if row in rows]
    ruling = (
        f" Row{'s' if len(rule) > 1 else ''} {', '.join(map(str, rule))} also "
        f"rule{'' if len(rule) > 1 else 's'} the result."
        if rule
        else ""
    )
    return f"They differ from that value as follows. {'; '.join(same)}{more}.{ruling}"


def late_columns(report: DataReport) -> list[str]:
    """Columns that vary from a later row on, but not those that hardly vary at all, each with its rows."""
    said = []
    for name, row in report.late.items():
        found = report.departures.get(name)
        # A column that is hardly observed before it changes was not seen to be constant.
        if name not in report.nearly_constant and (found is None or found.before > FEW_ROWS):
            said.append(f"{name} (row {row})" if found is None else f"{name} ({_late(row, found)})")
    return said


def combination(report: DataReport, found: Dependency) -> str:
    """The equation, marked where it rests on few rows."""
    few = few_rows_of_combination(found, report.departures)
    return found.in_words if few is None else f"{found.in_words} (rests on {rows_in_words(few)})"


def on_few_rows(report: DataReport) -> str:
    """Which columns are listed to drop for what happens in few rows; empty for none."""
    by_count: dict[int, list[str]] = {}
    for group in report.groups:
        for name, stays, _ in group.drop:
            few = few_rows(name, stays, report.departures)
            if few is not None:
                by_count.setdefault(few, []).append(name)
    if not by_count:
        return ""
    said = "; ".join(f"{_some(names)} on {rows_in_words(few)}" for few, names in sorted(by_count.items()))
    total = sum(map(len, by_count.values()))
    return (
        f" Of these, {total:,} rest{'s' if total == 1 else ''} on few rows ({said}): elsewhere the column, or the one "
        "that stays for it, is constant, so this is no sign of a physical relation."
    )


def _late(row: int, found: Departures) -> str:
    """From where on a column varies, in how many rows, and whether it goes back."""
    few = f": {', '.join(map(str, found.rows))}" if found.count <= FEW_ROWS else ""
    back = "then the old value again" if found.returns else "not at the old value at the end"
    return f"row {row} on, differs in {rows_in_words(found.count)}{few}; {back}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
