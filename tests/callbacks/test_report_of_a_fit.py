"""``report.html`` beside the values of a fit: where there is a folder, unless switched off, and never an error."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from support.pages import Page
from support.tiny import Classifier, blobs, loader, trainer

from lightning_sloppy import FisherSpectrum, JacobianSpectrum, SloppyMonitor
from lightning_sloppy.callbacks.base import SloppyCallback

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def fit(folder: Path, *callbacks: SloppyCallback, logged: bool = True) -> list[str]:
    """A short fit; its warnings."""
    logger = CSVLogger(folder, name="logs", version="run") if logged else False
    host = trainer(folder, callbacks=list(callbacks), max_epochs=1, logger=logger)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        host.fit(Classifier(), loader(blobs(32)))
    assert host.state.finished
    return [str(warning.message) for warning in caught]


def small(**options) -> SloppyMonitor:
    return SloppyMonitor(hessian=None, fisher=None, bound=None, input=None, **options)


def test_beside_the_values_of_the_logger(tmp_path) -> None:
    monitor = small()
    fit(tmp_path, monitor)
    page = Page((tmp_path / "logs" / "run" / "report.html").read_text(encoding="utf-8"))
    shown = page.values_of("sloppy_jacobian/effective_dimension")
    assert shown == [monitor.latest["jacobian"].estimates["effective_dimension"].value]
    assert "Training ended after 1 epoch" in page.text


def test_one_page_for_several_callbacks_without_a_monitor(tmp_path) -> None:
    fit(tmp_path, JacobianSpectrum(num_samples=8), FisherSpectrum(num_samples=8))
    page = Page((tmp_path / "logs" / "run" / "report.html").read_text(encoding="utf-8"))
    assert {"Jacobian", "Fisher matrix"} <= set(page.of("h3"))
    assert len(list(tmp_path.rglob("*.html"))) == 1


def test_none_if_it_is_switched_off_or_without_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, small(report=False))
    fit(tmp_path, small(), logged=False)
    assert list(tmp_path.rglob("*.html")) == []


def test_an_error_is_one_warning_and_the_fit_ends_well(tmp_path) -> None:
    (tmp_path / "logs" / "run" / "report.html").mkdir(parents=True)
    found = [message for message in fit(tmp_path, small()) if "report" in message]
    assert len(found) == 1
    assert "The report could not be written: " in found[0]
    assert f"lightning-sloppy report {tmp_path / 'logs' / 'run'}" in found[0]


def test_a_failed_fit_has_a_report_that_says_so(tmp_path) -> None:
    class Fails(Classifier):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("no luck")

    host = trainer(tmp_path, callbacks=[small()], max_epochs=1, logger=CSVLogger(tmp_path, name="logs", version="run"))
    with pytest.raises(RuntimeError, match="no luck"):
        host.fit(Fails(), loader(blobs(32)))
    assert "Training failed after" in Page((tmp_path / "logs" / "run" / "report.html").read_text()).text
