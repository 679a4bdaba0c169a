"""Seconds of training and of measuring in a fit."""

from __future__ import annotations

import time


class Clock:
    """Wall-clock seconds of one fit, and of the earlier parts of a run that was resumed.

    Attributes:
        measuring_seconds: Time spent in measurements so far, also before a resume.
    """

    def __init__(self) -> None:
        self.measuring_seconds = 0.0
        self._earlier = (0.0, 0.0)
        self._begin = time.perf_counter()

    def resume(self, measuring: float, training: float) -> None:
        """Continue from these seconds of an earlier part of the run. The same seconds given twice count once."""
        if (measuring, training) > self._earlier:
            self.measuring_seconds += measuring - self._earlier[0]
            self._earlier = (measuring, training)

    @property
    def earlier_seconds(self) -> float:
        """Seconds of measuring before a resume."""
        return self._earlier[0]

    @property
    def fit_seconds(self) -> float:
        """Seconds since this fit started."""
        return time.perf_counter() - self._begin

    @property
    def training_seconds(self) -> float:
        """Seconds of the run without measuring, including those before a resume."""
        earlier_measuring, earlier_training = self._earlier
        here = self.fit_seconds - (self.measuring_seconds - earlier_measuring)
        return max(here + earlier_training, 1e-9)

    @property
    def overhead(self) -> float:
        """Seconds of measuring divided by seconds of training without measuring."""
        return self.measuring_seconds / self.training_seconds
