"""Facts about a fit: whatever callbacks and loggers do, each fit is recorded once, and nobody waits for rank 0."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from support.tiny import Classifier, blobs, loader, trainer
from torchmetrics import MeanMetric

from lightning_sloppy import EffectiveDimensionEarlyStopping, HessianSpectrum, PACBayesBound, SloppyMonitor, load_run
from lightning_sloppy.callbacks import base, measuring

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def small(**options) -> SloppyMonitor:
    return SloppyMonitor(hessian=None, fisher=None, bound=None, input=None, picture=False, **options)


def csv(folder: Path) -> CSVLogger:
    return CSVLogger(folder, name="logs", version="run")


def events(folder: Path) -> list[str]:
    return [
        json.loads(line)["event"] for line in (folder / "logs" / "run" / "sloppy_run.jsonl").read_text().splitlines()
    ]


class Failing(lightning.Callback):
    """Raises in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    @staticmethod
    def _fail(*args: object, **options: object) -> None:
        raise RuntimeError("on purpose")


def test_a_later_error_does_not_end_the_fit_again(tmp_path) -> None:
    host = trainer(tmp_path, callbacks=[small()], max_epochs=1, logger=csv(tmp_path))
    host.fit(Classifier(), loader(blobs(32)))
    host.callbacks.append(Failing("on_validation_start"))
    with pytest.raises(RuntimeError, match="on purpose"):
        host.validate(Classifier(), loader(blobs(32), shuffle=False), verbose=False)
    assert events(tmp_path) == ["head", "measurement", "measurement", "end"]
    assert load_run(tmp_path).facts.end == "ended"


def test_an_error_in_the_teardown_of_another_callback_does_not_end_the_fit_again(tmp_path) -> None:
    host = trainer(tmp_path, callbacks=[small(), Failing("teardown")], max_epochs=1, logger=csv(tmp_path))
    with pytest.raises(RuntimeError, match="on purpose"):
        host.fit(Classifier(), loader(blobs(32)))
    assert events(tmp_path).count("end") == events(tmp_path).count("head") == 1


def test_metrics_that_are_no_tensors_are_recorded_if_they_are_numbers(tmp_path) -> None:
    class Mine(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.callback_metrics.update(mine=2.5, words="none", several=torch.ones(2), one=torch.ones(1))

    monitor = small(strict=True)
    host = trainer(tmp_path, callbacks=[Mine(), monitor], max_epochs=1, logger=csv(tmp_path))
    host.fit(Classifier(), loader(blobs(32)))
    metrics = load_run(tmp_path).facts.metrics
    assert metrics["mine"] == 2.5
    assert metrics["one"] == 1.0
    assert not {"words", "several"} & metrics.keys()
    assert {"train_loss", "train_accuracy"} <= metrics.keys()


class Disconnected(DummyLogger):
    """Loses its connection when the training starts."""

    lost = False

    @property
    def experiment(self):
        if self.lost:
            raise ConnectionError("lost")
        return super().experiment

    def log_metrics(self, *args, **kwargs):
        Disconnected.lost = True


def test_a_logger_without_connection_does_not_prevent_the_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Disconnected, "lost", False)
    monitor = small()
    monitor.picture = True
    for part in monitor.parts:
        part.picture = True
    host = trainer(tmp_path, callbacks=[monitor], max_epochs=1, logger=[Disconnected(), csv(tmp_path)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        host.fit(Classifier(), loader(blobs(32)))
    assert host.state.finished
    assert events(tmp_path) == ["head", "measurement", "measurement", "end"]
    assert monitor.record().facts.end == "ended"
    assert (tmp_path / "logs" / "run" / "sloppy_picture.png").is_file()
    ours = [str(each.message) for each in caught if "sloppy" in str(each.message) or "picture" in str(each.message)]
    assert not any("summary" in each or "published" in each for each in ours)


def test_the_end_after_an_error_computes_no_metric(tmp_path) -> None:
    """Computing a metric is a reduction, in which rank 0 alone would wait forever."""
    computed: list[str] = []

    class Watched(MeanMetric):
        def compute(self):
            computed.append("computed")
            return super().compute()

    class Validated(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.watched = Watched()

        def validation_step(self, batch, batch_idx):
            self.watched.update(self.loss_fn(self(batch[0]), batch[1]))

        def on_validation_epoch_end(self):
            self.log("watched", self.watched)
            raise RuntimeError("on purpose")

    host = trainer(tmp_path, callbacks=[small()], max_epochs=1, logger=csv(tmp_path), num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="on purpose"):
        host.fit(Validated(), loader(blobs(32)), loader(blobs(32), shuffle=False))
    assert events(tmp_path)[-1] == "end"
    assert computed == []


@pytest.mark.filterwarnings("ignore:The hessian measurement failed")
def test_texts_about_all_measurements_are_written_at_the_end_only(tmp_path, monkeypatch) -> None:
    """Else the cost of a measurement would grow with their number, when an instrument never measures."""
    written: list[int] = []
    texts = measuring.MeasuringCallback.instrument_run

    def counted(self):
        written.append(len(self.measurements))
        return texts(self)

    monkeypatch.setattr(measuring.MeasuringCallback, "instrument_run", counted)
    monkeypatch.setattr(HessianSpectrum, "take", Failing._fail)  # so the bound has no spectrum
    family = [small(), HessianSpectrum(), PACBayesBound()]
    host = trainer(tmp_path, callbacks=family, max_epochs=6, logger=csv(tmp_path))
    host.fit(Classifier(), loader(blobs(32)))
    assert written == [7, 7, 0]


def test_a_second_fit_forgets_the_warnings_of_an_early_stop(tmp_path) -> None:
    stop = EffectiveDimensionEarlyStopping()
    host = trainer(tmp_path, callbacks=[small(), stop], max_epochs=1)
    host.fit(Classifier(), loader(blobs(32)))
    stop.warned["earlier"] = "Of the first fit."
    host.fit_loop.max_epochs = 2
    host.fit(Classifier(), loader(blobs(32)))
    assert "Of the first fit." not in base.warnings_of(base.peers(host)).values()
    assert stop.facts.epochs == 2
