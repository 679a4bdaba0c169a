"""Detect what the mean of a loss is over: samples, valid labels, or weights among the targets.

If the samples have weights w, the loss of a batch is ``(W_1 l_1 + W_2 l_2) / (W_1 + W_2)``, from those of two parts of
it. So the weights of an unknown loss can be found by evaluating it on samples whose weights would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_sloppy.evaluation.batches import (
    AnyBatch,
    as_pair,
    cut,
    joined,
    picked,
    private,
    rows_in,
    sample_count,
    some_of,
)
from lightning_sloppy.evaluation.inner_loss import IGNORED
from lightning_sloppy.evaluation.loss_checks import AGREEMENT
from lightning_sloppy.evaluation.nests import leaves_of
from lightning_sloppy.evaluation.ranks import gathered_over_ranks
from lightning_sloppy.evaluation.sample_rows import moved
from lightning_sloppy.evaluation.target_weights import TargetWeights
from lightning_sloppy.evaluation.weights import known_loss

if TYPE_CHECKING:
    from lightning_sloppy.evaluation.objective import Objective

COMPARED_SAMPLES = 8
"""Samples on which a loss shows whether it is a mean: all of a large probe would cost as much as a gradient."""

MOST_CANDIDATES = 8
"""Ways to weigh samples that are tried, each for three evaluations of a few samples."""

MOST_ENTRIES = 2**22
"""Entries of a target, summed to see whose samples would weigh more."""

UNTOLD = (
    "Whether the loss is a mean over samples or over valid labels cannot be determined from these batches, because "
    "their shapes differ. They are weighted by their sample counts; pass sample_weights= if it is a mean over labels."
)
"""Note if weights by labels would differ between batches, but not between the samples of any one batch."""

WeightsOf = Callable[[AnyBatch], Tensor]


def checked_reduction_of(objective: Objective, batches: Sequence[AnyBatch]) -> str:
    """Compare the loss of some samples with the losses of two parts of them, to detect a mean or a sum.

    If the loss is a sum over samples, this is recorded in the objective, which then divides by their number. A mean
    over valid labels, or with weights among the targets, is recorded as well.

    Returns:
        A sentence about weights that are not known; empty if they are known or cannot be determined.
    """
    known = known_loss(objective.loss_fn)
    if known is not None and known.reduction == "sum":
        objective.reduction = "sum"
        return ""
    whole_ones = [batch for batch in batches if sample_count(batch) > 1 and rows_in(batch).divisible]
    if objective.loss_fn is None or not whole_ones:
        return ""
    few = some_of(whole_ones[0], COMPARED_SAMPLES)
    half = sample_count(few) // 2
    splits = _losses(objective, [(few, cut(few, slice(0, half)), cut(few, slice(half, sample_count(few))))])
    if splits and splits[0].adds_up():
        objective.reduction = "sum"
        return ""
    candidates: list[TargetWeights] = []
    untold = False
    if known is None and objective.weights is None:
        found = list(_candidates(whole_ones))[:MOST_CANDIDATES]
        candidates = [weights for weights, _ in found]
        splits += _losses(objective, [parts for _, parts in found if parts is not None])
        untold = any(parts is None for _, parts in found)
    wrong = next((split for split in splits if not split.fits(objective.sample_weights)), None)
    if wrong is None and untold:
        objective.weights = _weights_of_the_equal(objective, few)
        return "" if objective.weights else UNTOLD
    if wrong is None:
        return ""
    fitting = (each for each in candidates if all(split.fits(each.of) for split in splits))
    objective.weights = next(fitting, None) if candidates else objective.weights
    if isinstance(objective.weights, TargetWeights):
        return ""
    return (
        f"The loss of a batch ({wrong.whole:.6g}) is not the mean over its samples "
        f"({wrong.expected(objective.sample_weights):.6g}). Batches are nevertheless weighted by their sample counts; "
        "pass sample_weights= if it is a mean over tokens."
    )


def _weights_of_the_equal(objective: Objective, batch: AnyBatch) -> TargetWeights | None:
    """What the usual loss of logits and labels weighs samples by that is equal to this one; None for none."""
    outputs = objective.output_values(objective.copied_parameters(), private(batch)[0])
    same = objective.equal_of_logits(outputs, batch)
    return None if same is None else same.weights


def agreed_weights(objective: Objective) -> None:
    """Let all ranks weigh their samples as the first one does that has found out how."""
    if objective.ranks.count > 1:
        mine = objective.weights if isinstance(objective.weights, TargetWeights) else None
        found = next((each for each in gathered_over_ranks(mine) if each is not None), None)
        objective.weights = objective.weights if found is None else found


Parts = tuple[AnyBatch, AnyBatch, AnyBatch]
"""Some samples, and the two parts of them."""


@dataclass(frozen=True)
class _Split:
    """The loss of some samples, and those of the two parts of them."""

    parts: Parts
    whole: float
    first: float
    second: float

    def adds_up(self) -> bool:
        """Whether it is the sum of both, and not their mean."""
        whole, first, second = self.whole, self.first, self.second
        tolerance = AGREEMENT * abs(whole)
        both = min(abs(first), abs(second)) > tolerance  # a half without valid targets says nothing
        return both and abs(whole - first - second) <= tolerance < abs(whole - (first + second) / 2)

    def expected(self, weights_of: WeightsOf) -> float:
        """What the loss of all would be with these weights."""
        weights = [float(weights_of(part).sum()) for part in self.parts[1:]]
        terms = zip(weights, (self.first, self.second), strict=True)
        return sum(w * loss for w, loss in terms if w > 0) / (sum(weights) or 1.0)

    def fits(self, weights_of: WeightsOf) -> bool:
        """Whether the loss of all is what it would be with these weights."""
        off = abs(self.whole - self.expected(weights_of))
        apart = abs(self.first - self.second)
        return off <= AGREEMENT * (abs(self.whole) + (apart if math.isfinite(apart) else 0.0)) + 1e-7


def _losses(objective: Objective, asked: Sequence[Parts]) -> list[_Split]:
    """Losses of samples and parts, where that of all is finite: here and at moved weights.

    A last layer of zeros gives every sample the same loss, and then any weights fit.
    """
    own, found = objective.copied_parameters(), []
    for parts in asked:
        for table in (own, moved(own)):
            try:
                split = _Split(parts, *(float(objective.loss_value(table, part)) for part in parts))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # a loss for batches of one size; what is wrong with the whole one the measurement says
                continue
            if math.isfinite(split.whole):
                found.append(split)
    return found


def _candidates(batches: Sequence[AnyBatch]) -> Iterator[tuple[TargetWeights, Parts | None]]:
    """Ways to weigh the samples that differ from each other, each with samples that show it."""
    few = [_affordable(batch) for batch in batches]
    seen: list[Tensor] = []
    for candidate in _readings(few):
        try:
            weights = [candidate.of(batch) for batch in few]
        except (IndexError, TypeError):  # batches of several kinds
            continue
        every = torch.cat(weights)
        if not bool(torch.isfinite(every).all()) or bool((every < 0).any()) or not every.max() > 0:
            continue
        every = every / every.max()
        if float(every.min()) > 1 - AGREEMENT or any(torch.allclose(every, other) for other in seen):
            continue
        seen.append(every)
        spreads = [float(each.max() - each.min()) for each in weights]
        place = spreads.index(max(spreads))
        if spreads[place] > 0:
            yield candidate, _unequal_parts(few[place], weights[place])
        else:
            yield candidate, _of_two_batches(few, weights)


def _of_two_batches(batches: Sequence[AnyBatch], weights: Sequence[Tensor]) -> Parts | None:
    """Samples of the batch that would weigh least beside those of the one that would most; None where shapes differ."""
    order = sorted(range(len(batches)), key=lambda place: float(weights[place].max()))
    least, most = (as_pair(some_of(batches[place], COMPARED_SAMPLES // 2)) for place in (order[0], order[-1]))
    both = joined([least, most])
    return None if both is None else (both, least, most)


def _affordable(batch: AnyBatch) -> AnyBatch:
    entries = max((leaf.numel() for leaf in leaves_of(batch[1]) if isinstance(leaf, Tensor)), default=0)
    count = sample_count(batch)
    return some_of(batch, max(COMPARED_SAMPLES, MOST_ENTRIES * count // max(entries, MOST_ENTRIES)))


def _readings(batches: Sequence[AnyBatch]) -> Iterator[TargetWeights]:
    """Every tensor of the targets as labels, some of which count for nothing, or as weights; the likeliest first."""
    leaves = [leaves_of(batch[1]) for batch in batches]
    rows = rows_in(batches[0])
    axes = rows.targets or rows.inputs
    later: list[TargetWeights] = []
    for place, leaf in enumerate(leaves[0]):
        if not isinstance(leaf, Tensor) or leaf.is_nested or leaf.is_complex() or axes[place] is None:
            continue
        for skipped in (0, 1) if leaf.ndim > 1 and leaf.shape[1] > 1 else (0,):
            if any(isinstance(each[place], Tensor) and bool(each[place].isnan().any()) for each in leaves):  # type: ignore[union-attr]
                yield TargetWeights(place, math.nan, skipped)
                continue
            if leaf.is_floating_point() or leaf.dtype == torch.bool:
                later.append(TargetWeights(place, None, skipped))
                continue
            yield TargetWeights(place, IGNORED, skipped)
            tensors = [each[place] for each in leaves if len(each) > place]
            full = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.numel()]
            ends = {int(end) for tensor in full for end in (tensor.min(), tensor.max())}
            later += [TargetWeights(place, end, skipped) for end in sorted(ends) if end != IGNORED]
    yield from later


def _unequal_parts(batch: AnyBatch, weights: Tensor) -> Parts:
    """Those that would weigh least, and one that does not, beside others that would weigh most."""
    order = weights.argsort()
    count = min(len(order), COMPARED_SAMPLES)
    least = max(count // 2 - 1, 1)
    places = torch.cat([order[:least], order[least - count :]])
    size = least + 1 if count > 2 else 1
    return tuple(picked(batch, chosen) for chosen in (places, places[:size], places[size:]))  # type: ignore[return-value]
