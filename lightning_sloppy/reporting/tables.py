"""Generate the tables of the documentation from the declarations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_sloppy.quantities import RESERVED, SUFFIXES, Declaration
from lightning_sloppy.reporting.tags import OVERHEAD, cost_quantities, tag

HEAD = ("| {} | What it means and what to do about it |", "| --- | --- |")


def tables(declarations: Sequence[Declaration]) -> dict[str, str]:
    """Markdown tables: one for each instrument by its name, one for the errors and one for the costs.

    >>> from lightning_sloppy.quantities import Quantity
    >>> print(tables([Declaration("norm", "Norm", [Quantity("size", "Length.", unit="metres")])])["norm"])
    | Tag | What it means and what to do about it |
    | --- | --- |
    | `sloppy_norm/size` | Length. (metres) |
    """
    found = {"errors": _table("Ending", SUFFIXES)}
    for declaration in declarations:
        rows = {
            tag(declaration.name, quantity.name): quantity.explanation
            + (f" ({quantity.unit})" if quantity.unit else "")
            for quantity in declaration.quantities
        }
        rows |= {tag(declaration.name, shown.name): shown.explanation for shown in declaration.histograms}
        found[declaration.name] = _table("Tag", rows)
    costs = [quantity for declaration in declarations for quantity in cost_quantities(declaration)]
    found[RESERVED] = _table("Tag", {tag(RESERVED, each.name): each.explanation for each in (*costs, OVERHEAD)})
    return found


def filled(page: str, found: Mapping[str, str]) -> str:
    """Insert each table between its two marks: ``<!-- table: hessian -->`` and ``<!-- end of table -->``.

    Raises:
        KeyError: For a mark whose name has no table.
    """
    marked = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}{found[match[2]]}\n{match[3]}", page)


def _table(first: str, rows: Mapping[str, str]) -> str:
    lines = [HEAD[0].format(first), HEAD[1]]
    return "\n".join([*lines, *(f"| `{name}` | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items())])
