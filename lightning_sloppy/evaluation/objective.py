"""The function whose curvature is measured: parameters and batch to outputs and a mean loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import Batch, private, rows_of, sample_count, to_device

Loss = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``, mean-reduced, a scalar."""

Step = Callable[[Batch], Tensor]
"""A whole step: batch to scalar loss, run with the module's own parameters replaced."""


class Objective:
    """A module with its loss, as a function of a table of parameters.

    The module's own parameters are never touched: :func:`torch.func.functional_call` puts detached ones in their
    place, so hooks, ``.grad`` and data-parallel reducers see nothing.

    Args:
        module: Any module; its ``forward`` takes the inputs of a batch.
        loss_fn: Mean-reduced loss of outputs and targets.
        step_module: Instead of outputs and loss: a module whose ``forward`` maps a batch to the loss and which holds
            ``module`` as its child ``inner``. Then there are no outputs, hence no Gauss-Newton or Fisher matrix.
        seed: Set before every forward, so that dropout in train mode is the same function each time.

    Attributes:
        dtype: Data type of the products: the widest of the parameters', at least float32.
        device: Device of the parameters.
    """

    def __init__(
        self, module: nn.Module, loss_fn: Loss | None, *, step_module: nn.Module | None = None, seed: int | None = None
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
        self.device = parameters[0].device
        self.dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)

    @property
    def has_outputs(self) -> bool:
        """Whether outputs and loss are known apart, as Gauss-Newton and Fisher matrices need."""
        return self.loss_fn is not None

    def prepare(self, batches: list[Batch]) -> list[Batch]:
        """The batches on the module's device, in the data type of the products."""
        return [to_device(batch, self.device, self.dtype) for batch in batches]

    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
        """``forward(inputs)`` with these parameters in place of the module's own."""
        self._reseed()
        return functional_call(self.module, self._table(parameters, self.module), (inputs,))

    def _reseed(self) -> None:
        if self._seed is not None:
            torch.manual_seed(self._seed)

    def loss(self, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean loss of one batch, a scalar.

        Raises:
            ConfigurationError: When the loss is not a scalar.
        """
        batch = private(batch)
        if self.loss_fn is None:
            assert self._step_module is not None
            self._reseed()
            table = self._table({f"inner.{k}": v for k, v in parameters.items()}, self._step_module)
            value = functional_call(self._step_module, table, (batch,))
        else:
            value = self.loss_fn(self.outputs(parameters, batch[0]), batch[1])
        return checked_scalar(value)

    def mean_loss(self, parameters: Mapping[str, Tensor], batches: list[Batch]) -> Tensor:
        """Loss averaged over all samples: every batch weighted by its count, whatever the batch sizes."""
        total = sum(sample_count(batch) for batch in batches)
        value = torch.zeros((), dtype=self.dtype, device=self.device)
        for batch in batches:
            value = value + self.loss(parameters, batch) * (sample_count(batch) / total)
        return value

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


def checked_loss(loss_fn: object) -> None:
    """Refuse what cannot be called.

    Raises:
        ConfigurationError: For a name instead of a function.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise ConfigurationError(
            f"The loss must be a function of (outputs, targets), but {loss_fn!r} was given; pass for instance "
            "torch.nn.functional.cross_entropy."
        )


def checked_scalar(value: Any) -> Tensor:
    """Return the loss if it is a scalar tensor of floating point.

    Raises:
        ConfigurationError: Otherwise.
    """
    if not isinstance(value, Tensor):
        raise ConfigurationError(
            f"The loss must be a scalar tensor, but a {type(value).__name__} came; return the mean."
        )
    if value.numel() != 1:
        raise ConfigurationError(
            f"The loss must be a scalar, but its shape is {tuple(value.shape)}; use reduction='mean'."
        )
    return value.reshape(())


def refuse_sum(objective: Objective, batch: Batch) -> None:
    """Refuse a loss that adds up its samples instead of averaging: every number would be wrong by their count.

    The loss of a batch is compared with those of its halves; a sum equals their sum, a mean lies between them.

    Raises:
        ConfigurationError: When the loss is a sum.
    """
    count = sample_count(batch)
    leaves = [leaf for leaf in tensors_of(batch) if leaf.ndim > 0]
    if objective.loss_fn is None or count < 2 or any(len(leaf) != count for leaf in leaves):
        return
    halves = [rows_of(batch, slice(0, count // 2)), rows_of(batch, slice(count // 2, count))]
    table = {name: p.detach().to(objective.dtype, copy=True) for name, p in objective.module.named_parameters()}
    with torch.no_grad():
        whole, first, second = (float(objective.loss(table, part)) for part in (batch, *halves))
    tolerance = 1e-4 * abs(whole)
    if abs(whole - first - second) <= tolerance < abs(whole - (first + second) / 2):
        raise ConfigurationError(
            f"The loss adds up its samples ({whole:.6g} on {count}, {first:.6g} and {second:.6g} on the halves), but "
            "a mean is needed; use reduction='mean'."
        )


def default_loss(outputs: Any, targets: Any) -> Loss | None:
    """The loss that such outputs and targets are usually trained with, or None when nothing fits.

    Cross-entropy for integer targets and outputs with a class dimension, mean squared error for float targets of
    the outputs' own shape. A guess: callers compare it with what the training really minimises.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    integer = not targets.is_floating_point() and not targets.is_complex()
    if integer and outputs.ndim >= 2 and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
        return nn.functional.cross_entropy
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return nn.functional.mse_loss
    return None


def tensors_of(nest: Any) -> list[Tensor]:
    """All tensors of a nest of containers."""
    return [leaf for leaf in pytree.tree_leaves(nest) if isinstance(leaf, Tensor)]
