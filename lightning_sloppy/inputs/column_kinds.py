"""What each column of a table is: numbers, a few categories, or something to set aside by name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.table_source import MISSING_WORDS

MOST_CATEGORIES = 20
"""Different texts up to which a column is one-hot encoded."""

MOST_REMEMBERED = 10_000
"""Different texts kept of a column; all of them different up to here makes an identifier."""

LOOKED_AT = 256
"""Numbers of a chunk in which more than :data:`MOST_CATEGORIES` different ones are looked for first."""

NESTED = "(several values)"
"""Stands for a cell that holds a list, a record or an array."""

_UNKNOWN = object()

_SEVERAL = (list, tuple, set, dict, np.ndarray)

_MONTH = r"(?:jan|feb|m[a\u00e4]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-z\u00e4]*\.?"
_TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s*(?:[AP]M|Z|UTC|GMT|[+-]\d{2}:?\d{2}))?"
_DATE = re.compile(
    rf"\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}(?:(?:T|,? +){_TIME})?"  # 2024-03-01, 1.3.2024 06:30, 3/1/2024 6:30 PM
    rf"|{_TIME}|\d{{8}}T\d{{4,6}}Z?"
    r"|\d{4}[-/](?:0?[1-9]|1[0-2])|\d{4}-?W\d{2}(?:-?\d)?|\d{4}[- ]?Q[1-4]"  # 2024-03, 2024-W09, 2024-Q1
    rf"|(?:[a-z]{{2,9}}\.?,? )?\d{{1,2}}\.?[- ]{_MONTH}[- ,]+\d{{2,4}}(?:,? {_TIME})?"  # Fri, 01 Mar 2024 06:30:00
    rf"|(?:[a-z]{{2,9}}\.?,? )?{_MONTH} +\d{{1,2}}(?:,? +\d{{4}})?(?:,? {_TIME}(?: \d{{4}})?)?",  # March 1, 2024
    re.IGNORECASE,
)
"""Dates and times of day as tools write them."""


@dataclass
class ColumnKind:
    """What was seen of a column so far.

    Attributes:
        name: Its name.
        rows, missing, numbers, texts, dates: How many cells of each sort.
        first: The first number, which a constant column keeps.
        changed: Row of the first number that differs from it; None for a constant column.
        seen: Different texts with their counts, at most :data:`MOST_REMEMBERED`.
        different_numbers: Of a column with few of them; no longer complete beyond :data:`MOST_CATEGORIES`.
        nested: Cells that hold several values.
        first_text: The first text that is no number, with its row.
    """

    name: str
    rows: int = 0
    missing: int = 0
    numbers: int = 0
    texts: int = 0
    dates: int = 0
    first: float | None = None
    changed: int | None = None
    seen: dict[str, int] = field(default_factory=dict)
    different_numbers: set[float] = field(default_factory=set)
    nested: int = 0
    first_text: tuple[int, str] | None = None

    @property
    def all_different(self) -> bool:
        """Whether no text occurs twice, as far as is remembered."""
        return self.texts > 1 and len(self.seen) >= min(self.texts, MOST_REMEMBERED)

    def verdict(self) -> str:
        """What the column is used as, "number" or "categories", or why it is set aside.

        Raises:
            ConfigurationError: Numbers mixed with other text.
        """
        if self.nested:
            return "lists or records in its cells"
        if self.dates and self.dates >= 0.95 * (self.dates + self.texts + self.numbers):
            return "dates"
        if not self.texts and not self.dates:
            return "number" if self.numbers else "no value at all"
        different = len(self.seen) + len(self.different_numbers)
        if self.numbers and different > MOST_CATEGORIES and self.first_text is not None:
            row, text = self.first_text
            raise ConfigurationError(
                f"The column {self.name!r} mixes numbers and text: row {row} (counted from 0) is {text!r}; correct "
                f"it, name the text as missing (--missing {text!r}), or leave the column out."
            )
        if different <= MOST_CATEGORIES and not (self.all_different and self.texts > MOST_CATEGORIES):
            if different < 2:
                return "the same text everywhere"
            if self.all_different and not self.numbers:
                return f"an identifier: all {self.texts:,} texts differ"
            return "categories"
        if self.all_different:
            return f"an identifier: all {self.texts:,} texts differ"
        count = f"{different:,}" if len(self.seen) < MOST_REMEMBERED else f"more than {MOST_REMEMBERED:,}"
        return f"text with {count} different values (at most {MOST_CATEGORIES} are encoded)"


class CellReader:
    """Reads cells of columns as numbers or texts, with the words and codes that mean a missing value.

    Args:
        codes: Further words or numbers for a missing value, such as "-999".

    >>> reader = CellReader(["-999"])
    >>> numbers, texts = reader.read(np.array(["1.5", "?", "-999", "A"], dtype=object))
    >>> numbers.tolist(), texts.tolist()
    ([1.5, nan, nan, nan], [None, None, None, 'A'])
    """

    def __init__(self, codes: Sequence[str] = ()) -> None:
        self.words = MISSING_WORDS | {code.strip() for code in codes}
        self.numbers = [value for value in map(_number, codes) if value is not None and not math.isnan(value)]

    def read(self, cells: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[Any] | None]:
        """Numbers (NaN for missing values and texts), and texts (None for all else) where there are any.

        Args:
            cells: (n,), numbers, objects, texts, booleans, dates, or durations, which become seconds.
        """
        if cells.dtype.kind in "biuf":
            return self.without_codes(cells.astype(np.float64, copy=False)), None
        if cells.dtype.kind == "m":
            return np.where(np.isnat(cells), np.nan, cells / np.timedelta64(1, "s")), None
        if cells.dtype.kind == "M":
            text = np.datetime_as_string(cells).astype(object)
            text[np.isnat(cells)] = None
            return np.full(len(cells), np.nan), text
        numbers = np.full(len(cells), np.nan)
        texts: npt.NDArray[Any] = np.full(len(cells), None, dtype=object)
        known: dict[Any, float | str | None] = {}
        for index, cell in enumerate(cells.tolist()):
            if isinstance(cell, _SEVERAL):
                texts[index] = NESTED
                continue
            kept = type(cell) is str
            value = known.get(cell, _UNKNOWN) if kept else _UNKNOWN
            if value is _UNKNOWN:
                value = self._value(cell)
                if kept and len(known) < MOST_REMEMBERED:
                    known[cell] = value
            if isinstance(value, str):
                texts[index] = value
            elif value is not None:
                numbers[index] = value
        numbers = self.without_codes(numbers)
        return numbers, None if is_none(texts).all() else texts

    def _value(self, cell: Any) -> float | str | None:
        """The number or text of a cell, or None for a missing value."""
        if cell is None or type(cell).__name__ in ("NAType", "NaTType"):  # pandas.NA has no truth value
            return None
        if isinstance(cell, (int, float, np.number)):
            return float(cell)
        word = (cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)).strip()
        if word in self.words:
            return None
        value = _number(word)
        return word if value is None or math.isnan(value) else value

    def without_codes(self, numbers: Floats) -> Floats:
        """The numbers with NaN in place of codes."""
        for code in self.numbers:
            numbers = np.where(np.abs(numbers) == code if math.isinf(code) else numbers == code, np.nan, numbers)
        return numbers


def look(kind: ColumnKind, numbers: Floats, texts: npt.NDArray[Any] | None) -> None:
    """Add one chunk to what is known of a column.

    Raises:
        ConfigurationError: An infinite number, with its row and column.
    """
    start = kind.rows
    finite = np.isfinite(numbers)
    if not finite.all():
        infinite = np.flatnonzero(np.isinf(numbers))
        if len(infinite):
            raise ConfigurationError(
                f"Row {start + int(infinite[0])} (counted from 0) of the column {kind.name!r} is infinite; correct "
                "it, or name infinities as missing (--missing inf)."
            )
    known = numbers if finite.all() else numbers[finite]
    kind.rows += len(numbers)
    kind.numbers += len(known)
    if len(known):
        if kind.first is None:
            kind.first = float(known[0])
        if kind.changed is None:
            other = np.flatnonzero(finite & (numbers != kind.first))
            kind.changed = start + int(other[0]) if len(other) else None
    written = 0
    if texts is not None:
        cells = texts.tolist()
        for text, often in Counter(cells).items():  # in the order in which they come first
            if text is None:
                continue
            written += often
            if text is NESTED:
                kind.nested += often
                continue
            if _DATE.fullmatch(text):
                kind.dates += often
            else:
                kind.texts += often
                if kind.first_text is None:
                    kind.first_text = (start + cells.index(text), text)
            if text in kind.seen:
                kind.seen[text] += often
            elif len(kind.seen) < MOST_REMEMBERED:
                kind.seen[text] = often
    if len(known) and len(kind.different_numbers) <= MOST_CATEGORIES:
        few = np.unique(known[:LOOKED_AT])  # of most columns that is enough
        few = few if len(few) > MOST_CATEGORIES else np.unique(known)
        kind.different_numbers.update(few[: MOST_CATEGORIES + 1].tolist())
    kind.missing += len(numbers) - len(known) - written


def one_hot(kind: ColumnKind, numbers: Floats, texts: npt.NDArray[Any] | None) -> Iterator[tuple[str, Floats]]:
    """A column of 0 and 1 for each category, NaN where the cell is missing; of two categories the second alone.

    Args:
        kind: What is known of the whole column.
        numbers: Of a chunk.
        texts: Of a chunk.
    """
    categories = sorted({*kind.seen, *map(as_word, kind.different_numbers)})
    cells = np.array([as_word(value) if value == value else None for value in numbers], dtype=object)
    if texts is not None:
        cells = np.where(is_none(texts), cells, texts)
    missing = is_none(cells)
    for category in categories[1:] if len(categories) == 2 else categories:
        yield f"{kind.name}={category}", np.where(missing, np.nan, (cells == category).astype(np.float64))


def is_none(cells: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which objects are None, (n,)."""
    return np.array([cell is None for cell in cells.tolist()], dtype=np.bool_)


def as_word(value: float) -> str:
    """A number as people write it, different for different numbers.

    >>> as_word(3.0), as_word(-0.0), as_word(1234567.0), as_word(0.1)
    ('3', '0', '1234567', '0.1')
    """
    value = float(value) + 0.0  # the negative zero is zero
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _number(text: str) -> float | None:
    if "_" in text:  # Python reads 0001_01 as a number, a table means an identifier
        return None
    try:
        return float(text)
    except ValueError:
        return None
