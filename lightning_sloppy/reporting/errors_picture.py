"""The picture of the errors of validation samples: error against bin, and the columns of the worst bin."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_sloppy.metrics.error_intervals import Rate
from lightning_sloppy.metrics.error_report import BinnedErrors, ErrorReport
from lightning_sloppy.reporting.canvas import COLOURS, GREY, figure, labelled, panels, say, shortened, style, titled
from lightning_sloppy.reporting.errors_in_words import place_in_words
from lightning_sloppy.reporting.phrases import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 12.0, 4.5

TITLES = {"tail": "By share of energy in the tail", "distance": "By distance from the training inputs"}


def errors_picture(report: ErrorReport, names: Sequence[str], *, step: int) -> Figure:
    """Draw errors against bins of both measures, with 95 % intervals, and the columns responsible for the worst bin.

    The worst bin has a second, wider interval, which accounts for its choice.

    Args:
        report: The errors.
        names: Names of the columns of the inputs.
        step: Step of the measurement.

    Returns:
        A figure that pyplot does not know.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    with style():
        made = figure(WIDTH, HEIGHT)
        left, middle, right = panels(made)
        top = _highest(report)
        for axes, each in zip((left, middle), report.by, strict=True):
            _draw_bins(axes, report, each, top)
        if report.worst is not None and report.worst.columns:
            _draw_columns(right, report, names)
        elif len(report.whitened) > 1:
            _draw_whitened(right, report)
        else:
            titled(right, "Columns of the worst bin")
            say(right, "No bin has 10 samples." if report.worst is None else "No column stands out in it.")
        _write_below(left, report, step)
    return made


def _highest(report: ErrorReport) -> float:
    ends = [rate.high for each in report.by for rate in each.bins] + [report.overall.high]
    ends += [] if report.worst is None else [report.worst.rate.high]
    known = [end for end in ends if math.isfinite(end)]
    return 1.05 * max(known) if known and max(known) > 0 else 1.0


def _draw_bins(axes: Axes, report: ErrorReport, found: BinnedErrors, top: float) -> None:
    titled(axes, TITLES[found.measure])
    if not any(rate.count for rate in found.bins):
        say(axes, "All directions are needed for 95 % of the trace, so there is no tail.")
        return
    worst, bins = report.worst, len(found.bins)
    if worst is not None and worst.measure == found.measure and worst.rate.known:
        axes.plot([worst.place] * 2, [worst.rate.low, worst.rate.high], color=COLOURS[1], linewidth=6, alpha=0.3,
                  solid_capstyle="butt", label=f"interval of the worst of {worst.looked_at}")  # fmt: skip
    for place, rate in enumerate(found.bins, 1):
        if math.isfinite(rate.value):
            is_worst = worst is not None and (worst.measure, worst.place) == (found.measure, place)
            _draw_rate(axes, place, rate, COLOURS[1] if is_worst else COLOURS[0])
    if math.isfinite(report.overall.value):
        axes.axhline(report.overall.value, color=GREY, linestyle="--", linewidth=1.0, zorder=1,
                     label=f"all samples: {number(report.overall.value)}")  # fmt: skip
    ticks = [f"{place}\n{rate.count:,}" for place, rate in enumerate(found.bins, 1)]
    axes.set_xticks(range(1, bins + 1), ticks)
    axes.set(xlim=(0.5, bins + 0.5), ylim=(min(0.0, *_lows(report)), top))
    labelled(axes, "", "Error (fraction of samples)" if report.kind == "error" else "Loss")
    axes.set_xlabel("Bin, with its number of samples", labelpad=4)
    axes.xaxis.set_label_coords(0.5, -0.18)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.27), borderpad=0, borderaxespad=0)


def _lows(report: ErrorReport) -> list[float]:
    found = [rate.low for each in report.by for rate in each.bins if math.isfinite(rate.low)]
    return found or [0.0]


def _draw_rate(axes: Axes, place: int, rate: Rate, colour: str) -> None:
    """A point with its interval; hollow where it rests on fewer than 10 samples."""
    if rate.known:
        axes.plot([place] * 2, [rate.low, rate.high], color=colour, linewidth=1.5, zorder=2)
    axes.plot(place, rate.value, "o", color=colour, markersize=6, zorder=3,
              markerfacecolor="white" if rate.few else colour)  # fmt: skip


def _draw_columns(axes: Axes, report: ErrorReport, names: Sequence[str]) -> None:
    titled(axes, "Columns of the worst bin")
    worst = report.worst
    assert worst is not None
    for place, each in enumerate(worst.columns):
        axes.barh(place - 0.19, each.inside, height=0.36, color=COLOURS[1], label="worst bin" if not place else None)
        axes.barh(place + 0.19, each.outside, height=0.36, color="#999999", label="all others" if not place else None)
    axes.set_yticks(range(len(worst.columns)), [shortened(names[each.column], 16) for each in worst.columns])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(worst.columns) - 0.4, -0.6)
    labelled(axes, "Mean squared standardised value", "")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.27), borderpad=0, borderaxespad=0)


def _draw_whitened(axes: Axes, report: ErrorReport) -> None:
    titled(axes, "Along the targets' directions")
    for place, rate in enumerate(report.whitened, 1):
        if math.isfinite(rate.value):
            _draw_rate(axes, place, rate, COLOURS[2])
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1.0, label="predicting the mean")
    axes.set_ylim(bottom=0)
    labelled(axes, "Principal direction of the targets", "Whitened squared error")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.27), borderpad=0, borderaxespad=0)


def _write_below(axes: Axes, report: ErrorReport, step: int) -> None:
    said = f"Step {step:,}, {report.overall.count:,} validation samples. "
    if report.worst is not None:
        bins = len(report.of(report.worst.measure).bins)
        said += f"Worst: {place_in_words(report.worst.place, bins)} {TITLES[report.worst.measure].lower()}, "
        said += f"{report.kind} {number(report.worst.rate.value)}. "
    said += "Bin 1 is the lowest. Lines: 95 % intervals. Hollow: fewer than 10 samples."
    axes.figure.text(0.016, 0.02, textwrap.fill(said, 200), color=GREY, fontsize=8, va="bottom")
