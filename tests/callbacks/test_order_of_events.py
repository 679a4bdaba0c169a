"""What comes before what: values are published before subscribers hear of them, certificates come after all else."""

from __future__ import annotations

import pytest
import torch
from support.tiny import Classifier, blobs, loader, trainer

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    Schedule,
    SloppyMonitor,
)
from lightning_sloppy.callbacks.base import SloppyCallback, peers
from lightning_sloppy.callbacks.measuring import MeasurementSubscriber, MeasuringCallback

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


class Listening(MeasurementSubscriber):
    """Notes what the Trainer and the instrument know when it is told."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def listens_to(self, callback, trainer):
        return True

    def on_measurement(self, trainer, pl_module, measurement):
        who = next(p for p in peers(trainer) if isinstance(p, MeasuringCallback) and p.name == measurement.group)
        estimate = next(iter(measurement.estimates))
        published = trainer.callback_metrics.get(f"sloppy_{measurement.group}/{estimate}")
        self.heard.append(
            (
                measurement.group,
                measurement.step,
                published is not None and float(published) == pytest.approx(measurement.estimates[estimate].value),
                bool(who.measurements) and who.measurements[-1].step == measurement.step,
                who.latest is not None and who.latest.estimates == measurement.estimates,
            )
        )


def instruments():
    return [
        HessianSpectrum(k=2, num_samples=24, strict=True),
        FisherSpectrum(num_samples=24, strict=True),
        JacobianSpectrum(num_samples=24, strict=True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_subscriber_finds_published_what_it_is_told(tmp_path, first):
    listening, parts = Listening(), [*instruments(), InputSpectrum(strict=True)]
    callbacks = [listening, *parts] if first else [*parts, listening]
    # Weights move in between, so that a value of the measurement before would be seen.
    trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(Classifier(), loader(blobs(96)))
    told = [(group, step) for group, step, *_ in listening.heard]
    assert sorted(told) == sorted((part.name, event.step) for part in parts for event in part.measurements)
    assert len(told) == 3 * 3 + 1
    for found in listening.heard:
        assert found[2:] == (True, True, True), found


class Last(SloppyCallback):
    """Counts what all others have measured when the training is over."""

    def __init__(self):
        super().__init__()
        self.found = []

    def after_training(self, trainer, pl_module):
        self.found.append({p.name: p.measurements[-1].step for p in peers(trainer) if isinstance(p, MeasuringCallback)})


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_what_comes_after_the_training_comes_after_every_last_measurement(tmp_path, place, inside):
    """Of instruments that have missed the last step, so that each still measures when the training ends."""
    late = Schedule(every_n_steps=4)
    last = Last()
    if inside:
        parts = SloppyMonitor(bound=None, schedule=late, strict=True, extra=[FisherSpectrum(kind="sampled")])
        callbacks = [parts, last] if place else [last, parts]
        names = {"jacobian", "hessian", "fisher", "fisher_sampled"}
    else:
        callbacks = instruments()
        for each in callbacks:
            each.schedule = late
        callbacks.insert(place, last)
        names = {"jacobian", "hessian", "fisher"}
    trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Classifier(), loader(blobs(96)))
    (found,) = last.found
    assert {name: found[name] for name in names} == dict.fromkeys(names, 5)


def test_two_rounds_at_one_step_are_measured_in_the_order_of_the_callbacks(tmp_path, monkeypatch):
    seen = []
    for kind in (JacobianSpectrum, FisherSpectrum):

        def noting(self, host, module, probe, measure=kind.measure):
            seen.append((probe.step, self.name))
            return measure(self, host, module, probe)

        monkeypatch.setattr(kind, "measure", noting)
    parts = [
        JacobianSpectrum(num_samples=24, strict=True),
        FisherSpectrum(num_samples=24, schedule=Schedule(every_n_steps=2), strict=True),
    ]
    trainer(tmp_path, callbacks=parts, max_epochs=1).fit(Classifier(), loader(blobs(64)))
    assert seen == [(0, "jacobian"), (0, "fisher"), (1, "fisher"), (3, "jacobian"), (3, "fisher")]


def test_the_early_stopping_of_a_monitor_comes_after_all_that_measures(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(patience=50)
    watcher = SloppyMonitor(early_stopping=stopping, extra=[FisherSpectrum(kind="sampled")])
    assert watcher.parts[-1] is stopping
    assert [type(part).__name__ for part in watcher.parts[:-1]] == [
        "JacobianSpectrum", "InputSpectrum", "HessianSpectrum", "FisherSpectrum", "PACBayesBound", "FisherSpectrum",
    ]  # fmt: skip


def test_a_round_is_measured_before_the_validation_of_its_epoch(tmp_path):
    order = []

    class Validated(Classifier):
        def on_validation_start(self):
            order.append("validation")

    class Noting(FisherSpectrum):
        def measure(self, *given):
            order.append("measurement")
            return super().measure(*given)

    torch.manual_seed(0)
    host = trainer(tmp_path, callbacks=[Noting(num_samples=24)], max_epochs=2, num_sanity_val_steps=0)
    host.fit(Validated(), loader(), loader(blobs(seed=1), shuffle=False))
    assert order == ["measurement", *["measurement", "validation"] * 2]
