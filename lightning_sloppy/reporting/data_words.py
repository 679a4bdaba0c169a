"""What the page of a table says, whether printed or as HTML: its size, its numbers, and the columns to know of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lightning_sloppy.display import percent
from lightning_sloppy.inspection.answers import above_noise_edge, columns, interval, number
from lightning_sloppy.inspection.data_report import DataReport, SpectrumReport
from lightning_sloppy.inspection.hardly_varying import combination, late_columns, rows_in_words

MOST_CONSTANT = 12
"""Constant columns named among those to know of; a longer list is in an answer, where it can be copied."""


@dataclass(frozen=True)
class NumberRow:
    """A number of the correlation matrix.

    Attributes:
        name: Its name.
        cells: Its value with the interval, for all columns and, where repeats were found, without them.
        meaning: How to read it, in one sentence.
    """

    name: str
    cells: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class ColumnNote:
    """Columns to know of, for one reason.

    Attributes:
        heading: The reason.
        entries: Names, each with what belongs to it.
        between: What separates them in one line.
    """

    heading: str
    entries: tuple[str, ...]
    between: str = ", "


def size(report: DataReport) -> str:
    """Rows, columns, missing cells and effective rows in one sentence."""
    parts = [f"{report.rows:,} rows, {columns(report.columns)}"]
    used = f"{len(report.names):,} used"
    if report.encoded:
        used += f" (with {sum(map(len, report.encoded.values())):,} for {len(report.encoded):,} of text)"
    parts.append(
        f"{used}, {len(report.constant):,} constant, {len(report.set_aside):,} set aside"
        + (f"; target: {', '.join(target.name for target in report.targets)}" if report.targets else "")
    )
    seen = report.missing
    method = {"none": "none", "pairwise": "pairwise correlation", "em": "Gaussian model"}[seen.method]
    missing = f"{percent(seen.rate, 2)} of their cells missing ({method})"
    parts.append("no cells missing" if seen.method == "none" else missing)
    order = (
        f"lag-1 autocorrelation {report.autocorrelation:.2f} (median), so {report.effective_rows:,.0f} effective rows"
    )
    return "; ".join(parts) + f"; {order}."


def numbering(report: DataReport) -> str:
    """How columns without names, and rows, are numbered."""
    names = {*report.names, *report.constant, *report.set_aside}
    rows = "Rows are counted from 0"
    if not all(name.isdecimal() and int(name) < report.columns + len(report.targets) for name in names):
        return f"{rows}."
    why = ", because the file has no header" if report.reading else ""
    return f"Columns are numbered from 0{why}. {rows}, too."


def headings(report: DataReport) -> list[str]:
    """Which columns the cells of a :class:`NumberRow` are about."""
    found = [f"all {columns(report.spectrum.columns)}"]
    return found + ([f"{columns(report.deduplicated.columns)}, repeats dropped"] if report.drop else [])


def numbers(report: DataReport) -> Iterator[NumberRow]:
    """The numbers of the correlation matrix."""
    shown: list[SpectrumReport] = [report.spectrum, *([report.deduplicated] if report.drop else [])]

    def both(name: str, cells: list[str], meaning: str) -> NumberRow:
        return NumberRow(name, tuple(cells), meaning)

    yield both(
        "participation ratio",
        [interval(s.participation_ratio) for s in shown],
        "The effective number of directions, the one to quote: the number of columns if they are independent, 1 if all "
        "are copies of one.",
    )
    yield both(
        "entropy rank",
        [interval(s.entropy_rank) for s in shown],
        "The same, but weak directions count more.",
    )
    yield both(
        f"ridge degrees of freedom at {report.spectrum.ridge_strength:g}",
        [interval(s.ridge_degrees_of_freedom) for s in shown],
        "Directions that a ridge regression of this strength uses.",
    )
    yield both(
        "eigenvalues above the noise edge",
        [above_noise_edge(s) for s in shown],
        "Directions that noise alone cannot explain. Weaker ones may be real as well.",
    )
    yield both(
        "  the noise edge",
        [number(s.noise_edge) for s in shown],
        "The largest eigenvalue that independent columns show in so many rows.",
    )
    yield both("largest eigenvalue", [_eigenvalue(s, 0) for s in shown], "The variance along the strongest direction.")
    yield both(
        "decades (spread)",
        [interval(s.decades) for s in shown],
        "Powers of ten between the largest and the smallest eigenvalue. Says little where columns repeat."
        + (
            f" Missing values hide eigenvalues below {number(report.spectrum.floor)}."
            if report.missing.negative_eigenvalues and report.missing.method == "pairwise"
            else ""
        ),
    )
    yield both(
        "slope in decades per index (spread)",
        [interval(s.slope) for s in shown],
        "How fast the eigenvalues fall after the first drop.",
    )
    yield both("knee after (spread)", [interval(s.knee) for s in shown], "The index at which the first drop ends.")
    if report.shrunk is not None:
        ratio, amount = report.shrunk
        yield both(
            f"participation ratio shrunk by {number(amount)}",
            [number(ratio), *[""] * bool(report.drop)],
            "The same for the correlations pulled towards zero by this part, as is better for few rows.",
        )
    yield both(
        "condition index",
        ["infinite" if math.isinf(s.condition_index) else number(s.condition_index) for s in shown],
        "Above 30 least squares suffers. Infinite where columns are exact combinations of others.",
    )


def origin_of_numbers(report: DataReport) -> str:
    """What the brackets are, and the same number for ranks and for values that are cut off."""
    said = (
        f"Brackets: 95 % intervals of the population, from halves of the {report.resampled}"
        if report.spectrum.participation_ratio.low is not None
        else report.resampled.capitalize()
    )
    some = "" if report.sampled_rows == report.rows else f", in {report.sampled_rows:,} rows"
    return (
        f"{said}. Participation ratio of ranks {number(report.ranks)}, of values cut off at 5 deviations "
        f"{number(report.clipped)}{some}"
    )


def column_notes(report: DataReport) -> Iterator[ColumnNote]:
    """The columns that a reader should know of, by reason."""
    if report.constant:
        shown = report.constant
        if len(shown) > MOST_CONSTANT:
            shown = (*shown[:3], f"and {len(shown) - 3:,} more; all are in the answer on dead sensors")
        yield ColumnNote(f"Constant ({len(report.constant):,})", shown)
    if report.nearly_constant:
        yield ColumnNote(
            f"Nearly constant ({len(report.nearly_constant):,})",
            tuple(_nearly_constant(report, name, part) for name, part in report.nearly_constant.items()),
        )
    late = late_columns(report)
    if late:
        yield ColumnNote(f"Constant at first, varying from a later row on ({len(late):,})", tuple(late))
    if report.mostly_missing:
        yield ColumnNote(f"Mostly missing ({len(report.mostly_missing):,})", _parts(report.mostly_missing))
    if report.duplicates:
        same = tuple(" = ".join(names) for names in report.duplicates)
        yield ColumnNote(f"Exact copies ({len(report.duplicates):,})", same, "; ")
    if report.dependencies.found:
        equations = tuple(combination(report, found) for found in report.dependencies.found)
        yield ColumnNote(f"Exact combinations ({len(equations):,})", equations, "; ")
    if report.encoded:
        yield ColumnNote(
            f"Text as columns of 0 and 1 ({len(report.encoded):,})",
            tuple(f"{name} as {', '.join(new)}" for name, new in report.encoded.items()),
            "; ",
        )
    if report.set_aside:
        yield ColumnNote(
            f"Set aside ({len(report.set_aside):,})",
            tuple(f"{name} ({reason})" for name, reason in report.set_aside.items()),
            "; ",
        )


def groups_heading(report: DataReport) -> str:
    """How many groups there are, and of what."""
    return (
        f"{len(report.groups):,} group{'s' if len(report.groups) > 1 else ''} of columns that carry the same "
        f"information (|r| > {report.threshold:g})"
    )


def groups_legend(report: DataReport) -> str:
    """How to read the table of groups."""
    said = [
        "Stays: the column to keep; the others repeat it. Lowest |r|: of the others with it.",
        "Rests on: the fewest rows in which a column to drop and the one that stays are both observed, or in which one "
        "of them varies at all if these are few; such a pair says little.",
    ]
    if any(set(group.names[1:]) - {name for name, _, _ in group.drop} for group in report.groups):
        said.append(
            f"(stays): linked through a third column only; its own |r| with the first is {report.threshold:g} or less, "
            "so it stays as well."
        )
    said.append(
        "Another column may stay in place of the first if its |r| with all that are dropped is above "
        f"{report.threshold:g}. --json FILE writes all groups, and the correlations to an .npz of the same name."
    )
    return " ".join(said)


@dataclass(frozen=True)
class GroupRow:
    """A group of columns in the table of groups.

    Attributes:
        stays: The column that stays.
        others: All others, those that stay too marked so.
        lowest: Absolute correlation.
        rests_on: Rows behind it.
    """

    stays: str
    others: tuple[str, ...]
    lowest: str
    rests_on: str


GROUP_HEADINGS = ("stays", "repeats it", "lowest |r|", "rests on")


def group_rows(report: DataReport) -> list[GroupRow]:
    """The table of groups."""
    rows = []
    for group, behind in zip(report.groups, report.rows_behind, strict=True):
        dropped = {name for name, _, _ in group.drop}
        others = tuple(name if name in dropped else f"{name} (stays)" for name in group.names[1:])
        count = rows_in_words(behind.common if behind.few is None else behind.few)
        rows.append(GroupRow(group.representative, others, f"{group.lowest:.3f}", count))
    return rows


def _nearly_constant(report: DataReport, name: str, part: float) -> str:
    found = report.departures.get(name)
    return f"{name} ({percent(part, 1)}" + (")" if found is None else f", differs in {rows_in_words(found.count)})")


def _eigenvalue(found: SpectrumReport, index: int) -> str:
    value = number(found.eigenvalues[index])
    if not found.intervals:
        return value
    low, high = found.intervals[index]
    return f"{value} [{number(low)}, {number(high)}]"


def _parts(parts: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{name} ({percent(part, 1)})" for name, part in parts.items())
