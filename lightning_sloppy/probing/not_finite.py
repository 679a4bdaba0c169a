"""Find out where the first number that is not finite comes from: weights, inputs, outputs, loss, or derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from lightning_sloppy.errors import Note
from lightning_sloppy.evaluation.batches import Batch, private, sample_count
from lightning_sloppy.evaluation.nests import tensors_of
from lightning_sloppy.evaluation.objective import Objective

DERIVATIVES = (
    "Derivatives are NaN or infinite, but weights, inputs, outputs and loss are not; look for operations whose "
    "derivative is infinite, such as a root or a norm at 0."
)


def what_is_not_finite(objective: Objective, batches: Sequence[Batch], *, what: str) -> Note:
    """Say which numbers are not finite, in the order in which they would cause one another.

    Args:
        objective: Module with its loss, or without one.
        batches: The whole probe, so that every rank says the same.
        what: What was measured, such as "Hessian at step 5".

    Returns:
        A sentence with the cause "not_finite".
    """
    found = ""
    with suppress(Exception):
        prepared = objective.prepare(batches)
        found = _in_weights(objective) or _in_inputs(prepared) or _in_outputs(objective, prepared)
    return Note(f"{what}: not finite. {found or DERIVATIVES}", cause="not_finite")


def _in_weights(objective: Objective) -> str:
    named = [*objective.module.named_parameters(), *objective.module.named_buffers()]
    bad = [(name, count) for name, tensor in named if (count := _count(tensor))]
    if not bad:
        return ""
    total = sum(tensor.numel() for _, tensor in named)
    return (
        f"{sum(count for _, count in bad):,} of {total:,} weights and buffers of the module are NaN or infinite "
        f"(first: {bad[0][0]}); start from finite weights, or lower the learning rate, if the training has diverged."
    )


def _in_inputs(batches: Sequence[Batch]) -> str:
    bad = sum(_count(tensor) for batch in batches for tensor in tensors_of(batch[0]))
    if not bad:
        return ""
    total = sum(tensor.numel() for batch in batches for tensor in tensors_of(batch[0]))
    samples = sum(map(sample_count, batches))
    return (
        f"{bad:,} of {total:,} numbers in the inputs of the {samples:,} probe samples are NaN or infinite; fill them, "
        "or leave those samples out."
    )


def _in_outputs(objective: Objective, batches: Sequence[Batch]) -> str:
    table = objective.copied_parameters()
    for batch in batches:
        if objective.has_outputs:
            outputs = tensors_of(objective.output_values(table, private(batch)[0]))
            bad = sum(map(_count, outputs))
            if bad:
                total = sum(tensor.numel() for tensor in outputs)
                return (
                    f"{bad:,} of {total:,} outputs of the module are NaN or infinite, but weights and inputs are not; "
                    "look at forward for a logarithm, a root or a division of 0."
                )
        loss = float(objective.loss_value(table, batch))
        if not math.isfinite(loss):
            what = "the outputs are" if objective.has_outputs else "weights and inputs are"
            return f"The loss is {loss}, but {what} finite; check the targets and the loss."
    return ""


def _count(tensor: Tensor) -> int:
    return 0 if not (tensor.is_floating_point() or tensor.is_complex()) else int((~torch.isfinite(tensor)).sum())
