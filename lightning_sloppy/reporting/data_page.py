"""The page that ``lightning-sloppy inspect`` prints: numbers, names, and answers in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_sloppy.inspection.answers import columns, interval, number
from lightning_sloppy.inspection.data_report import DataReport, SpectrumReport

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MOST_NAMES = 200
"""Names printed of one list; the JSON holds all."""

MOST_GROUPS = 20

PATIENCE_SECONDS = 2.0
"""Work that takes less shows no bar."""


def print_page(report: DataReport, console: Console) -> None:
    """Print the report.

    Args:
        report: What was found.
        console: Where to; names are printed as they are, without the console's own markup.
    """
    for part in _page(report):
        console.print(part, markup=False, highlight=False)


@contextmanager
def shown_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal for what takes longer than two seconds; gone at the end.

    Args:
        console: Of the error stream, so that the page can be redirected.
    """
    import time

    from rich.progress import BarColumn, Progress, TextColumn

    begun = time.monotonic()
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), console=console,
                   transient=True)  # fmt: skip
    task = bar.add_task("", count="")
    running = False

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal running
        if not running and console.is_terminal and time.monotonic() - begun > PATIENCE_SECONDS:
            bar.start()
            running = True
        count = f"{done:,} of {total:,}" if total else f"{done:,}" if done else ""
        bar.update(task, description=stage, total=total or None, completed=done, count=count)

    try:
        yield tell
    finally:
        if running:
            bar.stop()


def _page(report: DataReport) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(report.origin, style="bold")
    yield Text(_size(report))
    yield Text("")
    yield _numbers(report)
    if report.groups:
        yield Text("")
        yield _groups(report)
    notes = [*_columns(report)]
    if notes:
        yield Text("")
        yield Text("Columns to know of", style="bold")
        for heading, text in notes:
            yield Padding(Text.assemble((f"{heading}: ", "bold"), text), (0, 0, 0, 2))
    yield Text("")
    yield Text("Answers", style="bold")
    for answer in report.answers:
        yield Text("")
        yield Text(answer.question, style="bold")
        yield Padding(Text(answer.answer), (0, 0, 0, 2))
        yield Padding(Text(f"Evidence: {answer.evidence}", style="dim"), (0, 0, 0, 2))


def _size(report: DataReport) -> str:
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
    parts.append("no cells missing" if seen.method == "none" else f"{seen.rate:.2%} of their cells missing ({method})")
    order = (
        f"lag-1 autocorrelation {report.autocorrelation:.2f} (median), so {report.effective_rows:,.0f} effective rows"
    )
    return "; ".join(parts) + f"; {order}."


def _numbers(report: DataReport) -> RenderableType:
    from rich.table import Table

    both = bool(report.drop)
    table = Table(title="Spectrum of the correlation matrix", title_justify="left", title_style="bold")
    table.add_column("")
    shown: list[SpectrumReport] = [report.spectrum]
    table.add_column(f"all {columns(report.spectrum.columns)}", justify="right")
    if both:
        shown.append(report.deduplicated)
        table.add_column(f"{columns(report.deduplicated.columns)}, repeats dropped", justify="right")

    def row(name: str, of: Callable[[SpectrumReport], str]) -> None:
        table.add_row(name, *map(of, shown))

    row("participation ratio", lambda s: interval(s.participation_ratio))
    row("entropy rank", lambda s: interval(s.entropy_rank))
    row(
        f"ridge degrees of freedom at {report.spectrum.ridge_strength:g}",
        lambda s: interval(s.ridge_degrees_of_freedom),
    )
    row("eigenvalues above the noise edge", _above)
    row("  the noise edge", lambda s: number(s.noise_edge))
    row("largest eigenvalue", lambda s: _eigenvalue(s, 0))
    row("decades (spread)", lambda s: interval(s.decades))
    row("slope in decades per index (spread)", lambda s: interval(s.slope))
    row("knee after (spread)", lambda s: interval(s.knee))
    if report.shrunk is not None:
        ratio, amount = report.shrunk
        said = f"participation ratio shrunk by {number(amount)}"
        table.add_row(said, number(ratio), *[""] * both)
    row("condition index", lambda s: "infinite" if math.isinf(s.condition_index) else number(s.condition_index))
    said = (
        f"Brackets: 95 % intervals of the population, from halves of the {report.resampled}"
        if report.spectrum.participation_ratio.low is not None
        else report.resampled.capitalize()
    )
    table.caption = (
        f"{said}. Participation ratio of ranks {number(report.ranks)}, of values cut off at 5 deviations "
        + (
            f"{number(report.clipped)}"
            + ("" if report.sampled_rows == report.rows else f", in {report.sampled_rows:,} rows")
        )
    )
    table.caption_justify = "left"
    return table


def _above(found: SpectrumReport) -> str:
    ends = found.above_noise_edge_interval
    return f"{found.above_noise_edge}" + ("" if ends is None else f" [{ends[0]}, {ends[1]}]")


def _eigenvalue(found: SpectrumReport, index: int) -> str:
    value = number(found.eigenvalues[index])
    if not found.intervals:
        return value
    low, high = found.intervals[index]
    return f"{value} [{number(low)}, {number(high)}]"


def _groups(report: DataReport) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    title = (
        f"{len(report.groups):,} group{'s' if len(report.groups) > 1 else ''} of columns that carry the same "
        f"information (|r| > {report.threshold:g})"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("stays", "repeats it", "lowest |r|"):
        table.add_column(heading, justify="right" if heading.startswith("lowest") else "left", overflow="fold")
    for group in report.groups[:MOST_GROUPS]:
        dropped = {name for name, _, _ in group.drop}
        others = [name if name in dropped else f"{name} (stays)" for name in group.names[1:]]
        table.add_row(Text(group.representative), Text(", ".join(others)), f"{group.lowest:.3f}")
    if len(report.groups) > MOST_GROUPS:
        rest = report.groups[MOST_GROUPS:]
        table.add_row(
            Text("..."), Text(f"and {len(rest):,} more groups, of {columns(sum(len(g.names) for g in rest))}"), ""
        )
    return table


def _columns(report: DataReport) -> Iterator[tuple[str, str]]:
    if report.constant:
        yield f"Constant ({len(report.constant):,})", _names(report.constant)
    if report.nearly_constant:
        yield f"Nearly constant ({len(report.nearly_constant):,})", _parts(report.nearly_constant)
    if report.late:
        some = [f"{name} (row {row:,})" for name, row in report.late.items()]
        yield f"Constant at first, varying from a later row on ({len(report.late):,})", _names(some)
    if report.mostly_missing:
        yield f"Mostly missing ({len(report.mostly_missing):,})", _parts(report.mostly_missing)
    if report.duplicates:
        yield (
            f"Exact copies ({len(report.duplicates):,})",
            _names([" = ".join(names) for names in report.duplicates], "; "),
        )
    if report.dependencies.found:
        equations = [found.in_words for found in report.dependencies.found]
        yield f"Exact combinations ({len(equations):,})", _names(equations, "; ")
    if report.encoded:
        yield (
            f"Text as columns of 0 and 1 ({len(report.encoded):,})",
            _names([f"{name} as {', '.join(new)}" for name, new in report.encoded.items()], "; "),
        )
    if report.set_aside:
        yield (
            f"Set aside ({len(report.set_aside):,})",
            _names([f"{name} ({reason})" for name, reason in report.set_aside.items()], "; "),
        )


def _names(names: Sequence[str], between: str = ", ") -> str:
    more = len(names) - MOST_NAMES
    return between.join(names[:MOST_NAMES]) + (f"{between}and {more:,} more" if more > 0 else "")


def _parts(parts: Mapping[str, float]) -> str:
    return _names([f"{name} ({part:.1%})" for name, part in parts.items()])
