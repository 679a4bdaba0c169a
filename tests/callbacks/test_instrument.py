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
from support.tiny import SAFELY, Classifier, blobs, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    Estimate,
    FisherSpectrum,
    HessianSpectrum,
    Instrument,
    PACBayesBound,
    Quantity,
    Schedule,
    SloppyMonitor,
    Status,
    UnsupportedError,
    fisher_spectrum,
)
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber
from lightning_sloppy.reporting.tags import expected_tags

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


class Norms(Instrument):
    """Norms of the weights, with everything that can go wrong on request."""

    quantities = (
        Quantity("length", "Norm of the weights.", unit="metres", chart="Length", headline=True),
        Quantity("gradient", "Norm of the gradient.", estimated=True),
    )
    returned: object = None

    def measure(self, trainer, pl_module, probe):
        if self.returned is not None:
            return self.returned
        length = sum(float(p.detach().square().sum()) for p in pl_module.parameters()) ** 0.5
        return {"length": length, "gradient": Estimate(float(probe.gradient().norm()), 0.25, 0.5)}


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


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
    assert charts == {"Sloppy: Norms": ["Length"], "Sloppy: cost": ["Seconds of a measurement", "Overhead"]}
    # CSV: every column from the first row on.
    with open(table.experiment.metrics_file_path) as file:
        assert set(expected_tags(norms.declaration)) <= set(next(csv.reader(file)))
    # The closing summary.
    said = " ".join(" ".join(record.getMessage() for record in caplog.records).split())
    assert f"Norms Step 5, epoch 1. N = 32 probe samples. Length {end:.4g} metres." in said


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
    with pytest.warns(UserWarning, match="known only as a whole.*pass loss_fn="):
        trainer(tmp_path, callbacks=[instrument], max_epochs=1).fit(Penalised(), loader())
    assert instrument.latest is None


# Two of one kind.


def test_two_fisher_spectra_have_a_name_and_a_state_each(tmp_path):
    torch.manual_seed(0)
    empirical, exact = FisherSpectrum(kind="empirical"), FisherSpectrum(kind="exact")
    logger = TensorBoardLogger(tmp_path)
    host = trainer(tmp_path, callbacks=[empirical, exact], max_epochs=1, logger=logger)
    module = Classifier()
    host.fit(module, loader())
    assert (empirical.name, exact.name) == ("fisher", "fisher_exact")
    assert (empirical.latest.group, exact.latest.group) == ("fisher", "fisher_exact")
    assert (empirical.latest.spectrum.matrix, exact.latest.spectrum.matrix) == ("fisher_empirical", "fisher_exact")
    batches = [(blobs().tensors[0], blobs().tensors[1])]
    for callback, kind in ((empirical, "empirical"), (exact, "exact")):
        direct = fisher_spectrum(module, batches, nn.functional.cross_entropy, kind=kind)
        assert callback.latest.spectrum.largest == pytest.approx(direct.largest, rel=1e-5)
        tag = f"sloppy_{callback.name}/largest"
        assert float(host.callback_metrics[tag]) == pytest.approx(direct.largest, rel=1e-5)
    path = tmp_path / "both.ckpt"
    host.save_checkpoint(path)
    states = torch.load(path, weights_only=True)["callbacks"]
    assert {"FisherSpectrum", "FisherSpectrum{'kind': 'exact'}"} <= set(states)
    assert states["FisherSpectrum{'kind': 'exact'}"]["settings"]["kind"] == "exact"
    again = trainer(tmp_path, callbacks=[FisherSpectrum(kind="exact"), FisherSpectrum()], max_epochs=2)
    again.fit(Classifier(), loader(), ckpt_path=path, **SAFELY)  # a warning about other settings would be an error here


@pytest.mark.slow
def test_a_block_of_the_parameters_beside_the_whole(tmp_path):
    torch.manual_seed(0)
    whole, head = HessianSpectrum(k=3, strict=True), HessianSpectrum(k=3, parameters="net.4.*", strict=True)
    bound = PACBayesBound(strict=True)
    module = Classifier()
    host = trainer(tmp_path, callbacks=[head, whole, bound], max_epochs=1)
    host.fit(module, loader())
    assert (whole.name, head.name) == ("hessian", "hessian_net_4")
    assert head.latest.spectrum.dim == sum(p.numel() for p in module.net[4].parameters())
    inputs, targets = blobs().tensors
    weight, bias = module.net[4].weight.detach().double(), module.net[4].bias.detach().double()
    hidden = module.eval().net[:4](inputs).detach().double()

    def loss(flat):
        return nn.functional.cross_entropy(
            hidden @ flat[: weight.numel()].view_as(weight).T + flat[weight.numel() :], targets
        )

    dense = torch.autograd.functional.hessian(loss, torch.cat([weight.flatten(), bias]))
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(head.latest.spectrum.eigenvalues[:3], values.flip(0)[:3], rtol=1e-4, atol=1e-6)
    # Dimension and displacement are those of the block; the scale is that of the run.
    z = head.latest.estimates["z"].value
    assert z == whole.latest.estimates["z"].value
    assert head.latest.estimates["effective_dimension_at_prior"].value == pytest.approx(
        float((values.clamp(min=0) / (values.clamp(min=0) + z)).sum()), rel=1e-3
    )
    assert 0 <= head.latest.estimates["displacement_fraction"].value <= 1
    # The bound follows the whole spectrum, whatever the order.
    assert bound.latest.certificate.valid
    assert bound.measurements[-1].estimates["stiff_directions"].value <= 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [FisherSpectrum(), FisherSpectrum(num_samples=8)], "sloppy_fisher/.*a different name="),
        (lambda: [Norms(name="fisher"), FisherSpectrum()], "Norms and FisherSpectrum would write the same curves"),
        (lambda: [HessianSpectrum(parameters="tail.*")], "tail"),
        (lambda: [HessianSpectrum(parameters="net.4.*"), PACBayesBound()], "of all parameters"),
        (
            lambda: [
                FisherSpectrum(kind="exact"),
                EffectiveDimensionEarlyStopping("sloppy_fisher/effective_dimension"),
            ],
            "monitor='sloppy_fisher_exact/effective_dimension'",
        ),
    ],
)
def test_names_that_collide_or_match_nothing_are_refused_at_setup(tmp_path, make, said):
    callbacks = make()
    if len({callback.state_key for callback in callbacks}) < len(callbacks):
        pytest.skip("Lightning refuses these itself") if not said.startswith("sloppy") else None
        with pytest.raises(RuntimeError, match="more than one stateful callback"):
            trainer(tmp_path, callbacks=callbacks)
        return
    with pytest.raises(ConfigurationError, match=said):
        trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Classifier(), loader())


def test_a_name_is_overridden(tmp_path):
    a, b = FisherSpectrum(num_samples=8, name="small"), FisherSpectrum(num_samples=16, name="large")
    host = trainer(
        tmp_path, callbacks=[a, b, EffectiveDimensionEarlyStopping(monitor="sloppy_large/effective_dimension_at_prior")]
    )
    host.fit(Classifier(), loader())
    assert {"sloppy_small/trace", "sloppy_large/trace"} <= set(host.callback_metrics)
    assert (a.latest.num_samples, b.latest.num_samples) == (8, 16)
    for wrong in ("Large", "a/b", "cost"):
        with pytest.raises(ConfigurationError, match=r"is not valid in a tag|cannot be named"):
            trainer(tmp_path, callbacks=[FisherSpectrum(name=wrong)]).fit(Classifier(), loader())


# Inside the monitor.


def test_the_monitor_passes_on_what_a_part_was_not_given():
    own = Schedule(every_n_steps=3)
    norms, fisher = Norms(seed=7), FisherSpectrum(schedule=own, epsilon=2.0)
    monitor = SloppyMonitor(
        hessian=HessianSpectrum(k=2), fisher=fisher, extra=[norms], epsilon=5.0, seed=1, every_n_epochs=2, strict=True
    )
    _, _, hessian, _, bound, _ = monitor.parts
    assert (hessian.epsilon, hessian.seed, hessian.schedule.every_n_epochs, hessian.strict) == (5.0, 1, 2, True)
    assert (fisher.epsilon, fisher.schedule, fisher.seed) == (2.0, own, 1)
    assert (norms.seed, norms.schedule.every_n_epochs) == (7, 2)
    assert (bound.seed, bound.strict) == (1, True)


def test_extra_instruments_are_measured_kept_and_resumed(tmp_path):
    def monitor() -> SloppyMonitor:
        extra = [Norms(num_samples=16), FisherSpectrum(kind="exact", num_samples=16)]
        fisher = FisherSpectrum(num_samples=16)
        return SloppyMonitor(jacobian=None, hessian=None, fisher=fisher, bound=None, extra=extra, strict=True)

    watcher = monitor()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=1)
    host.fit(Classifier(), loader())
    assert set(watcher.measurements) == set(watcher.latest) == {"input", "fisher", "norms", "fisher_exact"}
    assert watcher.latest["norms"].estimates["length"].value > 0
    path = tmp_path / "extra.ckpt"
    host.save_checkpoint(path)
    again = monitor()
    trainer(tmp_path, callbacks=[again], max_epochs=2).fit(Classifier(), loader(), ckpt_path=path, **SAFELY)
    assert again.latest["norms"].step == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extra": [3]}, "got 3 in extra="),
        ({"extra": Norms()}, r"pass a list: extra=\[...\]"),
        ({"measure_on": "fixed"}, "choose one of fixed_samples, current_batch"),
        ({"epsilon": -1.0}, "pass a positive prior precision"),
        ({"loss_fn": "cross_entropy"}, "torch.nn.functional.cross_entropy"),
        ({"schedule": {"every_n_steps": 1}}, "pass lightning_sloppy.Schedule"),
        ({"extra": [FisherSpectrum()]}, "an instrument named 'fisher' in extra="),
        ({"hessian": FisherSpectrum()}, r"pass hessian=lightning_sloppy.HessianSpectrum\(...\), True"),
        ({"schedule": Schedule(), "every_n_steps": 2}, "put them into the Schedule"),
    ],
)
def test_what_the_monitor_cannot_take(options, said):
    with pytest.raises(ConfigurationError, match=said):
        SloppyMonitor(**options)


def test_every_hook_of_lightning_reaches_the_parts():
    called = []

    class Calling(Norms):
        def __getattribute__(self, name):
            if name.startswith("on_") or name in ("setup", "teardown"):
                called.append(name)
                return lambda *args, **kwargs: None
            return super().__getattribute__(name)

    monitor = SloppyMonitor(jacobian=None, input=None, hessian=None, fisher=None, extra=[Calling()])
    hooks = [name for name in dir(monitor) if name.startswith("on_")]
    assert len(hooks) > 30
    for hook in (*hooks, "setup", "teardown"):
        getattr(monitor, hook)()
    assert called == [*hooks, "setup", "teardown"]


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


def test_extra_instruments_may_have_the_name_of_an_argument():
    monitor = SloppyMonitor(fisher=FisherSpectrum(kind="exact"), extra=[FisherSpectrum(), Norms()])
    names = [part.name for part in monitor.parts]
    assert names == ["jacobian", "input", "hessian", "fisher_exact", "bound", "fisher", "norms"]
    assert set(monitor.latest) == {"jacobian", "input", "hessian", "fisher", "bound", "fisher_extra", "norms"}


@pytest.mark.parametrize(
    ("options", "follows"),
    [
        ({}, True),
        ({"hessian": None}, True),
        ({"hessian": None, "fisher": None}, False),
        ({"hessian": HessianSpectrum(parameters="net.2.*"), "fisher": None}, False),
        ({"hessian": None, "fisher": None, "extra": [HessianSpectrum()]}, True),
    ],
)
def test_the_default_bound_needs_a_spectrum_of_all_parameters(options, follows):
    assert any(isinstance(part, PACBayesBound) for part in SloppyMonitor(**options).parts) is follows


def test_a_part_takes_the_settings_of_the_monitor_that_it_is_in():
    fisher = FisherSpectrum()
    SloppyMonitor(fisher=fisher, epsilon=2.0, seed=5, loss_fn=nn.functional.cross_entropy)
    assert (fisher.epsilon, fisher.seed, fisher.loss_fn) == (2.0, 5, nn.functional.cross_entropy)
    SloppyMonitor(fisher=fisher)
    assert (fisher.epsilon, fisher.seed, fisher.loss_fn) == (None, 0, None)


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
    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss_fn(self(batch[0]), batch[1]))
            optimizer.step()

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
    assert titles == ["Sloppy: Norms (norms)", "Sloppy: Norms (mine)", "Sloppy: cost"]


@pytest.mark.parametrize(("error", "status"), [(0.0, Status.EXACT), (0.25, Status.CONVERGED)])
def test_values_without_a_spectrum_are_exact_where_they_have_no_error(tmp_path, error, status):
    part = Norms(strict=True)
    part.returned = {"length": 2.0, "gradient": Estimate(1.0, error)}
    host = trainer(tmp_path, callbacks=[part], max_epochs=1)
    host.fit(Classifier(), loader())
    assert {event.status for event in part.measurements} == {status}
    assert float(host.callback_metrics["sloppy_norms/length"]) == 2.0
