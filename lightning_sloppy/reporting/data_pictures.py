"""Pictures of a table: its spectrum, how much variance directions hold, correlations in groups, missing values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inspection.data_report import DataReport, SpectrumReport
from lightning_sloppy.reporting.canvas import (
    COLOURS,
    DASHES,
    GREY,
    figure,
    labelled,
    legend_below,
    power_axis,
    style,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.0, 4.8
"""Inches of each picture: two stand side by side on a page of 1,200 pixels."""

MOST_NAMES = 40
"""Columns whose names fit beside a matrix."""

MOST_OUTLINED = 20

FRACTIONS = (0.9, 0.95, 0.99)
"""Parts of the variance for which the number of directions is given."""


@dataclass(frozen=True)
class DataPicture:
    """One picture of a table.

    Attributes:
        figure: The figure.
        description: What it shows, for readers who do not see it.
        caption: How to read it.
    """

    figure: Figure
    description: str
    caption: str


def data_pictures(report: DataReport) -> list[DataPicture]:
    """Every picture for which the table has data; that of missing values only if some are missing.

    Args:
        report: What :func:`~lightning_sloppy.inspect` found.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    if not report.names:
        return []
    drawn = [spectrum_picture(report), variance_picture(report)]
    if len(report.names) > 1:
        drawn.append(correlation_picture(report))
    if report.missing.rate > 0:
        drawn.append(missing_picture(report))
    return drawn


def spectrum_picture(report: DataReport) -> DataPicture:
    """Eigenvalues of the correlation matrix against rank, with intervals, noise edge, floor and knee."""
    found = report.spectrum
    values = np.asarray([value for value in found.eigenvalues if value > max(found.floor, 0.0)])
    ranks = np.arange(1, len(values) + 1)
    with style():
        made, axes = _panel()
        titled(axes, "Spectrum of the correlation matrix")
        axes.plot(ranks, values, color=COLOURS[0], marker="o" if len(values) <= 60 else None, markersize=3,
                  label=f"{len(values):,} eigenvalues above the floor", zorder=3)  # fmt: skip
        if found.intervals and len(values):
            low, high = np.asarray(found.intervals[: len(values)], dtype=float).T
            tiny = values[-1] / 10  # a logarithm has no zero
            axes.fill_between(ranks, np.maximum(low, tiny), np.maximum(high, tiny), color=COLOURS[0], alpha=0.25,
                              linewidth=0, label="95 % intervals", zorder=2)  # fmt: skip
        axes.axhline(found.noise_edge, color=COLOURS[1], linestyle="--", linewidth=1.2,
                     label=f"noise edge: {found.above_noise_edge:,} above", zorder=1)  # fmt: skip
        knee = found.knee.value
        if math.isfinite(knee) and 0 < knee < len(values):
            axes.axvline(knee + 0.5, color=GREY, linestyle=DASHES[2], linewidth=1.2, zorder=1,
                         label=f"knee: after {knee:,.0f}")  # fmt: skip
        axes.set(xscale="log", yscale="log")
        labelled(axes, "Rank of the eigenvalue", "Eigenvalue (mean 1)")
        if len(values):
            axes.set_ylim(values[-1] / 2, max(values[0], found.noise_edge) * 2)
            power_axis(axes.yaxis, values[0] / values[-1])
        power_axis(axes.xaxis, len(values))
        legend_below(axes, first=2)
    return DataPicture(
        made,
        f"Eigenvalues of the correlation matrix of {found.columns:,} columns against their rank.",
        "Columns that are independent of one another would give no eigenvalue above the noise edge. A steep first drop "
        "up to the knee and an even spread behind it is what a sloppy spectrum looks like.",
    )


def variance_picture(report: DataReport) -> DataPicture:
    """How many directions hold how much of the variance of the standardised columns."""
    with style():
        made, axes = _panel()
        titled(axes, "Variance held by the leading directions")
        _draw_variance(axes, report.spectrum, COLOURS[0], DASHES[0], "all columns")
        fewer = report.deduplicated.columns < report.spectrum.columns
        if fewer:
            _draw_variance(axes, report.deduplicated, COLOURS[1], DASHES[1], "without repeated columns")
        for fraction in FRACTIONS:
            axes.axhline(100 * fraction, color=GREY, linewidth=0.7, linestyle=":", zorder=1)
        axes.set_ylim(0, 101)
        axes.set_xlim(0, report.spectrum.columns * 1.02)
        labelled(axes, "Number of directions", "Variance (%)")
        legend_below(axes, first=2, columns=1)
    counts = ", ".join(f"{_holding(report.spectrum, f):,} hold {100 * f:g} %" for f in FRACTIONS)
    return DataPicture(
        made,
        "Percentage of the variance against the number of leading directions.",
        f"Of {report.spectrum.columns:,} directions {counts} of the variance of the standardised columns.",
    )


def correlation_picture(report: DataReport) -> DataPicture:
    """The correlation matrix with its columns in the order of a tree, so that groups lie side by side."""
    place = {name: index for index, name in enumerate(report.names)}
    order = [place[name] for name in report.order] if report.order else list(range(len(report.names)))
    with style():
        made, axes = _matrix_panel()
        titled(axes, "Correlations, columns ordered by group")
        shown = axes.imshow(report.correlation[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1)
        outlined = _outline_groups(axes, report, [report.names[index] for index in order])
        _name_columns(axes, [report.names[index] for index in order], both=True)
        _colour_bar(made, shown, "Correlation")
    groups = f" Squares: {outlined:,} groups linked above |r| = {report.threshold:g}." if outlined else ""
    return DataPicture(
        made,
        f"Correlation matrix of {len(order):,} columns in the order of a hierarchical tree.",
        f"Red: both rise together. Blue: one rises while the other falls.{groups}",
    )


def missing_picture(report: DataReport) -> DataPicture:
    """Which part of each column is missing in each part of the rows, in their order."""
    rates = missing_rates(report)
    place = {name: index for index, name in enumerate(report.names)}
    order = [place[name] for name in report.order] if report.order else list(range(len(report.names)))
    rows = np.cumsum([0, *(part.rows for part in report.parts)])
    with style():
        made, axes = _matrix_panel()
        titled(axes, f"Missing values: {100 * report.missing.rate:.3g} % of all cells")
        shown = axes.imshow(100 * rates[:, order], cmap="Greys", vmin=0, vmax=100, aspect="auto",
                            extent=(-0.5, len(order) - 0.5, float(rows[-1]), 0.0), interpolation="nearest")  # fmt: skip
        _name_columns(axes, [report.names[index] for index in order], both=False)
        axes.set_ylabel("Row")
        _colour_bar(made, shown, "Missing (%)")
    worst = int(np.argmax(rates.mean(0)))
    return DataPicture(
        made,
        f"Percentage of missing values of {len(order):,} columns in {len(report.parts):,} parts of the rows.",
        "Columns that are missing in the same rows come from one source. A horizontal edge is a time at which the "
        f"recording changed. Most is missing in {report.names[worst]}.",
    )


def missing_rates(report: DataReport) -> Floats:
    """Part of missing cells, shape (parts of the rows, columns)."""
    d = len(report.names)
    return np.stack(
        [
            np.zeros(d) if part.count is None else 1.0 - part.count.diagonal() / max(part.rows, 1)
            for part in report.parts
        ]
    )


def _draw_variance(axes: Axes, found: SpectrumReport, colour: str, dashes: Any, name: str) -> None:
    values = np.asarray(found.eigenvalues)
    total = values.sum()
    if not total > 0:
        return
    held = np.concatenate([[0.0], 100 * values.cumsum() / total])
    counts = ", ".join(f"{_holding(found, f):,} for {100 * f:g} %" for f in FRACTIONS)
    axes.plot(np.arange(len(held)), held, color=colour, linestyle=dashes, label=f"{name}: {counts}", zorder=3)
    axes.plot([_holding(found, f) for f in FRACTIONS], [held[_holding(found, f)] for f in FRACTIONS], "o", color=colour,
              markersize=4, zorder=4)  # fmt: skip


def _holding(found: SpectrumReport, fraction: float) -> int:
    """Smallest number of eigenvalues that hold a fraction of their sum."""
    held = np.cumsum(found.eigenvalues)
    return min(int(np.searchsorted(held, fraction * held[-1] * (1 - 1e-12))) + 1, len(held))


def _panel() -> tuple[Figure, Axes]:
    made = figure(WIDTH, HEIGHT)
    return made, made.add_axes((0.115, 0.275, 0.865, 0.645))


def _matrix_panel() -> tuple[Figure, Axes]:
    made = figure(WIDTH, HEIGHT)
    return made, made.add_axes((0.17, 0.24, 0.65, 0.68))


def _name_columns(axes: Axes, names: list[str], *, both: bool) -> None:
    if len(names) > MOST_NAMES:
        axes.set_xlabel(f"{len(names):,} columns")
        axes.set_xticks([])
        if both:
            axes.set_yticks([])
        return
    short = [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
    size = min(8.0, 190.0 / len(names))
    axes.set_xticks(range(len(names)), short, rotation=90, fontsize=size)
    if both:
        axes.set_yticks(range(len(names)), short, fontsize=size)


def _outline_groups(axes: Axes, report: DataReport, ordered: list[str]) -> int:
    """A square around each group whose columns lie side by side; returns how many."""
    from matplotlib.patches import Rectangle

    place, drawn = {name: index for index, name in enumerate(ordered)}, 0
    for group in report.groups[:MOST_OUTLINED]:
        inside = sorted(place[name] for name in group.names if name in place)
        if inside and inside[-1] - inside[0] + 1 == len(inside):
            corner = (inside[0] - 0.5, inside[0] - 0.5)
            axes.add_patch(Rectangle(corner, len(inside), len(inside), fill=False, edgecolor="black", linewidth=1.0))
            drawn += 1
    return drawn


def _colour_bar(made: Figure, shown: Any, name: str) -> None:
    bar = made.colorbar(shown, cax=made.add_axes((0.85, 0.24, 0.03, 0.68)))
    bar.set_label(name)
