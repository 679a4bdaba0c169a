"""The page of ``lightning-sloppy inspect --against``: the answer, who is responsible, then the numbers with limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_sloppy.display import percent
from lightning_sloppy.drift.report import ColumnChange, DriftReport, Statistic
from lightning_sloppy.inspection.answers import columns, number

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_ROWS = 20
"""Columns and pairs in a table; the JSON holds all."""

MOST_NAMES = 40
"""Names in one list."""

CHANGES = {
    "mean": "mean",
    "deviation": "standard deviation",
    "missing": "part missing",
    "correlations": "correlations (root mean square)",
}

# Of numbers of columns that of the most conspicuous one.
MEANINGS = {
    "mean": "largest shift of a mean, in standard deviations",
    "deviation": "largest change of a standard deviation, after / before",
    "missing": "largest change of the part missing",
    "one_pair": "largest change of one correlation (Fisher's transform)",
    "all_pairs": "largest change of the correlations of a column (the same, root mean square)",
    "distance": "Frobenius distance of all correlations (the same)",
    "participation_ratio": "participation ratio, after / before",
}


def print_drift(report: DriftReport, console: Console) -> None:
    """Print the report.

    Args:
        report: What was found.
        console: Where to; names are printed as they are, without the console's own markup.
    """
    for part in _page(report):
        console.print(part, markup=False, highlight=False)


def _page(report: DriftReport) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(report.sentence(most=10), style="bold")
    yield Text(compared_in_words(report))
    for heading, names in lists(report):
        yield Padding(Text.assemble((f"{heading} ({len(names):,}): ", "bold"), _named(names)), (0, 0, 0, 2))
    if report.lost and report.new:
        yield Padding(
            Text("A column that was renamed is lost and new: give it its name back to compare it."), (0, 0, 0, 2)
        )
    if report.columns:
        yield Text("")
        yield _columns(report)
    if report.pairs:
        yield Text("")
        yield _pairs(report)
    if report.notes:
        yield Text("")
        yield from (Text(note) for note in report.notes)
    if report.statistics:
        yield Text("")
        yield _statistics(report)


def compared_in_words(report: DriftReport) -> str:
    """What was compared, and with what chance does."""
    ratio = " -> ".join(number(each) for each in report.participation_ratio)
    return (
        f"{report.rows:,} rows against {report.reference_rows:,}, {columns(report.compared)} compared; participation "
        f"ratio {ratio} without the part of sampling. Chance: {report.resamples:,} pairs of sets of blocks of about "
        f"{report.block_rows:,.0f} rows of the reference, {report.blocks:,.0f} blocks in all; alpha {report.alpha:g} "
        "for everything together."
    )


def lists(report: DriftReport) -> Iterator[tuple[str, list[str]]]:
    """Columns whose place in the table changed, by reason."""
    known = {
        "Lost": list(report.lost),
        "New": list(report.new),
        "Constant now": [_constant(report, name) for name in report.newly_constant],
        "Hardly varied, and other values now": list(report.newly_varying),
        "Missing values": [
            f"{name} ({percent(a, 1)} -> {percent(b, 1)})" for name, (a, b) in report.newly_missing.items()
        ],
        "New categories": [f"{name} ({', '.join(words[:5])})" for name, words in report.new_categories.items()],
    }
    yield from ((heading, names) for heading, names in known.items() if names)


def _constant(report: DriftReport, name: str) -> str:
    value = report.constant_values.get(name)
    return name if value is None else f"{name} (always {number(value)})"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _columns(report: DriftReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Columns responsible", title_justify="left", title_style="bold")
    for heading in ("column", "what", "before", "after", "score"):
        table.add_column(heading, justify="left" if heading in ("column", "what") else "right", overflow="fold")
    captions = []
    if any(change.what in ("mean", "deviation") for change in report.columns):
        captions.append("Single values far out are cut off before means and deviations are taken")
    for change in report.columns[:MOST_ROWS]:
        what, before, after = _before_and_after(report, change)
        table.add_row(Text(change.name), Text(what), before, after, f"{change.score:.1f}")
    if len(report.columns) > MOST_ROWS:
        captions.insert(0, f"and {len(report.columns) - MOST_ROWS:,} more rows, which --json FILE writes")
    table.caption = ". ".join(captions) or None
    table.caption_justify = "left"
    return table


def _before_and_after(report: DriftReport, change: ColumnChange) -> tuple[str, str, str]:
    """What changed, in words and numbers: of correlations the one that changed most, if it is named."""
    what = CHANGES[change.what]
    if change.what == "missing":
        return what, percent(change.before, 2), percent(change.after, 2)
    pair = next((pair for pair in report.pairs if change.name in (pair.first, pair.second)), None)
    if change.what != "correlations" or pair is None:
        return what, number(change.before), number(change.after)
    other = pair.second if change.name == pair.first else pair.first
    return f"correlation with {other}", _correlation(pair.before), _correlation(pair.after)


def _correlation(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no -0.000


def _pairs(report: DriftReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Pairs responsible (their correlation)", title_justify="left", title_style="bold")
    for heading in ("column", "with", "before", "after", "score"):
        table.add_column(heading, justify="left" if heading in ("column", "with") else "right", overflow="fold")
    for pair in report.pairs[:MOST_ROWS]:
        table.add_row(
            Text(pair.first),
            Text(pair.second),
            _correlation(pair.before),
            _correlation(pair.after),
            f"{pair.score:.1f}",
        )
    return table


def _statistics(report: DriftReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Numbers and their normal ranges: of each kind the one with the highest score",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("", "found", "normal", "score", ""):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for statistic in report.statistics:
        beyond = "beyond" if statistic.drift else ""
        of = f": {statistic.column}" if statistic.column else ""
        table.add_row(
            Text(meaning(report, statistic) + of),
            _in_its_unit(statistic, statistic.value),
            " to ".join(_in_its_unit(statistic, end) for end in statistic.normal),
            f"{statistic.score:.1f}",
            beyond,
        )
    table.caption = (
        f"Normal: all numbers together keep to these ranges in {100 * (1 - report.alpha):.4g} % of unchanged tables. "
        f"Score: how far a number is from what is expected, in standard deviations; drift above {report.limit:.1f}"
    )
    table.caption_justify = "left"
    return table


def _in_its_unit(statistic: Statistic, value: float) -> str:
    return percent(value, 2) if statistic.name == "missing" else number(value)


def meaning(report: DriftReport, statistic: Statistic) -> str:
    """What a number is."""
    if statistic.name == "overlap":
        return f"overlap of the top {report.top} directions (gap {report.gap:.2f})"
    return MEANINGS[statistic.name]
