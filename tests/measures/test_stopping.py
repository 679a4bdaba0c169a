"""The rules of the early stop on prepared curves."""

from __future__ import annotations

import math

import pytest

from lightning_sloppy import ConfigurationError
from lightning_sloppy.measures.stopping import Condition, Curves, Rule, judge

RULE = Rule(patience=5, rel_tol=0.05, growth=2.0)


def curves(values, *, hold_out=(), training=(), errors=0.0, traces=None, ranks=None) -> Curves:
    """One value after each epoch, the first before any."""
    found = Curves()
    for epoch, value in enumerate(values):
        trace = 1.0 if traces is None else traces[epoch]
        found.add_dimension(epoch, value, errors * value, trace, value / 2 if ranks is None else ranks[epoch])
    found.hold_out = [[epoch + 1, loss] for epoch, loss in enumerate(hold_out)]
    found.training = [[epoch + 1, loss] for epoch, loss in enumerate(training)]
    return found


def judged(found: Curves, rule: Rule = RULE) -> Condition:
    return judge(rule, found, len(found.dimension) - 1)


FLAT = [100.0] * 8
FALLING = [100.0 * 0.9**epoch for epoch in range(8)]
OLD = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]  # the best at epoch 2, five epochs ago at epoch 7


@pytest.mark.parametrize(
    ("found", "condition"),
    [
        (curves(FLAT, hold_out=OLD), Condition.HOLD_OUT),
        (curves(FLAT, hold_out=[1.0, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6]), Condition.IMPROVING),
        (curves(FALLING, hold_out=OLD), Condition.CHANGING),
        (curves(FALLING + FALLING[-1:] * 5, hold_out=[1.0, *[1.1] * 11]), Condition.HOLD_OUT),
        (curves([100.0 * 0.9**epoch for epoch in range(12)], hold_out=[1.0, *[1.1] * 10]), Condition.HOLD_OUT_LIMIT),
        (curves(FLAT[:5], hold_out=[1.0, 1.1, 1.1, 1.1]), Condition.IMPROVING),
        (curves(FLAT, hold_out=[1.0, math.nan, 0.5, math.nan, math.nan, math.nan, math.nan]), Condition.IMPROVING),
        (curves(FLAT, hold_out=OLD, errors=0.03), Condition.UNDETERMINED),
        (curves([0.9] * 8, hold_out=OLD), Condition.CHANGING),
        (curves(FLAT, hold_out=OLD, traces=[9, 9, 1.0, 1.9, 1, 1, 1, 1.0]), Condition.HOLD_OUT),
        (curves(FLAT, hold_out=OLD, traces=[9, 9, 1.0, 2.1, 1, 1, 1, 1.0]), Condition.CHANGING),
        (curves(FLAT, training=[1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.495]), Condition.PLATEAU),
        (curves(FLAT, training=[1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.48]), Condition.TRAINING),
        (curves(FLAT, training=[]), Condition.TRAINING),
        (curves(FALLING, training=[0.5] * 7), Condition.CHANGING),
        (curves(FLAT, ranks=[90, 50, 25.0, 30, 35, 40, 45, 50.0], training=[9.0] * 7), Condition.GROWTH),
        (curves(FLAT, ranks=[90, 50, 25.0, 30, 35, 40, 45, 49.9], training=[1.0] * 7), Condition.PLATEAU),
        (curves(FLAT, ranks=[90, 50, 0.5, 30, 35, 40, 45, 50.0], training=[1.0] * 7), Condition.PLATEAU),
        (curves(FLAT, ranks=[math.nan] * 8, training=[1.0] * 7), Condition.PLATEAU),
        (curves([100.0] * 3, training=[0.5] * 2), Condition.COLLECTING),
        (Curves(), Condition.COLLECTING),
    ],
)
def test_conditions(found: Curves, condition: Condition) -> None:
    now = max(len(found.dimension) - 1, 0)
    assert judge(RULE, found, now) is condition
    assert condition.stops is (condition.name in ("HOLD_OUT", "HOLD_OUT_LIMIT", "GROWTH", "PLATEAU"))


def test_hold_out_samples_go_before_growth() -> None:
    grown = curves(FLAT, ranks=[90, 50, 20.0, 30, 35, 40, 45, 50.0], hold_out=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert judged(grown) is Condition.IMPROVING
    grown.hold_out = []
    assert judged(grown) is Condition.GROWTH


@pytest.mark.parametrize(("last", "condition"), [(104.9, Condition.HOLD_OUT), (105.5, Condition.CHANGING)])
def test_the_tolerance_is_of_the_mean_over_the_window(last: float, condition: Condition) -> None:
    """With patience 2 the window holds 100, 100 and the last value: (last - 100) / mean against 5 %."""
    found = curves([900.0, 100.0, 100.0, last], hold_out=[1.0, 2.0, 2.0])
    assert judge(Rule(2, 0.05, 2.0), found, 3) is condition


def test_time_counts_and_not_measurements() -> None:
    """Many measurements within an epoch are no five epochs, and two of them five epochs apart are."""
    dense = Curves(hold_out=[[0.1 * i, 1.0] for i in range(1, 40)])
    for i in range(40):
        dense.add_dimension(0.1 * i, 100.0, 0.0, 1.0, 50.0)
    assert judge(RULE, dense, 3.9) is Condition.IMPROVING
    assert judge(RULE, Curves(dense.dimension, [], [[1, 1.0], [2, 1.0]]), 3.9) is Condition.COLLECTING
    rare = Curves([[0, 100.0, 0.0, 1.0, 50.0], [5, 100.0, 0.0, 1.0, 50.0]], [], [[1, 1.0], [5, 1.0]])
    assert judge(Rule(4, 0.05, 2.0), rare, 5) is Condition.COLLECTING  # one value within the window
    assert judge(RULE, Curves(rare.dimension, [[0, 1.0]], []), 5) is Condition.HOLD_OUT


def test_a_second_measurement_of_the_same_weights_replaces_the_first() -> None:
    found = curves([3.0, 2.0])
    found.add_dimension(1, 2.5, 0.0, 1.0, 1.0)
    assert [point[:2] for point in found.dimension] == [[0, 3.0], [1, 2.5]]


@pytest.mark.parametrize("wrong", [(0, 0.05, 2.0), (5, 0.0, 2.0), (5, 1.0, 2.0), (5, 0.05, 1.0), (2.5, 0.05, 2.0)])
def test_numbers_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigurationError, match="patience >= 1"):
        Rule(*wrong)
