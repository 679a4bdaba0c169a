"""How much two sets of rows of one process differ: both are drawn in blocks from the reference, and compared.

A set is made of blocks of consecutive parts, which begin anywhere and wrap around (circular block bootstrap; Politis
and Romano 1992), until it is as long as the reference or as the later rows. Each statistic is standardised by its mean
and deviation over all resamples. The largest one of a resample, over all columns and families, is what the largest one
of the data is compared with (maxT; Westfall and Young, Resampling-Based Multiple Testing, 1993).

Few blocks make all of this too narrow. Three corrections, each exact for means of Gaussian blocks:

* B blocks differ from their mean by ``(B - 1) / B`` of their variance, and neighbours that are still alike, with a
  correlation r between blocks, spread a mean by ``(1 + r) / (1 - r)`` more than single blocks tell. The moments of
  each set are moved away from those of the reference by the root of both factors; r is estimated for each column, and
  for pairs of columns that stand out.
* A set of later rows that are fewer than the parts drawn for it is moved likewise.
* A deviation that is estimated from B blocks is uncertain: a standardised difference follows Student's distribution.
  It is mapped to the normal one before it is compared with the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lightning_sloppy.drift.differences import Columns, Differences, TopSpace, described, differences, squared
from lightning_sloppy.drift.neighbours import Neighbours, more_spread
from lightning_sloppy.inputs.pairwise import Floats
from lightning_sloppy.inputs.row_parts import CutMoments, RowParts

RESAMPLES = 500

AT_ONCE = 8_000_000
"""Numbers in the moments of the resamples that are made at once."""


@dataclass(frozen=True)
class Null:
    """Differences between sets of the reference.

    Attributes:
        blocks: B.
        length: Rows in a block.
        found: Of the resamples; without those of the single pairs.
        base: What sampling adds to the sum of the squared correlations of either set, (2,).
        neighbours: How alike neighbouring blocks are.
        pair: Deviation of the difference of each pair, (t,).
    """

    blocks: float
    length: float
    found: Differences
    base: Floats
    neighbours: Neighbours
    pair: Floats


class Sets:
    """CutMoments of sets of rows that are drawn from the reference.

    Args:
        parts: The reference.
        block: Parts in a block.
        new_rows: Rows of the later table.
        alike: Neighbours.
        columns: Which are compared.
    """

    def __init__(self, parts: RowParts, block: int, new_rows: float, alike: Neighbours, columns: Columns) -> None:
        moments = parts.moments
        self.count = len(moments.rows)
        self.block = block
        blocks = self.count / block
        few = blocks / (blocks - 1)
        each = {
            "sums": more_spread(alike.mean),
            "squares": more_spread(alike.square),
            "count": more_spread(alike.missing),
        }
        each["products"] = more_spread(alike.pair)
        each["pairs"] = np.sqrt(each["count"][columns.below[0]] * each["count"][columns.below[1]])
        self.names = [name for name in ("sums", "squares", "products", "count", "pairs")
                      if getattr(moments, name) is not None]  # fmt: skip
        self.factors = {name: np.sqrt(few * each[name]).astype(np.float32) for name in self.names}
        rows = np.asarray(moments.rows, np.float64)
        self.rows = rows
        self.centre = {name: (getattr(parts.whole, name) / parts.whole.rows).astype(np.float32) for name in self.names}
        self.values = {name: getattr(moments, name) for name in self.names}
        self.lengths = (self.count, max(1, round(new_rows / rows.mean())))
        self.shorter = (1.0, math.sqrt(self.lengths[1] * rows.mean() / new_rows))

    def weights(self, which: int, repeats: int, rng: np.random.Generator) -> Floats:
        """How often each part is drawn, (repeats, P)."""
        length = self.lengths[which]
        starts = rng.integers(self.count, size=(repeats, -(-length // self.block)))
        places = (starts[:, :, None] + np.arange(self.block)).reshape(repeats, -1)[:, :length] % self.count
        drawn: Any = np.zeros((repeats, self.count), np.float32)
        np.add.at(drawn, (np.arange(repeats)[:, None], places), 1.0)
        return np.asarray(drawn)

    def moments(self, which: int, weights: Floats) -> CutMoments:
        """Of sets with such weights, for each row."""
        rows = weights @ self.rows
        found: dict[str, Floats] = {}
        for name in self.names:
            moved = (weights @ self.values[name]) / rows.astype(np.float32)[:, None] - self.centre[name]
            found[name] = self.centre[name] + moved * (self.factors[name] * np.float32(self.shorter[which]))
        for name in set(self.names) & {"count", "pairs"}:
            found[name] = np.clip(found[name], 0.0, 1.0)
        return CutMoments(np.ones(len(weights), np.float32), **found)


def block_null(
    parts: RowParts,
    columns: Columns,
    new_rows: float,
    block: int,
    alike: Neighbours,
    top: TopSpace,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    advance: Callable[[int, int], None] | None = None,
) -> Null:
    """Compare pairs of sets that are drawn from the reference.

    Args:
        parts: The reference.
        columns: Which are compared.
        new_rows: Rows of the later table.
        block: Parts in a block.
        alike: See :func:`neighbours`.
        top: The spaces that are compared.
        seed: Of the draws.
        resamples: How many pairs.
        advance: Told how many were compared, and how many there are.
    """
    count = len(parts.moments.rows)
    sets = Sets(parts, block, new_rows, alike, columns)
    rng = np.random.default_rng(seed)
    at_once = max(1, min(resamples, AT_ONCE // (columns.d**2 + 4 * columns.d)))
    found: list[Differences] = []
    total, squares = np.zeros(len(columns.defined)), np.zeros(len(columns.defined))
    for begun in range(0, resamples, at_once):
        repeats = min(at_once, resamples - begun)
        pair = [described(sets.moments(which, sets.weights(which, repeats, rng)), columns) for which in (0, 1)]
        each = differences(pair[0], pair[1], columns, top)
        total += each.change.sum(0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", each.change, each.change, dtype=np.float64)
        found.append(replace(each, change=each.change[:, :0]))
        if advance is not None:
            advance(begun + repeats, resamples)
    joined = Differences(*(_joined([getattr(each, part.name) for each in found]) for part in fields(Differences)))
    base = np.maximum(joined.squared.mean(0) - squared(described(parts.whole, columns), columns), 0.0)
    spread = np.sqrt(np.maximum(squares - total**2 / resamples, 0.0) / max(resamples - 1, 1))
    return Null(count / block, block * float(parts.whole.rows) / count, joined, base, alike, spread)


def _joined(arrays: list[Any]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)
