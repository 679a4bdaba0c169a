"""Per-sample gradients of weights as sums of outer products (Goodfellow 2015), formed in parts when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sloppy.curvature.gram.factors import ALL, Dense, Factor, OneHot, joined

CHUNK = 2**20
"""Numbers of the patches that gradients are formed from at a time: they stay in the caches of a CPU."""


@dataclass(frozen=True)
class Outer:
    """The part of a weight's per-sample gradients that comes from one call, or from several alike.

    Attributes:
        left: Vectors of length o.
        right: Vectors of length d.
        transposed: Whether the weight is stored as (d, o); no inner product depends on it.
    """

    left: Factor
    right: Factor
    transposed: bool = False

    @property
    def copies(self) -> int:
        """R, or 1."""
        return max(self.left.copies, self.right.copies)

    @property
    def size(self) -> int:
        """Entries of the weight, k o d."""
        return self.left.groups * self.left.width * self.right.width

    def write(self, target: Tensor, left: slice = ALL, right: slice = ALL) -> None:
        """Write the gradients of all samples in a part of the weight into (n, R, k, l, c), contiguous."""
        each = self.left.groups * (self.right.positions * self.right.width + target[0].numel())
        for samples in chunks(len(target), each, CHUNK):
            part = target[samples]
            if isinstance(self.left, OneHot):
                self._scatter(part.zero_(), self.left.block(samples), self.right.block(samples)[..., right], left)
                continue
            stacked, a = self._operands(samples, left, right)
            if self.copies == 1 or self.left.groups == 1:
                torch.bmm(stacked, a, out=part.view(len(stacked), stacked.shape[1], a.shape[2]))
            else:
                split = (stacked @ a).view(len(part), self.left.groups, self.copies, -1, a.shape[2])
                part.copy_(split.transpose(1, 2))

    def _operands(self, samples: slice, left: slice, right: slice) -> tuple[Tensor, Tensor]:
        """Matrices (b k, R l, T) and (b k, T, c) whose products are the gradients."""
        g, a = self.left.block(samples)[..., left], self.right.block(samples)[..., right]
        return g.permute(0, 2, 1, 4, 3).flatten(2, 3).flatten(0, 1), a[:, 0].flatten(0, 1)

    @staticmethod
    def _scatter(target: Tensor, places: Tensor, vectors: Tensor, rows: slice) -> None:
        """Add vectors (b, R, 1, T, c) at their places (b, T) to zeros (b, R, 1, l, c)."""
        count, copies, _, height, width = target.shape
        start = rows.start or 0
        inside = (places >= start) & (places < start + height)
        first = torch.arange(count * copies, device=places.device).view(count, copies, 1) * height
        where = first + (places - start).where(inside, 0).unsqueeze(1)
        kept = vectors.squeeze(2) * inside[:, None, :, None]
        target.view(-1, width).index_add_(0, where.reshape(-1), kept.reshape(-1, width))

    def combined(self, factors: Tensor) -> Tensor:
        """The sum of all gradients, each times a factor (n, R): (k, o, d), or transposed."""
        side = self.right if isinstance(self.left, OneHot) else self.left
        total = side.data.new_zeros(1, 1, self.left.groups, self.left.width, self.right.width)
        part = torch.empty_like(total)
        for samples in chunks(side.samples, self.right.positions * self.right.width * self.left.groups, CHUNK):
            mixed = (side.block(samples) * factors[samples, :, None, None, None]).sum(1)
            # All positions of the chunk as those of one sample.
            single = Dense(mixed.transpose(0, 1).flatten(1, 2)[None, None])
            if isinstance(self.left, OneHot):
                Outer(OneHot(self.left.block(samples).reshape(1, -1), self.left.width), single).write(part)
            else:
                seen = self.right.block(samples)[:, 0].transpose(0, 1).flatten(1, 2)
                Outer(single, Dense(seen[None, None])).write(part)
            total += part
        return total[0, 0].mT if self.transposed else total[0, 0]

    def scale(self) -> float:
        """A bound on the size of the sum of the outer products, for any signs."""
        left = self.left.data.numel() ** 0.5 if isinstance(self.left, OneHot) else norm(self.left.data)
        return left * norm(self.right.data)


def norm(values: Tensor) -> float:
    """Euclidean norm."""
    return float(torch.linalg.vector_norm(values))


def chunks(samples: int, each: int, limit: int) -> Iterator[slice]:
    """Slices of samples with temporaries of ``each`` numbers a sample, together below the limit."""
    step = max(1, limit // max(each, 1))
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


def write_sum(uses: Sequence[Outer], target: Tensor, left: slice = ALL, right: slice = ALL) -> None:
    """Write the sum of several uses as :meth:`Outer.write` does."""
    for index, use in enumerate(uses):
        part = target if index == 0 else torch.empty_like(target)
        use.write(part, left, right)
        if index > 0:
            target += part
