"""Has the effective dimension stopped moving? A rule over measurements, pure and with plain state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.records import Estimate


class Verdict(Enum):
    """What one more measurement says; the value is the reason in words."""

    WARMING_UP = "the warm-up is not over"
    COLLECTING = "too few measurements since the warm-up"
    CHANGING = "the effective dimension still changes"
    UNDETERMINED = "the standard error alone exceeds the tolerance, so flatness cannot be told from noise"
    PLATEAU = "the effective dimension has been flat at three scales"


@dataclass
class PlateauDetector:
    """Decide whether N_eff is flat at z/10, z and 10 z together.

    At one scale alone the rule fires at the curve's maximum, while the training error still halves. Flat means:
    over the last ``patience + 1`` measurements ``(max - min) / mean`` plus twice the relative standard error is
    within ``rel_tol``, at every scale. When twice the standard error alone exceeds ``rel_tol`` at some scale, the
    verdict is UNDETERMINED.

    Attributes:
        patience: Measurements without change that make a plateau, at least 1.
        rel_tol: Relative change that counts as none.
        warmup: Measurements ignored at the start.
        seen: Measurements so far.
        window: The last ``patience + 1`` measurements, for each scale (value, standard error).

    >>> detector = PlateauDetector(patience=1, rel_tol=0.1, warmup=0)
    >>> [detector.update([Estimate(value)]).name for value in (1.0, 2.0, 2.1)]
    ['COLLECTING', 'CHANGING', 'PLATEAU']
    """

    patience: int = 5
    rel_tol: float = 0.02
    warmup: int = 3
    seen: int = 0
    window: list[list[list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.patience < 1 or self.warmup < 0 or not 0 < self.rel_tol < 1:
            raise ConfigurationError(
                f"A plateau needs patience >= 1, warmup >= 0 and 0 < rel_tol < 1, but got patience={self.patience}, "
                f"warmup={self.warmup}, rel_tol={self.rel_tol}; the defaults are 5, 3 and 0.02."
            )

    def update(self, scales: Sequence[Estimate]) -> Verdict:
        """Take one measurement, an estimate for each scale, and say what is known now."""
        self.seen += 1
        if self.seen <= self.warmup:
            return Verdict.WARMING_UP
        self.window.append([[estimate.value, estimate.standard_error] for estimate in scales])
        self.window = self.window[-(self.patience + 1) :]
        if len(self.window) <= self.patience:
            return Verdict.COLLECTING
        changes, noises = zip(*(self._spread(index) for index in range(len(scales))), strict=True)
        if max(noises) > self.rel_tol:
            return Verdict.UNDETERMINED
        flat = all(change + noise <= self.rel_tol for change, noise in zip(changes, noises, strict=True))
        return Verdict.PLATEAU if flat else Verdict.CHANGING

    def _spread(self, index: int) -> tuple[float, float]:
        """Relative change over the window, and twice the largest relative standard error."""
        values = [entry[index][0] for entry in self.window]
        mean = abs(sum(values) / len(values))
        if mean == 0.0:
            return (0.0, 0.0) if max(values) == min(values) else (math.inf, 0.0)
        noise = 2 * max(entry[index][1] for entry in self.window)
        return (max(values) - min(values)) / mean, noise / mean

    def restart(self) -> None:
        """Forget the window, for instance when the set of trainable parameters has changed."""
        self.window = []
