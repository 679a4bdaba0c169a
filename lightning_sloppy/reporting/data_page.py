"""The page that ``lightning-sloppy inspect`` prints: numbers, names, and answers in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_sloppy.inspection.answers import columns
from lightning_sloppy.inspection.data_report import DataReport
from lightning_sloppy.reporting.data_words import (
    GROUP_HEADINGS,
    ColumnNote,
    column_notes,
    group_rows,
    groups_heading,
    groups_legend,
    headings,
    numbering,
    numbers,
    origin_of_numbers,
    size,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_NAMES = 200
"""Names printed of one list; the JSON holds all."""

MOST_GROUPS = 20


def print_page(report: DataReport, console: Console) -> None:
    """Print the report.

    Args:
        report: What was found.
        console: Where to; names are printed as they are, without the console's own markup.
    """
    for part in _page(report):
        console.print(part, markup=False, highlight=False)


def _page(report: DataReport) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(report.origin, style="bold")
    yield Text(size(report))
    if report.reading:
        yield Text(report.reading)
    yield Text(numbering(report))
    yield Text("")
    yield _numbers(report)
    if report.groups:
        yield Text("")
        yield _groups(report)
        yield Text(groups_legend(report), style="dim")
    notes = [*column_notes(report)]
    if notes:
        yield Text("")
        yield Text("Columns to know of", style="bold")
        for note in notes:
            yield Padding(Text.assemble((f"{note.heading}: ", "bold"), _listed(note)), (0, 0, 0, 2))
    yield Text("")
    yield Text("Answers", style="bold")
    for answer in report.answers:
        yield Text("")
        yield Text(answer.question, style="bold")
        yield Padding(Text(answer.answer), (0, 0, 0, 2))
        yield Padding(Text(f"Evidence: {answer.evidence}", style="dim"), (0, 0, 0, 2))


def _numbers(report: DataReport) -> RenderableType:
    from rich.table import Table

    table = Table(title="Spectrum of the correlation matrix", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in headings(report):
        table.add_column(heading, justify="right")
    for row in numbers(report):
        table.add_row(row.name, *row.cells)
    table.caption = origin_of_numbers(report)
    table.caption_justify = "left"
    return table


def _groups(report: DataReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=groups_heading(report), title_justify="left", title_style="bold")
    for heading in GROUP_HEADINGS:
        numeric = heading in GROUP_HEADINGS[2:]
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in group_rows(report)[:MOST_GROUPS]:
        table.add_row(Text(row.stays), Text(", ".join(row.others)), row.lowest, row.rests_on)
    if len(report.groups) > MOST_GROUPS:
        rest = report.groups[MOST_GROUPS:]
        table.add_row(
            Text("..."), Text(f"and {len(rest):,} more groups, of {columns(sum(len(g.names) for g in rest))}"), "", ""
        )
    return table


def _listed(note: ColumnNote) -> str:
    more = len(note.entries) - MOST_NAMES
    rest = f"{note.between}and {more:,} more" if more > 0 else ""
    return note.between.join(note.entries[:MOST_NAMES]) + rest
