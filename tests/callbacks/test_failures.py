"""Whatever goes wrong inside a measurement: one warning with cause and remedy, a gap, and the training goes on."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch.tuner import Tuner
from support.habits import OnceTanh
from support.tiny import FEATURES, SAFELY, Classifier, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_sloppy import FisherSpectrum, HessianSpectrum, SloppyMonitor, Status

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`.*", "ignore:No PAC-Bayes bound.*", "ignore:.*does not have many workers.*"
)


def monitor(**options):
    return SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24), fisher=FisherSpectrum(num_samples=24), **options)


class Cursed(Dataset):
    """A sample that cannot be read; the training draws from the others."""

    def __init__(self) -> None:
        self.data = blobs(48)

    def __len__(self) -> int:
        return 49

    def __getitem__(self, index):
        if index == 48:
            raise OSError("truncated file")
        return self.data[index]


def test_a_sample_that_cannot_be_read(tmp_path):
    # Not a SubsetRandomSampler: that one says which samples there are.
    data = DataLoader(Cursed(), 16, sampler=list(range(48)))
    fisher = FisherSpectrum(num_samples=49)
    with pytest.warns(UserWarning, match="training continues. OSError: truncated file") as caught:
        trainer(tmp_path, callbacks=[fisher], max_epochs=2).fit(Classifier(), data)
    assert [m.status for m in fisher.measurements] == [Status.FAILED] * 3
    assert len([w for w in caught if "truncated" in str(w.message)]) == 1


@pytest.mark.slow
def test_weights_that_become_nan(tmp_path):
    class Exploding(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.net[0].weight.data.fill_(float("nan"))

    watcher = monitor()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=3)
    with pytest.warns(UserWarning, match="(?i)not finite|NaN"):
        host.fit(Exploding(), loader())
    statuses = [m.status for m in watcher.measurements["hessian"]]
    assert statuses[0].ok
    assert statuses[1].ok
    assert not any(status.ok for status in statuses[2:])
    assert all(torch.isfinite(value) for tag, value in host.callback_metrics.items() if tag.startswith("sloppy_"))
    assert host.current_epoch == 3


@pytest.mark.slow
def test_a_layer_without_a_double_backward_falls_back(tmp_path):
    class Own(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(FEATURES, 8), OnceTanh(), nn.Linear(8, 3))

    hessian = HessianSpectrum(k=2, num_samples=24, strict=True)
    trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Own(), loader())
    assert "central_differences" in hessian.latest.cost.method
    assert any("double backward" in note or "second derivative" in note for note in hessian.latest.notes)


@pytest.mark.slow
def test_a_full_disk_costs_the_curve_and_nothing_else(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    class Full(TensorBoardLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("sloppy") for name in metrics):
                raise OSError(28, "No space left on device")
            super().log_metrics(metrics, step)

    watcher = monitor()
    host = trainer(tmp_path, callbacks=[watcher], logger=Full(tmp_path), max_epochs=2)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        host.fit(Classifier(), loader())
    assert len([w for w in caught if "No space left" in str(w.message)]) == 1
    assert "sloppy_fisher/trace" in host.callback_metrics


@pytest.mark.slow
def test_two_fits_with_one_callback(tmp_path):
    watcher, model = monitor(strict=True), Classifier()
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(model, loader())
    first = [m.step for m in watcher.measurements["fisher"]]
    trainer(tmp_path, callbacks=[watcher], max_epochs=2).fit(Classifier(), loader())
    assert first == [0, 2]
    assert [m.step for m in watcher.measurements["fisher"]] == [0, 2, 5]


def test_validate_test_and_predict_measure_nothing(tmp_path):
    class All(Classifier):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    watcher = monitor(strict=True)
    host = trainer(tmp_path, callbacks=[watcher])
    model, data = All(), loader(shuffle=False)
    host.validate(model, data, verbose=False)
    host.test(model, data, verbose=False)
    host.predict(All(), DataLoader(torch.randn(8, FEATURES), 4))
    assert all(found == [] for found in watcher.measurements.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lr_find.*", "ignore:.*logging interval.*")
def test_a_tuner_run_before_the_fit(tmp_path):
    watcher = monitor()
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=1, enable_checkpointing=True)
    model = Classifier()
    Tuner(host).lr_find(model, loader(), num_training=4, update_attr=False)
    host.fit(model, loader())
    assert watcher.latest["fisher"].status.ok
    assert not watcher.latest["bound"], "the tuner has trained these weights"


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_trains_and_measures_nothing_more(tmp_path):
    first = trainer(tmp_path, callbacks=[monitor()], max_epochs=1)
    first.fit(Classifier(), loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    watcher = monitor(strict=True)
    host = trainer(tmp_path, callbacks=[watcher], max_epochs=1)
    host.fit(Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY)
    assert host.global_step == 3
    assert len(watcher.measurements["fisher"]) <= 1


@pytest.mark.slow
def test_callbacks_are_pickled_and_copied(tmp_path):
    watcher = monitor(strict=True)
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(Classifier(), loader())
    for other in (pickle.loads(pickle.dumps(watcher)), copy.deepcopy(watcher)):
        assert [m.step for m in other.measurements["fisher"]] == [0, 2]
        trainer(tmp_path, callbacks=[other], max_epochs=1).fit(Classifier(), loader())
        assert other.latest["hessian"].status.ok


@pytest.mark.slow
def test_sigterm_inside_a_measurement_ends_the_run_with_readable_files(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from lightning.pytorch.loggers import TensorBoardLogger
        from support.tiny import Classifier, loader, trainer
        from lightning_sloppy import FisherSpectrum

        class Ended(FisherSpectrum):
            def measure(self, host, module, probe):
                if probe.step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().measure(host, module, probe)

        callback = Ended(num_samples=16)
        logger = TensorBoardLogger({str(tmp_path)!r}, name="run")
        try:
            trainer({str(tmp_path)!r}, callbacks=[callback], logger=logger, max_epochs=50).fit(Classifier(), loader())
        except SystemExit:
            pass
        print("steps", [m.step for m in callback.measurements])
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "version_0"))
    events.Reload()
    assert 1 <= len(events.Scalars("sloppy_fisher/trace")) <= 3, done.stderr
    assert done.returncode in (0, -signal.SIGTERM), done.stderr
    assert os.path.exists(tmp_path / "run")


@pytest.mark.slow
def test_sigterm_while_a_posterior_is_learnt_ends_the_run(tmp_path):
    """Lightning looks for the signal between batches, and behind the last one there is none any more."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from support.tiny import Classifier, blobs, loader, trainer
        from lightning_sloppy import FinalCertificate, LearningPlan
        from lightning_sloppy.posteriors.descent import Descent

        step = Descent.step
        def steps(self, *args):
            if not told:
                told.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *args)
        told = []
        Descent.step = steps
        final = FinalCertificate(learning=LearningPlan(seconds=600), folder={str(tmp_path / "out")!r})
        try:
            trainer({str(tmp_path)!r}, callbacks=[final], max_epochs=1).fit(Classifier(), loader(blobs(200)))
        except SystemExit as error:
            print("ended", type(error).__name__, time.perf_counter() - told[0] < 60, final.certificates)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert "ended SIGTERMException True None" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_one_cause_in_two_instruments_is_one_warning(tmp_path):
    def nothing(outputs, targets):
        return outputs.sum() * torch.nan

    parts = [make(num_samples=16, loss_fn=nothing) for make in (FisherSpectrum, HessianSpectrum)]
    with pytest.warns(UserWarning, match="measurement failed") as caught:
        trainer(tmp_path, callbacks=parts, max_epochs=2).fit(Classifier(), loader())
    assert len([each for each in caught if "measurement failed" in str(each.message)]) == 1
    assert [event.status for part in parts for event in part.measurements] == [Status.FAILED] * 6


def test_the_latest_is_the_latest_that_did_not_fail(tmp_path):
    class Failing(FisherSpectrum):
        def measure(self, host, module, probe):
            if probe.step > 3:
                raise ValueError("no file")
            return super().measure(host, module, probe)

    part = Failing(num_samples=16)
    with pytest.warns(UserWarning, match="no file"):
        trainer(tmp_path, callbacks=[part], max_epochs=3).fit(Classifier(), loader())
    assert [event.status is Status.FAILED for event in part.measurements] == [False, False, True, True]
    assert part.latest is part.measurements[1]
    monitor = SloppyMonitor(jacobian=None, input=None, hessian=None, bound=None, fisher=part)
    assert monitor.latest == {"fisher": part.measurements[1]}
