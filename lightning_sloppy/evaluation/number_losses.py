"""Losses that compare outputs and targets number by number, for outputs (N, 1) with targets (N,) as well."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_sloppy.evaluation.inner_loss import OneNumber
from lightning_sloppy.evaluation.weights import known_loss

NUMBERS: dict[Callable[..., Tensor], type[nn.Module]] = {
    nn.functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    nn.functional.mse_loss: nn.MSELoss,
    nn.functional.l1_loss: nn.L1Loss,
    nn.functional.smooth_l1_loss: nn.SmoothL1Loss,
    nn.functional.huber_loss: nn.HuberLoss,
}
"""Losses of torch that compare outputs and targets number by number, as functions and as modules."""


def loss_of_numbers(names: Collection[str], outputs: Any, targets: Any) -> tuple[Callable[[Any, Any], Tensor], str]:
    """The loss of numbers that a step names, and what it is called; squared error where it names none.

    Args:
        names: Names in the code of the step.
        outputs: Of ``forward``.
        targets: Of the batch.
    """
    named = [loss for loss in NUMBERS if loss.__name__ in names]
    loss = named[0] if len(named) == 1 else nn.functional.mse_loss
    words = "mean squared error" if loss is nn.functional.mse_loss else loss.__name__.replace("_", " ")
    return for_one_number(loss, outputs, targets), words


def are_numbers(outputs: Any, targets: Any) -> bool:
    """Whether outputs and float targets hold a number each, as (N, 1) and (N,) do too: steps squeeze one of them."""
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return both and targets.is_floating_point() and _squeezed(outputs) == _squeezed(targets)


def for_one_number(loss_fn: Any, outputs: Any, targets: Any) -> Any:
    """A loss of numbers, of outputs (N, 1) and targets (N,) that steps squeeze or cast; any other loss as it is.

    Outputs of one shape and targets of another would be spread over each other, to N^2 numbers.
    """
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not both or _squeezed(outputs) != _squeezed(targets):
        return loss_fn
    plain = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    # By identity: a loss of the user's own need not have a hash.
    if not any(plain is loss or type(plain) is kind for loss, kind in NUMBERS.items()):
        return loss_fn
    known = known_loss(loss_fn)
    whole = known is not None and known.likelihood == "bernoulli" and not targets.is_floating_point()
    return OneNumber(loss_fn) if whole or outputs.shape != targets.shape else loss_fn


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)
