"""What all pictures share: matplotlib if it is there, one style, colours that colour-blind people tell apart, PNG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import MissingExtraError
from lightning_sloppy.measures.relative_dimension import THOUSANDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

Image: TypeAlias = "npt.NDArray[np.uint8]"
"""Pixels, shape (height, width, 3)."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito. In print without colour, curves differ in their dashes, too."""

DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (1, 1.2)))

GREY = "#555555"

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

LOWEST = 1e-12
"""Smallest eigenvalue / trace that is drawn."""

WIDE = 8.0
"""Factor between the largest and the smallest dimension from which their axis is logarithmic."""

LEGEND_ROW = 0.19
"""Inches of one row of a legend."""

_USUAL_HEIGHT, _ROOM_BELOW, _ROOM_ABOVE = 4.5, 1.49, 0.36
_COLUMNS = ((0.058, 0.265), (0.385, 0.265), (0.77, 0.215))

DPI = 100
"""Pixels per inch: 12 inches are the 1,200 pixels for which the text is sized."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": "black",
    "figure.facecolor": "white",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": "black",
    "text.usetex": False,
    "hatch.linewidth": 0.6,
}


def require_matplotlib() -> None:
    """Check that matplotlib can be imported.

    Raises:
        MissingExtraError: If it cannot.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Pictures need matplotlib, which is not installed; run pip install 'lightning-sloppy[plot]'."
        ) from error


@contextmanager
def style() -> Iterator[None]:
    """The style of all pictures, whatever the user has set; theirs is as before afterwards.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that pyplot does not know. Call it within :func:`style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(made)
    setattr(made, "_repr_png_", partial(png, made))  # noqa: B010  # notebooks show it, also without pyplot
    return made


def panels(drawn: Figure) -> tuple[Axes, Axes, Axes]:
    """Three panels from left to right, with room for legends below them.

    Args:
        drawn: The figure.
    """
    height = float(drawn.get_figheight())
    low, high = _ROOM_BELOW, _ROOM_ABOVE
    if height > _USUAL_HEIGHT:  # all of the additional height is for the legends
        low += height - _USUAL_HEIGHT
    left, middle, right = (
        drawn.add_axes((start, low / height, width, 1 - (low + high) / height)) for start, width in _COLUMNS
    )
    return left, middle, right


def pixels(drawn: Figure, *, dpi: int = DPI) -> Image:
    """A figure as an image.

    Args:
        drawn: The figure.
        dpi: Pixels per inch.
    """
    canvas: Any = drawn.canvas
    usual = drawn.dpi
    with style():
        drawn.set_dpi(dpi)
        try:
            canvas.draw()
            return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]
        finally:
            drawn.set_dpi(usual)


def encoded(image: Image) -> bytes:
    """An image as a PNG file, without metadata: the same image always gives the same bytes."""
    from PIL.Image import fromarray

    buffer = io.BytesIO()
    fromarray(np.ascontiguousarray(image)).save(buffer, format="png")
    return buffer.getvalue()


def png(drawn: Figure, *, dpi: int = DPI) -> bytes:
    """A figure as a PNG file.

    Args:
        drawn: The figure.
        dpi: Pixels per inch.
    """
    return encoded(pixels(drawn, dpi=dpi))


def say(axes: Axes, words: str) -> None:
    """Write into an empty panel why it is empty.

    Args:
        axes: The panel, whose ticks disappear.
        words: The reason.
    """
    import textwrap

    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    wrapped = textwrap.fill(words, max(20, int(11 * _inches(axes)[0])))
    axes.text(0.5, 0.5, wrapped, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _inches(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel."""
    return axes.bbox.width / DPI, axes.bbox.height / DPI


def titled(axes: Axes, title: str) -> None:
    """Give a panel its title; at a fixed height, because looking for a free one takes time."""
    axes.set_title(title, y=1.02)


def labelled(axes: Axes, horizontal: str, vertical: str) -> None:
    """Name the axes, with units; at fixed places, as for :func:`titled`."""
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    width, height = _inches(axes)
    axes.xaxis.set_label_coords(0.5, -0.31 / height)
    axes.yaxis.set_label_coords(-0.42 / width, 0.5)


def plain_numbers(axis: XAxis | YAxis, digits: tuple[float, ...] = (1.0,)) -> None:
    """Label a logarithmic axis by numbers such as 20, 50, 100, without the small ticks between them.

    Args:
        axis: The axis.
        digits: Leading digits that get a label.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10.0, subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def power_axis(axis: XAxis | YAxis, span: float) -> None:
    """Label a logarithmic axis by what fits: 1, 2, 5, 10 over few decades, 1, 10, 100 over more, then powers of ten.

    Args:
        axis: The axis.
        span: Largest divided by smallest value.
    """
    from matplotlib.ticker import NullLocator

    if span <= 1e4:
        plain_numbers(axis, (1.0, 2.0, 5.0) if span <= 300 else (1.0,))
    axis.set_minor_locator(NullLocator())


def legend_below(axes: Axes, *, first: int, columns: int = 2) -> None:
    """A legend below a panel, where it covers nothing.

    Args:
        axes: The panel.
        first: How many entries belong into the first column; the others go into the second.
        columns: 1: all entries below one another.
    """
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    entries = list(zip(handles, labels, strict=True))
    if columns == 2:
        sides = entries[:first], entries[first:]
        rows, blank = max(map(len, sides)), (Line2D([], [], linestyle="none"), "")
        entries = [entry for side in sides for entry in side + [blank] * (rows - len(side))]
    if not entries:
        return
    width, height = _inches(axes)
    axes.legend(
        *zip(*entries, strict=True), loc="upper left", bbox_to_anchor=(-0.4 / width, -0.56 / height), ncols=columns,
        columnspacing=0.7, handlelength=2.1, handletextpad=0.5, borderpad=0, borderaxespad=0,
    )  # fmt: skip


def spectrum_axes(axes: Axes, lowest: float) -> None:
    """Scales, names and limits of a panel of eigenvalues against rank, with a line at a thousandth of the trace.

    Args:
        axes: The panel.
        lowest: Smallest value in it.
    """
    from matplotlib.ticker import NullLocator

    axes.set(xscale="log", yscale="log")
    labelled(axes, "Rank of the eigenvalue", "Eigenvalue / trace")
    axes.set_ylim(bottom=max(min(lowest, THOUSANDTH) / 4, LOWEST))
    power_axis(axes.xaxis, float(axes.dataLim.x1))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(THOUSANDTH, color=GREY, linestyle="--", linewidth=1.0, zorder=1)
    axes.text(
        0.02, THOUSANDTH / 1.3, "a thousandth of the trace", transform=axes.get_yaxis_transform(), va="top", color=GREY,
        fontsize=8,
    )  # fmt: skip


def dimension_axes(axes: Axes, last: int, shown: Sequence[float]) -> None:
    """Scales, names and limits of a panel of dimensions over steps.

    Args:
        axes: The panel.
        last: Last step.
        shown: All values in it; if they differ by much, their axis is logarithmic.
    """
    axes.set_xlim(-0.02 * max(last, 1), 1.03 * max(last, 1))
    labelled(axes, "Step", "Effective dimension (directions)")
    positive = [each for each in shown if each > 0]
    if positive and max(positive) > WIDE * min(positive):
        axes.set_yscale("log")
        plain_numbers(axes.yaxis, (1.0, 2.0, 5.0))
    else:
        axes.set_ylim(bottom=0)


def shortened(name: str, most: int = 26) -> str:
    """A name that fits into a legend: its end, which differs most between runs.

    >>> shortened("experiments/2026/digits/version_12")
    '…nts/2026/digits/version_12'
    """
    return name if len(name) <= most else f"…{name[-most:]}"
