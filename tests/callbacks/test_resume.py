"""A run that is cut and resumed goes on where it was."""

from __future__ import annotations

import signal

import pytest
import torch
from support import killed, ranks
from support.tiny import SAFELY, Classifier, blobs, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import (
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    Schedule,
    SloppyMonitor,
)
from lightning_sloppy.probing.schedule import MeasurementSize

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


@pytest.mark.slow
def test_clock_and_size_go_on_in_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(HessianSpectrum, "seconds_of_a_gradient", lambda *_: 0.5)
    hessian = HessianSpectrum(k=4, probes=4, num_samples=512, strict=True)
    first = trainer(tmp_path, callbacks=[hessian], max_epochs=1)
    first.fit(Classifier(), loader(blobs(600)))
    first.save_checkpoint(tmp_path / "run.ckpt")
    state = hessian.state_dict()
    assert state["measuring_seconds"] > 0
    again, other = HessianSpectrum(k=4, probes=4, num_samples=512), HessianSpectrum(k=3, num_samples=40)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["callbacks"]["HessianSpectrum"]
    again.load_state_dict(saved)
    with pytest.warns(
        UserWarning, match="HessianSpectrum resumes with num_samples=40 instead of 512, k=3 instead of 4"
    ):
        other.load_state_dict(saved)
    assert again.size == hessian.size != MeasurementSize(512, 4, 4)
    assert other.size == MeasurementSize(40, 4, 3)
    host = trainer(tmp_path, callbacks=[again], max_epochs=2)
    host.fit(Classifier(), loader(blobs(600)), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert again.state_dict()["measuring_seconds"] > state["measuring_seconds"]
    assert again.state_dict()["training_seconds"] > state["training_seconds"]


@pytest.mark.slow
def test_a_run_cut_between_batches_and_resumed_has_equal_values_at_common_steps(tmp_path):
    def run(folder, epochs, **options):
        torch.manual_seed(0)
        fisher = FisherSpectrum(schedule=Schedule(every_n_steps=2), num_samples=16, strict=True)
        host = trainer(folder, callbacks=[fisher], max_epochs=epochs, **options)
        host.fit(Classifier(), DataLoader(blobs(64), 16), ckpt_path=options.pop("ckpt", None))
        return host, fisher

    _, whole = run(tmp_path / "whole", 4)
    host, cut = run(tmp_path / "cut", 2)
    host.save_checkpoint(tmp_path / "run.ckpt")
    torch.manual_seed(0)
    resumed = FisherSpectrum(schedule=Schedule(every_n_steps=2), num_samples=16, strict=True)
    trainer(tmp_path / "cut", callbacks=[resumed], max_epochs=4).fit(
        Classifier(), DataLoader(blobs(64), 16), ckpt_path=tmp_path / "run.ckpt", **SAFELY
    )
    values = {m.step: m.estimates["effective_dimension"].value for m in [*cut.measurements, *resumed.measurements]}
    assert [m.step for m in resumed.measurements] == [8, 9, 11, 13, 15]
    for measurement in whole.measurements:
        assert values[measurement.step] == measurement.estimates["effective_dimension"].value


def monitored(folder, epochs, checkpoint=None):
    """A fixed order and no dropout, so that training itself resumes identically."""
    torch.manual_seed(0)
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=16),
        fisher=FisherSpectrum(num_samples=16),
        every_n_steps=2,
        strict=True,
    )
    stopping = EffectiveDimensionEarlyStopping(patience=50)
    host = trainer(folder, callbacks=[watcher, stopping], max_epochs=epochs)
    options = {} if checkpoint is None else {"ckpt_path": checkpoint, **SAFELY}
    host.fit(Classifier(), DataLoader(blobs(64), 16), **options)
    return host, watcher, stopping


@pytest.mark.slow
def test_curves_directions_and_the_early_stopping_go_on(tmp_path):
    _, whole, alone = monitored(tmp_path, 4)
    host, _, _ = monitored(tmp_path, 2)
    host.save_checkpoint(tmp_path / "run.ckpt")
    again, resumed, stopping = monitored(tmp_path, 4, tmp_path / "run.ckpt")
    for group in ("hessian", "fisher"):
        expected = {m.step: m for m in whole.measurements[group]}
        for measurement in resumed.measurements[group][1:]:
            for name, estimate in measurement.estimates.items():
                if name == "overlap" and measurement.step == 9:
                    continue  # the directions of the time before are not kept
                assert estimate == expected[measurement.step].estimates[name], (group, name, measurement.step)
    assert stopping.curves == alone.curves
    assert [m.certificate.evaluation for m in resumed.measurements["bound"]] == [6, 7, 8, 9]
    again.save_checkpoint(tmp_path / "again.ckpt")
    states = torch.load(tmp_path / "again.ckpt", weights_only=True)["callbacks"]["SloppyMonitor"]
    start, prior = states["hessian"]["start"], states["bound"]["prior_mean"]
    assert start.untyped_storage().data_ptr() == prior.untyped_storage().data_ptr()


@pytest.mark.slow
def test_every_part_says_what_differs_from_the_checkpoint(tmp_path):
    host, _, _ = monitored(tmp_path, 1)
    host.save_checkpoint(tmp_path / "run.ckpt")
    watcher = SloppyMonitor(
        hessian=HessianSpectrum(k=2, num_samples=16, steps=30),
        fisher=FisherSpectrum(num_samples=16, epsilon=3.0),
        every_n_epochs=1,
        strict=True,
    )
    stopping = EffectiveDimensionEarlyStopping(patience=3)
    again = trainer(tmp_path, callbacks=[watcher, stopping], max_epochs=1)
    with pytest.warns(UserWarning, match="resumes with") as said:
        again.fit(Classifier(), DataLoader(blobs(64), 16), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    texts = [str(warning.message) for warning in said if "resumes with" in str(warning.message)]
    found = {text.split()[0]: text.partition(" resumes with ")[2].partition(";")[0] for text in texts}
    assert found == {
        "JacobianSpectrum": "every_n_epochs=1 instead of None, every_n_steps=None instead of 2",
        "HessianSpectrum": "every_n_epochs=1 instead of None, every_n_steps=None instead of 2, steps=30 instead of 100",
        "FisherSpectrum": "every_n_epochs=1 instead of None, every_n_steps=None instead of 2, "
        "epsilon=3.0 instead of None",
        "EffectiveDimensionEarlyStopping": "patience=3 instead of 50",
    }


def test_other_inputs_than_before_are_noticed(tmp_path):
    def run(data, checkpoint=None):
        inputs = InputSpectrum(strict=True)
        host = trainer(tmp_path, callbacks=[inputs], max_epochs=1 if checkpoint is None else 2)
        host.fit(Classifier(), DataLoader(data, 16), ckpt_path=checkpoint)
        return host

    run(blobs(64)).save_checkpoint(tmp_path / "run.ckpt")
    run(blobs(64), tmp_path / "run.ckpt")
    other = TensorDataset(torch.randn(64, 6), torch.zeros(64, dtype=torch.long))
    with pytest.warns(UserWarning, match="spectrum of the training inputs differs from that of the run that wrote"):
        run(other, tmp_path / "run.ckpt")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty.*")
@pytest.mark.parametrize("kill_at", [6, 9])
def test_a_run_that_is_killed_goes_on_with_equal_values(tmp_path, kill_at):
    """SIGKILL within an epoch; the loader remembers how far it is, so training itself resumes identically."""
    ranks.run(killed.__file__, tmp_path, str(kill_at), count=1, ends_with=-signal.SIGKILL)
    checkpoint = tmp_path / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == kill_at - 1
    _, whole = killed.fit(tmp_path / "whole")
    _, resumed = killed.fit(tmp_path, checkpoint=checkpoint)
    for group, measurements in whole.measurements.items():
        expected = {m.step: m.estimates for m in measurements}
        common = [m for m in resumed.measurements[group][1:] if m.step in expected]
        assert len(common) >= 2 or group == "input"
        for m in common:
            assert {n: e for n, e in m.estimates.items() if n != "overlap"} == {
                n: e for n, e in expected[m.step].items() if n != "overlap"
            }, (group, m.step)


@pytest.mark.slow
def test_a_resumed_hessian_has_the_probe_vectors_of_its_seed(tmp_path):
    """Weights that stand still have one trace, whether it was measured from the start or behind a resume."""

    class Wide(Classifier):
        def __init__(self):
            super().__init__(lr=0.0)
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))

    traces = {}
    for seed in (0, 3):
        torch.manual_seed(0)
        part = HessianSpectrum(k=2, num_samples=32, seed=seed, strict=True)
        host = trainer(tmp_path, callbacks=[part], max_epochs=2)
        host.fit(Wide(), loader(blobs(32)))
        host.save_checkpoint(tmp_path / "run.ckpt")
        again = HessianSpectrum(k=2, num_samples=32, seed=seed, strict=True)
        trainer(tmp_path, callbacks=[again], max_epochs=3).fit(
            Wide(), loader(blobs(32)), ckpt_path=tmp_path / "run.ckpt", **SAFELY
        )
        found = [event.estimates["trace"] for event in (*part.measurements, *again.measurements)]
        assert found[0].standard_error > 0
        assert [each.value for each in found] == pytest.approx([found[0].value] * len(found), rel=1e-5)
        traces[seed] = found[0].value
    assert traces[0] != pytest.approx(traces[3], rel=1e-3)
