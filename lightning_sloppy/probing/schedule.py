"""When a measurement is due, and whether it may be taken: rules on plain numbers, without a Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sloppy.errors import ConfigurationError


@dataclass(frozen=True)
class Schedule:
    """Which effective batches are measured behind. What several rules ask for is measured once.

    Effective batches are counted from 1: number 100 is the one at x-value 99, where ``log_every_n_steps=100`` logs too.
    Accumulated batches count as one, and under manual optimisation every batch does, whatever the optimisers are.

    Args:
        every_n_epochs: Behind the last batch of every so-manieth epoch. None is 1 when no other rule is given.
        every_n_steps: Behind every so-manieth effective batch.
        at_steps: Behind these effective batches.
        per_decade: Behind so many effective batches in every tenfold, evenly spaced in the logarithm, and the first.

    Raises:
        ConfigurationError: For numbers below 1.

    >>> [step for step in range(1, 101) if Schedule(per_decade=2).due(step, epoch=0, ends_epoch=False)]
    [1, 4, 10, 32, 100]
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    at_steps: Sequence[int] = ()
    per_decade: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and fill in the default rule."""
        for name in ("every_n_epochs", "every_n_steps", "per_decade"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{name}={value} was asked for; pass a whole number of at least 1, or None.")
        if any(not isinstance(step, int) or step < 1 for step in self.at_steps):
            raise ConfigurationError(
                f"at_steps={list(self.at_steps)} was asked for; effective batches are counted from 1, so pass whole "
                "numbers of at least 1."
            )
        object.__setattr__(self, "at_steps", tuple(self.at_steps))
        if self.every_n_epochs is None and self.every_n_steps is None and not self.at_steps and self.per_decade is None:
            object.__setattr__(self, "every_n_epochs", 1)

    def due(self, batches: int, *, epoch: int, ends_epoch: bool) -> bool:
        """Whether to measure behind effective batch number ``batches``, in the epoch counted from 0."""
        by_epoch = ends_epoch and self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0
        by_step = self.every_n_steps is not None and batches % self.every_n_steps == 0
        return by_epoch or by_step or batches in self.at_steps or self._by_decade(batches)

    def _by_decade(self, batches: int) -> bool:
        if self.per_decade is None:
            return False
        # The first batch at or behind each of 10^(i / per_decade).
        return batches == 1 or (
            math.floor(self.per_decade * math.log10(batches)) > math.floor(self.per_decade * math.log10(batches - 1))
        )


FEWEST_ROUNDS = 10
"""Measurements that a whole run should have; where the budget gives fewer, each one does less."""


@dataclass(frozen=True)
class Budget:
    """What measuring may cost: ``(measuring - grace_seconds) / training <= max_overhead``, in seconds.

    Args:
        max_overhead: Seconds of measuring beyond the grace, per second of training without measuring. None: no limit.
        grace_seconds: Measuring that is free, so that short runs are measured as asked.

    Raises:
        ConfigurationError: For numbers below zero.
    """

    max_overhead: float | None = 0.1
    grace_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_overhead is not None and not self.max_overhead >= 0:
            raise ConfigurationError(
                f"max_overhead={self.max_overhead} was asked for; pass a share such as 0.1, or None for no limit."
            )
        if not self.grace_seconds >= 0:
            raise ConfigurationError(f"grace_seconds={self.grace_seconds} was asked for; pass 0 or more.")

    def allows(self, cost: float, *, measuring: float, training: float) -> bool:
        """Whether so many more seconds of measuring stay within the budget."""
        if self.max_overhead is None:
            return True
        return measuring + cost <= self.grace_seconds + self.max_overhead * training

    def rounds(self, cost: float, *, training: float) -> float:
        """How many measurements of this cost a run gets that trains for so many seconds."""
        if self.max_overhead is None or cost <= 0:
            return math.inf
        return (self.grace_seconds + self.max_overhead * training) / cost


@dataclass(frozen=True)
class Work:
    """How much one measurement does.

    Attributes:
        num_samples: Probe samples.
        probes: Probe vectors; 0 where there are none.
        k: Eigenpairs; 0 where the number is no choice.
    """

    num_samples: int
    probes: int = 0
    k: int = 0

    def less(self) -> Work | None:
        """The next smaller one, None at the end: probe vectors first, for fewer widen an error and move no value.

        >>> Work(512, probes=4, k=10).less()
        Work(num_samples=512, probes=2, k=10)
        >>> Work(128, probes=2, k=1).less() is None
        True
        """
        if self.probes > LEAST_PROBES:
            return Work(self.num_samples, max(self.probes // 2, LEAST_PROBES), self.k)
        if self.num_samples > LEAST_SAMPLES:
            return Work(max(self.num_samples // 2, LEAST_SAMPLES), self.probes, self.k)
        if self.k > 1:
            return Work(self.num_samples, self.probes, self.k // 2)
        return None

    def __str__(self) -> str:
        """In words: ``512 samples, 2 probe vectors, k=10``."""
        parts = [f"{self.num_samples:,} samples"]
        parts += [f"{self.probes} probe vectors"] if self.probes else []
        return ", ".join(parts + ([f"k={self.k}"] if self.k else []))


LEAST_PROBES = 2
"""One probe vector has no standard error."""

LEAST_SAMPLES = 128
"""Fewer samples would say more about the draw than about the network."""
