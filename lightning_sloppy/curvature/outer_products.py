"""Inner products of per-sample gradients that are sums of outer products, in the cheaper of two orders.

With N samples, R cotangents, T positions and ``G_ri = sum_t l_rit a_rit^T`` of shape (o, d) (Goodfellow 2015 for
T = 1; Rochette, Manoel and Tramel 2019 for convolutions), half of the products by symmetry:

* "pairs" never forms a gradient: ``sum_ts (l_it . l_js)(a_it . a_js)``, some ``(N T)^2 (R^2 o + d) / 2`` operations;
* "rows" forms them, ``N R T o d`` operations, and multiplies them, ``(N R)^2 o d / 2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from lightning_sloppy.curvature.factors import ALL, Dense, Factor, OneHot, joined
from lightning_sloppy.curvature.gram_sums import GramSums

Order = Literal["pairs", "rows"]

PAIR_COST = 24
"""Operations of a matrix product that take as long as multiplying and adding up one pair of positions."""

CHUNK = 2**20
"""Numbers of a temporary on a CPU: small enough to stay in its caches."""


@dataclass(frozen=True)
class Outer:
    """The part of a weight's per-sample gradients that comes from one call, or from several alike.

    Attributes:
        left: Vectors of length o.
        right: Vectors of length d.
    """

    left: Factor
    right: Factor

    @property
    def copies(self) -> int:
        """R, or 1."""
        return max(self.left.copies, self.right.copies)

    @property
    def size(self) -> int:
        """Entries of the weight, k o d."""
        return self.left.groups * self.left.width * self.right.width

    def rows(self, samples: slice, left: slice = ALL, right: slice = ALL) -> Tensor:
        """Gradients of some samples in a part of the weight, (b, R, k, l, c)."""
        a = self.right.block(samples)[..., right]
        count, _, groups, positions, width = a.shape
        if isinstance(self.left, OneHot):
            return self._scattered(self.left.block(samples), a, left)
        g = self.left.block(samples)[..., left]
        copies, height = g.shape[1], g.shape[4]
        stacked = g.permute(0, 2, 1, 4, 3).reshape(count * groups, copies * height, positions)
        formed = stacked @ a.reshape(count * groups, positions, width)
        return formed.view(count, groups, copies, height, width).transpose(1, 2)

    def _scattered(self, places: Tensor, vectors: Tensor, rows: slice) -> Tensor:
        """Vectors (b, R, 1, T, c) added up at their places, (b, R, 1, l, c)."""
        start, stop, _ = rows.indices(self.left.width)
        inside = (places >= start) & (places < stop)
        count, copies, _, _, width = vectors.shape
        first = torch.arange(count * copies, device=places.device).view(count, copies, 1) * (stop - start)
        target = first + (places - start).where(inside, 0).unsqueeze(1)
        kept = vectors.squeeze(2) * inside[:, None, :, None]
        total = vectors.new_zeros(count * copies * (stop - start), width)
        total.index_add_(0, target.reshape(-1), kept.reshape(-1, width))
        return total.view(count, copies, 1, stop - start, width)

    def formed(self) -> Tensor:
        """Gradients of all samples in the whole weight, (n, R, k o d)."""
        parts = [
            self.rows(samples).flatten(2)
            for samples in chunks(self.left.samples, self.temporary(self.left.width, self.right.width))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def combined(self, signs: Tensor) -> Tensor:
        """The sum of all gradients, each times its sign (n, R): (k, o, d)."""
        side = self.right if isinstance(self.left, OneHot) else self.left
        total: Tensor | None = None
        for samples in chunks(side.samples, self.temporary(0, self.right.width)):
            mixed = (side.block(samples) * signs[samples, :, None, None, None]).sum(1)
            # All positions of the chunk as those of one sample.
            single = Dense(mixed.transpose(0, 1).flatten(1, 2)[None, None])
            if isinstance(self.left, OneHot):
                part = Outer(OneHot(self.left.block(samples).reshape(1, -1), self.left.width), single)
            else:
                seen = self.right.block(samples)[:, 0].transpose(0, 1).flatten(1, 2)
                part = Outer(single, Dense(seen[None, None]))
            found = part.rows(ALL)[0, 0]
            total = found if total is None else total + found
        assert total is not None
        return total

    def scale(self) -> float:
        """A bound of the size of any sum of the outer products under signs."""
        left = self.left.data.numel() ** 0.5 if isinstance(self.left, OneHot) else norm(self.left.data)
        return left * norm(self.right.data)

    def temporary(self, height: int, width: int) -> int:
        """Numbers that forming a part of one sample's gradients takes at a time."""
        return self.left.groups * (self.right.positions * self.right.width + self.copies * height * width)


def norm(values: Tensor) -> float:
    """Euclidean norm."""
    return float(torch.linalg.vector_norm(values))


def chunks(samples: int, each: int, limit: int | None = None) -> Iterator[slice]:
    """Slices of samples with temporaries of ``each`` numbers a sample."""
    step = max(1, (CHUNK if limit is None else limit) // max(each, 1))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def merged(uses: Sequence[Outer]) -> list[Outer]:
    """Several calls as one with more positions, where they are alike."""
    if len(uses) < 2:
        return list(uses)
    left, right = joined([use.left for use in uses], samples=False), joined([use.right for use in uses], samples=False)
    return list(uses) if left is None or right is None else [Outer(left, right)]


def behind(batches: Sequence[Sequence[Outer]]) -> list[list[Outer]]:
    """The uses of several batches as those of one, where they are alike."""
    if len({len(uses) for uses in batches}) > 1:
        return [list(uses) for uses in batches]
    whole = []
    for calls in zip(*batches, strict=True):
        left = joined([use.left for use in calls], samples=True)
        right = joined([use.right for use in calls], samples=True)
        if left is None or right is None:
            return [list(uses) for uses in batches]
        whole.append(Outer(left, right))
    return [whole]


def compressed(batches: Sequence[Sequence[Outer]]) -> list[list[Outer]]:
    """The same with only those rows of a table that some sample uses, where the weight is nothing but a table."""
    factors = [use.left for uses in batches for use in uses]
    if not all(isinstance(factor, OneHot) for factor in factors):
        return [list(uses) for uses in batches]
    used, places = torch.unique(torch.cat([factor.data.reshape(-1) for factor in factors]), return_inverse=True)
    parts = iter(places.split([factor.data.numel() for factor in factors]))
    return [
        [Outer(OneHot(next(parts).view(use.left.data.shape), len(used)), use.right) for use in uses] for uses in batches
    ]


def cheaper(uses: Sequence[Outer], samples: int) -> Order:
    """The order with fewer operations for N samples like those of these uses."""
    size, groups = uses[0].size, uses[0].left.groups
    copies = max(use.copies for use in uses)
    positions = sum(use.left.positions for use in uses)
    pairs = PAIR_COST * (positions * copies) ** 2 if positions > 1 else copies**2
    for side in ("left", "right"):
        factors: list[Factor] = [getattr(use, side) for use in uses]
        vectors = sum(factor.copies * factor.positions for factor in factors)
        pairs += vectors * sum(
            factor.copies * factor.positions * (1 if isinstance(factor, OneHot) else factor.width) for factor in factors
        )
    form = sum(
        use.copies * use.left.positions * (use.right.width if isinstance(use.left, OneHot) else size) for use in uses
    )
    return "pairs" if samples * groups * pairs / 2 < form + samples * copies**2 * size / 2 else "rows"


def add_by_rows(sums: GramSums, name: str, batches: Sequence[Sequence[Outer]], budget: int) -> None:
    """Form the gradients in parts of at most ``budget`` numbers for all samples together, and multiply them."""
    first = batches[0][0]
    groups, height, width = first.left.groups, first.left.width, first.right.width
    each = sums.samples * sums.copies * groups
    columns = min(width, max(1, budget // each))
    lines = min(height, max(1, budget // (each * columns)))
    for top, side in product(range(0, height, lines), range(0, width, columns)):
        left, right = slice(top, min(top + lines, height)), slice(side, min(side + columns, width))
        parts = [
            sum(use.rows(samples, left, right) for use in uses)
            for uses in batches
            for samples in chunks(uses[0].left.samples, sum(use.temporary(lines, columns) for use in uses))
        ]
        sums.add_rows({name: torch.cat([part for part in parts if isinstance(part, Tensor)])})


@dataclass(frozen=True)
class _Unit:
    """Rows taken together: some samples with all cotangents, or one sample with some."""

    uses: Sequence[Outer]
    samples: slice
    copies: slice
    row: tuple[int, int]


def add_by_pairs(sums: GramSums, name: str, batches: Sequence[Sequence[Outer]], limit: int | None = None) -> None:
    """Multiply all pairs of positions, in blocks of at most ``limit`` numbers, without forming a gradient."""
    side = max(1, isqrt((CHUNK if limit is None else limit) // batches[0][0].left.groups))
    units = list(_units(batches, sums.copies, side))
    for index, first in enumerate(units):
        for second in units[: index + 1]:
            height, width = (
                (unit.samples.stop - unit.samples.start) * (unit.copies.stop - unit.copies.start)
                for unit in (first, second)
            )
            total: Tensor | None = None
            for u, v in product(first.uses, second.uses):
                for t, s in product(chunks(u.left.positions, 1, side), chunks(v.left.positions, 1, side)):
                    part = _products(u, first, t, v, second, s).reshape(height, width)
                    total = part if total is None else total + part
            assert total is not None
            sums.add_block(name, first.row, second.row, total)


def _units(batches: Sequence[Sequence[Outer]], copies: int, side: int) -> Iterator[_Unit]:
    start = 0
    for uses in batches:
        positions = min(side, max(use.left.positions for use in uses))
        most = max(1, side // positions)
        count = uses[0].left.samples
        for samples in chunks(count, copies, most):
            for part in chunks(copies, 1, most):
                yield _Unit(uses, samples, part, (start + samples.start, part.start))
        start += count


def _products(u: Outer, first: _Unit, t: slice, v: Outer, second: _Unit, s: slice) -> Tensor:
    """Inner products of gradients, (b, R, b', R'), from the positions t and s alone."""
    left = _inner(u.left, first, t, v.left, second, s)
    right = _inner(u.right, first, t, v.right, second, s)
    products = left * right
    if products.shape[3] * products.shape[6] > 1:
        products = products.sum(6).sum(3)
    return products.sum(0) if len(products) > 1 else products[0]


def _inner(x: Factor, first: _Unit, t: slice, y: Factor, second: _Unit, s: slice) -> Tensor:
    """Inner products of vectors, (k, b, R, t, b', R', s); truth values where both are one-hot."""
    a, b = x.block(first.samples, first.copies, t), y.block(second.samples, second.copies, s)
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        return (a.flatten()[:, None] == b.flatten()).view(1, len(a), 1, -1, len(b), 1, b.shape[1])
    if isinstance(x, OneHot):
        return _inner(y, second, s, x, first, t).permute(0, 4, 5, 6, 1, 2, 3)
    flat = a.permute(2, 0, 1, 3, 4).reshape(a.shape[2], -1, a.shape[4])
    shape = (len(flat), a.shape[0], a.shape[1], a.shape[3])
    if isinstance(y, OneHot):
        return flat.index_select(2, b.flatten()).view(*shape, len(b), 1, b.shape[1])
    other = b.permute(2, 0, 1, 3, 4).reshape(b.shape[2], -1, b.shape[4])
    return (flat @ other.mT).view(*shape, b.shape[0], b.shape[1], b.shape[3])
