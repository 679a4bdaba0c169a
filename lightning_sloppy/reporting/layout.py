"""The custom-scalars layout: curves that belong together on one chart of TensorBoard's Custom Scalars page.

It follows from the declarations. A multiline entry is a regular expression that TensorBoard applies with ``re.match``,
so each ends with ``$``. A margin chart names three exact tags: value, lower, upper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.quantities import RESERVED, SUFFIXES, Declaration, Quantity
from lightning_sloppy.reporting.tags import OVERHEAD, cost_quantities, tag
from lightning_sloppy.reporting.writers import attempt, no_prefix

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Layout = dict[str, dict[str, list[Any]]]

# The tag under which the page looks for a layout, as bytes because it is searched for in the event file itself.
_LAYOUT_KEY = b"custom_scalars__config__"

# A layout is written before training starts, so it stands near the beginning of a file.
_SEARCHED_BYTES = 64 * 2**20


START = "Start here"
"""Title of the first category: at most four charts that answer the first questions."""

THRESHOLDS = "threshold ten times larger to ten times smaller, not an error"
"""What the band of an effective dimension is, in the title of its chart."""

_FIRST = (
    ("pac_bayes", "PAC-Bayes bound on the error of networks drawn around the model"),
    ("hold_out", "Hold-out bound on the error of the model itself"),
    ("effective_dimension", "Effective dimension of the network ({})"),
)
"""Quantities of its charts with their titles; the overhead is the last one."""


def layout(declarations: Sequence[Declaration], prefix: str = "") -> Layout:
    """Return the layout in the form of ``SummaryWriter.add_custom_scalars``: category -> chart -> [kind, tags].

    The first category is "Start here". Then each instrument is a category, the costs are the last one. Only quantities
    of which there is a curve have a chart.

    Args:
        declarations: Of the instruments, in order.
        prefix: What the logger puts before the names of scalars.

    >>> norm = Declaration("norm", "Norm", [Quantity("size", "Length of the weights.", chart="Length")])
    >>> layout([norm])
    {'Start here': {'Overhead: seconds of measuring / training': ['Multiline', ['sloppy_cost/overhead$']]},
     'Sloppy: Norm': {'Length': ['Multiline', ['sloppy_norm/size$']]},
     'Sloppy: cost': {'Seconds of a measurement': ['Multiline', ['sloppy_cost/seconds_norm$']],
                      'Overhead': ['Multiline', ['sloppy_cost/overhead$']]}}
    """
    titles = [declaration.title for declaration in declarations]
    categories = {START: _start(declarations, prefix)}
    for each in declarations:
        name = f"Sloppy: {each.title}" + (f" ({each.name})" if titles.count(each.title) > 1 else "")
        categories[name] = _charts(each, prefix)
    costs = [cost for each in declarations for cost in cost_quantities(each) if each.draws(cost)]
    categories["Sloppy: cost"] = _multiline(RESERVED, [*costs, OVERHEAD], prefix)
    return {category: charts for category, charts in categories.items() if charts}


def start_tags(declarations: Sequence[Declaration]) -> list[str]:
    """The tags to look at first: one for each chart of the first category."""
    return [tag(group, name) for _, group, name in _first_charts(declarations)]


def _first_charts(declarations: Sequence[Declaration]) -> list[tuple[str, str, str]]:
    """Title, group and name of the curve of each chart of the first category that can have data.

    Each has one curve of a run: with several runs, TensorBoard folds a longer legend away.
    """
    charts: list[tuple[str, str, str]] = []
    for name, title in _FIRST:
        found = ((each, quantity) for each in declarations if (quantity := each.quantity(name)) is not None)
        owner = next((each for each, quantity in found if each.draws(quantity)), None)
        if owner is not None:
            charts.append((title.format(owner.title), owner.name, name))
    return [*charts, ("Overhead: seconds of measuring / training", RESERVED, OVERHEAD.name)]


def _start(declarations: Sequence[Declaration], prefix: str) -> dict[str, list[Any]]:
    return {
        title: ["Multiline", [_pattern(prefix + tag(group, name))]]
        for title, group, name in _first_charts(declarations)
    }


def _charts(declaration: Declaration, prefix: str) -> dict[str, list[Any]]:
    name = declaration.name
    quantities = [quantity for quantity in declaration.quantities if declaration.draws(quantity)]
    drawn = {quantity.name for quantity in quantities}
    together = _multiline(name, quantities, prefix)
    charts: dict[str, list[Any]] = {}
    for quantity in quantities:
        if quantity.band is not None and quantity.chart and drawn.issuperset(quantity.band):
            alone = len(together[quantity.chart][1]) == 1
            if alone:
                del together[quantity.chart]
            kind = THRESHOLDS if quantity.band[0].endswith("_coarse") else "band"
            title = quantity.chart if alone and kind != THRESHOLDS else f"{quantity.chart}: {kind}"
            if title in charts:  # of another quantity
                title = f"{quantity.name.replace('_', ' ').capitalize()}: {kind}"
            charts[title] = ["Margin", [prefix + tag(name, each) for each in (quantity.name, *quantity.band)]]
    for quantity in quantities:
        if quantity.headline and quantity.estimated and quantity.chart:
            charts[f"{quantity.chart}: errors"] = [
                "Multiline",
                [_pattern(prefix + tag(name, quantity.name + suffix)) for suffix in SUFFIXES],
            ]
    return {**together, **charts}


def _multiline(group: str, quantities: Sequence[Quantity], prefix: str) -> dict[str, list[Any]]:
    charts: dict[str, list[Any]] = {}
    for quantity in quantities:
        if quantity.chart:
            charts.setdefault(quantity.chart, ["Multiline", []])[1].append(_pattern(prefix + tag(group, quantity.name)))
    return charts


def write_layout(
    trainer: Trainer, declarations: Sequence[Declaration], prefix_of: Callable[[object], str] = no_prefix
) -> None:
    """Write the layout once to every logger whose experiment takes one, unless its run already holds a layout.

    TensorBoard keeps one layout for each run. One that the user wrote, or one from before a resume into the same
    folder, is therefore left alone.

    Args:
        trainer: The Trainer.
        declarations: Of the instruments with curves.
        prefix_of: The prefix that a logger puts before the names of scalars.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        with attempt(trainer, logger, "write the layout of the Custom Scalars page"):
            experiment: Any = getattr(logger, "experiment", None)
            if not hasattr(experiment, "add_custom_scalars"):
                continue
            if holds(experiment, _LAYOUT_KEY):
                rank_zero_info(
                    "This TensorBoard run already has a Custom Scalars layout, so that of lightning_sloppy was not "
                    "added; log to a new version to get it."
                )
            else:
                experiment.add_custom_scalars(layout(declarations, prefix_of(logger)))


def _pattern(name: str) -> str:
    return re.escape(name) + "$"


def holds(experiment: Any, key: bytes) -> bool:
    """Whether the event files of a writer with a local folder hold a key.

    Args:
        experiment: The writer.
        key: Part of an event, for instance its tag.
    """
    folder = getattr(experiment, "log_dir", None)
    if not isinstance(folder, (str, Path)) or not Path(folder).is_dir():
        return False
    experiment.flush()
    return any(_holds_key(path, key) for path in Path(folder).glob("events.out.tfevents.*"))


def _holds_key(path: Path, key: bytes) -> bool:
    tail, left = b"", _SEARCHED_BYTES
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(2**20, left))):
            if key in tail + chunk:
                return True
            tail, left = chunk[-len(key) :], left - len(chunk)
    return False
