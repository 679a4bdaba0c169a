"""The custom-scalars layout: curves that belong together on one chart of TensorBoard's Custom Scalars page.

It follows from the declarations. A multiline entry is a regular expression that TensorBoard applies with ``re.match``,
so each ends with ``$``. A margin chart names three exact tags: value, lower, upper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_sloppy.quantities import RESERVED, SUFFIXES, Declaration, Quantity
from lightning_sloppy.reporting.tags import OVERHEAD, cost_quantities, tag
from lightning_sloppy.reporting.writers import attempt

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Layout = dict[str, dict[str, list[Any]]]

# The tag under which the page looks for a layout, as bytes because it is searched for in the event file itself.
_LAYOUT_KEY = b"custom_scalars__config__"

# A layout is written before training starts, so it stands near the beginning of a file.
_SEARCHED_BYTES = 64 * 2**20


def layout(declarations: Sequence[Declaration]) -> Layout:
    """Return the layout in the form of ``SummaryWriter.add_custom_scalars``: category -> chart -> [kind, tags].

    Each instrument is a category, the costs are the last one.

    >>> norm = Declaration("norm", "Norm", [Quantity("size", "Length of the weights.", chart="Length")])
    >>> layout([norm])
    {'Sloppy: Norm': {'Length': ['Multiline', ['sloppy_norm/size$']]},
     'Sloppy: cost': {'Seconds of a measurement': ['Multiline', ['sloppy_cost/seconds_norm$']],
                      'Overhead': ['Multiline', ['sloppy_cost/overhead$']]}}
    """
    titles = [declaration.title for declaration in declarations]
    categories = {
        f"Sloppy: {each.title}" + (f" ({each.name})" if titles.count(each.title) > 1 else ""): _charts(each)
        for each in declarations
    }
    costs = [quantity for declaration in declarations for quantity in cost_quantities(declaration)]
    categories["Sloppy: cost"] = _multiline(RESERVED, [*costs, OVERHEAD])
    return {category: charts for category, charts in categories.items() if charts}


def _charts(declaration: Declaration) -> dict[str, list[Any]]:
    name, quantities = declaration.name, declaration.quantities
    together = _multiline(name, quantities)
    charts: dict[str, list[Any]] = {}
    for quantity in quantities:
        if quantity.band is not None and quantity.chart:
            alone = len(together[quantity.chart][1]) == 1
            if alone:
                del together[quantity.chart]
            title = quantity.chart if alone else f"{quantity.chart}: band"
            if title in charts:  # of another quantity
                title = f"{quantity.name.replace('_', ' ').capitalize()}: band"
            charts[title] = ["Margin", [tag(name, each) for each in (quantity.name, *quantity.band)]]
    for quantity in quantities:
        if quantity.headline and quantity.estimated and quantity.chart:
            charts[f"{quantity.chart}: errors"] = [
                "Multiline",
                [_pattern(tag(name, quantity.name + suffix)) for suffix in SUFFIXES],
            ]
    return {**charts, **together}


def _multiline(group: str, quantities: Sequence[Quantity]) -> dict[str, list[Any]]:
    charts: dict[str, list[Any]] = {}
    for quantity in quantities:
        if quantity.chart:
            charts.setdefault(quantity.chart, ["Multiline", []])[1].append(_pattern(tag(group, quantity.name)))
    return charts


def write_layout(trainer: Trainer, declarations: Sequence[Declaration]) -> None:
    """Write the layout once to every logger whose experiment takes one, unless its run already holds a layout.

    TensorBoard keeps one layout for each run. One that the user wrote, or one from before a resume into the same
    folder, is therefore left alone.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        with attempt(trainer, logger, "write the layout of the Custom Scalars page"):
            experiment: Any = getattr(logger, "experiment", None)
            if not hasattr(experiment, "add_custom_scalars"):
                continue
            if _has_layout(experiment):
                rank_zero_info("This TensorBoard run already has a Custom Scalars layout, so ours was not added.")
            else:
                experiment.add_custom_scalars(layout(declarations))


def _pattern(name: str) -> str:
    return re.escape(name) + "$"


def _has_layout(experiment: Any) -> bool:
    """Look for a layout in the event files of a writer with a local folder."""
    folder = getattr(experiment, "log_dir", None)
    if not isinstance(folder, (str, Path)) or not Path(folder).is_dir():
        return False
    experiment.flush()
    return any(_holds_key(path) for path in Path(folder).glob("events.out.tfevents.*"))


def _holds_key(path: Path) -> bool:
    tail, left = b"", _SEARCHED_BYTES
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(2**20, left))):
            if _LAYOUT_KEY in tail + chunk:
                return True
            tail, left = chunk[-len(_LAYOUT_KEY) :], left - len(chunk)
    return False
