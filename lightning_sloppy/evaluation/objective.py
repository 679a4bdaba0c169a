"""The function whose curvature is measured: parameters and batch to outputs and a mean loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError, UnsupportedError
from lightning_sloppy.evaluation.batches import (
    INNER,
    AnyBatch,
    Batch,
    is_whole,
    private,
    sample_count,
    to_device,
)
from lightning_sloppy.evaluation.calling import Caller
from lightning_sloppy.evaluation.inner_loss import LossOfLogits, equal_loss
from lightning_sloppy.evaluation.loss_checks import checked_loss, checked_scalar
from lightning_sloppy.evaluation.nests import map_tensors, tensors_of, with_tensors
from lightning_sloppy.evaluation.ranks import ALONE, Ranks
from lightning_sloppy.evaluation.real_numbers import cast_number, real_parts, shaped_like
from lightning_sloppy.evaluation.sample_rows import located, moved, row_axes
from lightning_sloppy.evaluation.stand_ins import StandingIn, casts_explained, places, run_with, unwrapped
from lightning_sloppy.evaluation.target_weights import TargetWeights
from lightning_sloppy.evaluation.weights import Reduction, SampleWeights, sample_weights

Result = TypeVar("Result")

Loss = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``, mean-reduced, a scalar."""


class Objective:
    """A module with its loss, as a function of a table of parameters.

    The parameters of the module are not changed. :func:`torch.func.functional_call` replaces them by detached ones, so
    hooks, ``.grad`` and data-parallel reducers are not affected. They are replaced while the loss is computed as well,
    because it may have parameters, or read those of the module.

    Inputs that are a mapping or a tuple are passed by the signature of ``forward`` (see
    :class:`~lightning_sloppy.evaluation.calling.Caller`).

    Args:
        module: Any module whose ``forward`` takes the inputs of a batch.
        loss_fn: Mean-reduced loss of outputs and targets.
        step_module: Instead of outputs and loss, a module whose ``forward`` maps a batch to the loss, and which has
            ``module`` as its child ``inner``. Then there are no outputs, so no Gauss-Newton or Fisher matrix.
        seed: Seed that is set before every forward, so that dropout in train mode is the same function each time.
        weights: Weight of each sample in the mean of the loss. None: known for the losses of torch.
        ranks: With several ranks, the probe is the union of the batches of all ranks.

    Attributes:
        dtype: Data type of the products: the widest one of the parameters, at least float32.
        device: Device of the parameters.
        module: The module, without wrappers of Fabric, data parallelism or a compiler.
        reduction: How the loss combines its samples. A sum is divided by their number everywhere, so that all matrices
            are those of means.
        weights: Weight of each sample in the mean of the loss, as given or as detected. None: known for the losses of
            torch.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Loss | None,
        *,
        step_module: nn.Module | None = None,
        seed: int | None = None,
        weights: SampleWeights | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        checked_loss(loss_fn)
        module = unwrapped(module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigurationError(
                f"{type(module).__name__} has no trainable parameters, so there is nothing to differentiate; "
                "build the layers before measuring and leave requires_grad on."
            )
        self.module = module
        self.loss_fn = loss_fn
        self._step_module = step_module
        self._seed = seed
        self.weights: SampleWeights | TargetWeights | None = weights
        self.ranks = ranks
        self.reduction: Reduction = "mean"
        self._caller = Caller(module)
        self._used: tuple[int, ...] | None = None
        self._axes: dict[int, int] = {}
        self.device = parameters[0].device
        self.dtype = reduce(torch.promote_types, (p.dtype.to_real() for p in parameters), torch.float32)
        self._own = dict(module.named_parameters())

    @property
    def has_outputs(self) -> bool:
        """Whether outputs and loss are known apart, as Gauss-Newton and Fisher matrices need."""
        return self.loss_fn is not None

    def over(self, ranks: Ranks) -> Objective:
        """The same objective on a probe that is the union of every rank's batches."""
        shared = copy(self)
        shared.ranks = ranks
        return shared

    def at(self, dtype: torch.dtype) -> Objective:
        """The same objective with products in this data type, if that is wider than its own."""
        wider = copy(self)
        wider.dtype = torch.promote_types(self.dtype, dtype)
        if wider.dtype == self.dtype:
            return self
        own = self.loss_fn
        if isinstance(own, nn.Module) and any(b.is_floating_point() for b in own.buffers()) and not [*own.parameters()]:
            # Class weights are buffers; parameters of a loss are part of what is differentiated and stay as they are.
            wider.loss_fn = deepcopy(own).to(wider.dtype)
        return wider

    def seeded(self, seed: int) -> Objective:
        """The same objective with a random stream that is the same in every forward, for train mode."""
        fixed = copy(self)
        fixed._seed = seed
        return fixed

    def as_given(self) -> Objective:
        """The same objective with the loss of a batch as ``loss_fn`` gives it, also where that is a sum."""
        given = copy(self)
        given.reduction = "mean"
        return given

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor."""
        return self.ranks.add_up(tensor)

    def prepare(self, batches: Sequence[AnyBatch]) -> list[Batch]:
        """The batches on the module's device, in the data type of the products."""
        return [to_device(batch, self.device, self.dtype) for batch in batches]

    def located(self, batches: Sequence[Batch]) -> list[Batch]:
        """Prepared batches with their samples found, by what the module gives for some of them.

        Raises:
            ConfigurationError: When the number of samples cannot be known.
        """
        table = moved(self.copied_parameters())
        return located(batches, lambda batch: self.output_values(table, private(batch)[0]))

    def copied_parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters, for a forward may write to its weights."""
        trained = [(name, p.detach()) for name, p in self.module.named_parameters() if p.requires_grad]
        return {name: cast_number(p, self.dtype).clone() for name, p in trained}

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """``forward(inputs)`` with these parameters in place of the module's own."""
        return self.swapped(parameters, lambda: self._forward(inputs))

    def output_values(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """The same without a graph."""
        values = _without_graph(parameters, lambda table: self.outputs(table, inputs))
        return map_tensors(Tensor.detach, values)

    def _forward(self, inputs: Any) -> Any:
        self._reseed()
        return self._caller.call(lambda arguments, keywords: self.module(*arguments, **keywords), inputs)

    def swapped(self, parameters: Mapping[str, Tensor], function: Callable[[], Result]) -> Result:
        """Run a function with these parameters in place of the module's own all the time, also in its backwards.

        Activation checkpointing runs parts of the forward again during the backward, when they must not have changed.
        They also stand in for the module's own where forward or loss hold those themselves, outside of any module.
        """
        found = list(places(self.module))
        table = self._table(parameters, found)
        # Inside another swap the places hold stand-ins: the module's own are those that were seen before.
        self._own |= {name: held for name, held, _ in found if isinstance(held, nn.Parameter)}
        instead = {id(own): table[name] for name, own in self._own.items() if name in table}
        with casts_explained(self.module), StandingIn(instead):
            return run_with(self.module, table, function)

    def _reseed(self) -> None:
        if self._seed is not None:
            torch.manual_seed(self._seed)

    def loss(self, parameters: Mapping[str, Tensor], batch: AnyBatch) -> Tensor:
        """Mean loss of one batch, a scalar, with every path from a parameter, also those that bypass the outputs.

        Raises:
            ConfigurationError: When the loss is not a scalar.
        """
        own = private(batch)
        inputs, targets = own
        loss_fn, step = self.loss_fn, self._step_module
        if loss_fn is not None:
            value = self.swapped(parameters, lambda: loss_fn(self._forward(inputs), targets))
        else:
            assert step is not None
            self._reseed()
            given = inputs if is_whole(batch) else own.given
            value = self.swapped(parameters, lambda: step(given))
        return self.as_mean(checked_scalar(value), batch)

    def loss_value(self, parameters: Mapping[str, Tensor], batch: AnyBatch) -> Tensor:
        """The same without a graph."""
        return _without_graph(parameters, lambda table: self.loss(table, batch)).detach()

    def loss_of_outputs(self, parameters: Mapping[str, Tensor], outputs: Any, targets: Any) -> Tensor:
        """What the loss gives for outputs with these parameters in place, those that are not given as constants.

        Raises:
            ConfigurationError: When the loss is not a scalar.
        """
        loss_fn = self.loss_fn
        assert loss_fn is not None
        return checked_scalar(self.swapped(parameters, lambda: loss_fn(outputs, targets)))

    def as_mean(self, loss: Tensor, batch: AnyBatch) -> Tensor:
        """What ``loss_fn`` gives for a batch as a mean over its samples."""
        if self.reduction == "mean":
            return loss
        weight = self.batch_weight(batch)
        return loss / weight if weight > 0 else loss

    def sample_weights(self, batch: AnyBatch) -> Tensor:
        """Weight of each sample in the mean over the whole probe, (n,), float64 on the CPU: 1, or its valid tokens."""
        return sample_weights(self.loss_fn, batch, self.weights)

    def batch_weight(self, batch: AnyBatch) -> float:
        """Weight of a batch in the mean over the whole probe."""
        return float(self.sample_weights(batch).sum())

    def total_weight(self, batches: list[Batch]) -> float:
        """Weight of the whole probe, the batches of all ranks."""
        return self._summed_over_ranks(sum(map(self.batch_weight, batches)))

    def batch_fractions(self, batches: list[Batch]) -> list[float]:
        """What part of the mean over the whole probe each batch is; batches of all ranks add up to one."""
        weights = [self.batch_weight(batch) for batch in batches]
        total = self._summed_over_ranks(sum(weights))
        return [weight / total for weight in weights] if total > 0 else [0.0] * len(batches)

    def _summed_over_ranks(self, weight: float) -> float:
        if self.ranks.count == 1:
            return weight  # no trip to the device
        return float(self.add_up(torch.tensor(weight, device=self.device, dtype=self.dtype)))

    def mean_loss(self, parameters: Mapping[str, Tensor], batches: list[Batch], *, graph: bool = True) -> Tensor:
        """Loss averaged over the whole probe. Each batch is weighted by its weight in the probe."""
        value = torch.zeros((), dtype=self.dtype, device=self.device)
        for batch, fraction in zip(batches, self.batch_fractions(batches), strict=True):
            if fraction > 0:  # a batch without valid targets has a mean of nothing over nothing
                loss = self.loss(parameters, batch) if graph else self.loss_value(parameters, batch)
                value = value + loss * fraction
        return self.add_up(value)

    def examine(self, outputs: Any, batch: AnyBatch) -> None:
        """Find out which of several output tensors the loss uses; the others are constants to every matrix.

        Args:
            outputs: What ``forward`` gave for the batch.
            batch: The batch.

        Raises:
            ConfigurationError: When the loss uses no tensor with a row for each sample.
            UnsupportedError: When it differentiates the outputs.
        """
        assert self.loss_fn is not None
        found = tensors_of(outputs)
        count = sample_count(batch)
        self._axes = row_axes(found, batch)
        rows = list(self._axes)
        leaves = {i: found[i].detach().requires_grad_() for i in rows}
        used: tuple[int, ...] = ()
        if rows:
            replaced = with_tensors(outputs, [leaves.get(i, t.detach()) for i, t in enumerate(found)])
            try:
                value = self.loss_of_outputs({}, replaced, batch[1])
            except RuntimeError as error:
                if not _asks_for_a_graph(error):
                    raise
                raise UnsupportedError(
                    "The Gauss-Newton and Fisher matrices need a loss of the outputs alone, but this differentiates "
                    "its outputs (for instance with respect to the inputs); let forward return the derivatives among "
                    "its outputs, or measure the Hessian, which has no such restriction."
                ) from error
            if isinstance(outputs, Tensor):
                used = (0,)
            elif value.requires_grad:
                parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
                used = tuple(i for i, part in zip(rows, parts, strict=True) if part is not None)
        inside = None if used or isinstance(self.loss_fn, LossOfLogits) else self.equal_of_logits(outputs, batch)
        if inside is not None:  # the loss is one that forward gives itself: take the equal one of its logits
            self.loss_fn = inside
            self.examine(outputs, batch)
            return
        if not used:
            shapes = ", ".join(str(tuple(t.shape)) for t in found) or f"a {type(outputs).__name__}"
            raise ConfigurationError(
                "The Gauss-Newton and Fisher matrices need an output tensor that the loss uses, with one row for each "
                f"of the {count} samples, but forward returned {shapes}; wrap the module so that it returns one, and "
                "compute the loss from it."
            )
        self._used = used

    def equal_of_logits(self, outputs: Any, batch: AnyBatch) -> LossOfLogits | None:
        """A usual loss of logits and labels that equals this one on a batch, here and at moved weights."""
        elsewhere = self.output_values(moved(self.copied_parameters()), private(batch)[0])
        both = [
            (found, float(self.loss_of_outputs({}, found, batch[1]).detach()))
            for found in (map_tensors(Tensor.detach, outputs), elsewhere)
        ]
        return equal_loss(both, batch[1])

    def used(self, outputs: Any) -> list[Tensor]:
        """The outputs that the loss uses and that have a row for each sample, as :meth:`examine` found them."""
        found = tensors_of(outputs)
        return [found[place] for place in self._places_used(found)]

    def _places_used(self, found: list[Tensor]) -> Sequence[int]:
        return range(len(found)) if self._used is None else self._used

    def rows(self, outputs: Any, count: int) -> Tensor:
        """The outputs that the loss uses, one row for each sample, (n, D); complex ones as pairs."""
        found = tensors_of(outputs)
        used = [self._in_front(real_parts(found[place]), place, count) for place in self._places_used(found)]
        return torch.cat([tensor.reshape(count, -1) for tensor in used], dim=1)

    def _in_front(self, output: Tensor, place: int, count: int) -> Tensor:
        """An output with its samples in the first dimension."""
        axis = self._axes.get(place, 0)
        if not axis or count == 1:  # a forward that squeezes its outputs drops that dimension, which changes no order
            return output
        return output.reshape(-1, count, *output.shape[1:]).movedim(1, 0) if axis == INNER else output.movedim(axis, 0)

    def loss_of_rows(self, rows: Tensor, outputs: Any, batch: AnyBatch) -> Tensor:
        """The batch's mean loss with these rows in place of the outputs that it uses; the others are constants."""
        assert self.loss_fn is not None
        found = [tensor.detach() for tensor in tensors_of(outputs)]
        start = 0
        for index in self._places_used(found):
            width = real_parts(found[index]).numel() // max(len(rows), 1)
            front = self._in_front(found[index], index, len(rows))
            own = shaped_like(rows[:, start : start + width], front)
            axis = self._axes.get(index, 0)
            if axis and len(rows) > 1:
                own = own.movedim(0, 1 if axis == INNER else axis).reshape(found[index].shape)
            found[index] = own
            start += width
        return self.as_mean(self.loss_of_outputs({}, with_tensors(outputs, found), batch[1]), batch)

    def _table(self, parameters: Mapping[str, Tensor], found: list[tuple[str, Tensor, bool]]) -> dict[str, Tensor]:
        """A tensor for each place: what is given, and the rest in the data type of the products."""
        owned: dict[int, tuple[str, Tensor]] = {}
        for name, held, is_parameter in found:
            if is_parameter:
                owned.setdefault(id(held), (name, held))
        known = {name for name, _ in owned.values()} | {name for name, _, is_parameter in found if not is_parameter}
        missing = [name for name in parameters if name not in known]
        if missing:
            raise ConfigurationError(
                f"{type(self.module).__name__} has no parameter {missing[0]!r} any more: its parameters have changed "
                "since the fit began (pruning, weight norm, other layers); change them before the fit."
            )
        instead = {
            key: shaped_like(parameters[name], own) if name in parameters else cast_number(own.detach(), self.dtype)
            for key, (name, own) in owned.items()
        }
        for name, held, is_parameter in found:
            if not is_parameter and id(held) not in instead:
                # A clone, so that running statistics never move.
                instead[id(held)] = cast_number(parameters.get(name, held).detach(), self.dtype).clone()
        return {name: instead[id(held)] for name, held, _ in found}


def _without_graph(parameters: Mapping[str, Tensor], function: Callable[[Mapping[str, Tensor]], Result]) -> Result:
    """A function of parameters that require no gradients.

    Not under ``no_grad``: forward or loss may differentiate in the inputs. One that differentiates in the parameters
    gets them as it wants them.
    """
    try:
        return function({name: tensor.detach() for name, tensor in parameters.items()})
    except RuntimeError as error:
        if not _asks_for_a_graph(error):
            raise
        return function({name: tensor.detach().requires_grad_() for name, tensor in parameters.items()})


def _asks_for_a_graph(error: RuntimeError) -> bool:
    """Whether autograd was asked for a derivative of something without a graph."""
    text = str(error)
    return "does not require grad" in text or "not have been used in the graph" in text
