"""How a text file writes a table: encoding, delimiter, decimal mark, and whether its first line names the columns."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lightning_sloppy.errors import ConfigurationError

SNIFFED = 64
"""Lines looked at."""

DELIMITERS = (",", ";", "\t", "|")

_NO_TEXT = {
    b"\x1f\x8b": "packed with gzip; give it a name that ends with .gz",
    b"BZh": "packed with bzip2; give it a name that ends with .bz2",
    b"\xfd7zXZ": "packed with xz; give it a name that ends with .xz",
    b"PK\x03\x04": "a zip archive or a spreadsheet; save its table as .csv, or give an archive the ending .zip",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save its table as .csv",
    b"PAR1": "a parquet file; give it a name that ends with .parquet",
    b"\x93NUMPY": "a file of numpy; give it a name that ends with .npy",
    b"\x89HDF": "an HDF5 file, which is not read; save its table as .csv or .parquet",
    b"ARROW1": "an Arrow file, which is not read; save its table as .parquet",
}
"""First bytes of files that are no text."""

_NAMED = re.compile(r'"?sep=(.)"?', re.IGNORECASE)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
_COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Dialect:
    """How a file writes a table.

    Attributes:
        delimiter: One character, or the pattern of white space.
        decimal: "." or ",".
        names: Of the columns.
        header: Records before the first row: blank lines, remarks behind "#", "sep=;", and the names.
        row_numbers: Whether the first column has no name and counts the rows, as pandas writes it.
        note: That a first line of numbers was read as a row; empty otherwise.
    """

    delimiter: str
    decimal: str
    names: tuple[str, ...]
    header: int
    row_numbers: bool
    note: str = ""


def sniffed(path: Path, missing: Collection[str], header: bool | None = None) -> Dialect:
    """Look at the first lines.

    Args:
        path: The file, packed with gzip, bzip2, xz or zip (one member) or not.
        missing: Words that stand for a missing value.
        header: Whether the first line names the columns. None: as it looks; a line of numbers is a row, for nothing
            tells years or codes that name columns from measurements.

    Raises:
        ConfigurationError: Unreadable, empty, not UTF-8, or a column named twice.
    """
    before, named, lines = _first_lines(path)
    if not lines:
        raise ConfigurationError(f"{path} is empty; give a file with at least two rows.")
    delimiter = named or _delimiter(lines, path)
    cells = _records(lines, delimiter)
    first, rest = cells[0], cells[1:]
    decimal = "," if delimiter != "," and _decimal_commas(rest or cells) else "."
    looks = _is_header(first, rest, missing, decimal)
    header, given = (looks, False) if header is None else (header, True)
    widths = {len(row) for row in (rest or cells)}
    width = min(widths)
    if header and first[0].startswith("#"):
        first[0] = first[0].lstrip("# ")
    names = [cell.strip() for cell in first] if header else [str(index) for index in range(width)]
    if header and widths == {len(names) + 1}:
        # Rows that end with a delimiter have an empty last cell; else the row names have no heading (as R writes it).
        names = ["", *names] if any(row[-1].strip() for row in rest) else [*names, ""]
    row_numbers = header and names[0] == "" and [row[0].strip() for row in rest] == [str(i) for i in range(len(rest))]
    names = [name or f"unnamed {index}" for index, name in enumerate(names)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(f"{path} names the column {twice[0]!r} twice; give every column a name of its own.")
    note = ""
    if not header and not given:
        shown = ", ".join(cell.strip() for cell in first[:4]) + (", ..." if len(first) > 4 else "")
        note = f"The first line ({shown}) was read as a row, not as names; header=True (--header) reads it as names."
    return Dialect(delimiter, decimal, tuple(names), before + header, row_numbers, note)


def opened(path: Path) -> IO[bytes]:
    """The file unpacked.

    Raises:
        ConfigurationError: It does not exist, or is no archive of the kind its name says, or holds several files.
    """
    try:
        if path.suffix == ".zip":
            archive = zipfile.ZipFile(path)
            members = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(members) != 1:
                raise ConfigurationError(
                    f"{path} holds {len(members)} files ({', '.join(members[:3])}); unpack it and give one of them."
                )
            return archive.open(members[0])
        packed = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix)
        return packed(path, "rb") if packed else path.open("rb")  # type: ignore[operator]
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path} cannot be read ({_said(error)}).") from error


def is_number(cell: str, decimal: str = ".") -> bool:
    """Whether a cell is a number.

    >>> is_number("-1.5e3"), is_number("1,5", ","), is_number("A1")
    (True, True, False)
    """
    text = cell.strip()
    return bool(_NUMBER.fullmatch(text)) or (decimal == "," and bool(_COMMA_NUMBER.fullmatch(text)))


def _first_lines(path: Path) -> tuple[int, str | None, list[str]]:
    """How many lines come before the table, the delimiter if one of them names it, and the lines that are not blank."""
    try:
        with opened(path) as file:
            raw = [line for line in (file.readline(1 << 24) for _ in range(SNIFFED)) if line]
    except (OSError, EOFError, zipfile.BadZipFile, lzma.LZMAError, zipfile.LargeZipFile) as error:
        raise ConfigurationError(f"{path} cannot be read ({_said(error)}).") from error
    joined = b"".join(raw)
    for magic, what in _NO_TEXT.items():
        if joined.startswith(magic):
            raise ConfigurationError(f"{path} is {what}.")
    if joined[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in joined:
        raise ConfigurationError(f"{path} is not text in UTF-8; convert it, for instance with iconv -t UTF-8.")
    try:
        text = joined.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(not_utf8(path, error)) from error
    lines = io.StringIO(text, newline=None).read().split("\n")
    before, named = _preface(lines)
    return before, named, [line for line in lines[before:] if line.strip()]


def _preface(lines: list[str]) -> tuple[int, str | None]:
    """How many lines come before the table (blank, "#", Excel's "sep=;"), and the delimiter that one of them names."""
    before, named = 0, None
    for line in lines:
        found = _NAMED.fullmatch(line.strip())
        if line.strip() and not line.startswith("#") and not found:
            break
        named = found[1] if found else named
        before += 1
    if 0 < before < len(lines):  # names of the columns may stand behind "#" as well
        above, first = lines[before - 1 : before + 1]
        if above.startswith("#") and any(above.count(mark) == first.count(mark) > 0 for mark in DELIMITERS):
            before -= 1
    return before, named


def not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """One sentence on bytes that are no UTF-8."""
    found = error.object[error.start : error.start + 1].hex()
    return f"{path} is not text in UTF-8 (byte 0x{found}); convert it, for instance with iconv -f LATIN1 -t UTF-8."


def _delimiter(lines: list[str], path: Path) -> str:
    plain = path.name.lower()
    if ".tsv" in plain or ".tab" in plain:
        return "\t"
    scores = {}
    for delimiter in DELIMITERS:
        counts = Counter(len(_split(line, delimiter)) for line in lines)
        width, often = counts.most_common(1)[0]
        scores[delimiter] = (often / len(lines) if width > 1 else 0.0, width)
    best = max(scores, key=lambda key: (round(scores[key][0], 1), key == ",", scores[key][1]))
    # "1,5;2,5": both fit, and the semicolon is meant. One comma more or less would tell that commas are decimal marks.
    if best == "," and scores[";"][0] >= 0.9 and _decimal_commas([_split(line, ";") for line in lines[1:]]):
        best = ";"
    if scores[best][0] >= 0.9:
        return best
    widths = Counter(len(_split(line, r"\s+")) for line in lines)
    width, often = widths.most_common(1)[0]
    if width > 1 and often >= 0.9 * len(lines) and (".csv" not in plain or _all_numbers(lines[1:])):
        return r"\s+"
    return best if scores[best][0] > 0.5 else ","


def _all_numbers(lines: list[str]) -> bool:
    """Whether the words of all lines are numbers: a text of several words is none."""
    words = [word for line in lines for word in line.split()]
    return bool(words) and sum(map(is_number, words)) >= 0.9 * len(words)


def _records(lines: list[str], delimiter: str) -> list[list[str]]:
    """The cells of each record; names in quotes may hold line breaks."""
    alone = [_split(line, delimiter) for line in lines]
    if delimiter == r"\s+" or lines[0].count('"') % 2 == 0:
        return alone
    together = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    # A quote that is never closed takes all that follows: then it is a character like others.
    return together if len(together) > len(lines) // 2 else alone


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == r"\s+":  # quotes hold texts with spaces together
        words = csv.reader([" ".join(line.split())], delimiter=" ", skipinitialspace=True)
        return next(words, [])
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # more characters between two delimiters than a cell may have: it is none in this line
        return line.split(delimiter)


def _decimal_commas(rows: list[list[str]]) -> bool:
    cells = [cell.strip() for row in rows for cell in row]
    return any(_COMMA_NUMBER.fullmatch(cell) for cell in cells) and not any("." in c and is_number(c) for c in cells)


def _is_header(first: list[str], rest: list[list[str]], missing: Collection[str], decimal: str) -> bool:
    known = [cell.strip() for cell in first]
    numbers = [is_number(cell, decimal) for cell in known]
    counted = known[1:] if known and known[0] == "" else known
    if len(counted) > 1 and counted in (
        [str(i) for i in range(len(counted))],
        [str(i + 1) for i in range(len(counted))],
    ):
        return True
    words = [i for i, cell in enumerate(known) if not numbers[i] and cell not in missing]
    if not words:
        return False
    if not any(numbers):
        return True
    # Numbers and words: a name stands above numbers or dates, a text in the first row stands above texts.
    below = {i: [row[i].strip() for row in rest if len(row) > i and row[i].strip() not in missing] for i in words}
    return any(values and all(is_number(value, decimal) for value in values) for values in below.values())


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
