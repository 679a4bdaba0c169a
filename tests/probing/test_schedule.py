"""When to measure, what it may cost, and how to do less: rules on plain numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.schedule import LEAST_SAMPLES, Budget, Schedule, Work


def steps(schedule: Schedule, batches: int, epoch_length: int = 10) -> list[int]:
    return [
        step
        for step in range(1, batches + 1)
        if schedule.due(step, epoch=(step - 1) // epoch_length, ends_epoch=step % epoch_length == 0)
    ]


def test_every_epoch_unless_something_else_is_asked_for() -> None:
    assert steps(Schedule(), 30) == [10, 20, 30]
    assert steps(Schedule(every_n_epochs=2), 50) == [20, 40]
    assert steps(Schedule(every_n_steps=7), 30) == [7, 14, 21, 28]
    assert steps(Schedule(at_steps=[3, 30, 99]), 50) == [3, 30]
    assert steps(Schedule(every_n_epochs=1, every_n_steps=7, at_steps=[7, 8]), 20) == [7, 8, 10, 14, 20]


@pytest.mark.parametrize("per_decade", [1, 3, 10])
def test_as_many_in_every_tenfold(per_decade: int) -> None:
    found = steps(Schedule(per_decade=per_decade), 10_000)
    assert found[0] == 1
    assert found[-1] == 10_000
    for start in (10, 100, 1000):
        within = [step for step in found if start < step <= 10 * start]
        assert len(within) == (per_decade if start > 10 or per_decade < 10 else len(within))
        exact = [start * 10 ** (i / per_decade) for i in range(1, per_decade + 1)]
        assert all(any(step == math.ceil(round(x, 9)) for x in exact) for step in within)


@pytest.mark.parametrize(
    "wrong",
    [{"every_n_epochs": 0}, {"every_n_steps": -1}, {"every_n_steps": 1.5}, {"per_decade": 0}, {"at_steps": [3, 0]}],
)
def test_numbers_below_one_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        Schedule(**wrong)


@pytest.mark.parametrize("wrong", [{"max_overhead": -0.1}, {"grace_seconds": -1.0}, {"max_overhead": math.nan}])
def test_a_negative_budget_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="was asked for; pass"):
        Budget(**wrong)


def test_the_budget_is_the_promise() -> None:
    budget = Budget(0.1, grace_seconds=5.0)
    assert budget.allows(2.0, measuring=3.0, training=0.0)
    assert not budget.allows(2.1, measuring=3.0, training=0.0)
    assert budget.allows(2.1, measuring=3.0, training=1.1)
    assert budget.rounds(3.0, training=100.0) == 5.0
    assert Budget(None).allows(1e9, measuring=1e9, training=0.0)
    assert Budget(None).rounds(3.0, training=1.0) == math.inf


@given(cost=st.floats(0.1, 10), overhead=st.floats(0.01, 0.5), grace=st.floats(0, 20), count=st.integers(10, 300))
def test_what_is_admitted_never_exceeds_the_budget_and_wastes_less_than_one_measurement(
    cost: float, overhead: float, grace: float, count: int
) -> None:
    budget, measuring = Budget(overhead, grace), 0.0
    for step in range(1, count + 1):
        if budget.allows(cost, measuring=measuring, training=float(step)):
            measuring += cost
        assert measuring <= grace + overhead * step + 1e-9
    wasted = min(grace + overhead * count, count * cost) - measuring
    assert wasted < cost + overhead + 1e-9


def test_less_work_ends_at_the_least() -> None:
    work, seen = Work(1024, probes=8, k=10), []
    while work is not None:
        seen.append((work.num_samples, work.probes, work.k))
        work = work.less()
    assert seen == [
        (1024, 8, 10), (1024, 4, 10), (1024, 2, 10), (512, 2, 10), (256, 2, 10), (LEAST_SAMPLES, 2, 10),
        (LEAST_SAMPLES, 2, 5), (LEAST_SAMPLES, 2, 2), (LEAST_SAMPLES, 2, 1),
    ]  # fmt: skip
    assert Work(50).less() is None
    assert str(Work(1024, 4, 10)) == "1,024 samples, 4 probe vectors, k=10"
