"""When a measurement is due, and whether its cost is within the limit: rules on plain numbers, without a Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_sloppy.errors import ConfigurationError


@dataclass(frozen=True)
class Schedule:
    """When an instrument measures during the training, and the limit on the time for measuring.

    The first measurement is always before the first step, and the last one at the end of the training. If several rules
    ask for the same step, it is measured once. Effective batches are counted from 1: number 100 is at x-value 99, where
    ``log_every_n_steps=100`` logs too. Accumulated batches count as one. Under manual optimisation every batch counts,
    for any number of optimisers.

    Args:
        every_n_epochs: Measure after the last batch of every n-th epoch. null: 1 if no other rule is given.
        every_n_steps: Measure after every n-th effective batch.
        at_steps: Measure after these effective batches.
        per_decade: Measure after the first effective batch, and after this many in every power of ten, evenly spaced in
            the logarithm.
        max_overhead: Limit on (seconds of measuring - grace_seconds) / (seconds of training without measuring), for all
            callbacks of the fit together. Measurements become less frequent if they would exceed it. If a whole run
            would have fewer than ten, each measurement becomes smaller. A message says so once, and the curve
            ``sloppy_cost/overhead`` shows it. null: no limit.
        grace_seconds: Seconds of measuring that do not count, so that short runs are measured as scheduled.

    Raises:
        ConfigurationError: If a number is out of range.

    >>> [step for step in range(1, 101) if Schedule(per_decade=2).due(step, epoch=0, ends_epoch=False)]
    [1, 4, 10, 32, 100]
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    at_steps: Sequence[int] = ()
    per_decade: int | None = None
    max_overhead: float | None = 0.1
    grace_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers, and set the default rule."""
        for name in ("every_n_epochs", "every_n_steps", "per_decade"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}={value} was asked for; pass a whole number of at least 1, or None.")
        if any(not isinstance(step, int) or step < 1 for step in self.at_steps):
            raise ConfigurationError(
                f"at_steps={list(self.at_steps)} was asked for; effective batches are counted from 1, so pass whole "
                "numbers of at least 1."
            )
        if self.max_overhead is not None and not self.max_overhead >= 0:
            raise ConfigurationError(
                f"max_overhead={self.max_overhead} was asked for; pass a ratio such as 0.1, or None for no limit."
            )
        if not self.grace_seconds >= 0:
            raise ConfigurationError(f"grace_seconds={self.grace_seconds} was asked for; pass 0 or more.")
        object.__setattr__(self, "at_steps", tuple(self.at_steps))
        if self.every_n_epochs is None and self.every_n_steps is None and not self.at_steps and self.per_decade is None:
            object.__setattr__(self, "every_n_epochs", 1)

    def due(self, batches: int, *, epoch: int, ends_epoch: bool) -> bool:
        """Whether to measure after effective batch number ``batches``, in the epoch counted from 0."""
        by_epoch = ends_epoch and self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0
        by_step = self.every_n_steps is not None and batches % self.every_n_steps == 0
        return by_epoch or by_step or batches in self.at_steps or self._by_decade(batches)

    def _by_decade(self, batches: int) -> bool:
        if self.per_decade is None:
            return False
        # The first batch at or after each of 10^(i / per_decade).
        return batches == 1 or (
            math.floor(self.per_decade * math.log10(batches)) > math.floor(self.per_decade * math.log10(batches - 1))
        )

    def allows(self, cost: float, *, measuring: float, training: float) -> bool:
        """Whether ``cost`` more seconds of measuring stay within the limit."""
        if self.max_overhead is None:
            return True
        return measuring + cost <= self.grace_seconds + self.max_overhead * training

    def affordable_rounds(self, cost: float, *, training: float) -> float:
        """Number of rounds of this cost that the limit allows in a run with ``training`` seconds of training."""
        if self.max_overhead is None or cost <= 0:
            return math.inf
        return (self.grace_seconds + self.max_overhead * training) / cost


FEWEST_ROUNDS = 10
"""Smallest number of rounds that a whole run should have. If the limit allows fewer, each round becomes smaller."""


@dataclass(frozen=True)
class MeasurementSize:
    """The size of one measurement.

    Attributes:
        num_samples: Number of probe samples.
        probes: Number of probe vectors; 0 if none are used.
        k: Number of eigenpairs; 0 if it cannot be chosen.
    """

    num_samples: int
    probes: int = 0
    k: int = 0

    def smaller(self) -> MeasurementSize | None:
        """The next smaller size, or None. Probe vectors are reduced first, which increases errors but shifts no value.

        >>> MeasurementSize(512, probes=4, k=10).smaller()
        MeasurementSize(num_samples=512, probes=2, k=10)
        >>> MeasurementSize(128, probes=2, k=1).smaller() is None
        True
        """
        if self.probes > LEAST_PROBES:
            return MeasurementSize(self.num_samples, max(self.probes // 2, LEAST_PROBES), self.k)
        if self.num_samples > LEAST_SAMPLES:
            return MeasurementSize(max(self.num_samples // 2, LEAST_SAMPLES), self.probes, self.k)
        if self.k > 1:
            return MeasurementSize(self.num_samples, self.probes, self.k // 2)
        return None

    def __str__(self) -> str:
        """In words: ``512 samples, 2 probe vectors, k=10``."""
        parts = [f"{self.num_samples:,} samples"]
        parts += [f"{self.probes} probe vectors"] if self.probes else []
        return ", ".join(parts + ([f"k={self.k}"] if self.k else []))


LEAST_PROBES = 2
"""One probe vector has no standard error."""

LEAST_SAMPLES = 128
"""With fewer samples, the result would depend on the draw of the samples more than on the network."""


@dataclass(frozen=True)
class Candidate:
    """A measurement that is due.

    Attributes:
        schedule: Schedule of its instrument, with the limit on the overhead.
        size: Size of the measurement.
        seconds: Expected seconds.
        cheaper: Function that returns the next smaller size and its relative cost; None if it would save little.
    """

    schedule: Schedule
    size: MeasurementSize
    seconds: float
    cheaper: Callable[[MeasurementSize], tuple[MeasurementSize, float] | None]


def decide_round(
    due: Sequence[Candidate], *, others: float, measuring: float, training: float, progress: float | None
) -> tuple[bool, list[MeasurementSize], list[float]]:
    """Decide whether to take a round, and the size and expected seconds of each of its measurements from now on.

    Args:
        due: The measurements of the round. None of them may exceed its own limit.
        others: Expected seconds of one measurement of each instrument that is not in this round.
        measuring: Seconds of measuring so far.
        training: Seconds of training so far.
        progress: Fraction of the training that is done; None if it is not known.
    """
    sizes, costs = [each.size for each in due], [each.seconds for each in due]

    def allowed() -> bool:
        # The last round of the fit is always taken, so its cost is reserved.
        cost = 2 * sum(costs) + others
        return all(each.schedule.allows(cost, measuring=measuring, training=training) for each in due)

    def few() -> bool:
        return progress is not None and any(
            each.schedule.affordable_rounds(sum(costs), training=training / progress) < FEWEST_ROUNDS for each in due
        )

    while not allowed() and few():
        cheaper = [each.cheaper(size) for each, size in zip(due, sizes, strict=True)]
        dearest = max(range(len(due)), key=lambda index: -1.0 if cheaper[index] is None else costs[index])
        choice = cheaper[dearest]
        if choice is None:
            break
        sizes[dearest], costs[dearest] = choice[0], costs[dearest] * choice[1]
    return allowed(), sizes, costs
