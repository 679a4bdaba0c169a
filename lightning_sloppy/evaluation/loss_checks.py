"""What a loss must be: callable, a scalar, a mean over samples; and the usual one for outputs and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.evaluation.batches import AnyBatch, cut, rows_in, sample_count, some_of
from lightning_sloppy.evaluation.weights import known_loss

if TYPE_CHECKING:
    from lightning_sloppy.evaluation.objective import Objective

AGREEMENT = 1e-4
"""Relative difference of two evaluations of one loss in float32 that is rounding."""

COMPARED_SAMPLES = 8
"""Samples on which a loss shows whether it is a mean: all of a large probe would cost as much as a gradient."""


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


def agree(one: float, other: float) -> bool:
    """Whether two computations of one loss differ by rounding alone; never where one is not finite."""
    return abs(one - other) <= AGREEMENT * max(abs(one), abs(other))


def checked_reduction_of(objective: Objective, batches: Sequence[AnyBatch]) -> str:
    """Compare the loss of a batch with those of its halves: it should be a mean over samples, or the sum.

    A loss that adds up its samples is noted in the objective, which then divides by their number. A mean with other
    weights than the objective knows (over tokens, say, in a function of the user's own) is told.

    Returns:
        A sentence about weights that are not known; empty when all is well or nothing can be told.
    """
    known = known_loss(objective.loss_fn)
    if known is not None and known.reduction == "sum":
        objective.reduction = "sum"
        return ""
    whole_ones = [batch for batch in batches if sample_count(batch) > 1 and rows_in(batch).divisible]
    if objective.loss_fn is None or not whole_ones:
        return ""
    batch = some_of(whole_ones[0], COMPARED_SAMPLES)
    count = sample_count(batch)
    parts: list[AnyBatch] = [batch, cut(batch, slice(0, count // 2)), cut(batch, slice(count // 2, count))]
    table = objective.copied_parameters()
    try:
        whole, first, second = (float(objective.loss_value(table, part)) for part in parts)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a loss for batches of one size; what is wrong with the whole one the measurement says
        return ""
    if not all(map(math.isfinite, (whole, first, second))):
        return ""
    tolerance = AGREEMENT * abs(whole)
    both = min(abs(first), abs(second)) > tolerance  # a half without valid targets says nothing
    if both and abs(whole - first - second) <= tolerance < abs(whole - (first + second) / 2):
        objective.reduction = "sum"
        return ""
    fraction = objective.batch_weight(parts[1]) / objective.batch_weight(batch)
    expected = fraction * first + (1 - fraction) * second
    if abs(whole - expected) > tolerance + AGREEMENT * abs(first - second) + 1e-7:
        return (
            f"The loss of a batch ({whole:.6g}) is not the mean over its samples ({expected:.6g}): batches are "
            "weighted by their sample counts all the same; pass sample_weights= if it is a mean over tokens."
        )
    return ""


@dataclass(frozen=True)
class LossOfLogits:
    """A loss of the ``logits`` of the outputs and the ``labels`` of the batch, as Hugging Face modules name them.

    Args:
        loss_fn: Of logits and labels.
    """

    loss_fn: Callable[[Any, Any], Tensor]

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of a batch."""
        return self.loss_fn(outputs["logits"], targets["labels"])


def loss_of_logits(outputs: Any, targets: Any) -> LossOfLogits | None:
    """The usual loss where outputs have logits with a row for each sample and the batch has labels; else None."""
    if not isinstance(outputs, Mapping) or not isinstance(targets, Mapping):
        return None
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.ndim > 2:  # of tokens nobody knows which ones count
        return None
    loss = default_loss(logits, targets.get("labels"))
    return None if loss is None else LossOfLogits(loss)


def default_loss(outputs: Any, targets: Any) -> Callable[[Any, Any], Tensor] | None:
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
    if plain not in NUMBERS and type(plain) not in NUMBERS.values():
        return loss_fn
    known = known_loss(loss_fn)
    whole = known is not None and known.likelihood == "bernoulli" and not targets.is_floating_point()
    return _OneNumber(loss_fn) if whole or outputs.shape != targets.shape else loss_fn


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


@dataclass(frozen=True)
class _OneNumber:
    """A loss whose outputs are given the shape of the targets, and whose targets their type."""

    loss_fn: Any

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss_fn(outputs.reshape(targets.shape), targets.to(outputs))
        return value
