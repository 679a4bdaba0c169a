"""A second fit with the same callbacks begins anew: sizes, scales, directions, nulls, warnings, clocks, curves."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from support.tiny import SAFELY, Classifier, blobs, loader, trainer
from torch import nn

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    JacobianSpectrum,
    Schedule,
    StoppingReason,
)
from lightning_sloppy.probing.schedule import MeasurementSize

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")

NEVER = Schedule(every_n_epochs=1000)


def fit(tmp_path, *parts, model=None, data=None, epochs=1, **options):
    host = trainer(tmp_path, callbacks=list(parts), max_epochs=epochs)
    host.fit(Classifier() if model is None else model, loader(blobs(96)) if data is None else data, **options)
    return host


@pytest.mark.slow
def test_a_second_fit_measures_as_much_as_was_asked_for(tmp_path, monkeypatch):
    part = HessianSpectrum(k=4, probes=8, num_samples=512, schedule=NEVER, strict=True)
    seconds = iter([0.5, 0.0])
    monkeypatch.setattr(HessianSpectrum, "seconds_of_a_gradient", lambda *_: next(seconds))
    sizes = []
    for _ in range(2):
        fit(tmp_path, part, data=loader(blobs(600), batch_size=200))
        sizes.append(part.size)
        assert {event.num_samples for event in part.measurements} == {part.size.num_samples}
    assert sizes[0].num_samples < 512
    assert sizes[1] == MeasurementSize(512, 8, 4)


class Larger(Classifier):
    """Its weights at the start are three times as long."""

    def __init__(self):
        super().__init__()
        for parameter in self.net.parameters():
            parameter.data *= 3


def prior_precision(model) -> float:
    weights = torch.cat([p.detach().flatten() for p in model.net.parameters()]).double()
    return len(weights) / float(weights.square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("make", [FisherSpectrum, HessianSpectrum])
def test_the_scale_is_that_of_the_weights_of_each_run_and_stays_in_it(tmp_path, make):
    part = make(num_samples=32, schedule=NEVER, strict=True)
    for kind in (Classifier, Larger):
        model = kind()
        right = prior_precision(model)
        fit(tmp_path, part, model=model)
        assert len(part.measurements) == 2
        for event in part.measurements:
            assert event.estimates["epsilon"].value == pytest.approx(right, rel=1e-6)
            assert event.estimates["z"].value == pytest.approx(right / (2 * 95), rel=1e-6)
    # The same weights trained further are the same run: its scale stays.
    fit(tmp_path, part, model=model)
    assert part.latest.estimates["epsilon"].value == pytest.approx(right, rel=1e-6)
    assert abs(prior_precision(model) - right) > 1e-3 * right


def test_a_resumed_fisher_spectrum_keeps_its_scale_by_itself(tmp_path):
    """Nobody beside it keeps the weights at the start."""
    model = Classifier()
    right = prior_precision(model)
    host = fit(tmp_path, FisherSpectrum(num_samples=32, schedule=NEVER, strict=True), model=model)
    host.save_checkpoint(tmp_path / "run.ckpt")
    again = FisherSpectrum(num_samples=32, schedule=NEVER, strict=True)
    fit(tmp_path, again, epochs=2, ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert [event.estimates["epsilon"].value for event in again.measurements] == pytest.approx([right] * 2, rel=1e-6)
    assert abs(prior_precision(model) - right) > 1e-3 * right


def test_directions_and_displacements_begin_anew(tmp_path):
    part = HessianSpectrum(k=3, num_samples=32, schedule=NEVER, strict=True)
    for _ in range(2):
        fit(tmp_path, part)
        first, last = (event.estimates for event in part.measurements)
        assert "overlap" not in first, "the directions of another fit are none before"
        assert "displacement_fraction" not in first
        assert {"overlap", "displacement_fraction"} <= set(last)


def test_the_null_is_that_of_the_start_of_each_run(tmp_path):
    class Wide(Classifier):
        def __init__(self, width):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))

    part, nulls = JacobianSpectrum(null=True, num_samples=64, schedule=NEVER, strict=True), []
    for width in (4, 40):
        model = Wide(width)
        fit(tmp_path, part, model=model)
        nulls.append({event.estimates["null_effective_dimension"].value for event in part.measurements})
        assert len(nulls[-1]) == 1, "of the start, also at the end"
    assert nulls[0] != nulls[1]
    fit(tmp_path, part, model=model)
    for event in part.measurements:
        assert "null_effective_dimension" not in event.estimates, "weights that were trained are no start"


def test_a_second_fit_warns_again_and_its_history_is_its_own(tmp_path):
    part = FisherSpectrum(num_samples=32, loss_fn=lambda outputs, targets: outputs.sum() * torch.nan)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, part, epochs=2)
        said = [str(each.message) for each in caught if "measurement failed" in str(each.message)]
        assert len(said) == 1, "once in each fit"
        assert len(part.measurements) == 3
        assert part.latest is None


def test_clocks_begin_at_nothing(tmp_path):
    part = FisherSpectrum(num_samples=32, schedule=NEVER, strict=True)
    fit(tmp_path, part)
    first = part.state_dict()
    fit(tmp_path, part)
    second = part.state_dict()
    spent = sum(event.cost.seconds for event in part.measurements)
    assert first["measuring_seconds"] > 0
    # What of the first fit were counted again would be beyond what the second one measured.
    assert second["measuring_seconds"] < spent + 0.9 * first["measuring_seconds"] + second["training_seconds"]
    fresh = FisherSpectrum(num_samples=32, schedule=NEVER)
    host = trainer(tmp_path, callbacks=[part])
    part.setup(host, Classifier(), "fit")
    assert part.state_dict()["measuring_seconds"] == fresh.state_dict()["measuring_seconds"] == 0.0
    assert part.measured_at is None
    assert part.expected_seconds == 0.0


@pytest.mark.slow
def test_the_early_stopping_forgets_its_curves(tmp_path):
    stopping = EffectiveDimensionEarlyStopping(patience=2, rel_tol=0.9, hold_out=None)
    for _ in range(2):
        fit(tmp_path, JacobianSpectrum(num_samples=16, strict=True), stopping, epochs=12)
        times = [point[0] for point in stopping.curves.dimension]
        assert times == sorted(set(times))
        assert times[0] == 0.0
        assert stopping.curves.training[0][0] == 1.0
    stopping._forget()
    assert stopping.stopping_reason is StoppingReason.NOT_STOPPED
    assert stopping.stopped_step is None
    assert math.isnan(stopping.curves.growth)
