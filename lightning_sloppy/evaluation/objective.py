"""The function whose curvature is measured: parameters and batch to outputs and a mean loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, is_whole, private, sample_count, to_device
from lightning_sloppy.evaluation.loss_checks import checked_loss, checked_scalar
from lightning_sloppy.evaluation.nests import tensors_of, with_tensors
from lightning_sloppy.evaluation.ranks import ALONE, Ranks
from lightning_sloppy.evaluation.weights import SampleWeights, sample_weights

Result = TypeVar("Result")

Loss = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``, mean-reduced, a scalar."""


class Objective:
    """A module with its loss, as a function of a table of parameters.

    The module's own parameters are never touched: :func:`torch.func.functional_call` puts detached ones in their
    place, so hooks, ``.grad`` and data-parallel reducers see nothing.

    Inputs that are a mapping are passed by keyword when ``forward`` has two or more parameters and all keys are names
    of them, as tokenisers give them; else as one argument.

    Args:
        module: Any module; its ``forward`` takes the inputs of a batch.
        loss_fn: Mean-reduced loss of outputs and targets.
        step_module: Instead of outputs and loss: a module whose ``forward`` maps a batch to the loss and which holds
            ``module`` as its child ``inner``. Then there are no outputs, hence no Gauss-Newton or Fisher matrix.
        seed: Set before every forward, so that dropout in train mode is the same function each time.
        weights: How much each sample weighs in the loss's mean; None knows the losses of torch.
        ranks: Of several, the probe is the union of every rank's batches.

    Attributes:
        dtype: Data type of the products: the widest of the parameters', at least float32.
        device: Device of the parameters.
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
        self._weights = weights
        self.ranks = ranks
        self._keywords = _keywords_of(module)
        self._used: tuple[int, ...] | None = None
        self.device = parameters[0].device
        self.dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)

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

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor."""
        return self.ranks.add_up(tensor)

    def prepare(self, batches: list[Batch]) -> list[Batch]:
        """The batches on the module's device, in the data type of the products."""
        return [to_device(batch, self.device, self.dtype) for batch in batches]

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """``forward(inputs)`` with these parameters in place of the module's own."""
        self._reseed()
        table = self._table(parameters, self.module)
        if isinstance(inputs, Mapping) and len(self._keywords) > 1 and self._keywords.issuperset(inputs):
            return functional_call(self.module, table, (), dict(inputs))
        return functional_call(self.module, table, (inputs,))

    def swapped(self, parameters: Mapping[str, Tensor], function: Callable[[], Result]) -> Result:
        """Run a function with these parameters in place of the module's own all the time, also in its backwards.

        Activation checkpointing runs parts of the forward again during the backward, when they must not have changed.
        """
        table = {f"inner.{name}": value for name, value in self._table(parameters, self.module).items()}
        result: Result = functional_call(_Inside(self.module), table, (function,))
        return result

    def _reseed(self) -> None:
        if self._seed is not None:
            torch.manual_seed(self._seed)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean loss of one batch, a scalar.

        Raises:
            ConfigurationError: When the loss is not a scalar.
        """
        inputs, targets = private(batch)
        if self.loss_fn is None:
            assert self._step_module is not None
            self._reseed()
            table = self._table({f"inner.{k}": v for k, v in parameters.items()}, self._step_module)
            given = inputs if is_whole(batch) else (inputs, targets)
            value = functional_call(self._step_module, table, (given,))
        else:
            value = self.loss_fn(self.outputs(parameters, inputs), targets)
        return checked_scalar(value)

    def sample_weights(self, batch: Batch) -> Tensor:
        """Weight of each sample in the mean over the whole probe, (n,), float64 on the CPU: 1, or its valid tokens."""
        return sample_weights(self.loss_fn, batch, self._weights)

    def batch_weight(self, batch: Batch) -> float:
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
        return float(self.add_up(torch.tensor(weight, device=self.device, dtype=self.dtype)))

    def mean_loss(self, parameters: Mapping[str, Tensor], batches: list[Batch]) -> Tensor:
        """Loss averaged over the whole probe: every batch by its weight, whatever the batch sizes."""
        value = torch.zeros((), dtype=self.dtype, device=self.device)
        for batch, fraction in zip(batches, self.batch_fractions(batches), strict=True):
            if fraction > 0:  # a batch without valid targets has a mean of nothing over nothing
                value = value + self.loss(parameters, batch) * fraction
        return self.add_up(value)

    def examine(self, outputs: Any, batch: Batch) -> None:
        """Find out which of several output tensors the loss uses; the others are constants to every matrix.

        Args:
            outputs: What ``forward`` gave for the batch.
            batch: The batch.

        Raises:
            ConfigurationError: When the loss uses no tensor with a row for each sample.
        """
        assert self.loss_fn is not None
        found = tensors_of(outputs)
        count = sample_count(batch)
        rows = [i for i, t in enumerate(found) if t.is_floating_point() and t.shape[:1] == (count,)]
        leaves = {i: found[i].detach().requires_grad_() for i in rows}
        used: tuple[int, ...] = ()
        if rows:
            replaced = with_tensors(outputs, [leaves.get(i, t.detach()) for i, t in enumerate(found)])
            value = checked_scalar(self.loss_fn(replaced, batch[1]))
            if isinstance(outputs, Tensor):
                used = (0,)
            elif value.requires_grad:
                parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
                used = tuple(i for i, part in zip(rows, parts, strict=True) if part is not None)
        if not used:
            shapes = ", ".join(str(tuple(t.shape)) for t in found) or f"a {type(outputs).__name__}"
            raise ConfigurationError(
                "The Gauss-Newton and Fisher matrices need an output tensor with a row for each of the "
                f"{count} samples that the loss uses, but forward gave {shapes}; wrap the module so that it does, and "
                "compute the loss from it."
            )
        self._used = used

    def rows(self, outputs: Any, count: int) -> Tensor:
        """The outputs that the loss uses, one row for each sample, (n, D)."""
        found = tensors_of(outputs)
        used = range(len(found)) if self._used is None else self._used
        # A forward that squeezes its outputs drops the dimension of a single sample.
        return torch.cat([found[i].reshape(count, -1) for i in used], dim=1)

    def loss_of_rows(self, rows: Tensor, outputs: Any, targets: Any) -> Tensor:
        """The batch's mean loss with these rows in place of the outputs that it uses; the others are constants."""
        assert self.loss_fn is not None
        found = [tensor.detach() for tensor in tensors_of(outputs)]
        used = range(len(found)) if self._used is None else self._used
        start = 0
        for index in used:
            width = found[index].numel() // max(len(rows), 1)
            found[index] = rows[:, start : start + width].reshape(found[index].shape)
            start += width
        return checked_scalar(self.loss_fn(with_tensors(outputs, found), targets))

    def _table(self, parameters: Mapping[str, Tensor], owner: nn.Module) -> dict[str, Tensor]:
        """Parameters given, plus the frozen ones and buffers in the data type of the products."""
        table = dict(parameters)
        for name, frozen in owner.named_parameters():
            if name not in table:
                table[name] = self._cast(frozen.detach())
        for name, buffer in owner.named_buffers():
            # A clone, so that running statistics never move.
            table[name] = self._cast(buffer.detach()).clone()
        return table

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


class _Inside(nn.Module):
    """Holds a module while a function runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _keywords_of(module: nn.Module) -> frozenset[str]:
    """Names by which ``forward`` takes its arguments."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(parameter.name for parameter in parameters if parameter.kind in named)
