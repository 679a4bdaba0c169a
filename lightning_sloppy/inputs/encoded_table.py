"""A table as numbers: its columns judged and encoded, their moments taken, in memory or in two passes over a file."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.column_kinds import CellReader, ColumnKind, is_none, look, one_hot
from lightning_sloppy.inputs.pairwise import LEAST_OBSERVED, Floats, PairwiseMoments, fewest_common, shift_and_scale
from lightning_sloppy.inputs.rows import MAX_FEATURES
from lightning_sloppy.inputs.table_in_memory import Chunk, TableSource

IN_MEMORY = 16_000_000
"""Cells up to which all rows stay in memory (128 MB, and as much for what is computed from them). A larger table is
read twice and a part of its rows kept, so that memory does not grow with the rows."""

SAMPLED = 5_000_000
"""Cells of that part: whole runs of rows, evenly spread."""

RUN = 256
"""Rows in a run that stay neighbours."""

PART_BYTES = 256 * 1024**2
"""Memory for the moments of the parts of a table that is read in passes."""

MOST_PARTS = 128

FEWEST_PARTS = 8
"""As many as intervals need."""

HEAVIEST = 20
"""Rows kept of a sampled table because they lie far from the mean."""


@dataclass
class EncodedTable:
    """Numbers, and what became of every column.

    Attributes:
        origin: What was read.
        rows: n.
        columns: Names of all columns of the table but the targets.
        names: Of the columns used, encoded ones included.
        parents: Of each of them the column of the table that it comes from.
        values: Standardised by ``shift`` and ``scale``, NaN where missing: all rows, or a part of them, (n', d).
        sampled: Whether ``values`` holds only a part of the rows.
        heavy: Of a sampled table, the rows furthest from the mean: their numbers and, standardised, their values.
        shift, scale: Of each column used, (d,): mean and deviation over all rows.
        parts: Moments of parts of the rows in their order, which together are all of them.
        kinds: What is known of each column of the table.
        constant: Names of columns with one value.
        set_aside: Reason for each column that is not used and not constant.
        encoded: New names for each text column.
        targets: Cells of each target as they were read.
    """

    origin: str
    rows: int
    columns: tuple[str, ...]
    names: tuple[str, ...]
    parents: tuple[str, ...]
    values: Floats
    sampled: bool
    heavy: tuple[npt.NDArray[np.intp], Floats]
    shift: Floats
    scale: Floats
    parts: list[PairwiseMoments]
    kinds: dict[str, ColumnKind]
    constant: tuple[str, ...]
    set_aside: dict[str, str]
    encoded: dict[str, tuple[str, ...]]
    targets: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def moments(self) -> PairwiseMoments:
        """Of all rows."""
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total + part
        return total


def encoded_table(
    source: TableSource, targets: Sequence[str], codes: Sequence[str], advance: Callable[[int], None]
) -> EncodedTable:
    """Judge and encode every column.

    Args:
        source: The table.
        targets: Columns to keep apart.
        codes: Words and numbers that mean a missing value.
        advance: Told how many rows were read.

    Raises:
        ConfigurationError: An unknown target, no rows or one, infinite numbers, numbers mixed with text, or no column
            that can be used.
    """
    for target in targets:
        if target not in source.names:
            near = difflib.get_close_matches(target, source.names, 3) or list(source.names[:5])
            raise ConfigurationError(
                f"The target {target!r} is no column of {source.inside}; it has, for instance, {', '.join(near)}."
            )
    reader = CellReader(codes)
    kinds = [ColumnKind(name) for name in source.names]
    kept: list[Chunk] | None = []
    cells = 0
    found: dict[str, list[npt.NDArray[Any]]] = {target: [] for target in targets}
    for chunk in source.chunks():
        columns = list(_columns(chunk, reader))
        for kind, (numbers, texts) in zip(kinds, columns, strict=True):
            look(kind, numbers, texts)
            if kind.name in found:
                found[kind.name].append(_cells(numbers, texts))
        rows = len(columns[0][0]) if columns else 0
        cells += rows * len(kinds)
        advance(rows)
        if kept is not None:
            kept.append(chunk)
            if cells > IN_MEMORY:
                kept = None
    rows = kinds[0].rows if kinds else 0
    if rows < 2:
        raise ConfigurationError(
            f"{source.origin} holds {rows or 'no'} row{'' if rows == 1 else 's'}; correlations need two and more."
        )
    plan = _plan(source, kinds, set(targets), rows)
    again = source.chunks if kept is None else (lambda held=kept: iter(held))
    return _encoded(source, plan, kinds, rows, again, reader, kept is None, found, advance)


@dataclass
class _Plan:
    columns: tuple[str, ...]
    use: list[int]
    constant: tuple[str, ...]
    set_aside: dict[str, str]


def _plan(source: TableSource, kinds: Sequence[ColumnKind], targets: set[str], rows: int) -> _Plan:
    """Which columns are used."""
    use, constant, aside = [], [], {}
    fewest = max(fewest_common(rows), LEAST_OBSERVED * rows)
    for index, kind in enumerate(kinds):
        if kind.name in targets:
            continue
        verdict = kind.verdict()
        observed = kind.rows - kind.missing
        if verdict == "no value at all":
            aside[kind.name] = verdict
        elif verdict == "the same text everywhere" or (verdict == "number" and kind.changed is None):
            constant.append(kind.name)
        elif verdict not in ("number", "categories"):
            aside[kind.name] = verdict
        elif kind.missing and observed < fewest:
            aside[kind.name] = f"hardly observed: {observed:,} of {rows:,} rows"
        else:
            use.append(index)
    columns = tuple(kind.name for kind in kinds if kind.name not in targets)
    if not use:
        reasons = [f"{len(constant):,} constant"] if constant else []
        counts = Counter(reason.split(":")[0] for reason in aside.values())
        reasons += [f"{count:,} {reason}" for reason, count in counts.items()]
        raise ConfigurationError(
            f"No column of {source.inside} can be used: of {len(columns):,}, "
            f"{', '.join(reasons) or 'all are targets'}; "
            "correlations need columns of numbers, or of few categories, that vary."
        )
    return _Plan(columns, use, tuple(constant), aside)


def _encoded(
    source: TableSource,
    plan: _Plan,
    kinds: list[ColumnKind],
    rows: int,
    chunks: Callable[[], Iterator[Chunk]],
    reader: CellReader,
    sampled: bool,
    found: dict[str, list[npt.NDArray[Any]]],
    advance: Callable[[int], None],
) -> EncodedTable:
    encoded: dict[str, tuple[str, ...]] = {}
    names, parents = [], []
    for index in plan.use:
        kind = kinds[index]
        if kind.verdict() == "number":
            names.append(kind.name)
            parents.append(kind.name)
        else:
            nothing = np.full(0, np.nan), np.full(0, None, dtype=object)
            encoded[kind.name] = tuple(name for name, _ in one_hot(kind, *nothing))
            names += encoded[kind.name]
            parents += [kind.name] * len(encoded[kind.name])
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"{source.origin} has a column {twice[0]!r}, and a category of another column gets the same name; rename "
            "the column."
        )
    d = len(names)
    if d > MAX_FEATURES:
        raise ConfigurationError(
            f"{source.origin} has {d:,} columns with its categories encoded, but at most {MAX_FEATURES:,} are handled "
            f"(their matrix would take {8 * d**2 / 1024**3:.1f} GiB); leave out columns of many categories."
        )

    def blocks() -> Iterator[Floats]:
        for chunk in chunks():
            yield _block(chunk, plan.use, kinds, reader, d)

    if sampled:
        shift, scale = _streamed_shift(blocks)
        gaps = any(kinds[index].missing for index in plan.use)
        parts, values, heavy = _streamed(blocks, shift, scale, rows, gaps, advance)
    else:
        values = np.empty((rows, d))
        start = 0
        for block in blocks():
            values[start : start + len(block)] = block
            start += len(block)
        shift, scale = shift_and_scale(values)
        values -= shift
        values /= scale
        parts, heavy = [PairwiseMoments.of(values)], (np.arange(0), values[:0])
    targets = {name: np.concatenate(cells) for name, cells in found.items()}
    return EncodedTable(
        source.origin, rows, plan.columns, tuple(names), tuple(parents), values, sampled, heavy, shift, scale, parts,
        {kind.name: kind for kind in kinds}, plan.constant, plan.set_aside, encoded, targets,
    )  # fmt: skip


def _block(chunk: Chunk, use: Sequence[int], kinds: Sequence[ColumnKind], reader: CellReader, d: int) -> Floats:
    """Numbers of the used columns, (n, d)."""
    if isinstance(chunk, np.ndarray) and all(kinds[index].verdict() == "number" for index in use):
        chosen = chunk if len(use) == chunk.shape[1] else chunk[:, list(use)]
        return np.asarray(reader.without_codes(chosen.astype(np.float64)))
    columns = [chunk[:, index] if isinstance(chunk, np.ndarray) else chunk[index] for index in use]
    block = np.empty((len(columns[0]), d))
    place = 0
    for index, cells in zip(use, columns, strict=True):
        numbers, texts = reader.read(cells)
        if kinds[index].verdict() == "number":
            block[:, place] = numbers
            place += 1
        else:
            for _, values in one_hot(kinds[index], numbers, texts):
                block[:, place] = values
                place += 1
    return block


def _streamed_shift(blocks: Callable[[], Iterator[Floats]]) -> tuple[Floats, Floats]:
    """Mean and deviation of the first block: they need only be near those of the table."""
    return shift_and_scale(next(blocks()))


def _streamed(
    blocks: Callable[[], Iterator[Floats]],
    shift: Floats,
    scale: Floats,
    rows: int,
    gaps: bool,
    advance: Callable[[int], None],
) -> tuple[list[PairwiseMoments], Floats, tuple[npt.NDArray[np.intp], Floats]]:
    """Moments of parts of equal length, an even sample of runs of rows, and the heaviest rows with their numbers."""
    d = len(shift)
    most = int(min(MOST_PARTS, max(FEWEST_PARTS, PART_BYTES // ((4 if gaps else 1) * 8 * d * d))))
    size = -(-rows // most)
    every = max(1, -(-rows * d // SAMPLED))
    parts: list[PairwiseMoments] = []
    kept: list[Floats] = []
    heavy = np.arange(0), np.empty((0, d))
    start, filled = 0, 0
    for block in blocks():
        block -= shift
        block /= scale
        runs = (np.arange(start, start + len(block)) // RUN) % every == 0
        kept.append(block[runs])
        heavy = _heaviest(heavy, block, start)
        start += len(block)
        at = 0
        while at < len(block):
            take = min(size - filled, len(block) - at)
            moments = PairwiseMoments.of(block[at : at + take])
            if filled:
                parts[-1] = parts[-1] + moments
            else:
                parts.append(moments)
            filled = (filled + take) % size
            at += take
        advance(len(block))
    return parts, np.concatenate(kept), heavy


def _heaviest(
    heavy: tuple[npt.NDArray[np.intp], Floats], block: Floats, start: int
) -> tuple[npt.NDArray[np.intp], Floats]:
    """The rows furthest from the mean among those known so far and those of a block."""
    known = np.nan_to_num(block) if np.isnan(block).any() else block
    weights = np.einsum("ij,ij->i", known, known)
    near = np.sort(np.argpartition(-weights, min(HEAVIEST, len(block)) - 1)[:HEAVIEST])
    numbers, rows = np.concatenate([heavy[0], start + near]), np.concatenate([heavy[1], block[near]])
    first = np.argsort(-np.nansum(rows * rows, axis=1), kind="stable")[:HEAVIEST]
    return numbers[first], rows[first]


def _columns(chunk: Chunk, reader: CellReader) -> Iterator[tuple[Floats, npt.NDArray[Any] | None]]:
    if isinstance(chunk, np.ndarray):  # columns lie together in memory: each is gone through several times
        chunk = list(np.asfortranarray(chunk).T)
    for cells in chunk:
        yield reader.read(cells)


def _cells(numbers: Floats, texts: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Cells of a target: numbers, or objects where there are texts."""
    if texts is None:
        return numbers
    cells = numbers.astype(object)
    return np.where(is_none(texts), cells, texts)
