"""Inner products of per-sample gradients that are sums of outer products, in the cheaper of two orders.

With N samples, R cotangents, T positions and ``G_ri = sum_t l_rit a_rit^T`` of shape (o, d), half of the products by
symmetry:

* "pairs" never forms a gradient: ``sum_ts (l_it . l_js)(a_it . a_js)``, some ``(N T)^2 (R^2 o + d) / 2`` operations
  (Goodfellow 2015 for T = 1);
* "rows" forms them, ``N R T o d`` operations, and multiplies them, ``(N R)^2 o d / 2``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt, prod
from typing import Literal

from torch import Tensor

from lightning_sloppy.curvature.gram.factors import Factor, OneHot
from lightning_sloppy.curvature.gram.outer_products import Outer, behind, chunks, compressed, write_sum
from lightning_sloppy.curvature.gram.sums import GramSums

Order = Literal["pairs", "rows"]

ENTRY_COST = 50
"""Number of operations of a matrix product that take as long as writing and reading one number (measured)."""

PAIRS = 2**18
"""Pairs of positions that a CPU multiplies at a time; four times as many take a tenth more."""

PART = 2**23
"""Numbers of formed gradients that a CPU multiplies at a time."""


def cheaper(uses: Sequence[Outer], samples: int) -> Order:
    """The order with fewer operations for N samples like those of these uses."""
    size, groups = uses[0].size, uses[0].left.groups
    copies = max(use.copies for use in uses)
    positions = sum(use.left.positions for use in uses)
    pairs = ENTRY_COST * (positions * copies) ** 2 if positions > 1 else copies**2
    for side in ("left", "right"):
        factors: list[Factor] = [getattr(use, side) for use in uses]
        vectors = sum(factor.copies * factor.positions for factor in factors)
        pairs += vectors * sum(
            factor.copies * factor.positions * (1 if isinstance(factor, OneHot) else factor.width) for factor in factors
        )
    form = ENTRY_COST * copies * size + sum(
        use.copies * use.left.positions * (use.right.width if isinstance(use.left, OneHot) else size) for use in uses
    )
    return "pairs" if samples * groups * pairs / 2 < form + samples * copies**2 * size / 2 else "rows"


def kept_apart(uses: Sequence[Outer], samples: int) -> bool:
    """Whether factors are kept until all samples are there: when gradients are never formed, or would be larger."""
    stored = sum(factor.data[:1].numel() for use in uses for factor in (use.left, use.right))
    return cheaper(uses, samples) == "pairs" or stored < uses[0].copies * uses[0].size


def add_weight(sums: GramSums, name: str, batches: Sequence[Sequence[Outer]], budget: int) -> None:
    """Add the inner products of the gradients of one weight.

    Args:
        sums: Where they go.
        name: The weight.
        batches: Its uses in each batch.
        budget: Numbers that temporaries may hold.
    """
    joint = compressed(behind(batches))
    add = add_by_pairs if cheaper(joint[0], sums.samples) == "pairs" else add_by_rows
    add(sums, name, joint, budget)


def add_by_rows(sums: GramSums, name: str, batches: Sequence[Sequence[Outer]], budget: int) -> None:
    """Form the gradients in parts of at most ``budget`` numbers for all samples together, and multiply them."""
    first = batches[0][0]
    groups, height, width = first.left.groups, first.left.width, first.right.width
    each = sums.samples * sums.copies * groups
    budget = min(budget, PART) if sums.device.type == "cpu" else budget
    columns = min(width, max(1, budget // each))
    lines = min(height, max(1, budget // (each * columns)))
    memory = first.right.data.new_empty(each * lines * columns)
    for top, side in product(range(0, height, lines), range(0, width, columns)):
        left, right = slice(top, min(top + lines, height)), slice(side, min(side + columns, width))
        shape = (sums.samples, sums.copies, groups, left.stop - left.start, right.stop - right.start)
        formed = memory[: prod(shape)].view(shape)
        start = 0
        for uses in batches:
            count = uses[0].left.samples
            write_sum(uses, formed[start : start + count], left, right)
            start += count
        sums.add_rows({name: formed})


@dataclass(frozen=True)
class _Unit:
    """Rows taken together: some samples with all cotangents, or one sample with some."""

    uses: Sequence[Outer]
    samples: slice
    copies: slice
    row: tuple[int, int]


def add_by_pairs(sums: GramSums, name: str, batches: Sequence[Sequence[Outer]], budget: int) -> None:
    """Multiply all pairs of positions, at most ``budget`` at a time, without forming a gradient."""
    budget = min(budget, PAIRS) if sums.device.type == "cpu" else budget
    side = max(1, isqrt(budget // batches[0][0].left.groups))
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
