"""What a user asks of a table: one or several names, and codes of missing values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_sloppy.display import Progress
from lightning_sloppy.inputs.column_kinds import as_word


def names_of(given: str | int | Sequence[str | int]) -> list[str]:
    """Columns as texts, from one or several.

    >>> names_of("a"), names_of([0, "b"])
    (['a'], ['0', 'b'])
    """
    return [str(each) for each in _several(given)]


def codes_of(given: str | float | Sequence[str | float]) -> list[str]:
    """Codes of missing values as the words that are looked for in cells, from one or several.

    >>> codes_of(-999), codes_of(["none", 9.0])
    (['-999'], ['none', '9'])
    """
    return [as_word(code) if isinstance(code, (int, float)) else str(code) for code in _several(given)]


def rows_read(tell: Progress) -> Callable[[int], None]:
    """Told of the rows of each chunk, it tells how many were read in all."""
    counted = 0

    def read(rows: int) -> None:
        nonlocal counted
        counted += rows
        tell("reading rows", counted, 0)

    return read


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, (str, int, float)) else list(given)
