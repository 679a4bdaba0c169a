"""The curvature scale of a run: chosen once, kept in the state, so that curves can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_sloppy.callbacks.base import ScheduledCallback
from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.measures.effective_dimension import curvature_scale
from lightning_sloppy.probing.context import FitContext
from lightning_sloppy.records import Estimate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Scale:
    """Prior precision ``epsilon`` and ``z = epsilon / (2 (n - 1))``."""

    epsilon: float
    z: float

    def estimates(self) -> dict[str, Estimate]:
        """Both as named numbers: an effective dimension without its scale says nothing."""
        return {"epsilon": Estimate(self.epsilon), "z": Estimate(self.z)}


class ScaledCallback(ScheduledCallback):
    """A scheduled measurement whose numbers need a curvature scale.

    Args:
        epsilon: Prior precision; None for ``p / ||w0||^2``, a prior as wide as the weights with which training began.
        every_n_epochs: Interval of the measurements.
        strict: Raise errors of measurements.
    """

    def __init__(self, *, epsilon: float | None, every_n_epochs: int, strict: bool) -> None:
        super().__init__(every_n_epochs=every_n_epochs, strict=strict)
        if epsilon is not None and not epsilon > 0:
            raise ConfigurationError(f"epsilon={epsilon} was asked for; pass a positive prior precision, or None.")
        self.epsilon = epsilon
        self._kept_epsilon: float | None = None

    def scale(self, trainer: Trainer, context: FitContext) -> tuple[Scale | None, str]:
        """The scale of this run, or None and a sentence that says what to give."""
        if context.fresh and not self.measurements:
            self._kept_epsilon = None  # a new run; one that goes on with trained weights keeps its scale
        epsilon = self.epsilon or self._kept_epsilon or context.prior_precision()
        n = len(context.source(trainer))
        if epsilon is None:
            return None, "All weights are zero at the start, so no scale follows from them; pass epsilon=."
        if n < 2:
            return None, "With a single training sample there is no effective dimension; train on more."
        self._kept_epsilon = epsilon
        return Scale(epsilon, curvature_scale(epsilon, n)), ""

    def state_dict(self) -> dict[str, Any]:
        """The prior precision of the run: a resumed curve keeps its scale."""
        return {} if self._kept_epsilon is None else {"epsilon": self._kept_epsilon}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the scale of the run that wrote the checkpoint."""
        self._kept_epsilon = state_dict.get("epsilon")
