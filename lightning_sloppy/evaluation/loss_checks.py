"""Checks of a loss: callable, returns a scalar; and the default loss for given outputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sloppy.errors import ConfigurationError

AGREEMENT = 1e-4
"""Largest relative difference of two evaluations of one loss in float32 that is attributed to rounding."""

ROUNDINGS = 8
"""Roundings of a half-precision weight by which two evaluations of one loss may differ."""

LEAST_DIFFERENCE = 1e-6
"""Absolute tolerance, because losses near zero are differences of larger numbers."""


def checked_loss(loss_fn: object, *, needed: bool = False) -> None:
    """Check that a loss is callable.

    Args:
        loss_fn: A function, or None.
        needed: Whether None is refused.

    Raises:
        ConfigurationError: If it is not callable, for instance a name.
    """
    if (needed or loss_fn is not None) and not callable(loss_fn):
        raise ConfigurationError(
            f"The loss must be a function of (outputs, targets), but {loss_fn!r} was given; pass for instance "
            "torch.nn.functional.cross_entropy."
        )


def checked_scalar(value: Any) -> Tensor:
    """Return the loss if it is a scalar tensor.

    Raises:
        ConfigurationError: If it is not.
    """
    if not isinstance(value, Tensor):
        raise ConfigurationError(
            f"The loss must be a scalar tensor, but it is a {type(value).__name__}; return the mean."
        )
    if value.numel() != 1:
        raise ConfigurationError(
            f"The loss must be a scalar, but its shape is {tuple(value.shape)}; use reduction='mean'."
        )
    return value.reshape(())


def agree(one: float, other: float) -> bool:
    """Whether two values of a loss are equal up to rounding; False if one is not finite."""
    return abs(one - other) <= AGREEMENT * max(abs(one), abs(other))


def is_loss_of_step(guess: float, step: float, module: nn.Module) -> bool:
    """Whether a guess equals the loss of a step up to rounding; False if one is not finite.

    The guess is evaluated on copies in the data type of the measurement, the step on the weights.
    """
    types = {p.dtype for p in module.parameters() if p.is_floating_point()}
    half = [torch.finfo(kind).eps for kind in types if kind in (torch.float16, torch.bfloat16)]
    tolerance = max([AGREEMENT, *(ROUNDINGS * eps for eps in half)])
    return abs(guess - step) <= tolerance * max(abs(guess), abs(step)) + LEAST_DIFFERENCE


def default_loss(outputs: Any, targets: Any) -> Callable[[Any, Any], Tensor] | None:
    """Return the loss that is usual for such outputs and targets, or None if none fits.

    It is cross-entropy for integer targets and outputs with a class dimension, and mean squared error for float targets
    of the shape of the outputs. Callers compare this guess with the loss that the training minimises.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    integer = not targets.is_floating_point() and not targets.is_complex()
    if integer and outputs.ndim >= 2 and targets.shape == outputs.shape[:1] + outputs.shape[2:]:
        return nn.functional.cross_entropy
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return nn.functional.mse_loss
    return None
