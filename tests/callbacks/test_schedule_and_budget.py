"""Measurements come when they are due, cost no more than they may, and do less where they must."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import pytest
import torch
from support.tiny import Classifier, Regressor, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_sloppy import FisherSpectrum, HessianSpectrum, Schedule, SloppyMonitor, Status
from lightning_sloppy.callbacks import periodic

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def x_values(callback) -> list[int]:
    return [m.step for m in callback.measurements]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_steps": 2}, [0, 1, 3, 5, 7, 8]),
        ({"every_n_steps": 3, "every_n_epochs": 1}, [0, 2, 5, 8]),
        ({"at_steps": [1, 5]}, [0, 0, 4, 8]),
        ({"per_decade": 2}, [0, 0, 3, 8]),
        ({"every_n_epochs": 2}, [0, 5, 8]),
    ],
)
def test_schedules_count_effective_batches(tmp_path, options, expected):
    fisher = FisherSpectrum(num_samples=16, schedule=Schedule(**options), strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=3).fit(Classifier(), loader())
    assert x_values(fisher) == expected


def test_accumulated_batches_are_one(tmp_path):
    fisher = FisherSpectrum(schedule=Schedule(every_n_steps=2), num_samples=16, strict=True)
    host = trainer(tmp_path, callbacks=[fisher], max_epochs=2, accumulate_grad_batches=3)
    host.fit(Classifier(), loader(blobs(112)))  # 7 batches: effective ones of 3, 3 and 1
    assert x_values(fisher) == [0, 1, 3, 5]


class Manual(Regressor):
    """Two optimisers, or raw ones of torch that Lightning does not count."""

    def __init__(self, *, raw: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.raw = [torch.optim.SGD(self.parameters(), lr=0.01)] if raw else []

    def training_step(self, batch):
        for optimiser in self.raw or self.optimizers():
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            loss.backward() if self.raw else self.manual_backward(loss)
            optimiser.step()

    def configure_optimizers(self):
        if self.raw:
            return None
        return [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in (self.net[0], self.net[2])]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.filterwarnings("ignore:.*configure_optimizers.*returned.*")
def test_manual_optimisation_counts_batches_whatever_the_optimisers(tmp_path, raw):
    data = torch.utils.data.TensorDataset(torch.randn(48, 6), torch.randn(48, 2))
    fisher = FisherSpectrum(
        schedule=Schedule(every_n_steps=2), num_samples=16, loss_fn=nn.functional.mse_loss, strict=True
    )
    host = trainer(tmp_path, callbacks=[fisher], max_epochs=2)
    host.fit(Manual(raw=raw), DataLoader(data, 16))
    assert host.global_step == (0 if raw else 12)
    assert x_values(fisher) == [0, 1, 3, 5]


class Clock:
    """A second a training step, and so many for a measurement; nothing else takes any time."""

    def __init__(self, monkeypatch, cost: float) -> None:
        self.now, self.cost = 0.0, cost
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def model(self) -> Classifier:
        clock = self

        class Slow(Classifier):
            def training_step(self, batch, batch_idx):
                if not self.trainer.sanity_checking and torch.is_grad_enabled() and not clock.measuring:
                    clock.now += 1.0
                return super().training_step(batch, batch_idx)

        return Slow()

    measuring = False

    def fisher(self, **options) -> FisherSpectrum:
        clock = self

        class Dear(FisherSpectrum):
            def measure(self, *args):
                clock.measuring = True
                found = super().measure(*args)
                clock.measuring = False
                clock.now += clock.cost * self.size.num_samples / self.num_samples
                return found

            def seconds_of_a_gradient(self, *args):
                return 0.0

        return Dear(num_samples=16, strict=True, **options)


@pytest.mark.parametrize("overhead", [0.02, 0.05, 0.1])
def test_the_overhead_stays_below_its_limit_and_near_it(tmp_path, monkeypatch, caplog, overhead):
    clock = Clock(monkeypatch, cost=0.5)
    model = clock.model()
    fisher = clock.fisher(schedule=Schedule(every_n_steps=1, max_overhead=overhead, grace_seconds=1.0))
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[fisher], max_epochs=100).fit(model, loader())
    spent = 0.5 * len(fisher.measurements)
    trained = 300 + 1  # the objective is compared with one training step
    assert overhead * 0.75 <= (spent - 1.0) / trained <= overhead
    steps = x_values(fisher)
    gaps = [b - a for a, b in itertools.pairwise(steps[4:-1])]
    assert max(gaps) - min(gaps) <= 1, "the interval stretches evenly"
    for index, step in enumerate(steps[2:-1], start=2):
        assert 0.5 * (index + 1) - 1.0 <= overhead * (step + 2) + 1e-6
    said = [record.getMessage() for record in caplog.records if "less often than asked" in record.getMessage()]
    assert len(said) == 1


def test_without_a_limit_nothing_is_left_out_and_no_gradient_timed(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, cost=50.0)
    fisher = clock.fisher(schedule=Schedule(every_n_steps=1, max_overhead=None))
    monkeypatch.setattr(type(fisher), "seconds_of_a_gradient", None)
    trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(clock.model(), loader())
    assert x_values(fisher) == [0, 0, 1, 2, 3, 4, 5]


def test_where_there_would_be_few_measurements_each_does_less(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lightning_sloppy.probing.schedule.LEAST_SAMPLES", 2)
    clock = Clock(monkeypatch, cost=8.0)
    fisher = clock.fisher(schedule=Schedule(every_n_steps=1, max_overhead=0.1, grace_seconds=1.0))
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[fisher], max_epochs=100).fit(clock.model(), loader())
    sizes = [m.num_samples for m in fisher.measurements]
    assert sizes[0] == 16
    assert sizes[-1] < 16
    assert len(sizes) >= 10
    assert any("instead of 16 samples" in record.getMessage() for record in caplog.records)


def test_a_first_measurement_beyond_the_grace_does_less(tmp_path, monkeypatch):
    monkeypatch.setattr(HessianSpectrum, "seconds_of_a_gradient", lambda *_: 0.5)
    hessian = HessianSpectrum(schedule=Schedule(grace_seconds=60.0), k=4, probes=8, num_samples=512, strict=True)
    trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Classifier(), loader(blobs(600)))
    assert hessian.measurements[0].num_samples == hessian.size.num_samples < 512
    assert hessian.size.probes == 2
    assert (
        hessian.cost_in_gradients(hessian.size) * 0.5 * hessian.size.num_samples / 512 <= 30.0
        or hessian.size.smaller() is None
    )


def test_a_round_is_taken_or_left_out_as_a_whole(tmp_path, monkeypatch):
    decisions = []
    decide = periodic.decide_round

    def recorded(*args, **options):
        decisions.append(decide(*args, **options))
        return decisions[-1]

    monkeypatch.setattr(periodic, "decide_round", recorded)
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=16),
        fisher=FisherSpectrum(num_samples=16),
        bound=None,
        every_n_steps=1,
        max_overhead=0.01,
        grace_seconds=0.0,
        strict=True,
    )
    trainer(tmp_path, callbacks=[watcher], max_epochs=4).fit(Classifier(), loader())
    assert len(decisions) == 12
    jacobian, _, hessian, fisher = map(x_values, watcher.parts)
    assert jacobian == hessian == fisher
    assert hessian[0] == 0
    assert hessian[-1] == 11


def test_out_of_memory_does_less_until_it_fits(tmp_path, monkeypatch, caplog):
    measure = HessianSpectrum.measure

    def tight(self, *args):
        if self.size.num_samples > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")
        return measure(self, *args)

    monkeypatch.setattr(HessianSpectrum, "measure", tight)
    hessian = HessianSpectrum(k=2, probes=4, num_samples=600, strict=True)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Classifier(), loader(blobs(600)))
    assert [m.num_samples for m in hessian.measurements] == [150, 150]
    assert any("no memory for 600 samples" in record.getMessage() for record in caplog.records)


def test_out_of_memory_at_the_least_is_a_gap_with_a_remedy(tmp_path, monkeypatch):
    def never(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")

    monkeypatch.setattr(FisherSpectrum, "measure", never)
    fisher = FisherSpectrum(num_samples=300)
    with pytest.warns(UserWarning, match="even for 128 samples; lower num_samples") as caught:
        trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(Classifier(), loader(blobs(300)))
    assert [m.status for m in fisher.measurements] == [Status.FAILED] * 3
    assert len([w for w in caught if "no memory left" in str(w.message)]) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
def test_the_peak_of_the_memory_is_a_curve(tmp_path):
    hessian = HessianSpectrum(k=2, num_samples=16, strict=True)
    held = []

    def memory(what):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024

    class Greedy(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                # 256 MiB above what this process ever had, and never again.
                held.append(torch.ones((memory("VmHWM") - memory("VmRSS")) // 4 + 2**26))

    host = trainer(tmp_path, callbacks=[hessian], max_epochs=3)
    host.fit(Greedy(), loader())
    peaks = [m.cost.peak_bytes for m in hessian.measurements]
    assert host.callback_metrics["sloppy_cost/peak_bytes_hessian"] == pytest.approx(peaks[-1], rel=1e-6)
    assert peaks == sorted(peaks)
    assert peaks[2] - peaks[1] > 2**27
    assert peaks[3] - peaks[2] < 2**25


def test_what_is_queued_on_the_device_is_no_time_of_a_measurement(tmp_path, monkeypatch):
    """The training's kernels run on while the host goes on: whoever waits for them first would be charged."""
    waited = []

    def wait(host):
        if host.global_step not in waited:  # behind that nothing is queued any more
            time.sleep(0.5)
        waited.append(host.global_step)

    monkeypatch.setattr("lightning_sloppy.probing.trainer_internals.wait_for_device", wait)
    fisher = FisherSpectrum(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(Classifier(), loader())
    assert waited[0] == 0
    assert waited[-1] == 3
    assert all(m.cost.seconds < 0.5 for m in fisher.measurements)
    assert fisher.expected_seconds < 0.5


def test_the_device_is_waited_for_on_cuda(tmp_path, monkeypatch):
    from lightning_sloppy.probing import trainer_internals

    waited = []
    monkeypatch.setattr(trainer_internals, "root_device", lambda host: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    trainer_internals.wait_for_device(trainer(tmp_path))
    assert waited == [torch.device("cuda", 0)]
