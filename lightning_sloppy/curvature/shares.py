"""What each of several ranks does of one measurement: some of the samples, or some of the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, distributed

from lightning_sloppy.curvature.batches import cut, divisible
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import Batch, map_batch, sample_count
from lightning_sloppy.evaluation.objective import Objective
from lightning_sloppy.evaluation.ranks import gathered_over_ranks, sum_over_ranks


@dataclass(frozen=True)
class Ranks:
    """This process among the others, all of which hold the same module and the same probe.

    Attributes:
        rank: Of this process.
        count: Of processes.
        add_up: The sum of every rank's tensor.
    """

    rank: int
    count: int
    add_up: Callable[[Tensor], Tensor]

    @classmethod
    def of_the_group(cls) -> Ranks:
        """This process in the default group of :mod:`torch.distributed`."""
        return cls(distributed.get_rank(), distributed.get_world_size(), sum_over_ranks)

    def samples(self, objective: Objective, batches: list[Batch]) -> tuple[list[Batch], int]:
        """This rank's part of the probe, a run of samples that may be empty, and the number of its first one.

        A product is a sum over samples, so each rank makes its part and one reduction gives the whole. Batches that
        cannot be cut (see :func:`divisible`) are shared out whole.
        """
        ends = list(accumulate(map(sample_count, batches)))
        leaves = ParameterLayout.of(objective.module).leaves(objective.module, objective.dtype)
        may = divisible(objective, leaves, batches, max(ends[-1] // self.count, 1))
        # By one decision: a rank that rounds otherwise must not count samples that others count.
        if float(self.add_up(torch.tensor(float(may), device=objective.device))) == self.count:
            low, high = (ends[-1] * which // self.count for which in (self.rank, self.rank + 1))
        else:
            low, high = ([0, *ends][len(batches) * which // self.count] for which in (self.rank, self.rank + 1))
        mine: list[Batch] = []
        for batch, end in zip(batches, ends, strict=True):
            start = end - sample_count(batch)
            rows = slice(max(low, start) - start, min(high, end) - start)
            if rows.start < rows.stop:
                mine.append(batch if rows.stop - rows.start == sample_count(batch) else cut(batch, rows))
        return mine, low

    def layers(self, layout: ParameterLayout) -> ParameterLayout:
        """This rank's part of the parameters: whole layers, the largest first to the rank that has the least.

        A Gram matrix is a sum over parameters; samples cannot be shared out, for every one meets every other.
        """
        loads = [0] * self.count
        mine: list[int] = []
        for indices in sorted(layout.layers().values(), key=lambda found: -layout.part(found).dim):
            lightest = loads.index(min(loads))
            loads[lightest] += layout.part(indices).dim
            mine += indices if lightest == self.rank else ()
        return layout.part(sorted(mine))


def everybodys(batches: list[Batch]) -> list[Batch]:
    """The batches of all ranks, in the order of the ranks, on the CPU; every rank must call it."""
    parts = gathered_over_ranks([map_batch(Tensor.cpu, batch) for batch in batches])
    return [batch for part in parts for batch in part]
