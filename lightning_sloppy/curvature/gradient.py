"""The gradient of the mean loss over the whole probe."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sloppy.curvature.double_backward import backward_in_eval
from lightning_sloppy.curvature.parameters import ParameterLayout, grad
from lightning_sloppy.evaluation.batches import Batch
from lightning_sloppy.evaluation.objective import Objective


def mean_gradient(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> Tensor:
    """``grad (1/W) sum_i w_i loss_i``, (p,), batch by batch."""
    leaves = layout.leaves(objective.module, objective.dtype)
    total = torch.zeros(layout.dim, dtype=objective.dtype, device=objective.device)

    def add() -> None:
        for batch, fraction in zip(batches, objective.batch_fractions(batches), strict=True):
            if fraction > 0:
                parts = grad([objective.loss(leaves, batch) * fraction], list(leaves.values()))
                if any(part is not None for part in parts):
                    total.add_(layout.flatten(parts))

    with backward_in_eval(objective.module):
        objective.swapped(leaves, add)
    return objective.add_up(total)
