"""Dependence of a loss on parameters that bypasses the outputs: parameters of the loss, and penalties on weights.

The Hessian includes every path from a parameter to the loss. Gauss-Newton and Fisher matrices are defined by the
outputs, and report what they leave out. The empirical Fisher matrix is defined by per-sample gradients, which have
entries for the parameters of the loss as well: learnt weights of several terms, a temperature, class centres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.curvature.gram.broadcasts import leaves_behind
from lightning_sloppy.curvature.parameters import ParameterLayout
from lightning_sloppy.evaluation.batches import (
    INNER,
    AnyBatch,
    Batch,
    Rows,
    cut,
    is_whole,
    picked,
    private,
    rows_in,
    sample_count,
    some_of,
)
from lightning_sloppy.evaluation.loss_checks import agree
from lightning_sloppy.evaluation.nests import map_tensors, tensors_of, with_tensors
from lightning_sloppy.evaluation.objective import Objective

LOOKED_AT = 8
"""Number of samples on which the dependence of a loss is examined."""

NAMED = 3
"""Largest number of parameters that a sentence names."""


@dataclass(frozen=True)
class BesideOutputs:
    """Parameters on which a loss depends other than through the outputs that it uses.

    Attributes:
        own: Parameters of the loss alone: no output that it uses depends on them.
        passing: Parameters of the outputs as well, for instance with a penalty on weights.
        shared: Indices of output tensors without one row per sample that depend on the parameters of the loss.
    """

    own: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()
    shared: tuple[int, ...] = ()

    def left_out(self, *, own_too: bool) -> str:
        """A sentence on what a matrix of the outputs leaves out; empty if it leaves out nothing."""
        sentences = []
        if self.passing:
            sentences.append(
                f"The loss also depends on {_listed(self.passing)} past the outputs (a penalty?). This matrix is "
                "defined by the outputs and leaves that out; the Hessian includes it."
            )
        if self.own and own_too:
            sentences.append(
                f"Only the loss depends on {_listed(self.own)}, not the outputs. Their rows are zero here; the Hessian "
                "and the empirical Fisher matrix include them."
            )
        return " ".join(sentences)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def beside_outputs(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> BesideOutputs:
    """Find the parameters on which the loss depends other than through the outputs, on a few samples.

    Whether an output depends on them is then checked on all samples.

    Args:
        objective: Module and loss, outputs and loss apart.
        layout: Chosen parameters.
        batches: Prepared batches.

    Raises:
        ConfigurationError: If the loss uses no output with one row per sample.
    """
    if not batches:
        return BesideOutputs()
    leaves = layout.leaves(objective.module, objective.dtype)
    names = {id(leaf): name for name, leaf in leaves.items()}
    few = some_of(batches[0], LOOKED_AT)
    outputs = objective.outputs(leaves, private(few)[0])
    objective.examine(map_tensors(Tensor.detach, outputs), few)
    used = {id(tensor) for tensor in objective.used(outputs)}
    flat = tensors_of(outputs)
    rest = with_tensors(outputs, [tensor.detach() if id(tensor) in used else tensor for tensor in flat])
    beside = _behind(objective.loss_of_outputs(leaves, rest, few[1])) & set(names)
    own = set(beside)
    for batch in [few, *batches]:
        if not own:
            break
        found = outputs if batch is few else objective.outputs(leaves, private(batch)[0])
        for tensor in objective.used(found):
            own -= _behind(tensor)
    shared = [
        i for i, tensor in enumerate(flat) if id(tensor) not in used and _behind(tensor) and _behind(tensor) <= own
    ]
    in_order = [identity for identity in names if identity in beside]
    return BesideOutputs(
        tuple(names[identity] for identity in in_order if identity in own),
        tuple(names[identity] for identity in in_order if identity not in own),
        tuple(shared),
    )


def unused_by_outputs(objective: Objective, layout: ParameterLayout, batches: list[Batch]) -> str:
    """Names of the parameters that no output depends on, of a few samples or, for what is not seen there, of all."""
    leaves = layout.leaves(objective.module, objective.dtype)
    left = {id(leaf): name for name, leaf in leaves.items()}
    for batch in [some_of(batches[0], LOOKED_AT), *batches]:
        for tensor in objective.used(objective.outputs(leaves, private(batch)[0])):
            for identity in _behind(tensor):
                left.pop(identity, None)
        if not left:
            break
    return ", ".join(left.values())


def _behind(tensor: Tensor) -> set[int]:
    return leaves_behind(tensor) if tensor.requires_grad else set()


def constants_of(objective: Objective) -> str:
    """A sentence when the loss has trainable parameters that are none of the module's; else nothing."""
    if not isinstance(objective.loss_fn, nn.Module):
        return ""
    known = {id(p) for p in objective.module.parameters()}
    names = tuple(n for n, p in objective.loss_fn.named_parameters() if p.requires_grad and id(p) not in known)
    if not names:
        return ""
    return (
        f"The loss has trainable parameters that are not in {type(objective.module).__name__} ({_listed(names)}): they "
        "are constants here; make the loss a part of the module to measure them as well."
    )


def sample_losses(objective: Objective, beside: BesideOutputs, batches: list[Batch]) -> SampleLosses | None:
    """The losses of the samples as outputs; None where the loss of a batch is not the mean of them."""
    few = _weighing(objective, batches)
    if not rows_in(few).apart:
        return None
    apart, table = SampleLosses(objective, beside, few), objective.copied_parameters()
    try:
        whole, mean = float(objective.loss_value(table, few)), float(apart.loss_value(table, _as_inputs(few)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError):  # a loss that takes no single sample
        return None
    return apart if agree(whole, mean) else None


def _weighing(objective: Objective, batches: list[Batch]) -> AnyBatch:
    """Some samples with a positive total weight. Without it, the mean loss is not defined."""
    for batch in batches:
        few = some_of(batch, LOOKED_AT)
        if objective.batch_weight(few) > 0:
            return few
        places = objective.sample_weights(batch).nonzero().flatten()
        if len(places) and rows_in(batch).apart:
            return picked(batch, places[:LOOKED_AT])
    return some_of(batches[0], LOOKED_AT)


def as_inputs(batches: list[Batch]) -> list[Batch]:
    """Batches of inputs and targets together, and the targets."""
    return [_as_inputs(batch) for batch in batches]


def _as_inputs(batch: AnyBatch) -> Batch:
    rows = rows_in(batch)
    targets = rows.inputs if is_whole(batch) else rows.targets
    return Batch((batch[0], batch[1]), batch[1], replace(rows, inputs=(*rows.inputs, *targets), targets=targets))


class SampleLosses(Objective):
    """A module whose outputs are the losses of the single samples, so that per-sample gradients are those of an output.

    Batches are ``((inputs, targets), targets)``, see :func:`as_inputs`.

    Args:
        objective: Module and loss.
        beside: Dependence of the loss that bypasses the outputs. That on other parameters of the module is left out.
        batch: A batch of the module, which shows the dimensions of the samples in all batches.
    """

    def __init__(self, objective: Objective, beside: BesideOutputs, batch: AnyBatch) -> None:
        super().__init__(objective.module, objective.loss_fn)
        vars(self).update(vars(objective))
        self._beside = beside
        self._targets = rows_in(batch).inputs if is_whole(batch) else rows_in(batch).targets

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs of the module, the targets, and the parameters of the loss."""
        own = {name: parameters[name] for name in self._beside.own if name in parameters}
        return super().outputs(parameters, inputs[0]), inputs[1], own

    def rows(self, outputs: Any, count: int) -> Tensor:
        """The loss of each sample, (n, 1); zero for a sample without weight, whose loss may not be defined."""
        found, targets, own = outputs
        used = {id(tensor) for tensor in self.used(found)}
        tensors = [
            tensor if id(tensor) in used or place in self._beside.shared else tensor.detach()
            for place, tensor in enumerate(tensors_of(found))
        ]
        found = with_tensors(found, tensors)

        weights = self.sample_weights(Batch(targets, targets, Rows(count, self._targets, self._targets))).tolist()

        def one(index: int) -> Tensor:
            if not weights[index]:
                return torch.zeros((), dtype=self.dtype, device=self.device)
            places = enumerate(tensors_of(found))
            own_outputs = with_tensors(found, [self._sample(tensor, place, index, count) for place, tensor in places])
            pair = Batch(targets, targets, Rows(count, self._targets))
            own_targets = targets if count == 1 else cut(pair, slice(index, index + 1))[0]
            loss = super(SampleLosses, self).loss_of_outputs(own, own_outputs, own_targets)
            # For a sum, the terms of a sample are divided by its weight, like those of a batch.
            return loss / weights[index] if self.reduction == "sum" else loss

        return torch.stack([one(index) for index in range(count)]).unsqueeze(1)

    def _sample(self, output: Tensor, place: int, index: int, count: int) -> Tensor:
        """The part of an output tensor that belongs to one sample."""
        axis = self._axes.get(place, 0 if output.shape[:1] == (count,) else None)
        if place in self._beside.shared:  # a parameter among the outputs may have as many entries as there are samples
            return output
        if count == 1 or axis is None:
            return output
        if axis == INNER:
            return output.reshape(-1, count, *output.shape[1:])[:, index]
        return output.narrow(axis, index, 1)

    def loss(self, parameters: Mapping[str, Tensor], batch: AnyBatch) -> Tensor:
        """The mean of the rows."""
        outputs = self.outputs(parameters, private(batch)[0])
        return self.loss_of_rows(self.rows(outputs, sample_count(batch)), outputs, batch)

    def loss_of_rows(self, rows: Tensor, outputs: Any, batch: AnyBatch) -> Tensor:  # noqa: ARG002 - as the base class has it
        """The weighted mean of the rows, with the weights of the loss."""
        weights = self.sample_weights(batch).to(rows.device, rows.dtype)
        return (weights * rows[:, 0]).sum() / (weights.sum() if weights.any() else 1)

    def examine(self, outputs: Any, batch: AnyBatch) -> None:
        """Do nothing, because every row is used."""
