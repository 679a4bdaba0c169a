"""Moments of several blocks of rows in one pass: their unions are all rows, the first half, and random halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.inputs.incomplete import IncompleteMoments, Missing, model_moments, pairwise_moments
from lightning_sloppy.inputs.moments import InputMoments, Moments, gather_filled, join_moments, parts_of, unpacked
from lightning_sloppy.inputs.pairwise import Floats, PairwiseMoments
from lightning_sloppy.inputs.rows import refuse_infinite, refuse_non_finite
from lightning_sloppy.inputs.shifted_pairs import MOST_PAIRED, ShiftedPairs, common_shift, joined_pairs

MOST_RESAMPLED = 1_024
"""Features up to which halves are resampled: eight spectra of halves are then a fraction of the cost of the rest."""

FEW_FEATURES, SOME_FEATURES = 128, 512
"""Features up to which there are 32 blocks with 31 pairs of halves, and 8 with 7; above, 8 with 4."""

FEWEST_ROWS = 2
"""Rows for each feature below which no half is resampled: a half then has fewer rows than features."""

FEWEST_IN_BLOCK = 2

MOST_KEPT = 50_000_000
"""Cells that are kept for the Gaussian model: 400 MB."""

PLAIN_BLOCKS = 2
"""Blocks where no half is resampled: the first half of the rows, and the rest."""

AnyMoments = Moments | IncompleteMoments


def number_of_blocks(rows: int, features: int, *, resampled: bool) -> int:
    """How many blocks so many rows are divided into: 2, or a power of two up to 32 for random halves of them.

    >>> number_of_blocks(50_000, 784, resampled=True), number_of_blocks(40, 6, resampled=True)
    (8, 16)
    """
    if not resampled or features > MOST_RESAMPLED or rows < FEWEST_ROWS * features:
        return PLAIN_BLOCKS
    for count in (32, 16, 8) if features <= FEW_FEATURES else (8,):
        if rows >= FEWEST_IN_BLOCK * count:
            return count
    return PLAIN_BLOCKS


def halves_of_blocks(count: int, features: int) -> list[tuple[list[int], list[int]]]:
    """Pairs of halves of the blocks, such that the two halves differ from every other pair's by orthogonal contrasts.

    The rows of a Hadamard matrix give them (balanced repeated replication; McCarthy, Review of the International
    Statistical Institute 37, 1969): every pair then is an independent look at the error of a number that is nearly
    linear in the blocks.

    Args:
        count: Blocks; a number that is no power of two, or below 8, has no halves.
        features: d, which limits how many pairs are worth their cost.
    """
    if count < 8 or count & (count - 1):
        return []
    most = 4 if features > SOME_FEATURES else count - 1
    signs = linalg.hadamard(count)[1 : most + 1]
    return [(np.flatnonzero(row > 0).tolist(), np.flatnonzero(row < 0).tolist()) for row in signs]


@dataclass
class MomentBlocks:
    """Moments of blocks of rows, complete or with missing values, gathered chunk by chunk.

    As long as no value is missing every block is an :class:`InputMoments`, at the cost of one product. A block that
    meets a missing value goes on with :class:`ShiftedPairs`.

    Args:
        missing: "error" refuses missing values, "pairwise" and "em" take them.
        device: Where complete rows are multiplied. Pairs are always on the CPU.

    Attributes:
        features: d; None before the first row.
    """

    missing: Missing = "error"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    features: int | None = None
    _complete: dict[int, InputMoments] = field(default_factory=dict)
    _pairs: dict[int, ShiftedPairs] = field(default_factory=dict)
    _kept: list[Floats] = field(default_factory=list)
    _cells: int = 0

    def check(self, rows: Tensor) -> bool:
        """Whether a chunk of rows (n, d) is complete.

        Raises:
            ConfigurationError: Another number of features than before, infinite or (with "error") missing values.
        """
        if self.features not in (None, rows.shape[1]):
            raise ConfigurationError(
                f"The moments hold {self.features} features, but this batch has {rows.shape[1]} when flattened; "
                "give every input the same shape (resize, crop or pad)."
            )
        self.features = rows.shape[1]
        # A sum is finite only if its terms are, and costs a fraction of looking at each of them.
        if not rows.is_floating_point() or bool(torch.isfinite(rows.sum(dim=0)).all()):
            return True
        if self.missing == "error":
            refuse_non_finite(rows)
            return True
        refuse_infinite(rows)
        if not bool(torch.isnan(rows).any()):
            return True  # the sum overflowed
        if self.features > MOST_PAIRED:
            raise ConfigurationError(
                f"Some of {self.features:,} features have missing values, which are handled up to {MOST_PAIRED:,} "
                "features; fill them, or select features first."
            )
        return False

    def add(self, rows: Tensor, blocks: Sequence[int], cuts: Sequence[int]) -> None:
        """Add a chunk of rows (n, d).

        Args:
            rows: Floating-point or uint8.
            blocks: The block of each part of the chunk.
            cuts: Where each part begins, and n.
        """
        complete = self.check(rows)
        if self.missing == "em":
            self._keep(rows)
        for block, start, end in zip(blocks, cuts[:-1], cuts[1:], strict=True):
            if end > start:
                self._add(block, rows[start:end], complete)

    def deal(self, rows: Tensor, count: int) -> None:
        """Add a chunk of rows, dealt out to blocks in turn: for streams of which the length is not known."""
        complete = self.check(rows)
        if self.missing == "em":
            self._keep(rows)
        for block in range(count):
            if len(rows) > block:
                self._add(block, rows[block::count], complete)

    def gathered(self, count: int, over_ranks: Callable[[Any], list[Any]] | None = None) -> Gathered:
        """What was added, over all processes.

        Args:
            count: Number of blocks.
            over_ranks: Gathers an object from all processes; None for one process. All of them must call this.

        Raises:
            ConfigurationError: No row at all, or other numbers of features elsewhere.
        """
        own: tuple[int | None, bool] = (self.features, bool(self._pairs))
        said = [own] if over_ranks is None else over_ranks(own)
        widths = sorted({width for width, _ in said if width is not None})
        if not widths:
            raise ConfigurationError("The moments of the inputs were asked for before any sample; update them first.")
        if len(widths) > 1:
            raise ConfigurationError(
                f"Moments of {' and '.join(map(str, widths))} features were to be joined; give every rank inputs of "
                "the same shape."
            )
        features = int(widths[0])
        alone = over_ranks is None
        if not any(paired for _, paired in said):
            empty = torch.zeros(0, 0, dtype=torch.float64, device=self.device)
            packed = [self._complete[block].packed if block in self._complete else empty for block in range(count)]
            if not alone:
                packed = [join_moments(gather_filled(part)) for part in packed]
            return Gathered(features, packed=[part for part in packed if part.numel()])
        pairs = [self._as_pairs(block, features) for block in range(count)]
        if over_ranks is not None:
            pairs = [_over_ranks(part, over_ranks) for part in pairs]
        filled = [part for part in pairs if part.rows]
        values = np.concatenate(self._kept) if self.missing == "em" else None
        return Gathered(features, pairs=filled, values=values)

    def _add(self, block: int, rows: Tensor, complete: bool) -> None:
        if complete and block not in self._pairs:
            if block not in self._complete:
                self._complete[block] = InputMoments(sync_on_compute=False).to(self.device)
            self._complete[block].add(rows)
            return
        self._pairs[block] = pairs = self._as_pairs(block, rows.shape[1])
        self._complete.pop(block, None)
        pairs.add(rows.detach().to("cpu", torch.float64).numpy())

    def _as_pairs(self, block: int, features: int) -> ShiftedPairs:
        if block in self._pairs:
            return self._pairs[block]
        if block not in self._complete:
            return ShiftedPairs.empty(features)
        scatter, offset, shift, count = parts_of(self._complete[block].packed.cpu())
        return ShiftedPairs.of_complete(int(count), shift.numpy(), offset.numpy(), scatter.numpy())

    def _keep(self, rows: Tensor) -> None:
        self._cells += rows.numel()
        if self._cells > MOST_KEPT:
            raise ConfigurationError(
                f"missing='em' keeps all rows in memory, at most {MOST_KEPT:,} cells; lower max_samples, or pass "
                "missing='pairwise'."
            )
        self._kept.append(rows.detach().to("cpu", torch.float64).numpy())


@dataclass
class Gathered:
    """Blocks of rows of which any union has moments.

    Attributes:
        features: d.
        packed: States of complete blocks, or none.
        pairs: Those of blocks with missing values, or none.
        values: All rows, for the Gaussian model; else None.
    """

    features: int
    packed: list[Tensor] = field(default_factory=list)
    pairs: list[ShiftedPairs] = field(default_factory=list)
    values: Floats | None = None

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.packed) or len(self.pairs)

    def whole(self) -> AnyMoments:
        """Moments of all rows."""
        if self.packed:
            return unpacked(join_moments(self.packed))
        pairs = joined_pairs(self.pairs)
        return pairwise_moments(pairs) if self.values is None else model_moments(self.values, pairs)

    def first_half(self, whole: AnyMoments) -> AnyMoments | None:
        """Moments of the first half of the blocks; None where a half has fewer than two rows, or for the model."""
        found = None if self.values is not None else self._of(range(self.count // 2), whole)
        return None if found is None or found.num_samples < 2 else found

    def halves(self, whole: AnyMoments) -> Iterator[tuple[AnyMoments, AnyMoments]]:
        """Random halves of the rows, each with the other half; nothing for the Gaussian model."""
        if self.values is None:
            for first, second in halves_of_blocks(self.count, self.features):
                pair = self._of(first, whole), self._of(second, whole)
                assert pair[0] is not None
                assert pair[1] is not None
                yield pair[0], pair[1]

    def _of(self, blocks: Sequence[int], whole: AnyMoments) -> AnyMoments | None:
        if not blocks:
            return None
        if self.packed:
            return unpacked(join_moments([self.packed[block] for block in blocks]))
        like = whole if isinstance(whole, IncompleteMoments) else None
        joined = joined_pairs([self.pairs[block] for block in blocks])
        return pairwise_moments(joined, like=like) if joined.rows > 1 else None


def _over_ranks(own: ShiftedPairs, over_ranks: Callable[[Any], list[Any]]) -> ShiftedPairs:
    """The rows of all processes: they agree on a shift, then their sums are added."""
    shift = common_shift([np.asarray(each) for each in over_ranks(own.shift)])
    moved = None if own.moments is None else own.moved(shift)
    parts = [part for part in over_ranks(moved) if isinstance(part, PairwiseMoments)]
    total = parts[0] if parts else None
    for part in parts[1:]:
        assert total is not None
        total = total + part
    return ShiftedPairs(shift, total)
