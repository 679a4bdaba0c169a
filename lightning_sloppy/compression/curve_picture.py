"""The picture of a compression: what is lost at which size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from lightning_sloppy.reporting.canvas import COLOURS, GREY, figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(Protocol):
    """A size with what was measured at it."""

    @property
    def size(self) -> int:
        """Numbers stored."""

    @property
    def fraction(self) -> float:
        """As a fraction of the module given."""

    @property
    def variance_kept(self) -> float:
        """Mean share of the output variance kept."""

    @property
    def metric(self) -> float | None:
        """What ``evaluate`` gave."""


def draw_curve(points: Sequence[Point], chosen: int) -> Figure:
    """Draw the metric, or without one the output variance kept, against the size in per cent.

    Args:
        points: The sizes.
        chosen: The size of the compressed module, which is marked.

    Raises:
        MissingExtraError: Without matplotlib.
    """
    judged = [point for point in points if point.metric is not None]
    shown = sorted(judged or points, key=lambda point: point.size)
    with style():
        made = figure(6.5, 4.2)
        axes = made.add_axes((0.13, 0.14, 0.83, 0.76))
        sizes = [100 * point.fraction for point in shown]
        heights = [point.variance_kept if point.metric is None else point.metric for point in shown]
        axes.plot(sizes, heights, color=COLOURS[0], marker="o" if judged else None, markersize=4)
        for size, height, point in zip(sizes, heights, shown, strict=True):
            if point.size == chosen:
                axes.plot([size], [height], color=COLOURS[1], marker="D", markersize=8, linestyle="none")
                axes.annotate(
                    f"{size:.3g} % of the size",
                    (size, height),
                    textcoords="offset points",
                    xytext=(10, -14),
                    color=COLOURS[1],
                )
                break
        axes.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if sizes and 0.8 * min(sizes) <= tick <= 100]
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.minorticks_off()
        if judged:
            axes.axhline(
                max(judged, key=lambda point: point.size).metric or 0.0, color=GREY, linewidth=0.8, dashes=(4, 3)
            )
        axes.set_xlabel("size, in % of the module given (parameters and buffers)")
        axes.set_ylabel("metric of evaluate" if judged else "mean share of output variance kept")
        axes.set_title("What compression costs" if judged else "What each size keeps")
    return made
