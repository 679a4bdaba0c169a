"""The settings for the optimisation of a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_sloppy.errors import ConfigurationError

Spread = Literal["weights", "layers", "kronecker"]
"""What gets a separate deviation: each weight, each parameter tensor, or each Kronecker direction."""


@dataclass(frozen=True)
class LearningPlan:
    """Settings for the optimisation of a posterior.

    Args:
        seconds: Time limit.
        epochs: Maximum number of passes over the examples. None: as many as the time allows.
        batch_size: Number of examples in a step.
        mean_rate: Adam's learning rate for the mean.
        spread_rate: Adam's learning rate for the logarithms of deviations and factors.
        spread: "weights": a deviation for each weight, which needs 3 p additional numbers while learning. "layers": one
            for each parameter tensor, few numbers that are learnt quickly. "kronecker": one for each direction of the
            Kronecker eigenbasis of each layer; the surrogate must be given in these coordinates. This is usually the
            tightest, but a step costs more, especially for convolutions with many channels.
        directions: Number of leading eigenvectors of the Hessian at the trained weights that get a separate precision.
            Each needs 12 p bytes while learning. Weights are then drawn once for each batch, because this noise cannot
            be drawn for single outputs, and gradients are noisier. The default is therefore 0.

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
                f"seconds={self.seconds}, epochs={self.epochs} and batch_size={self.batch_size} must be positive; "
                "epochs may be None."
            )
        if self.directions < 0:
            raise ConfigurationError(f"directions={self.directions} is negative; pass a number, 0 for none.")
        if min(self.mean_rate, self.spread_rate) < 0 or self.spread not in get_args(Spread):
            raise ConfigurationError(
                f"mean_rate={self.mean_rate}, spread_rate={self.spread_rate} and spread={self.spread!r} are not valid; "
                "rates must not be negative, and spread must be 'weights', 'layers' or 'kronecker'."
            )
