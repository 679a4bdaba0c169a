"""Several runs next to each other: settings, results and numbers in tables with one column a run, differences first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_sloppy.quantities import Quantity
from lightning_sloppy.records import Estimate
from lightning_sloppy.reporting import phrases
from lightning_sloppy.reporting.report_parts import ShownNumber, facts_of, numbers
from lightning_sloppy.runs.run import Run

OF_EACH = ("Started", "Folder", "Loggers")
"""Facts that always differ and are no difference."""

ABSENT = "\N{EN DASH}"
"""Shown for a run that does not have the value."""


@dataclass(frozen=True)
class ComparedRow:
    """One line of a table with a column for each run.

    Attributes:
        name: What is compared.
        cells: Its text in each run.
        differs: Whether runs differ; of numbers, by more than the sum of their errors.
        explanation: What the number means.
        values: The number in each run, None where it is missing; empty for texts.
        group: Title of the instrument.
    """

    name: str
    cells: tuple[str, ...]
    differs: bool
    explanation: str = ""
    values: tuple[float | None, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Comparison:
    """Several runs next to each other.

    Attributes:
        settings: Settings that differ.
        facts: Facts that differ.
        headlines: Main numbers that differ.
        others: Other numbers that differ.
        equal: Facts and numbers that do not differ.
    """

    settings: tuple[ComparedRow, ...] = ()
    facts: tuple[ComparedRow, ...] = ()
    headlines: tuple[ComparedRow, ...] = ()
    others: tuple[ComparedRow, ...] = ()
    equal: tuple[ComparedRow, ...] = field(default=())


def compare(runs: Sequence[Run], settings: Sequence[Mapping[str, str]] = ()) -> Comparison:
    """Compare runs.

    Args:
        runs: Two or more.
        settings: For each run its settings by name, if they are known.
    """
    facts = [row for row in _texts([dict(facts_of(run.facts)) for run in runs]) if row.name not in OF_EACH]
    headlines, others = _numbers(runs)
    rows = [*facts, *headlines, *others]
    return Comparison(
        settings=tuple(row for row in _texts(settings) if row.differs),
        facts=tuple(row for row in facts if row.differs),
        headlines=tuple(row for row in headlines if row.differs),
        others=tuple(row for row in others if row.differs),
        equal=tuple(row for row in rows if not row.differs),
    )


def _texts(columns: Sequence[Mapping[str, str]]) -> list[ComparedRow]:
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = ((name, tuple(column.get(name, ABSENT) for column in columns)) for name in names)
    return [ComparedRow(name, cells, len(set(cells)) > 1) for name, cells in rows]


def _numbers(runs: Sequence[Run]) -> tuple[list[ComparedRow], list[ComparedRow]]:
    """Rows of the headlines, and of all other numbers, in the order of the instruments."""
    found: dict[str, list[ShownNumber | None]] = {}
    titles: dict[str, str] = {}
    main: set[str] = set()
    for index, run in enumerate(runs):
        for each in run.instruments.values():
            shown = numbers(each)
            for number in (*shown.headlines, *shown.others):
                found.setdefault(number.tag, [None] * len(runs))[index] = number
                titles[number.tag] = shown.title
            main |= {number.tag for number in shown.headlines}
    rows = {name: _row(titles[name], column) for name, column in found.items()}
    return [rows[name] for name in rows if name in main], [rows[name] for name in rows if name not in main]


def _row(title: str, column: Sequence[ShownNumber | None]) -> ComparedRow:
    known = [number for number in column if number is not None]
    quantity: Quantity = known[0].quantity
    return ComparedRow(
        known[0].name,
        tuple(ABSENT if number is None else phrases.shown(quantity, number.estimate) for number in column),
        len(known) < len(column) or _apart([number.estimate for number in known]),
        quantity.explanation,
        tuple(None if number is None else number.estimate.value for number in column),
        title,
    )


def _apart(estimates: Sequence[Estimate]) -> bool:
    """Whether the largest and the smallest value differ by more than the sum of their errors."""
    low, high = (choose(estimates, key=lambda each: each.value) for choose in (min, max))
    errors = sum(each.total_error for each in (low, high) if math.isfinite(each.total_error))
    return high.value - low.value > errors
