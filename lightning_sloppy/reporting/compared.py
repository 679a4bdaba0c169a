"""The panels of a picture of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from lightning_sloppy.measures.relative_dimension import THOUSANDTH
from lightning_sloppy.reporting.canvas import (
    COLOURS,
    DASHES,
    MARKERS,
    dimension_axes,
    labelled,
    legend_below,
    say,
    spectrum_axes,
    titled,
)
from lightning_sloppy.reporting.curves import ERROR_ORDER, MATRICES, dimension_curves, error_rates, rank_curves
from lightning_sloppy.reporting.phrases import number
from lightning_sloppy.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFERRED = ("jacobian", "fisher", "gauss_newton", "input")
"""The matrix that is compared: the first one that any run has."""


def draw_compared(panels: Sequence[Axes], runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw spectra, dimensions and error rates of several runs.

    Args:
        panels: Three panels.
        runs: The records.
        names: A name for each.
    """
    _draw_spectra(panels[0], runs, names)
    _draw_dimensions(panels[1], runs, names)
    _draw_errors(panels[2], runs, names)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Names of runs: the shortest ends of their folders that differ; without folders, numbers.

    >>> from lightning_sloppy.runs.run import RunFacts
    >>> run_names([Run({}, RunFacts(folder=f"logs/wide/version_{n}")) for n in (1, 2)])
    ['version_1', 'version_2']
    """
    parts = [PurePath(run.facts.folder).parts for run in runs]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"run {place}" for place in range(1, len(runs) + 1)]


def _compared(axes: Axes, found: Sequence[Mapping[str, object]], what: str, without: str) -> str | None:
    """The matrix that is compared, named in the title of the panel; None, with a sentence there, if no run has one."""
    key = next((key for key in PREFERRED if any(key in curves for curves in found)), None)
    titled(axes, what if key is None else f"{what}: {MATRICES[key][2]}")
    if key is None:
        say(axes, without)
    return key


def _draw_spectra(axes: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    found = [rank_curves(run) for run in runs]
    key = _compared(axes, found, "Spectra", "No spectrum was measured.")
    if key is None:
        return
    drawn = 0
    for place, (name, curves) in enumerate(zip(names, found, strict=True)):
        curve = curves.get(key)
        if curve is not None:
            drawn += 1
            colour = _colour(place)
            label = f"{name}: {curve.shown or f'{curve.above:,.0f} above the line'}"
            axes.plot(curve.ranks, curve.fractions, color=colour, linestyle=_dashes(place), label=label, zorder=3)
            if 0 < curve.above < curve.ranks[-1]:
                axes.plot(curve.above, THOUSANDTH, MARKERS[place], color=colour, markersize=4.5, zorder=4)
    spectrum_axes(axes, min(curves[key].fractions[-1] for curves in found if key in curves))
    legend_below(axes, first=drawn)


def _draw_dimensions(axes: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    found = [dimension_curves(run) for run in runs]
    key = _compared(axes, found, "Effective dimension", "No effective dimension was measured.")
    if key is None:
        return
    drawn = []
    for place, (name, curves) in enumerate(zip(names, found, strict=True)):
        curve = curves.get(key)
        if curve is not None:
            drawn.append(curve)
            axes.plot(
                curve.steps, curve.values, color=_colour(place), linestyle=_dashes(place), marker=MARKERS[place],
                markersize=3, label=f"{name}: {number(curve.values[-1], digits=3)}", zorder=3,
            )  # fmt: skip
            if any(curve.errors):
                axes.fill_between(
                    curve.steps, *curve.band(), color=_colour(place), alpha=0.35, linewidth=0, zorder=2
                )  # fmt: skip
    last = max(curve.steps[-1] for curve in drawn)
    dimension_axes(axes, last, [each for curve in drawn for each in curve.values])
    legend_below(axes, first=len(drawn))


def _draw_errors(axes: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    titled(axes, "Error and guarantee")
    found = [{rate.key: rate for rate in error_rates(run)} for run in runs]
    titles = {rate.key: rate.title for key in ERROR_ORDER for rates in found if (rate := rates.get(key)) is not None}
    if not titles:
        say(axes, "No error rate was logged, and no bound was computed.")
        return
    rows = {key: row for row, key in enumerate(titles)}
    for row in rows.values():
        axes.axhline(row, color="#DDDDDD", linewidth=0.8, zorder=1)
    for place, (name, rates) in enumerate(zip(names, found, strict=True)):
        # Runs lie side by side within a row: equal values do not hide one another.
        shift = 0.5 * ((place + 0.5) / len(names) - 0.5)
        values = [(rates[key].value, row + shift) for key, row in rows.items() if key in rates]
        if values:
            axes.plot(
                *zip(*values, strict=True), MARKERS[place], color=_colour(place), markersize=6, label=name, zorder=3
            )  # fmt: skip
    axes.set_yticks(list(rows.values()), list(titles.values()))
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6))
    labelled(axes, "Error rate (fraction of samples)", "")
    legend_below(axes, first=len(axes.get_legend_handles_labels()[0]))


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _dashes(place: int) -> object:
    return DASHES[place % len(DASHES)]
