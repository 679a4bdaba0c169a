"""The picture of a run: spectra against rank, effective dimensions over the steps, error rates and bounds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.relative_dimension import THOUSANDTH
from lightning_sloppy.reporting.canvas import (
    COLOURS,
    DASHES,
    GREY,
    LEGEND_ROW,
    LOWEST,
    dimension_axes,
    figure,
    labelled,
    legend_below,
    panels,
    say,
    shortened,
    spectrum_axes,
    style,
    titled,
)
from lightning_sloppy.reporting.card import settled
from lightning_sloppy.reporting.compared import draw_compared, run_names
from lightning_sloppy.reporting.curves import (
    MATRICES,
    DimensionCurve,
    RankCurve,
    dimension_curves,
    error_rates,
    rank_curves,
    shown,
    why_no_guarantee,
)
from lightning_sloppy.reporting.phrases import number
from lightning_sloppy.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 12.0, 4.5
"""Inches."""

MOST_RUNS = 8
"""Runs in one picture. More curves cannot be told apart."""

MOST_MARKERS = 40

_LOOKS = dict(zip(MATRICES, zip(("#CC79A7", *COLOURS[:3]), (DASHES[3], *DASHES[:3]), strict=True), strict=True))

_BARS = {
    "train": ("#999999", ""),
    "validation": ("#56B4E9", ""),
    "test": ("#0072B2", ""),
    "hold_out": ("#009E73", ""),
    "pac_bayes": ("#D55E00", ""),
    "guessing": ("#777777", ""),
}


def picture(run: Run) -> Figure:
    """Draw the picture of a run.

    From left to right:

    1. Eigenvalues divided by the trace against rank, of inputs, Jacobian, Fisher matrix and Gauss-Newton part at the
       latest measurement, with the line fitted after the knee (if R^2 is at least 0.9), the rounding floor, the null if
       there is one, and a dashed line at a thousandth: an eigenvalue there counts 1/2 in the effective dimension.
    2. Their effective dimensions over the steps, with errors, for the Jacobian also the range from a hundredth to a
       ten-thousandth of the trace, and the step from which on the dimension has settled.
    3. Error rates of training, validation and test, the hold-out bound, the PAC-Bayes bound, and the error of guessing.

    What was not measured is not drawn; an empty panel says why.

    Args:
        run: The record of the run.

    Returns:
        A figure that pyplot does not know: show it, or save it with ``figure.savefig(file)``.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    with style():
        made = figure(WIDTH, HEIGHT)
        left, middle, right = panels(made)
        _draw_spectra(left, rank_curves(run))
        _draw_dimensions(middle, run)
        _draw_errors(right, run)
    return made


def pictures(runs: Sequence[Run], names: Sequence[str] | None = None) -> Figure:
    """Draw several runs in one picture, each with its own colour, dashes and marker.

    The first two panels show one matrix of all runs: the Jacobian where any run has it, else the Fisher matrix, the
    Gauss-Newton part or the inputs. The third one shows error rates and bounds of each run as markers.

    Args:
        runs: The records of the runs, at most 8.
        names: A name for each. None: the last parts of their folders, as far as these differ.

    Raises:
        ConfigurationError: For no run or more than 8, and for another number of names.
        MissingExtraError: Without matplotlib.
    """
    names = run_names(runs) if names is None else names
    if not 0 < len(runs) <= MOST_RUNS or len(names) != len(runs):
        raise ConfigurationError(
            f"A picture of several runs takes 1 to {MOST_RUNS} runs and as many names, but got {len(runs)} runs and "
            f"{len(names)} names; leave some out."
        )
    with style():
        made = figure(WIDTH, HEIGHT + LEGEND_ROW * max(0, len(runs) - len(MATRICES)))
        draw_compared(panels(made), runs, [shortened(name) for name in names])
    return made


def _draw_spectra(axes: Axes, curves: Mapping[str, RankCurve]) -> None:
    titled(axes, "Spectra")
    if not curves:
        say(axes, "No spectrum was measured.")
        return
    steps = {curve.step for key, curve in curves.items() if key != "input"}
    if len(steps) == 1:
        titled(axes, f"Spectra at step {steps.pop():,}")
    for key, curve in curves.items():
        colour, dashes = _LOOKS[key]
        label = f"{curve.title}: {curve.shown or f'{curve.above:,.0f} above the line'}"
        axes.plot(curve.ranks, curve.fractions, color=colour, linestyle=dashes, label=label, zorder=3)
        if 0 < curve.above < curve.ranks[-1]:
            axes.plot(curve.above, THOUSANDTH, "o", color=colour, markersize=4.5, zorder=4)
        if curve.null_ranks:
            axes.plot(curve.null_ranks, curve.null_fractions, color=colour, linewidth=0.8, zorder=2)
        if curve.fit_ranks:
            axes.plot(curve.fit_ranks, curve.fit_fractions, color="black", linewidth=0.8, zorder=3.5)
    lowest = min(min(curve.fractions + curve.null_fractions) for curve in curves.values())
    spectrum_axes(axes, lowest)
    if any(curve.fit_ranks for curve in curves.values()):
        axes.plot([], [], color="black", linewidth=0.8, label="fit after the knee")
    if any(curve.null_ranks for curve in curves.values()):
        axes.plot([], [], color=GREY, linewidth=0.8, label="null")
    _draw_floors(axes, curves)
    legend_below(axes, first=len(curves))


def _draw_floors(axes: Axes, curves: Mapping[str, RankCurve]) -> None:
    """A short dotted line below the end of each curve that reaches the floor, up to a factor of a thousand."""
    label: str | None = "rounding floor"
    for key, curve in curves.items():
        if max(curve.floor, LOWEST) * 1000 > curve.fractions[-1]:
            ends = (curve.ranks[-1] / 1.8, curve.ranks[-1] * 1.8)
            axes.plot(ends, (curve.floor,) * 2, color=_LOOKS[key][0], linestyle=":", linewidth=1.2, zorder=2)
            if label:
                axes.plot([], [], color=GREY, linestyle=":", linewidth=1.2, label=label)
            label = None


def _draw_dimensions(axes: Axes, run: Run) -> None:
    titled(axes, "Effective dimensions")
    curves = dimension_curves(run)
    if not curves:
        say(axes, "No effective dimension was measured.")
        return
    for key, curve in curves.items():
        colour, dashes = _LOOKS[key]
        if key == "input":  # the inputs do not change
            axes.axhline(curve.values[-1], color=colour, linestyle=dashes, label=_labelled(curve))
            continue
        marker = "o" if len(curve.steps) <= MOST_MARKERS else None
        axes.plot(
            curve.steps, curve.values, color=colour, linestyle=dashes, marker=marker, markersize=3,
            label=_labelled(curve), zorder=3,
        )  # fmt: skip
        if any(curve.errors):
            axes.fill_between(curve.steps, *curve.band(), color=colour, alpha=0.35, linewidth=0, zorder=2)
    main = curves.get("jacobian")
    if main is not None and all(map(math.isfinite, main.low + main.high)):
        axes.fill_between(
            main.steps, main.low, main.high, color=_LOOKS["jacobian"][0], alpha=0.12, linewidth=0, zorder=1,
            label="Jacobian, 1/100 to 1/10,000",
        )  # fmt: skip
    last = max(max(curve.steps) for curve in curves.values())
    dimension_axes(axes, last, [each for curve in curves.values() for each in curve.values + curve.low + curve.high])
    _draw_settling(axes, run)
    legend_below(axes, first=len(curves))


def _labelled(curve: DimensionCurve) -> str:
    error = f" ± {number(curve.errors[-1], digits=2)}" if curve.errors[-1] else ""
    return f"{curve.title}: {number(curve.values[-1], digits=3)}{error}"


def _draw_settling(axes: Axes, run: Run) -> None:
    found = settled(run)
    if found is None:
        return
    state, instrument = found
    title = MATRICES["gauss_newton" if instrument.kind == "hessian" else instrument.kind][2]
    if state.condition is not None:
        axes.plot([], [], linestyle="none", label=f"{title} has not settled")
        return
    steps = run.facts.epoch_steps or (instrument.measurements[-1].step + 1) / (instrument.measurements[-1].epoch + 1)
    step = max(0.0, state.since * steps - 1)
    axes.axvline(step, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1,
                 label=f"{title} settled: epoch {number(state.since)}")  # fmt: skip


def _draw_errors(axes: Axes, run: Run) -> None:
    titled(axes, "Error and guarantee")
    rates, missing = error_rates(run), why_no_guarantee(run)
    if not rates:
        say(axes, f"No error rate was logged. {missing}")
        return
    for place, rate in enumerate(rates):
        colour, hatch = _BARS[rate.key]
        axes.barh(place, rate.value, height=0.62, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        words = shown(rate) + (" (no guarantee)" if rate.vacuous else "")
        inside = rate.value > 0.75
        axes.text(
            rate.value + (-0.015 if inside else 0.015), place, words, va="center", ha="right" if inside else "left",
            color="white" if inside else "black", fontsize=8.5, fontweight="bold" if inside else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(rates)), [rate.title for rate in rates])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(len(rates) - 0.4, -0.6))
    labelled(axes, "Error rate (fraction of samples)", "")
    if missing:
        axes.text(
            0, -0.24, textwrap.fill(missing, 58), transform=axes.transAxes, va="top", color=GREY, fontsize=8
        )  # fmt: skip
