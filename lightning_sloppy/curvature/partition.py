"""The part of one measurement that each rank computes: some of the samples, or some of the layers."""

from __future__ import annotations

from itertools import accumulate

from torch import Tensor

from lightning_sloppy.curvature.micro_batches import divisible
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, cut, map_batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import Ranks, gathered_over_ranks


def samples_of_rank(ranks: Ranks, objective: Objective, batches: list[Batch]) -> tuple[list[Batch], int]:
    """This rank's part of the probe, a run of samples that may be empty, and the number of its first one.

    A product is a sum over samples, so each rank makes its part and one reduction gives the whole. Batches that cannot
    be cut (see :func:`divisible`) are shared out whole.

    Args:
        ranks: This process among those that hold the same module and the same probe.
        objective: Module and loss, of this rank alone.
        batches: The whole probe, prepared.
    """
    if ranks.count == 1:
        return batches, 0
    ends = list(accumulate(map(sample_count, batches)))
    leaves = ParameterLayout.of(objective.module).leaves(objective.module, objective.dtype)
    # By one decision: a rank that rounds otherwise must not count samples that others count.
    if ranks.least(divisible(objective, leaves, batches, max(ends[-1] // ranks.count, 1))):
        low, high = (ends[-1] * which // ranks.count for which in (ranks.rank, ranks.rank + 1))
    else:
        low, high = ([0, *ends][len(batches) * which // ranks.count] for which in (ranks.rank, ranks.rank + 1))
    mine: list[Batch] = []
    for batch, end in zip(batches, ends, strict=True):
        start = end - sample_count(batch)
        rows = slice(max(low, start) - start, min(high, end) - start)
        if rows.start < rows.stop:
            mine.append(batch if rows.stop - rows.start == sample_count(batch) else cut(batch, rows))
    return mine, low


def layers_of_rank(ranks: Ranks, layout: ParameterLayout) -> ParameterLayout:
    """This rank's part of the parameters: whole layers, the largest first to the rank that has the least.

    A Gram matrix is a sum over parameters; samples cannot be shared out, for every one meets every other.
    """
    loads = [0] * ranks.count
    mine: list[int] = []
    for indices in sorted(layout.layers().values(), key=lambda found: -layout.part(found).dim):
        lightest = loads.index(min(loads))
        loads[lightest] += layout.part(indices).dim
        mine += indices if lightest == ranks.rank else ()
    return layout.part(sorted(mine))


def gathered_batches(ranks: Ranks, batches: list[Batch]) -> list[Batch]:
    """The batches of all ranks, in the order of the ranks, on the CPU; every rank must call it. Alone, one's own."""
    if ranks.count == 1:
        return batches
    parts = gathered_over_ranks([map_batch(Tensor.cpu, batch) for batch in batches])
    return [batch for part in parts for batch in part]
