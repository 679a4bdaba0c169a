"""Early stopping by the effective dimension: rules on plain curves, without a Trainer.

Time is counted in epochs or in steps, not in measurements, because the number of measurements depends on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from lightning_sloppy.errors import ConfigurationError

TRACE_FACTOR = 2.0
"""A matrix whose trace changes by more than this factor within the window has not settled."""

LOSS_TOL = 0.01
"""The training loss has settled when it falls by less than this fraction of its first value within the window."""

LIMIT = 2
"""After this many times ``patience``, a hold-out loss without improvement alone stops the training."""


class Condition(Enum):
    """The state of the curves. The value is the reason in words."""

    COLLECTING = "fewer epochs than patience have been measured"
    IMPROVING = "the hold-out loss still improves"
    CHANGING = "the effective dimension still changes"
    UNDETERMINED = "the error of the effective dimension exceeds the tolerance, so it cannot be judged as settled"
    TRAINING = "the effective dimension has settled, but the training loss still falls"
    HOLD_OUT = "the hold-out loss has not improved for the patience, and the effective dimension has settled"
    HOLD_OUT_LIMIT = "the hold-out loss has not improved for twice the patience"
    GROWTH = "the entropy rank has grown far above its minimum: the network memorises"
    PLATEAU = "the effective dimension and the training loss have settled"

    @property
    def stops(self) -> bool:
        """Whether the training should stop."""
        return self in (Condition.HOLD_OUT, Condition.HOLD_OUT_LIMIT, Condition.GROWTH, Condition.PLATEAU)


@dataclass(frozen=True)
class Rule:
    """Constants of the stopping rule.

    Attributes:
        patience: Number of epochs (or steps) without improvement, and length of the window in which the dimension must
            settle.
        rel_tol: Relative change of the dimension within the window up to which it has settled.
        growth: Factor above its minimum at which the entropy rank has grown.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    patience: int
    rel_tol: float
    growth: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not isinstance(self.patience, int) or self.patience < 1 or not 0 < self.rel_tol < 1 or not self.growth > 1:
            raise ConfigurationError(
                "Early stopping needs patience >= 1, 0 < rel_tol < 1 and growth > 1, but got "
                f"patience={self.patience}, rel_tol={self.rel_tol}, growth={self.growth}."
            )


@dataclass
class Curves:
    """The curves so far, as plain numbers.

    Attributes:
        dimension: Time, value, standard error, trace and entropy rank of each measurement. The entropy rank grows with
            memorisation; the dimension is limited to 1,000.
        hold_out: Time and value of the hold-out loss.
        training: Time and mean of the training loss.
    """

    dimension: list[list[float]] = field(default_factory=list)
    hold_out: list[list[float]] = field(default_factory=list)
    training: list[list[float]] = field(default_factory=list)

    def add_dimension(self, time: float, value: float, error: float, trace: float, entropy_rank: float) -> None:
        """Append a measurement. A second one at the same weights, as after a resume, replaces the first."""
        self.dimension = [point for point in self.dimension if point[0] < time]
        self.dimension.append([time, value, error, trace, entropy_rank])

    @property
    def best_hold_out(self) -> list[float] | None:
        """Time and value of the lowest finite hold-out loss."""
        finite = [point for point in self.hold_out if math.isfinite(point[1])]
        return min(finite, key=lambda point: point[1]) if finite else None

    @property
    def growth(self) -> float:
        """The entropy rank divided by its minimum; NaN if it is not known or the minimum is below 1."""
        ranks = [point[4] for point in self.dimension]
        return ranks[-1] / min(ranks) if ranks and min(ranks) >= 1 else math.nan


def judge(rule: Rule, curves: Curves, now: float) -> Condition:
    """Judge the curves at a time.

    With a hold-out loss, the training stops when that loss has not improved for ``patience`` and the dimension has
    settled, or when it has not improved for twice ``patience``. Without a hold-out loss, the training stops when the
    entropy rank of the same spectrum has grown by the factor ``growth`` above its minimum, or when the dimension and
    the training loss have settled. The dimension has settled when ``(max - min) / mean`` plus twice the relative
    standard error is at most ``rel_tol`` over the window. It has not settled if it is below 1 or if the trace of its
    matrix changes by more than a factor of 2 in the window.

    Args:
        rule: Constants of the rule.
        curves: The curves so far.
        now: Number of epochs or steps done.

    >>> dimension = [[t, 100.0, 0.0, 1.0, 50.0] for t in range(7)]
    >>> curves = Curves(dimension, hold_out=[[t, 1.0] for t in range(1, 7)])
    >>> judge(Rule(patience=5, rel_tol=0.1, growth=1.5), curves, now=6).name
    'HOLD_OUT'
    """
    flat = _flatness(rule.rel_tol, rule.patience, curves.dimension, now)
    best = curves.best_hold_out
    if best is not None:
        waited = now - best[0]
        if waited < rule.patience:
            return Condition.IMPROVING
        if flat is None:
            return Condition.HOLD_OUT
        return Condition.HOLD_OUT_LIMIT if waited >= LIMIT * rule.patience else flat
    if curves.growth >= rule.growth:
        return Condition.GROWTH
    if flat is not None:
        return flat
    return Condition.PLATEAU if _training_settled(rule, curves.training, now) else Condition.TRAINING


@dataclass(frozen=True)
class Settling:
    """Whether a curve of effective dimensions has settled.

    Attributes:
        condition: None if it has settled, else the reason why not.
        since: Time from which on it changes by no more than the tolerance within any window; NaN if not settled.
        now: Time of the last value.
        window: Length of the window.
        first: First value in the last window.
        last: Last value.
    """

    condition: Condition | None
    since: float
    now: float
    window: float
    first: float
    last: float


def settling(rel_tol: float, window: float, points: Sequence[Sequence[float]]) -> Settling:
    """Whether and since when a curve has settled, by the rule for the dimension in :func:`judge`.

    It is judged at every measurement, going back from the last one as long as it has settled there. ``since`` is the
    first time in the window of the earliest such measurement.

    Args:
        rel_tol: Relative change within the window up to which it has settled.
        window: Length of the window, in the unit of the times.
        points: Time, value, standard error and trace of each measurement, in order of time; at least one.

    >>> growing = [[float(t), 10.0 + 20 * t, 0.0, 1.0] for t in range(5)]
    >>> settling(0.05, 5, growing + [[float(t), 100.0, 0.0, 1.0] for t in range(5, 15)]).since
    5.0
    """
    now, last = points[-1][0], points[-1][1]
    condition = _flatness(rel_tol, window, points, now)
    since = math.nan
    for end in range(len(points), 0, -1):
        seen = points[:end]
        if _flatness(rel_tol, window, seen, seen[-1][0]) is not None:
            break
        since = next(point[0] for point in seen if point[0] >= seen[-1][0] - window)
    first = next(point[1] for point in points if point[0] >= now - window)
    return Settling(condition, since, now, window, first, last)


def _flatness(rel_tol: float, window: float, points: Sequence[Sequence[float]], now: float) -> Condition | None:
    """None if the dimension has settled, else the reason why it has not."""
    start = now - window
    inside = [point for point in points if point[0] >= start]
    if len(inside) < 2 or points[0][0] > start:
        return Condition.COLLECTING
    values, traces = [point[1] for point in inside], [point[3] for point in inside]
    mean = sum(values) / len(values)
    if min(values) < 1 or max(traces) > TRACE_FACTOR * min(traces):
        return Condition.CHANGING
    noise = 2 * max(point[2] for point in inside) / mean
    if noise > rel_tol:
        return Condition.UNDETERMINED
    return None if (max(values) - min(values)) / mean + noise <= rel_tol else Condition.CHANGING


def _training_settled(rule: Rule, points: list[list[float]], now: float) -> bool:
    start = now - rule.patience
    before = [value for time, value in points if time <= start]
    if not before or len(points) < 2:
        return False
    return before[-1] - points[-1][1] < LOSS_TOL * abs(points[0][1])
