"""Short texts of records for the interactive prompt, small tables for notebooks, and who is told of progress."""

from __future__ import annotations

import html
import math
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

WIDTH, LINES = 100, 5
"""Size of the text of a record."""

CELL = 300
"""Longest text in a cell of a table."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and how many there are (0 if unknown)."""


def untold(*_: object) -> None:
    """Nobody wants to know how far the work is."""


@dataclass(frozen=True)
class Shown:
    """What is shown of a record.

    Attributes:
        name: Name of its class.
        of: What it is about, in a few words, or "".
        rows: Names and texts of what it says, the most telling ones first. A name may end in ":" or "=".
        separator: Between two of them.
    """

    name: str
    of: str
    rows: Sequence[tuple[str, str]]
    separator: str = ", "


class Displayed:
    """A record with a short ``repr``, and with a table in notebooks, both without tensors."""

    @abstractmethod
    def _shown(self) -> Shown:
        """What is shown."""

    def __repr__(self) -> str:
        """At most five lines."""
        shown = self._shown()
        words = shown.separator.join(
            f"{name}{text}" if name.endswith("=") else f"{name} {text}".strip() for name, text in shown.rows
        )
        inside = ": ".join(part for part in (shown.of, words) if part)
        lines = textwrap.wrap(
            f"{shown.name}({inside})",
            WIDTH,
            subsequent_indent="    ",
            max_lines=LINES,
            placeholder=" ...)",
            break_long_words=True,
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table with a row for each fact, escaped, without styles or files from elsewhere."""
        shown = self._shown()
        title = html.escape(" ".join(part for part in (shown.name, shown.of) if part))
        rows = "".join(
            f'<tr><th style="text-align: left">{html.escape(name.rstrip(":="))}</th>'
            f'<td style="text-align: left">{html.escape(shortened(text, CELL))}</td></tr>'
            for name, text in shown.rows
        )
        return f'<table><caption style="text-align: left"><b>{title}</b></caption>{rows}</table>'


def shortened(text: str, length: int = 90) -> str:
    """The text on one line, cut at a word, with three dots if something is left out.

    >>> shortened("The probe has no labels.", 15)
    'The probe ...'
    """
    return textwrap.shorten(text, length, placeholder=" ...")


def number(value: float, *, digits: int = 4) -> str:
    """Format a number with a few significant digits; whole numbers in full with thousands separators.

    >>> number(837610.0), number(12.3456), number(0.00018912), number(-5.0)
    ('837,610', '12.35', '0.0001891', '-5')
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e15 and (value == round(value) or abs(value) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def number_with_error(value: float, error: float) -> str:
    """A number with its error, which has two digits; the number has as many decimals, because further ones are noise.

    An error of less than a millionth is left out.

    >>> number_with_error(8.7123, 2.14), number_with_error(8.7123, 0.0), number_with_error(8.7123, 1e-12)
    ('8.7 +- 2.1', '8.712', '8.712')
    """
    if not (error > 1e-6 * abs(value) and math.isfinite(error) and math.isfinite(value)):
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{decimals}f} +- {error:,.{decimals}f}"


def at_most(value: float, *, decimals: int = 4) -> str:
    """An upper bound with a few decimals, rounded up: one that is rounded down is no bound.

    >>> at_most(0.83412), at_most(0.0733), at_most(0.83412, decimals=3), at_most(1.0)
    ('0.8342', '0.0733', '0.835', '1.0000')
    """
    if not math.isfinite(value):
        return str(value)
    # The decimal number that Python prints for the value: 0.0733 is not the binary number just above it.
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), ROUND_CEILING))


def percent(part: float, decimals: int = 0) -> str:
    """A fraction in per cent, as all texts write it.

    >>> percent(0.05), percent(0.1234, 1)
    ('5 %', '12.3 %')
    """
    return f"{100 * part:.{decimals}f} %"


def ordinal(number: int) -> str:
    """The place of something that is counted from 1.

    >>> ordinal(1), ordinal(12), ordinal(23), ordinal(1002)
    ('1st', '12th', '23rd', '1,002nd')
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def counted(number: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "epoch"), counted(2000, "step")
    ('1 epoch', '2,000 steps')
    """
    return f"{number:,} {word}" + ("" if number == 1 else "s")
