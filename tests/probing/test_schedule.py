"""When to measure, what it may cost, and how to do less: rules on plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from support.tiny import Regressor, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy.errors import ConfigurationError
from lightning_sloppy.probing.schedule import LEAST_SAMPLES, Candidate, MeasurementSize, Schedule, decide_round
from lightning_sloppy.probing.trainer_internals import fraction_done


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
def test_a_negative_limit_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="was asked for; pass"):
        Schedule(**wrong)


def test_the_limit_is_the_promise() -> None:
    schedule = Schedule(max_overhead=0.1, grace_seconds=5.0)
    assert schedule.allows(2.0, measuring=3.0, training=0.0)
    assert not schedule.allows(2.1, measuring=3.0, training=0.0)
    assert schedule.allows(2.1, measuring=3.0, training=1.1)
    assert schedule.affordable_rounds(3.0, training=100.0) == 5.0
    assert Schedule(max_overhead=None).allows(1e9, measuring=1e9, training=0.0)
    assert Schedule(max_overhead=None).affordable_rounds(3.0, training=1.0) == math.inf


@given(cost=st.floats(0.1, 10), overhead=st.floats(0.01, 0.5), grace=st.floats(0, 20), count=st.integers(10, 300))
def test_what_is_admitted_never_exceeds_the_limit_and_wastes_less_than_one_measurement(
    cost: float, overhead: float, grace: float, count: int
) -> None:
    schedule, measuring = Schedule(max_overhead=overhead, grace_seconds=grace), 0.0
    for step in range(1, count + 1):
        if schedule.allows(cost, measuring=measuring, training=float(step)):
            measuring += cost
        assert measuring <= grace + overhead * step + 1e-9
    wasted = min(grace + overhead * count, count * cost) - measuring
    assert wasted < cost + overhead + 1e-9


def test_smaller_sizes_end_at_the_least() -> None:
    size, seen = MeasurementSize(1024, probes=8, k=10), []
    while size is not None:
        seen.append((size.num_samples, size.probes, size.k))
        size = size.smaller()
    assert seen == [
        (1024, 8, 10), (1024, 4, 10), (1024, 2, 10), (512, 2, 10), (256, 2, 10), (LEAST_SAMPLES, 2, 10),
        (LEAST_SAMPLES, 2, 5), (LEAST_SAMPLES, 2, 2), (LEAST_SAMPLES, 2, 1),
    ]  # fmt: skip
    assert MeasurementSize(50).smaller() is None
    assert str(MeasurementSize(1024, 4, 10)) == "1,024 samples, 4 probe vectors, k=10"


def halved(size: MeasurementSize) -> tuple[MeasurementSize, float] | None:
    return (MeasurementSize(size.num_samples // 2), 0.5) if size.num_samples > 25 else None


def due(seconds: float, *, limit: float = 0.1, samples: int = 100) -> Candidate:
    return Candidate(Schedule(max_overhead=limit, grace_seconds=0.0), MeasurementSize(samples), seconds, halved)


def test_a_round_within_the_limit_is_taken_as_it_is() -> None:
    # Twice 1 + 2 seconds, for the last round always happens, and 3 of another instrument.
    round_ = {"others": 3.0, "measuring": 1.0, "progress": None}
    assert decide_round([due(1.0), due(2.0)], training=100.0, **round_) == (
        True, [MeasurementSize(100), MeasurementSize(100)], [1.0, 2.0],
    )  # fmt: skip
    assert not decide_round([due(1.0), due(2.0)], training=99.0, **round_)[0]
    strict = decide_round([due(1.0), due(2.0, limit=0.05)], training=100.0, **round_)
    assert not strict[0], "none may exceed its own limit"


def test_the_dearest_measures_less_where_a_whole_run_would_have_few_rounds() -> None:
    # 1,000 s of training in all allow 100 s of measuring: fewer than ten rounds of 12 s, and ten of 9 s.
    taken, sizes, costs = decide_round([due(4.0), due(8.0)], others=0.0, measuring=0.0, training=100.0, progress=0.1)
    assert (taken, [size.num_samples for size in sizes], costs) == (False, [100, 50], [4.0, 4.0])
    unknown = decide_round([due(4.0), due(8.0)], others=0.0, measuring=0.0, training=100.0, progress=None)
    assert unknown == (False, [MeasurementSize(100), MeasurementSize(100)], [4.0, 8.0])
    least = decide_round([due(99.0, samples=20)], others=0.0, measuring=0.0, training=100.0, progress=0.1)
    assert least == (False, [MeasurementSize(20)], [99.0])


@pytest.mark.parametrize(("epochs", "steps", "planned"), [(2, -1, 8), (50, 6, 6), (2, 100, 8)])
def test_what_is_done_is_a_fraction_of_the_end_that_comes_first(
    tmp_path, epochs: int, steps: int, planned: int
) -> None:
    seen = []

    class Watching(Callback):
        def on_train_batch_end(self, host, module, outputs, batch, batch_idx):
            seen.append(fraction_done(host))

    host = trainer(tmp_path, callbacks=[Watching()], max_epochs=epochs, max_steps=steps)
    host.fit(Regressor(), DataLoader(TensorDataset(torch.randn(16, 6), torch.randn(16, 2)), 4))
    assert seen == pytest.approx([step / planned for step in range(1, planned + 1)])
