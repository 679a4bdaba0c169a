"""Write the tables of reading_the_curves.md anew, from what the instruments declare: python docs/update_tables.py."""

from __future__ import annotations

from pathlib import Path

import lightning_sloppy
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.callbacks.monitor import SLOTS
from lightning_sloppy.reporting.tables import filled, tables

PAGE = Path(__file__).parent / "reading_the_curves.md"


def main() -> None:
    """Every public instrument has a table, where the page has a mark for it."""
    public = [getattr(lightning_sloppy, name) for name in dir(lightning_sloppy)]
    classes = [each for each in public if isinstance(each, type) and issubclass(each, MeasuringCallback)]
    concrete = [each() for each in classes if not getattr(each, "__abstractmethods__", None)]
    declared = {each.name: each.declaration for each in concrete}
    # In the order in which the monitor runs them, which is the order of the costs as well.
    ordered = sorted(declared, key=lambda name: ([*SLOTS, name].index(name), name))
    page = filled(PAGE.read_text(encoding="utf-8"), tables([declared[name] for name in ordered]))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
