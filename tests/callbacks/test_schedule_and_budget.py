"""Measurements come when they are due, cost no more than they may, and do less where they must."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from support.tiny import SAFELY, Classifier, Regressor, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    Schedule,
    SloppyMonitor,
    Status,
    is_measuring,
)
from lightning_sloppy.callbacks import periodic
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber
from lightning_sloppy.linalg.operator import DenseOperator, SymmetricOperator
from lightning_sloppy.probing.samples import probe_indices

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def x_values(callback) -> list[int]:
    return [m.step for m in callback.measurements]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    said = [record.getMessage() for record in caplog.records if "less frequent than requested" in record.getMessage()]
    assert len(said) == 1


def test_without_a_limit_nothing_is_left_out_and_no_gradient_timed(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, cost=50.0)
    fisher = clock.fisher(schedule=Schedule(every_n_steps=1, max_overhead=None))
    monkeypatch.setattr(type(fisher), "seconds_of_a_gradient", None)
    trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(clock.model(), loader())
    assert x_values(fisher) == [0, 0, 1, 2, 3, 4, 5]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert any("not have enough memory for 600 samples" in record.getMessage() for record in caplog.records)


def test_out_of_memory_at_the_least_is_a_gap_with_a_remedy(tmp_path, monkeypatch):
    def never(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")

    monkeypatch.setattr(FisherSpectrum, "measure", never)
    fisher = FisherSpectrum(num_samples=300)
    with pytest.warns(UserWarning, match="even for 128 samples. Lower num_samples") as caught:
        trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(Classifier(), loader(blobs(300)))
    assert [m.status for m in fisher.measurements] == [Status.FAILED] * 3
    assert len([w for w in caught if "not have enough memory, even" in str(w.message)]) == 1


@pytest.mark.slow
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


def test_the_overhead_is_the_seconds_of_measuring_for_each_second_of_training_without_it(tmp_path, monkeypatch):
    """By a clock of its own: a second a step, half a second a measurement, and three and a half for a subscriber."""
    clock, seen = Clock(monkeypatch, cost=0.5), []
    fisher = clock.fisher(schedule=Schedule(every_n_steps=2, max_overhead=None))

    class Watching(Callback):
        def on_train_batch_end(self, host, module, outputs, batch, batch_idx):
            seen.append(host.callback_metrics.get("sloppy_cost/overhead"))

    host = trainer(tmp_path, callbacks=[fisher, Watching()], max_epochs=2)
    host.fit(clock.model(), loader(blobs(64)))
    assert x_values(fisher) == [0, 1, 3, 5, 7]
    assert seen[0] is None, "before there was any training there is nothing to compare with"
    # Behind step 2 two measurements, behind step 4 three, and so on.
    assert [float(value) for value in seen[1::2]] == pytest.approx([1.0 / 2, 1.5 / 4, 2.0 / 6, 2.5 / 8])
    state = fisher.state_dict()
    assert (state["measuring_seconds"], state["training_seconds"]) == pytest.approx((2.5, 8.0))
    assert fisher.expected_seconds == pytest.approx(0.5)


def test_the_clock_of_a_resumed_run_goes_on(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, cost=0.5)
    schedule = Schedule(every_n_steps=2, max_overhead=None)
    host = trainer(tmp_path, callbacks=[first := clock.fisher(schedule=schedule)], max_epochs=1)
    host.fit(clock.model(), loader(blobs(64)))
    host.save_checkpoint(tmp_path / "run.ckpt")
    kept = first.state_dict()
    assert (kept["measuring_seconds"], kept["training_seconds"]) == pytest.approx((1.5, 4.0))
    clock.now += 1000.0  # between the two nothing ran
    host = trainer(tmp_path, callbacks=[clock.fisher(schedule=schedule)], max_epochs=2)
    host.fit(clock.model(), loader(blobs(64)), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    # At the start of the second part, behind steps 6 and 8.
    assert float(host.callback_metrics["sloppy_cost/overhead"]) == pytest.approx((1.5 + 1.5) / 8.0)


def test_one_clock_that_two_callbacks_have_kept_counts_once(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, cost=0.5)
    schedule = Schedule(every_n_steps=2, max_overhead=None)

    def both():
        return [clock.fisher(schedule=schedule, name=name) for name in ("one", "two")]

    host = trainer(tmp_path, callbacks=both(), max_epochs=1)
    host.fit(clock.model(), loader(blobs(64)))
    host.save_checkpoint(tmp_path / "run.ckpt")
    # The later clock is told first: the earlier one must not turn it back.
    host = trainer(tmp_path, callbacks=both()[::-1], max_epochs=2)
    host.fit(clock.model(), loader(blobs(64)), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert float(host.callback_metrics["sloppy_cost/overhead"]) == pytest.approx((3.0 + 3.0) / 8.0)


def test_all_that_runs_the_module_beside_the_training_counts_as_measuring(tmp_path, monkeypatch):
    """A quarter of a second each forward inside: probes, the loss that is guessed, and its check before the step."""
    clock = Clock(monkeypatch, cost=0.5)

    class Slow(Classifier):
        def training_step(self, batch, batch_idx):
            clock.now += 1.0
            return super().training_step(batch, batch_idx)

        def forward(self, inputs):
            clock.now += 0.25 * is_measuring()
            return super().forward(inputs)

    fisher = clock.fisher(schedule=Schedule(every_n_steps=2, max_overhead=None))
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(Slow(), loader(blobs(64)))
    state = fisher.state_dict()
    assert state["training_seconds"] == pytest.approx(4.0)
    assert state["measuring_seconds"] == pytest.approx(clock.now - 4.0)
    assert state["measuring_seconds"] > 3 * 0.5


def test_what_early_stopping_watches_is_said_to_be_costly_by_all_that_it_took(tmp_path, monkeypatch, caplog):
    """Three measurements of a second each are above two and a half seconds, and none of them by itself is."""
    clock = Clock(monkeypatch, cost=1.0)
    fisher = clock.fisher(schedule=Schedule(every_n_steps=2, max_overhead=0.0, grace_seconds=2.5))
    stopping = EffectiveDimensionEarlyStopping("sloppy_fisher/effective_dimension", patience=50)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[fisher, stopping], max_epochs=2).fit(clock.model(), loader(blobs(64)))
    assert x_values(fisher) == [0, 1, 3, 5, 7]
    said = [record.getMessage() for record in caplog.records if "which early stopping uses" in record.getMessage()]
    assert len(said) == 1
    assert "took 3.0 s for 4.0 s of training" in said[0]


def test_the_exact_kind_is_known_to_cost_ten_times_as_much(tmp_path, monkeypatch):
    """Half a second a gradient: 8 of them are within half the grace, 80 are not."""
    monkeypatch.setattr(FisherSpectrum, "seconds_of_a_gradient", lambda *_: 0.5)
    sizes = {}
    for kind in ("empirical", "sampled", "exact"):
        part = FisherSpectrum(kind=kind, num_samples=512, schedule=Schedule(every_n_epochs=99), strict=True)
        trainer(tmp_path, callbacks=[part], max_epochs=1).fit(Classifier(), loader(blobs(512), batch_size=256))
        sizes[kind] = part.latest.num_samples
    assert sizes == {"empirical": 512, "sampled": 512, "exact": 256}


@pytest.mark.slow
def test_products_are_counted_one_by_one(tmp_path, monkeypatch):
    made, counted = [], SymmetricOperator._counted

    def seen(self, apply, vectors, count):
        if not isinstance(self, DenseOperator):  # a matrix that is held costs no pass through the network
            made.append(count)
        return counted(self, apply, vectors, count)

    monkeypatch.setattr(SymmetricOperator, "_counted", seen)
    counts, measure = [], HessianSpectrum.measure

    def measured(self, *given):
        before = sum(made)
        found = measure(self, *given)
        counts.append(sum(made) - before)
        return found

    monkeypatch.setattr(HessianSpectrum, "measure", measured)
    for probes, make in ((None, Classifier), (3, Classifier), (None, Wide), (3, Wide)):
        part = HessianSpectrum(k=2, probes=probes, num_samples=40, strict=True)
        host = trainer(tmp_path, callbacks=[part], max_epochs=1)
        counts.clear()
        host.fit(make(), loader(blobs(64)))
        assert [event.cost.products for event in part.measurements] == counts
        assert float(host.callback_metrics["sloppy_cost/products_hessian"]) == counts[-1] > 0


class Wide(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))


def test_what_waits_for_its_loss_costs_its_own_seconds_and_those_of_its_subscribers(tmp_path, monkeypatch):
    """The first measurement is held back until the first step has confirmed the loss: it is one cost, not two."""
    clock = Clock(monkeypatch, cost=0.5)

    class Dear(MeasurementSubscriber):
        def listens_to(self, callback, host):
            return True

        def on_measurement(self, host, module, measurement):
            clock.now += 3.0

    fisher, costs = clock.fisher(schedule=Schedule(every_n_steps=2, max_overhead=None)), []

    class Watching(Callback):
        def on_train_batch_end(self, host, module, outputs, batch, batch_idx):
            costs.append(fisher.expected_seconds)

    trainer(tmp_path, callbacks=[fisher, Dear(), Watching()], max_epochs=1).fit(clock.model(), loader(blobs(64)))
    assert costs == pytest.approx([3.5] * 4)


@pytest.mark.slow
def test_a_round_leaves_room_for_the_other_instruments(tmp_path, monkeypatch):
    """Each still measures at the end: what that will cost is not spent before."""
    clock, names = Clock(monkeypatch, cost=1.0), ("one", "two", "three")
    limit = {"max_overhead": 0.1, "grace_seconds": 4.0}
    often = clock.fisher(schedule=Schedule(every_n_steps=1, **limit))
    rarely = [clock.fisher(schedule=Schedule(every_n_steps=1000, **limit), name=name) for name in names]
    trainer(tmp_path, callbacks=[often, *rarely], max_epochs=20).fit(clock.model(), loader())
    assert [len(each.measurements) for each in rarely] == [2, 2, 2]
    assert 2 < len(often.measurements) <= 4.0 + 0.1 * 60 - 6
    assert often.measurements[-1].step == 59


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined.*")
def test_a_stream_keeps_as_many_samples_as_the_largest_instrument_wants(tmp_path):
    """Also where one that measures on the current batch comes first, and wants few."""
    current = FisherSpectrum(
        num_samples=8, measure_on="current_batch", schedule=Schedule(every_n_steps=1), name="current", strict=True
    )
    small = FisherSpectrum(num_samples=16, strict=True)
    large = FisherSpectrum(kind="sampled", num_samples=40, strict=True)
    plain = trainer(tmp_path, callbacks=[current, small, large], max_epochs=1)
    plain.fit(Classifier(), DataLoader(Passing(), 16))
    assert [event.num_samples for event in small.measurements] == [16, 16]
    assert [event.num_samples for event in large.measurements] == [48, 48], "whole batches"
    assert [event.step for event in large.measurements] == [2, 5]


class Passing(IterableDataset):
    def __iter__(self):
        return iter(blobs(96))

    def __len__(self):
        return 96


def test_two_instruments_of_different_seeds_have_a_probe_each(tmp_path):
    """Of 300 samples each takes 40 of its own choice, and an instrument of a third seed changes neither."""
    seen = {}

    class Noting(FisherSpectrum):
        def measure(self, host, module, probe):
            seen.setdefault(self.name, probe.batches[0][0].clone())
            return super().measure(host, module, probe)

    data = blobs(300)
    parts = [Noting(num_samples=40, seed=seed, name=f"fisher_{seed}", strict=True) for seed in (0, 7)]
    trainer(tmp_path, callbacks=parts, max_epochs=1).fit(Classifier(), loader(data))
    for seed in (0, 7):
        assert torch.equal(seen[f"fisher_{seed}"], data.tensors[0][probe_indices(300, 40, seed)])
