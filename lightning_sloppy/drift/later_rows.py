"""Later rows in the columns of a reference: its categories, its missing codes, its shift and scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.drift.report import inside
from lightning_sloppy.drift.uncut import Uncut
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_kinds import NESTED, CellReader, as_word, is_none
from lightning_sloppy.inputs.noise_edge import median_lag_one
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import SAME, CutMoments, Presence
from lightning_sloppy.inputs.table_in_memory import TableSource
from lightning_sloppy.inspection.reference import Reference

Mask = npt.NDArray[np.bool_]


@dataclass
class LaterRows:
    """Sums over later rows, gathered chunk by chunk, in the columns of a reference.

    Args:
        reference: It must have parts.
        present: Columns used that the later rows have, (d,).
        constant: Constant columns of the reference that they have.

    Attributes:
        rounding: Relative rounding of the values, beyond that of float64.
        rows: How many.
        moments: Of the values, standardised and cut off as those of the reference; absent columns count as missing.
        autocorrelation: Median lag-1 of the first chunk.
        uncut: Means and deviations of the standardised values that are not cut off.
    """

    reference: Reference
    present: Mask
    constant: tuple[str, ...] = ()
    rounding: float = 0.0
    rows: int = 0
    moments: CutMoments | None = None
    autocorrelation: float = 0.0
    uncut: Uncut | None = None
    _presence: list[Presence] = field(default_factory=list)
    _constant: list[Mask] = field(default_factory=list)
    _unseen: dict[str, list[Mask]] = field(default_factory=dict)
    _words: dict[str, set[str]] = field(default_factory=dict)
    _last: Floats | None = None
    _least: Floats | None = None
    _most: Floats | None = None

    @property
    def part(self) -> int:
        """Rows in a part: as many as in one of the reference."""
        parts = self.reference.parts
        assert parts is not None
        return max(1, round(float(parts.whole.rows) / len(parts.moments.rows)))

    def add(
        self, values: Floats, departing: Mask | None = None, unseen: Mapping[str, tuple[Mask, set[str]]] | None = None
    ) -> None:
        """Add rows.

        Args:
            values: In the units of the table, (n, d), NaN where missing.
            departing: Where a constant column of the reference has another value, (n, c).
            unseen: Of text columns, rows with a category that the reference does not have, (n,), and these.
        """
        if not len(values):
            return
        parts = self.reference.parts
        assert parts is not None
        values = (values - self.reference.shift) / self.reference.scale
        if not self.rows:
            self.autocorrelation = median_lag_one(values[:, self.present]) if len(values) > 2 else 0.0
        starts = np.flatnonzero(np.arange(self.rows, self.rows + len(values)) % self.part == 0)
        goes_on = not len(starts) or starts[0] > 0
        starts = np.concatenate([[0], starts]) if goes_on else starts
        self._join(Presence.of(values, parts.usual, self._last, starts, self._rounded(parts.usual)), goes_on)
        _extend(self._constant, self._by_part(departing, len(values), len(self.constant), starts), goes_on)
        parts_before = len(self._presence_rows()) - (len(starts) - goes_on)
        for name, (where, words) in (unseen or {}).items():
            known = self._unseen.setdefault(name, [])
            before = parts_before - sum(map(len, known))
            if before > 0:
                known.append(np.zeros((before, 1), np.bool_))
            _extend(known, self._by_part(where[:, None], len(values), 1, starts), goes_on)
            self._words.setdefault(name, set()).update(words)
        self._last = values[-1]
        self._least = _fold(np.fmin, self._least, values)
        self._most = _fold(np.fmax, self._most, values)
        for start in range(0, len(values), max(1, 4_000_000 // values.shape[1])):
            rows = values[start : start + max(1, 4_000_000 // values.shape[1])]
            found = CutMoments.of(np.clip(rows, parts.low, parts.high))
            self.moments = found if self.moments is None else self.moments + found
            uncut = Uncut.of(rows, parts.low, parts.high)
            self.uncut = uncut if self.uncut is None else self.uncut + uncut
        self.rows += len(values)

    def packed(self) -> dict[str, Any]:
        """What another process needs to join these rows with its own."""
        return {name: value for name, value in vars(self).items() if name not in ("reference", "_last")}

    @classmethod
    def joined(cls, reference: Reference, packed: Sequence[Mapping[str, Any]]) -> LaterRows:
        """The rows of several processes, one after the other.

        Args:
            reference: That of all of them.
            packed: See :meth:`packed`; of at least one process.
        """
        found = cls(reference, packed[0]["present"], packed[0]["constant"])
        for each in packed:
            if not each["rows"]:
                continue
            found.rows += each["rows"]
            found.moments = each["moments"] if found.moments is None else found.moments + each["moments"]
            found.uncut = each["uncut"] if found.uncut is None else found.uncut + each["uncut"]
            found.autocorrelation = each["autocorrelation"]
            found._presence += each["_presence"]
            found._constant += each["_constant"]
            found._least = _fold(np.fmin, found._least, each["_least"][None])
            found._most = _fold(np.fmax, found._most, each["_most"][None])
        return found

    @property
    def presence(self) -> Presence:
        """What occurs in each part."""
        kept = self._presence
        return Presence(*(np.concatenate([getattr(each, name) for each in kept]) for name in _PRESENCE))

    @property
    def constant_departs(self) -> Mask:
        """Parts in which constant columns of the reference take another value, (V, c)."""
        return np.concatenate(self._constant)

    @property
    def unseen(self) -> dict[str, tuple[Mask, tuple[str, ...]]]:
        """Of text columns with categories that the reference has not: the parts, (V,), and the categories."""
        count = len(self._presence_rows())
        found = {}
        for name, known in self._unseen.items():
            mask = np.concatenate(known)[:, 0]
            found[name] = (np.pad(mask, (0, count - len(mask))), tuple(sorted(self._words[name])))
        return found

    @property
    def least(self) -> Floats:
        """The least value of each column, standardised, (d,)."""
        assert self._least is not None
        return self._least

    @property
    def still(self) -> Mask:
        """Columns with one value, (d,)."""
        assert self._least is not None
        assert self._most is not None
        with np.errstate(invalid="ignore"):
            return np.asarray(self._most - self._least <= SAME * (1 + np.abs(self._least)))

    def _presence_rows(self) -> Mask:
        return np.concatenate([each.gaps for each in self._presence])

    def _join(self, found: Presence, goes_on: bool) -> None:
        if goes_on and self._presence:
            for name in _PRESENCE:
                getattr(self._presence[-1], name)[-1] |= getattr(found, name)[0]
            found = Presence(*(getattr(found, name)[1:] for name in _PRESENCE))
        self._presence.append(found)

    def _rounded(self, usual: Floats) -> Floats:
        """What rounding does to usual values, in deviations, (d,)."""
        reference = self.reference
        return self.rounding * np.abs(reference.shift + reference.scale * usual) / reference.scale

    @staticmethod
    def _by_part(where: Mask | None, rows: int, width: int, starts: npt.NDArray[np.intp]) -> Mask:
        where = np.zeros((rows, width), np.bool_) if where is None else where
        return np.asarray(np.logical_or.reduceat(where, starts, axis=0), np.bool_)


_PRESENCE = ("departs", "varies", "gaps")


def _extend(known: list[Mask], found: Mask, goes_on: bool) -> None:
    if goes_on and known:
        known[-1][-1] |= found[0]
        found = found[1:]
    known.append(found)


def _fold(how: Any, known: Floats | None, values: Floats) -> Floats:
    found = np.asarray(how.reduce(values, axis=0))
    return found if known is None else np.asarray(how(known, found))


def read_later(
    source: TableSource,
    reference: Reference,
    targets: Sequence[str],
    codes: Sequence[str],
    advance: Callable[[int], None],
) -> LaterRows:
    """Read a table in the columns of a reference.

    Args:
        source: The table.
        reference: It must have parts.
        targets: Columns of the table that are kept apart.
        codes: Words that mean a missing value, beside those of the reference.
        advance: Told how many rows were read.

    Raises:
        ConfigurationError: Fewer than half of the reference's columns are there, text or infinities in a column that
            holds numbers in the reference, or no rows.
    """
    place = {name: index for index, name in enumerate(source.names) if name not in targets}
    used = list(dict.fromkeys(reference.parents))
    there = [name for name in used if name in place]
    if 2 * len(there) < len(used):
        if not there and list(source.names) == [str(at) for at in range(len(source.names))]:
            raise ConfigurationError(
                f"{source.origin} cannot be compared with {inside(reference.origin)}: its columns have no names but "
                f"those of the reference have, such as {used[0]!r}; write a first line with the names of the columns "
                "into it, or pass --header (header=True) if it has one."
            )
        raise ConfigurationError(
            f"{source.origin} cannot be compared with {inside(reference.origin)}: it has {len(there):,} of the "
            f"{len(used):,} columns that are used there, and half are needed; compare tables of one kind, "
            "with the same names."
        )
    reader = CellReader([*reference.codes, *codes])
    present = np.array([parent in place for parent in reference.parents])
    constant = tuple(name for name in reference.constant if name in place)
    found = LaterRows(reference, present, constant)
    for chunk in source.chunks():

        def cells(name: str, chunk: Any = chunk) -> tuple[Floats, npt.NDArray[Any] | None]:
            index = place[name]
            return reader.read(chunk[:, index] if isinstance(chunk, np.ndarray) else chunk[index])

        rows = len(chunk) if isinstance(chunk, np.ndarray) else len(chunk[0])
        values = np.full((rows, len(reference.names)), np.nan)
        unseen: dict[str, tuple[Mask, set[str]]] = {}
        start = 0
        for name in used:
            width = reference.parents.count(name) if name in reference.categories else 1
            if name in place:
                numbers, texts = cells(name)
                if name in reference.categories:
                    words = _words(numbers, texts)
                    own = reference.categories[name]
                    _one_hot(values, start, name, words, reference)
                    other = np.array([word is not None and word not in own for word in words])
                    if other.any():
                        unseen[name] = other, {str(word) for word in words[other]}
                else:
                    _refuse_text(source.origin, name, numbers, texts, found.rows)
                    values[:, start] = numbers
            start += width
        departing = [_departing(*cells(name), reference.constant[name]) for name in constant]
        found.add(values, np.stack(departing, axis=1) if departing else None, unseen)
        advance(rows)
    if found.rows < 1:
        raise ConfigurationError(f"{source.origin} holds no rows; there is nothing to compare.")
    return found


def _words(numbers: Floats, texts: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    cells = np.array([as_word(value) if value == value else None for value in numbers], dtype=object)
    return cells if texts is None else np.where(is_none(texts), cells, texts)


def _one_hot(values: Floats, start: int, name: str, words: npt.NDArray[Any], reference: Reference) -> None:
    """Columns of 0 and 1, in place; a category that the reference has not is 0 in all of them."""
    missing = is_none(words)
    for index, encoded in enumerate(reference.names[start : start + reference.parents.count(name)]):
        column = (words == encoded[len(name) + 1 :]).astype(np.float64)
        values[:, start + index] = np.where(missing, np.nan, column)


def _departing(numbers: Floats, texts: npt.NDArray[Any] | None, value: float | str | None) -> Mask:
    """Where a column that was constant has another value, (n,)."""
    if isinstance(value, str):
        words = _words(numbers, texts)
        return np.array([word is not None and word != value for word in words], np.bool_)
    text = np.zeros(len(numbers), np.bool_) if texts is None else ~is_none(texts)
    if value is None:
        return text
    with np.errstate(invalid="ignore"):
        return np.asarray((np.abs(numbers - value) > SAME * (1 + abs(value))) | text, np.bool_)


def _refuse_text(origin: str, name: str, numbers: Floats, texts: npt.NDArray[Any] | None, start: int) -> None:
    """Check that a column holds finite numbers.

    Raises:
        ConfigurationError: Text or infinities.
    """
    if texts is not None:
        row = int(np.flatnonzero(~is_none(texts))[0])
        what = "several values" if texts[row] is NESTED else repr(texts[row])
        raise ConfigurationError(
            f"The column {name!r} holds numbers in the reference, but row {start + row} (counted from 0) of {origin} "
            f"is {what}; correct it, or name the text as missing (--missing)."
        )
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ConfigurationError(
            f"Row {start + int(infinite[0])} (counted from 0) of the column {name!r} is infinite; correct it, or name "
            "infinities as missing (--missing inf)."
        )
