"""An instrument is one class: everything else follows from what it declares."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.norms import Norms, events
from support.tiny import SAFELY, Classifier, Manual, loader, trainer
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_sloppy import (
    ConfigurationError,
    Estimate,
    FisherSpectrum,
    Instrument,
    PACBayesBound,
    Quantity,
    Schedule,
    Status,
    UnsupportedError,
)
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber
from lightning_sloppy.reporting.tags import expected_tags

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def test_a_minimal_instrument_has_all_that_the_others_have(tmp_path, caplog):
    torch.manual_seed(0)
    module, norms = Classifier(), Norms(num_samples=32)
    board, table = TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")
    best = ModelCheckpoint(tmp_path / "best", monitor="sloppy_norms/length", filename="best", mode="min")
    start = sum(float(p.detach().square().sum()) for p in module.parameters()) ** 0.5
    with caplog.at_level(logging.INFO):
        host = trainer(
            tmp_path, callbacks=[norms, best], max_epochs=2, logger=[board, table], enable_checkpointing=True
        )
        host.fit(module, loader())
    end = sum(float(p.detach().square().sum()) for p in module.parameters()) ** 0.5
    # Values, at Lightning's own x-values, in Python.
    assert [m.step for m in norms.measurements] == [0, 2, 5]
    assert (norms.measurements[0].estimates["length"].value, norms.latest.estimates["length"].value) == (start, end)
    assert norms.latest.num_samples == 32
    # Monitors and checkpoints.
    assert float(host.callback_metrics["sloppy_norms/length"]) == pytest.approx(end)
    assert best.best_model_path
    # TensorBoard: curves with their errors, the cost, the chart.
    read = events(board.log_dir)
    assert [(e.step, e.value) for e in read.Scalars("sloppy_norms/length")] == [
        (m.step, pytest.approx(m.estimates["length"].value)) for m in norms.measurements
    ]
    assert {"sloppy_norms/gradient_sem", "sloppy_norms/gradient_truncation"} <= set(read.Tags()["scalars"])
    assert len(read.Scalars("sloppy_cost/seconds_norms")) == 3
    page = layout_pb2.Layout.FromString(read.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {category.title: [chart.title for chart in category.chart] for category in page.category}
    assert charts == {
        "Start here": ["Overhead: seconds of measuring / training"],
        "Sloppy: Norms": ["Length"],
        "Sloppy: cost": ["Seconds of a measurement", "Overhead"],
    }
    # CSV: every column from the first row on.
    with open(table.experiment.metrics_file_path) as file:
        assert set(expected_tags(norms.declaration)) <= set(next(csv.reader(file)))
    # The closing summary.
    said = " ".join(" ".join(record.getMessage() for record in caplog.records).split())
    assert f"Norms Step 5, in the 2nd epoch. N = 32 probe samples. Length {end:.4g} metres." in said


def test_the_probe_is_the_training_loss_on_fixed_samples(tmp_path):
    seen = []

    class Looking(Norms):
        def measure(self, trainer, pl_module, probe):
            inputs, targets = probe.batches[0]
            loss = probe.loss_fn(pl_module(inputs), targets)
            (mine,) = torch.autograd.grad(loss, [pl_module.net[0].weight])
            assert not pl_module.training
            seen.append(
                (
                    inputs,
                    probe.gradient()[: mine.numel()].view_as(mine),
                    mine,
                    torch.rand(2, generator=probe.generator()),
                )
            )
            return {}

    looking = Looking(num_samples=48, strict=True)
    trainer(tmp_path, callbacks=[looking], max_epochs=1).fit(Classifier(), loader())
    first, last = seen
    assert torch.equal(first[0], last[0])
    assert torch.equal(first[3], last[3])
    for _, ours, plain, _ in seen:
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("returned", "said", "logged"),
    [
        ({"size": 1.0, "length": 2.0}, "Norms measured size, which is not among its quantities; declare it", True),
        (3.0, "Norms.measure returned float; return a mapping of quantity names", False),
        ({"length": "long"}, "Norms.measure returned 'long' for 'length'; return a number", False),
        ({"length": torch.ones(2)}, r"returned a tensor of shape (2,) for 'length'; return a number", False),
    ],
)
def test_what_an_instrument_from_outside_does_wrong_is_one_warning_and_no_end_of_the_training(
    tmp_path, returned, said, logged
):
    norms = Norms(num_samples=16)
    norms.returned = returned
    host = trainer(tmp_path, callbacks=[norms], max_epochs=2)
    with pytest.warns(UserWarning, match="orms") as caught:
        host.fit(Classifier(), loader())
    ours = [str(w.message) for w in caught if "orms" in str(w.message)]
    assert len(ours) == 1
    assert said in ours[0]
    assert ("sloppy_norms/length" in host.callback_metrics) is logged
    assert host.current_epoch == 2
    norms.strict = True
    with pytest.raises((ConfigurationError, ValueError, RuntimeError)):
        trainer(tmp_path, callbacks=[norms], max_epochs=1).fit(Classifier(), loader())


def test_quantities_that_do_not_fit_together_are_refused_at_setup(tmp_path):
    class Twice(Norms):
        quantities = (Quantity("a", "One."), Quantity("a", "Two."))

    with pytest.raises(ConfigurationError, match="Twice declares a more than once"):
        trainer(tmp_path, callbacks=[Twice()]).fit(Classifier(), loader())


class Listener(MeasurementSubscriber):
    state_key = "listener"

    def __init__(self, key: str = "first") -> None:
        super().__init__()
        self.state_key = key
        self.heard = 0

    def listens_to(self, callback, trainer):
        return True

    def on_measurement(self, trainer, pl_module, measurement):
        self.heard += 1
        raise OSError("the line is dead")


def test_a_subscriber_that_fails_is_one_warning_and_the_others_are_told(tmp_path):
    norms, first, second = Norms(num_samples=16), Listener(), Listener("second")
    host = trainer(tmp_path, callbacks=[first, norms, second], max_epochs=2)
    with pytest.warns(UserWarning, match="Listener failed on a measurement of norms; training continues. OSError"):
        host.fit(Classifier(), loader())
    assert (first.heard, second.heard) == (3, 3)
    assert float(host.callback_metrics["sloppy_norms/length"]) > 0
    with pytest.raises(OSError, match="dead"):
        trainer(tmp_path, callbacks=[Norms(strict=True), Listener()], max_epochs=1).fit(Classifier(), loader())


def test_a_publisher_that_fails_is_one_warning(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lightning_sloppy.callbacks.measuring.publish", broken)
    norms = Norms(num_samples=16)
    with pytest.warns(
        UserWarning, match="A measurement of norms could not be published; training continues. RuntimeError: no ink"
    ):
        trainer(tmp_path, callbacks=[norms], max_epochs=2).fit(Classifier(), loader())
    assert len(norms.measurements) == 3


@pytest.mark.slow
def test_values_that_are_not_finite_are_a_gap(tmp_path):
    norms = Norms(num_samples=16)
    norms.returned = {"length": math.nan}
    host = trainer(tmp_path, callbacks=[norms], max_epochs=1)
    host.fit(Classifier(), loader())
    assert norms.latest.status is Status.EXACT
    assert "sloppy_norms/length" not in host.callback_metrics


def test_a_step_without_a_known_loss_asks_for_one(tmp_path):
    class Penalised(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.net[0].weight.square().sum()

    class Loss(Norms):
        def measure(self, trainer, pl_module, probe):
            return {"length": float(probe.loss_fn(pl_module(probe.batches[0][0]), probe.batches[0][1]).detach())}

    instrument = Loss(num_samples=16)
    with pytest.warns(UserWarning, match="gives .*, but training_step returned .*pass loss_fn="):
        trainer(tmp_path, callbacks=[instrument], max_epochs=1).fit(Penalised(), loader())
    assert instrument.latest is None


def test_an_instrument_needs_its_parameters_here(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_sloppy.probing.trainer_internals.strategy_is_supported", lambda trainer: False)
    with pytest.raises(UnsupportedError, match="Norms needs all parameters"):
        trainer(tmp_path, callbacks=[Norms()]).fit(Classifier(), loader())


# What a hurried author does.


class Vandal(Norms):
    """Writes into everything that it can reach, and raises on request."""

    fails = False

    def measure(self, trainer, pl_module, probe):
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.add_(1.0)
        pl_module.net[0].weight.data = torch.zeros_like(pl_module.net[0].weight)
        probe.loss_fn(pl_module(probe.batches[0][0]), probe.batches[0][1]).backward()
        probe.batches[0][0].add_(5.0)
        if self.fails:
            raise KeyError("conf")
        return {"length": float(probe.batches[0][0].mean())}


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_instrument_writes_is_undone(tmp_path, fails):
    def fitted(*callbacks):
        torch.manual_seed(0)
        module = Classifier()
        trainer(tmp_path, callbacks=list(callbacks), max_epochs=2, accumulate_grad_batches=2).fit(module, loader())
        return module

    plain = fitted()
    first, second = Vandal(num_samples=16, schedule=Schedule(every_n_steps=1)), Vandal(num_samples=16, name="second")
    first.fails = second.fails = fails
    if fails:
        with pytest.warns(
            UserWarning, match=r"KeyError: 'conf' \(test_instrument.py:\d+\) \(strict=True raises this error"
        ):
            watched = fitted(first, second)
    else:
        watched = fitted(first, second)
        means = [m.estimates["length"].value for m in (*first.measurements, *second.measurements)]
        assert len(set(means)) == 1, "every measurement has the samples as they were read"
    for mine, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert all(parameter.grad is None for parameter in watched.parameters()) == all(
        parameter.grad is None for parameter in plain.parameters()
    )


def test_settings_of_any_type_are_resumed_and_compared(tmp_path):
    class Binned(Norms):
        def __init__(self, bins=10, **options):
            super().__init__(**options)
            self.bins = bins

        def settings(self):
            return {**super().settings(), "bins": self.bins}

    host = trainer(tmp_path, callbacks=[Binned(np.int64(10), num_samples=16)], max_epochs=1)
    host.fit(Classifier(), loader())
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = trainer(tmp_path, callbacks=[Binned(Path("33"), num_samples=16)], max_epochs=2)
    with pytest.warns(UserWarning, match="Binned resumes with bins='33' instead of 10"):
        again.fit(Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY)


def test_attributes_that_would_replace_a_method_are_refused():
    class Named(Norms):
        def __init__(self, **options):
            super().__init__(**options)
            self.run = "experiment 1"

    with pytest.raises(ConfigurationError, match=r"Named sets self.run, a method of its base class"):
        Named()


def test_a_forgotten_super_is_a_sentence(tmp_path):
    class Forgetful(Norms):
        def __init__(self):
            self.bins = 3

    with pytest.raises(ConfigurationError, match=r"Forgetful.__init__ does not call super\(\).__init__\(\)"):
        trainer(tmp_path, callbacks=[Forgetful()])


@pytest.mark.parametrize("declared", [Quantity("a", "One."), ("a",), "a"])
def test_quantities_of_another_type_are_refused_where_they_are_written(declared):
    with pytest.raises(ConfigurationError, match=r"Wrong.quantities is .* use a tuple of Quantity, with a comma"):
        type("Wrong", (Instrument,), {"quantities": declared})


def test_the_last_measurement_belongs_to_the_last_epoch(tmp_path):
    norms, fisher = (each(num_samples=16, schedule=Schedule(every_n_steps=7)) for each in (Norms, FisherSpectrum))
    trainer(tmp_path, callbacks=[norms, fisher], max_epochs=3).fit(Classifier(), loader())
    for callback in (norms, fisher):
        assert [(m.step, m.epoch) for m in callback.measurements] == [(0, 0), (6, 2), (8, 2)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_the_probe_runs_the_module_in_every_precision(tmp_path, precision):
    class Outputs(Norms):
        def measure(self, trainer, pl_module, probe):
            with torch.no_grad():
                outputs = probe.forward(probe.batches[0][0])
            assert outputs.dtype == probe.dtype
            return {"length": float(probe.loss_fn(outputs, probe.batches[0][1]))}

    outputs = Outputs(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[outputs], max_epochs=1, precision=precision).fit(Classifier(), loader())
    assert outputs.latest.estimates["length"].value > 0


@pytest.mark.parametrize("strict", [False, True])
def test_a_subscriber_is_strict_for_itself(tmp_path, monkeypatch, strict):
    def broken(*args, **options):
        raise RuntimeError("no posterior")

    monkeypatch.setattr("lightning_sloppy.callbacks.pac_bayes_bound.certify", broken)
    host = trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=16), PACBayesBound(strict=strict)], max_epochs=1)
    expected = pytest.raises(RuntimeError, match="no posterior") if strict else pytest.warns(match="no posterior")
    with expected:
        host.fit(Classifier(), loader())


def test_an_instrument_that_needs_no_loss_asks_for_none(tmp_path):
    class Length(Norms):
        def measure(self, trainer, pl_module, probe):
            return {"length": float(pl_module.net[0].weight.detach().norm())}

    length = Length(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[length], max_epochs=1).fit(Manual(), loader())
    assert length.latest.estimates["length"].value > 0


def test_an_unknown_cost_ends_no_training(tmp_path):
    class Costly(Norms):
        def cost_in_gradients(self, size):
            raise ZeroDivisionError

    costly = Costly(num_samples=16, schedule=Schedule(every_n_steps=1, max_overhead=0.001, grace_seconds=0.0))
    trainer(tmp_path, callbacks=[costly], max_epochs=2).fit(Classifier(), loader())
    assert costly.latest is not None


def test_two_instruments_of_one_title_have_a_page_each(tmp_path):
    class Mine(Norms):
        title = "Norms"

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, callbacks=[Norms(), Mine()], logger=logger, max_epochs=1).fit(Classifier(), loader())
    page = events(logger.log_dir).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    titles = [category.title for category in layout_pb2.Layout.FromString(page).category]
    assert titles == ["Start here", "Sloppy: Norms (norms)", "Sloppy: Norms (mine)", "Sloppy: cost"]


@pytest.mark.parametrize(("error", "status"), [(0.0, Status.EXACT), (0.25, Status.CONVERGED)])
def test_values_without_a_spectrum_are_exact_where_they_have_no_error(tmp_path, error, status):
    part = Norms(strict=True)
    part.returned = {"length": 2.0, "gradient": Estimate(1.0, error)}
    host = trainer(tmp_path, callbacks=[part], max_epochs=1)
    host.fit(Classifier(), loader())
    assert {event.status for event in part.measurements} == {status}
    assert float(host.callback_metrics["sloppy_norms/length"]) == 2.0
