"""Stop on the plateau, not before, and never on noise."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from tiny import SAFELY, Classifier, loader, trainer

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    Estimate,
    FisherSpectrum,
    InputSpectrum,
    StoppingReason,
)
from lightning_sloppy.callbacks.measuring import MeasuringCallback
from lightning_sloppy.demo import DigitsDataModule, MLPClassifier
from lightning_sloppy.measures.plateau import Verdict
from lightning_sloppy.records import Cost, Measurement, Spectrum, Status

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


class Scripted(MeasuringCallback):
    """Publishes a prepared curve, one value after each batch."""

    default_name = "fisher"
    quantities = FisherSpectrum.quantities

    def __init__(self, curve, *, noise=0.0):
        super().__init__(strict=True)
        self.curve = list(curve)
        self.noise = noise

    def on_train_batch_end(self, host, module, *_):
        self.run(host, module, step=len(self.measurements))

    def take(self, host, module, context, step):
        value = self.curve[min(step, len(self.curve) - 1)]
        names = [f"effective_dimension_at_prior{scale}" for scale in ("_fine", "", "_coarse")]
        values = torch.ones(1, dtype=torch.float64)
        spectrum = Spectrum(values, 10, 5, "fisher_empirical", 0.0, Status.EXACT, values * 0, 1.0, 0.0)
        estimates = {name: Estimate(value, standard_error=self.noise * value) for name in names}
        return Measurement(step, host.current_epoch, "fisher", spectrum, estimates, Cost(), Status.EXACT)


RISE = [10.0 * 1.3**step for step in range(12)]
FLAT = [RISE[-1] * (1.004 if step % 2 else 1.0) for step in range(30)]


def scripted(tmp_path, curve, *, noise=0.0, **options):
    stopping = EffectiveDimensionEarlyStopping(**options)
    host = trainer(tmp_path, callbacks=[stopping, Scripted(curve, noise=noise)], max_epochs=20)
    host.fit(Classifier(), loader())
    return stopping, host


def test_it_stops_on_the_flat_part_only(tmp_path):
    stopping, host = scripted(tmp_path, RISE + FLAT)
    assert stopping.stopping_reason is StoppingReason.PLATEAU
    assert stopping.stopped_step == len(RISE) - 1 + 5
    assert host.should_stop


def test_a_rising_curve_goes_on(tmp_path):
    stopping, host = scripted(tmp_path, [10.0 * 1.03**step for step in range(60)])
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED
    assert stopping.verdict is Verdict.CHANGING
    assert host.current_epoch == 20


def test_noise_is_undetermined_and_said_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        stopping, host = scripted(tmp_path, FLAT, noise=0.02)
    assert stopping.stopping_reason is StoppingReason.UNDETERMINED
    assert host.current_epoch == 20
    said = [record for record in caplog.records if "told from noise" in record.getMessage()]
    assert len([record for record in said if "raise probes" in record.getMessage()]) == 1


def test_warm_up_and_patience_count_measurements(tmp_path):
    stopping, _ = scripted(tmp_path, FLAT, patience=2, warmup=4)
    assert stopping.stopped_step == 4 + 2


def test_a_dry_run_never_stops(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(patience=1, warmup=0)
    trainer(tmp_path, callbacks=[stopping, Scripted(FLAT)], fast_dev_run=3).fit(Classifier(), loader())
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED


def test_the_least_number_of_epochs_is_honoured(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(patience=2, warmup=0)
    host = trainer(tmp_path, callbacks=[stopping, Scripted(FLAT)], max_epochs=9, min_epochs=4)
    host.fit(Classifier(), loader())
    assert stopping.stopped_step == 2, "the rule asks in the first epoch"
    assert host.current_epoch == 4


class Thawing(Classifier):
    """Its first layer is trained from the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch > 0)


class ScriptedSize(Scripted):
    """The spectrum has as many parameters as are trained."""

    def take(self, host, module, context, step):
        found = super().take(host, module, context, step)
        dim = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return replace(found, spectrum=replace(found.spectrum, dim=dim))


def test_layers_that_thaw_begin_a_new_window(tmp_path):
    """Three batches an epoch: the window of four measurements is not full when the parameters change."""
    stopping = EffectiveDimensionEarlyStopping(patience=3, warmup=0)
    trainer(tmp_path, callbacks=[stopping, ScriptedSize(FLAT)], max_epochs=9).fit(Thawing(), loader())
    assert stopping.stopped_step == 3 + 3
    plain = EffectiveDimensionEarlyStopping(patience=3, warmup=0)
    trainer(tmp_path, callbacks=[plain, ScriptedSize(FLAT)], max_epochs=9).fit(Classifier(), loader())
    assert plain.stopped_step == 3


def test_the_window_survives_a_checkpoint(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(warmup=0, patience=4)
    host = trainer(tmp_path, callbacks=[stopping, Scripted(FLAT)], max_epochs=1)
    host.fit(Classifier(), loader())
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = EffectiveDimensionEarlyStopping(warmup=0, patience=4)
    host = trainer(tmp_path, callbacks=[again, Scripted(FLAT)], max_epochs=9)
    host.fit(Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert stopping.detector.seen == 3
    assert again.detector.seen == 5
    assert again.stopping_reason is StoppingReason.PLATEAU


class TrainingError(Callback):
    """Error on all training samples after every epoch."""

    def __init__(self):
        self.errors = []

    def on_train_epoch_end(self, host, module):
        inputs, targets = host.train_dataloader.dataset.tensors
        with torch.no_grad():
            self.errors.append(float((module(inputs).argmax(1) != targets).double().mean()))


@pytest.mark.parametrize("converges", [True, False])
def test_on_real_digits_it_waits_until_the_training_error_stands_still(tmp_path, converges):
    seed_everything(1, verbose=False)
    if converges:
        settings = {"optimizer": "sgd", "lr": 0.2, "lr_schedule": "exponential", "lr_decay": 0.75}
    else:
        settings = {"optimizer": "adamw", "lr": 3e-4}
    stopping = EffectiveDimensionEarlyStopping(patience=3, warmup=2)
    history = TrainingError()
    host = trainer(
        tmp_path, callbacks=[FisherSpectrum(num_samples=256), stopping, history], max_epochs=26 if converges else 14
    )
    host.fit(MLPClassifier([64, 24, 10], **settings), datamodule=DigitsDataModule(64, val_fraction=0.1))
    if converges:
        assert stopping.stopping_reason is StoppingReason.PLATEAU
        window = history.errors[-4:]
        assert min(window) > 0.5 * max(window)
    else:
        assert history.errors[-1] < 0.5 * history.errors[-9]
        assert stopping.stopping_reason is StoppingReason.NOT_STOPPED


def test_a_stopped_run_can_be_trained_further_and_is_judged_anew(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(warmup=0, patience=2)
    host = trainer(tmp_path, callbacks=[stopping, Scripted(FLAT)], max_epochs=5)
    host.fit(Classifier(), loader())
    assert stopping.stopping_reason is StoppingReason.PLATEAU
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = EffectiveDimensionEarlyStopping(warmup=0, patience=2)
    host = trainer(tmp_path, callbacks=[again, Scripted(RISE)], max_epochs=4)
    host.fit(Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert again.stopping_reason is StoppingReason.NOT_STOPPED
    assert again.stopped_step is None


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
        ("sloppy_input/effective_dimension", [InputSpectrum], "add FisherSpectrum()"),
        ("sloppy_jacobian/effective_dimension", [InputSpectrum, FisherSpectrum], "monitor='sloppy_fisher/effective"),
    ],
)
def test_a_monitor_that_nobody_measures_again_is_refused_with_a_remedy(tmp_path, monitor, callbacks, remedy):
    stopping = EffectiveDimensionEarlyStopping(monitor)
    host = trainer(tmp_path, callbacks=[stopping, *(each() for each in callbacks)])
    with pytest.raises(ConfigurationError, match=re.escape(remedy)) as caught:
        host.fit(Classifier(), loader())
    assert "sloppy_input" not in str(caught.value).replace(monitor, "", 1)
