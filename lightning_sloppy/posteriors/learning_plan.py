"""How a posterior is optimised, as a person writes it down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_sloppy.errors import ConfigurationError

Spread = Literal["weights", "layers", "kronecker"]
"""What has a deviation of its own."""


@dataclass(frozen=True)
class LearningPlan:
    """How a posterior is optimised.

    Args:
        seconds: Time limit.
        epochs: Passes over the examples at most; None for as many as the time allows.
        batch_size: Examples in a step, all judged by one draw of the weights.
        mean_rate: Adam's learning rate of the mean.
        spread_rate: Adam's learning rate of the logarithms of deviations and factors.
        spread: "weights": a deviation for each weight, 3 p numbers more while learning. "layers": one for each
            parameter tensor, few numbers and quickly learnt. "kronecker": one for each direction of the Kronecker
            eigenbasis of each layer, in whose coordinates the surrogate must be given: usually the tightest. A step
            costs more, most with convolutions of many channels.
        directions: Leading eigenvectors of the Hessian at the trained weights that get a precision of their own, 12 p
            bytes each while learning. Weights are then drawn once for each batch, for such noise is not that of
            single outputs, and gradients are noisier: hence 0.

    Raises:
        ConfigurationError: For numbers out of range.
    """

    seconds: float = 300.0
    epochs: int | None = None
    batch_size: int = 128
    mean_rate: float = 1e-3
    spread_rate: float = 1e-2
    spread: Spread = "weights"
    directions: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.seconds, self.batch_size) <= 0 or (self.epochs is not None and self.epochs < 1):
            raise ConfigurationError(
                f"seconds={self.seconds}, epochs={self.epochs} and batch_size={self.batch_size} were asked for; all "
                "must be positive, epochs may be None."
            )
        if self.directions < 0:
            raise ConfigurationError(f"directions={self.directions} were asked for; give how many, 0 for none.")
        if min(self.mean_rate, self.spread_rate) < 0 or self.spread not in get_args(Spread):
            raise ConfigurationError(
                f"mean_rate={self.mean_rate}, spread_rate={self.spread_rate} and spread={self.spread!r} were asked "
                "for; rates may not be negative, and spread is 'weights', 'layers' or 'kronecker'."
            )
