"""The early stop in a Trainer: which curves it sees, when it stops, and that it does not depend on the clock."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import replace

import pytest
import torch
from support.tiny import SAFELY, Classifier, blobs, loader, trainer
from torch.utils.data import DataLoader

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    Estimate,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    Schedule,
    StoppingReason,
)
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier
from lightning_sloppy.measures.stopping import Condition
from lightning_sloppy.records import Cost, Measurement, Spectrum, Status

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


class Scripted(MeasuringCallback):
    """Publishes a prepared curve: a value before the training, and one after the last batch of each epoch."""

    default_name = "jacobian"
    quantities = JacobianSpectrum.quantities

    def __init__(self, curve, *, noise=0.0, ranks=None, every_batch=False):
        super().__init__(strict=True)
        self.curve, self.noise, self.every_batch = list(curve), noise, every_batch
        self.ranks = ranks or [value / 2 for value in self.curve]
        self.done = 0

    def on_train_start(self, host, module):
        self.run(host, module, step=0)

    def on_train_batch_end(self, host, module, outputs, batch, batch_idx):
        if self.every_batch or batch_idx + 1 == host.num_training_batches:
            self.done += 1
            self.run(host, module, step=self.done)

    def take(self, host, module, context, step):
        value, rank = (curve[min(step, len(curve) - 1)] for curve in (self.curve, self.ranks))
        values = torch.ones(1, dtype=torch.float64)
        spectrum = Spectrum(values, 10, 5, "jacobian", 0.0, Status.EXACT, values * 0, 1.0, 0.0, trace=Estimate(1.0))
        estimates = {
            "effective_dimension": Estimate(value, standard_error=self.noise * value),
            "entropy_rank": Estimate(rank),
        }
        return Measurement(step, host.current_epoch, "jacobian", spectrum, estimates, Cost(), Status.EXACT)


class Told(Classifier):
    """Logs prepared losses under prepared names."""

    def __init__(self, losses=(), *, names=("val_loss",), training=None):
        super().__init__()
        self.losses, self.names, self.told = list(losses), names, training

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.told is None:
            return loss
        return loss * 0 + self.told[min(self.current_epoch, len(self.told) - 1)]

    def validation_step(self, batch, batch_idx):
        value = self.losses[min(self.current_epoch, len(self.losses) - 1)]
        for name in self.names:
            self.log(name, torch.tensor(value))


FLAT = [100.0, *[60.0] * 30]
FALLING = [100.0 * 0.9**epoch for epoch in range(30)]
OLD = [1.0, 0.5, *[0.6] * 30]
"""The lowest after the second epoch."""


def fitted(tmp_path, curve, model, *, validate=True, epochs=20, noise=0.0, ranks=None, options=None, **host):
    stopping = EffectiveDimensionEarlyStopping(**(options or {}))
    scripted = Scripted(curve, noise=noise, ranks=ranks)
    runs = trainer(tmp_path, callbacks=[stopping, scripted], max_epochs=epochs, **host)
    runs.fit(model, loader(), *([DataLoader(blobs(), 16)] if validate else []))
    return stopping, runs


def test_with_hold_out_samples_it_stops_when_their_loss_is_old_and_the_dimension_settled(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        stopping, runs = fitted(tmp_path, FLAT, Told(OLD))
    assert stopping.stopping_reason is StoppingReason.HOLD_OUT
    assert runs.current_epoch == 7, "five epochs after the second"
    assert stopping.stopped_step == 7 * len(loader())
    assert stopping.curves.hold_out[:3] == [[1.0, 1.0], [2.0, 0.5], [3.0, pytest.approx(0.6)]]
    assert [point[:2] for point in stopping.curves.dimension[:3]] == [[0.0, 100.0], [1.0, 60.0], [2.0, 60.0]]
    (sentence,) = stopping.summary_sentences()
    assert sentence == (
        "Early stopping asked to stop after epoch 7: the hold-out loss has not improved for the patience, and the "
        "effective dimension has settled. sloppy_jacobian/effective_dimension was 60, its lowest 60 at epoch 1. The "
        "lowest val_loss was 0.5, at epoch 2."
    )
    said = [record.getMessage() for record in caplog.records]
    assert len([each for each in said if "uses val_loss as the hold-out loss" in each]) == 1
    assert sentence in said


def test_a_dimension_that_changes_holds_it_back_but_not_for_ever(tmp_path):
    stopping, runs = fitted(tmp_path, FALLING, Told(OLD))
    assert stopping.stopping_reason is StoppingReason.HOLD_OUT_LIMIT
    assert runs.current_epoch == 2 + 2 * 5


def test_a_loss_that_improves_goes_on(tmp_path):
    stopping, runs = fitted(tmp_path, FLAT, Told([1 / (1 + epoch) for epoch in range(40)]))
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED
    assert stopping.condition is Condition.IMPROVING
    assert runs.current_epoch == 20


def test_without_hold_out_samples_it_stops_when_dimension_and_training_loss_have_settled(tmp_path):
    for losses, epochs in (([1.0, 0.5, 0.4, *[0.3] * 30], 9), ([0.98**epoch for epoch in range(40)], 20)):
        stopping, runs = fitted(tmp_path, FLAT, Told([0.0], training=losses), validate=False)
        assert runs.current_epoch == epochs
        assert [point[1] for point in stopping.curves.training[:3]] == pytest.approx(losses[:3])
    assert stopping.condition is Condition.TRAINING


def test_without_hold_out_samples_it_stops_when_the_entropy_rank_has_grown(tmp_path):
    ranks = [90.0, 40.0, 25.0, 30.0, 40.0, 51.0, 60.0]
    stopping, runs = fitted(tmp_path, FALLING, Told([0.0]), validate=False, ranks=ranks)
    assert stopping.stopping_reason is StoppingReason.GROWTH
    assert runs.current_epoch == 5
    assert "the entropy rank was 2.04 times its minimum" in stopping.summary_sentences()[0]


@pytest.mark.parametrize(
    ("names", "hold_out", "metric"),
    [
        (("val_loss", "other_loss"), "auto", "val_loss"),
        (("valid_loss", "accuracy"), "auto", "valid_loss"),
        (("a_loss", "b_loss"), "auto", None),
        (("rmse",), "auto", None),
        (("rmse",), "rmse", "rmse"),
        (("val_loss",), None, None),
    ],
)
def test_the_hold_out_loss_is_found_or_named(tmp_path, names, hold_out, metric):
    stopping, _ = fitted(tmp_path, FLAT, Told(OLD, names=names), epochs=3, options={"hold_out": hold_out})
    assert stopping._metric == metric
    assert len(stopping.curves.hold_out) == (3 if metric else 0)


def test_training_losses_are_no_hold_out_loss(tmp_path):
    class Logs(Told):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss_epoch", loss, on_epoch=True, on_step=False)
            return loss

    stopping, _ = fitted(tmp_path, FLAT, Logs(OLD, names=("nll_loss",)), epochs=3)
    assert stopping._metric == "nll_loss"


def test_a_named_metric_that_nobody_logs_is_said_once(tmp_path):
    with pytest.warns(UserWarning, match="monitors 'valid', but the validation logged val_loss") as caught:
        fitted(tmp_path, FLAT, Told(OLD), epochs=3, options={"hold_out": "valid"})
    assert len([each for each in caught if "Early stopping monitors" in str(each.message)]) == 1


def test_noise_is_undetermined_and_said_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        stopping, runs = fitted(tmp_path, FLAT, Told(OLD), noise=0.04, epochs=9)
    assert stopping.stopping_reason is StoppingReason.UNDETERMINED
    assert runs.current_epoch == 9
    assert len([record for record in caplog.records if "increase probes or rel_tol" in record.getMessage()]) == 1


def test_patience_counts_epochs_however_often_is_measured(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(patience=3)
    runs = trainer(tmp_path, callbacks=[stopping, Scripted(FLAT, every_batch=True)], max_epochs=20)
    runs.fit(Told(OLD), loader(), DataLoader(blobs(), 16))
    assert runs.current_epoch == 5
    assert len(stopping.curves.dimension) == 1 + 5 * len(loader())


def test_patience_in_steps(tmp_path):
    batches = len(loader())
    stopping = EffectiveDimensionEarlyStopping(patience=2 * batches, patience_unit="steps")
    runs = trainer(tmp_path, callbacks=[stopping, Scripted(FLAT, every_batch=True)], max_epochs=20)
    runs.fit(Told(OLD), loader(), DataLoader(blobs(), 16))
    assert stopping.curves.hold_out[0][0] == batches
    assert [point[0] for point in stopping.curves.dimension[:4]] == [0, 1, 2, 3]
    assert stopping.stopping_reason is StoppingReason.HOLD_OUT
    assert runs.current_epoch == 4


def test_validation_every_second_epoch(tmp_path):
    stopping, runs = fitted(tmp_path, FLAT, Told([1.0, 0.5, *[0.6] * 30]), check_val_every_n_epoch=2)
    assert stopping.curves.hold_out[0] == [2.0, 0.5]
    assert runs.current_epoch == 7


def test_a_dry_run_never_stops(tmp_path):
    """Also where the rule says that it should: the entropy rank has tripled by the end of the only epoch."""
    options, ranks = {"patience": 1, "hold_out": None}, [10.0, 30.0]
    stopping, _ = fitted(tmp_path, FLAT, Told(OLD), options=options, ranks=ranks, fast_dev_run=3)
    assert stopping.condition is Condition.GROWTH
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED
    stopping, _ = fitted(tmp_path, FLAT, Told(OLD), options=options, ranks=ranks, epochs=3)
    assert stopping.stopping_reason is StoppingReason.GROWTH


def test_the_least_number_of_epochs_is_honoured(tmp_path):
    stopping, runs = fitted(tmp_path, FLAT, Told(OLD), options={"patience": 2}, min_epochs=8, epochs=12)
    assert stopping.stopped_step == 4 * len(loader()), "the rule asks after the fourth epoch"
    assert runs.current_epoch == 8


class Thawing(Told):
    """Its first layer is trained from the third epoch on."""

    def __init__(self) -> None:
        super().__init__(OLD)
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch > 1)


class ScriptedSize(Scripted):
    """The spectrum has as many parameters as are trained."""

    def take(self, host, module, context, step):
        found = super().take(host, module, context, step)
        dim = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return replace(found, spectrum=replace(found.spectrum, dim=dim))


def test_layers_that_thaw_begin_a_new_window(tmp_path):
    ended = {}
    for model in (Told(OLD), Thawing()):
        stopping = EffectiveDimensionEarlyStopping(patience=3)
        runs = trainer(tmp_path, callbacks=[stopping, ScriptedSize(FLAT[1:])], max_epochs=9)
        runs.fit(model, loader(), DataLoader(blobs(), 16))
        ended[type(model)] = runs.current_epoch
    assert ended == {Told: 5, Thawing: 6}


def test_the_curves_survive_a_checkpoint_and_the_weights_are_judged_once(tmp_path):
    _, runs = fitted(tmp_path, FLAT, Told(OLD), epochs=4)
    runs.save_checkpoint(tmp_path / "run.ckpt")
    again = EffectiveDimensionEarlyStopping()
    host = trainer(tmp_path, callbacks=[again, Scripted(FLAT[4:])], max_epochs=20)
    host.fit(Told(OLD), loader(), DataLoader(blobs(), 16), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert [point[0] for point in again.curves.dimension] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert again.stopping_reason is StoppingReason.HOLD_OUT
    assert host.current_epoch == 7


def test_a_stopped_run_can_be_trained_further_and_is_judged_anew(tmp_path):
    stopping, runs = fitted(tmp_path, FLAT, Told(OLD))
    assert stopping.stopping_reason is StoppingReason.HOLD_OUT
    runs.save_checkpoint(tmp_path / "run.ckpt")
    again = EffectiveDimensionEarlyStopping()
    host = trainer(tmp_path, callbacks=[again, Scripted(FALLING)], max_epochs=10)
    better = Told([0.4 / (1 + epoch) for epoch in range(30)])
    host.fit(better, loader(), DataLoader(blobs(), 16), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert again.stopping_reason is StoppingReason.NOT_STOPPED
    assert host.current_epoch == 10


@pytest.mark.parametrize(("unit", "times"), [("epochs", [0, 1, 2]), ("steps", [0, 1, 2, 3, 4, 5, 6])])
def test_the_weights_of_the_start_have_the_time_of_the_start(tmp_path, unit, times):
    """Their measurement is published within the first step."""
    stopping = EffectiveDimensionEarlyStopping(patience=50, patience_unit=unit)
    schedule = Schedule(every_n_epochs=1) if unit == "epochs" else Schedule(every_n_steps=1)
    parts = [FisherSpectrum(num_samples=16, schedule=schedule, strict=True), stopping]
    trainer(tmp_path, callbacks=parts, max_epochs=2).fit(Classifier(), loader())
    assert [point[0] for point in stopping.curves.dimension] == times


@pytest.mark.slow
@pytest.mark.parametrize("watched", [True, False])
def test_what_is_watched_is_measured_at_every_step_of_its_schedule_whatever_it_costs(tmp_path, caplog, watched):
    """A limit of nothing without grace: only the first and the last measurement of the others happen."""
    tight = Schedule(every_n_steps=3, max_overhead=0.0, grace_seconds=0.0)
    jacobian = JacobianSpectrum(num_samples=200, schedule=tight, strict=True)
    hessian = HessianSpectrum(k=2, schedule=tight, strict=True)
    stopping = [EffectiveDimensionEarlyStopping(patience=50)] if watched else []
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[*stopping, jacobian, hessian], max_epochs=3).fit(Classifier(), loader(blobs(400)))
    steps = [event.step for event in jacobian.measurements]
    batches = 3 * len(loader(blobs(400)))
    asked = [0, *(step - 1 for step in range(3, batches + 1, 3))]
    asked += [] if asked[-1] == batches - 1 else [batches - 1]
    assert steps == (asked if watched else [0, batches - 1])
    assert [event.step for event in hessian.measurements] == [0, batches - 1]
    assert (jacobian.size.num_samples == 200) is watched
    costly = [record for record in caplog.records if "which early stopping uses, took" in record.getMessage()]
    assert len(costly) == watched


@pytest.mark.slow
def test_on_real_digits_with_noise_it_stops_before_the_end(tmp_path):
    torch.manual_seed(1)
    stopping = EffectiveDimensionEarlyStopping()
    host = trainer(tmp_path, callbacks=[JacobianSpectrum(num_samples=64), stopping], max_epochs=60)
    host.fit(MLPClassifier([64, 64, 10], optimizer="adamw", lr=1e-2), datamodule=DigitsDataModule(64))
    assert stopping.stopping_reason in (StoppingReason.HOLD_OUT, StoppingReason.HOLD_OUT_LIMIT)
    best = stopping.curves.best_hold_out
    assert host.current_epoch < 60
    assert 5 <= host.current_epoch - best[0] <= 10


def test_a_fisher_matrix_with_too_many_rows_and_the_stop_that_watches_it_say_so_at_once(tmp_path, monkeypatch):
    for place in ("curvature.fisher_spectra", "callbacks.fisher_spectrum"):
        monkeypatch.setattr(f"lightning_sloppy.{place}.ROW_LIMIT", 100)
    fisher = FisherSpectrum(kind="exact", num_samples=64, strict=True)
    stopping = EffectiveDimensionEarlyStopping("sloppy_fisher_exact/effective_dimension")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, callbacks=[fisher, stopping], max_epochs=2, limit_train_batches=2).fit(
            MLPClassifier(), DigitsDataModule()
        )
    rows = [str(each.message) for each in caught if "would have" in str(each.message)]
    assert len([each for each in rows if each.startswith("Fisher")]) == 1
    assert "would have 640 rows, above 100" in rows[0]
    assert "pass num_samples=10." in rows[0]
    blind = [each for each in rows if each.startswith("Early stopping on sloppy_fisher_exact/effective_dimension")]
    assert len(blind) == 1
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED


@pytest.mark.parametrize(
    ("monitor", "callbacks", "remedy"),
    [
        ("sloppy_jacobian/effective_dimension", [], "add JacobianSpectrum()"),
        ("sloppy_fisher/effective_dimension", [], "add FisherSpectrum()"),
        ("sloppy_input/effective_dimension", [InputSpectrum], "add JacobianSpectrum()"),
        ("sloppy_jacobian/effective_dimension", [InputSpectrum, FisherSpectrum], "monitor='sloppy_fisher/effective"),
    ],
)
def test_a_monitor_that_nobody_measures_again_is_refused_with_a_remedy(tmp_path, monitor, callbacks, remedy):
    stopping = EffectiveDimensionEarlyStopping(monitor)
    host = trainer(tmp_path, callbacks=[stopping, *(each() for each in callbacks)])
    with pytest.raises(ConfigurationError, match=re.escape(remedy)) as caught:
        host.fit(Classifier(), loader())
    assert "sloppy_input" not in str(caught.value).replace(monitor, "", 1)


@pytest.mark.parametrize(
    ("parts", "monitor"),
    [
        ([FisherSpectrum, JacobianSpectrum, HessianSpectrum], "sloppy_jacobian/effective_dimension"),
        ([HessianSpectrum, FisherSpectrum], "sloppy_fisher/effective_dimension"),
        ([HessianSpectrum], "sloppy_hessian/effective_dimension"),
    ],
)
def test_without_a_monitor_it_watches_the_best_that_is_measured(tmp_path, parts, monitor):
    stopping = EffectiveDimensionEarlyStopping()
    callbacks = [stopping, *(each(num_samples=16, strict=True) for each in parts)]
    trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(Classifier(), loader())
    assert stopping.monitor == monitor
    watched = next(each for each in callbacks if monitor.startswith(f"sloppy_{getattr(each, 'name', '')}/"))
    expected = [event.estimates["effective_dimension"].value for event in watched.measurements]
    assert [point[1] for point in stopping.curves.dimension] == expected
    assert stopping.curves.growth >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"monitor": "val_loss"}, "sloppy_jacobian/effective_dimension"),
        ({"patience": 0}, "patience >= 1"),
        ({"hold_out": "val_acc"}, "an accuracy should increase"),
        ({"patience_unit": "batches"}, "'epochs' or 'steps'"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises(ConfigurationError, match=said):
        EffectiveDimensionEarlyStopping(**options)


class Blind(Scripted):
    """Its values are not resolved, though they have no errors and do not move."""

    def take(self, host, module, context, step):
        found = super().take(host, module, context, step)
        unresolved = replace(found.estimates["effective_dimension"], status=Status.UNRESOLVED)
        return replace(found, estimates={**found.estimates, "effective_dimension": unresolved})


def test_values_that_are_not_resolved_are_not_judged(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(hold_out=None)
    runs = trainer(tmp_path, callbacks=[stopping, Blind(FLAT)], max_epochs=12)
    with pytest.warns(UserWarning, match="cannot decide at step 0") as caught:
        runs.fit(Told([0.0], training=[1.0, 0.5, *[0.3] * 30]), loader())
    assert len([each for each in caught if "cannot decide" in str(each.message)]) == 1
    assert stopping.curves.dimension == []
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED
    assert runs.current_epoch == 12


def test_one_rank_alone_stops_all(tmp_path, monkeypatch):
    """On this rank the rule says no; another says yes after the third epoch."""
    stopping = EffectiveDimensionEarlyStopping(hold_out=None)
    runs = trainer(tmp_path, callbacks=[stopping, Scripted(FALLING)], max_epochs=12)
    asked = []

    def reduced(decision, all=True):
        judging = stopping.condition is not None and not runs.should_stop and runs.current_epoch == 2
        theirs = judging and runs.fit_loop.epoch_loop._is_training_done
        asked.append(all)
        return (decision and theirs) if all else (decision or theirs)

    monkeypatch.setattr(runs.strategy, "reduce_boolean_decision", reduced)
    runs.fit(Told([0.0], training=[0.98**epoch for epoch in range(30)]), loader())
    assert stopping.stopping_reason is StoppingReason.PLATEAU
    assert stopping.stopped_step == 3 * len(loader())
    assert runs.current_epoch == 3
    assert False in asked
