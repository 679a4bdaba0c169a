"""Generate the tables of the documentation from the declarations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_sloppy.quantities import RESERVED, SUFFIXES, Declaration, Quantity
from lightning_sloppy.reporting.tags import OVERHEAD, cost_quantities, tag

HEAD = ("| {} | Curve | What it means and what to do about it |", "| --- | --- | --- |")
ENDINGS = ("| Ending | What it means and what to do about it |", "| --- | --- |")


def tables(declarations: Sequence[Declaration]) -> dict[str, str]:
    """Markdown tables: one for each instrument by its name, one for the errors and one for the costs.

    The column "Curve" says whether loggers get the quantity: "yes", only with ``detail="all"``, or "once", which is as
    "all" for what does not change within a run.

    >>> from lightning_sloppy.quantities import Quantity
    >>> print(tables([Declaration("norm", "Norm", [Quantity("size", "Length.", unit="metres")])])["norm"])
    | Tag | Curve | What it means and what to do about it |
    | --- | --- | --- |
    | `sloppy_norm/size` | yes | Length. (metres) |
    """
    endings = [f"| `{name}` | {_escaped(text)} |" for name, text in SUFFIXES.items()]
    found = {"errors": "\n".join([*ENDINGS, *endings])}
    for declaration in declarations:
        rows = [
            (tag(declaration.name, each.name), _curve(declaration, each), _explained(each))
            for each in declaration.quantities
        ]
        rows += [
            (tag(declaration.name, shown.name), "histogram", shown.explanation) for shown in declaration.histograms
        ]
        found[declaration.name] = _table(rows)
    costs = [(declaration, each) for declaration in declarations for each in cost_quantities(declaration)]
    rows = [(tag(RESERVED, each.name), _curve(declaration, each), each.explanation) for declaration, each in costs]
    found[RESERVED] = _table([*rows, (tag(RESERVED, OVERHEAD.name), "yes", OVERHEAD.explanation)])
    return found


def _curve(declaration: Declaration, quantity: Quantity) -> str:
    if declaration.once or quantity.once:
        return "once"
    return "all" if quantity.expert else "yes"


def _explained(quantity: Quantity) -> str:
    return quantity.explanation + (f" ({quantity.unit})" if quantity.unit else "")


def filled(page: str, found: Mapping[str, str]) -> str:
    """Insert each table between its two marks: ``<!-- table: hessian -->`` and ``<!-- end of table -->``.

    Raises:
        KeyError: For a mark whose name has no table.
    """
    marked = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}{found[match[2]]}\n{match[3]}", page)


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [HEAD[0].format("Tag"), HEAD[1]]
    return "\n".join([*lines, *(f"| `{name}` | {curve} | {_escaped(text)} |" for name, curve, text in rows)])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
