"""The record of a fit: what its callbacks hold, and facts counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.tiny import Classifier, loader, trainer

from lightning_sloppy import EffectiveDimensionEarlyStopping, JacobianSpectrum, SloppyMonitor
from lightning_sloppy.probing.run_facts import logger_folder
from lightning_sloppy.runs.run import RunFacts


def fitted(tmp_path: Path, monitor: SloppyMonitor) -> Trainer:
    fit = trainer(tmp_path, callbacks=[monitor], logger=CSVLogger(tmp_path))
    fit.fit(Classifier(), loader(), loader(shuffle=False))
    return fit


def test_the_record_holds_the_measurements_and_counts_the_fit(tmp_path: Path) -> None:
    monitor = SloppyMonitor(hessian=None, bound=None, early_stopping=EffectiveDimensionEarlyStopping())
    assert monitor.record().facts == RunFacts()
    folder = fitted(tmp_path, monitor).log_dir
    run = monitor.record()
    assert list(run.instruments) == ["jacobian", "input", "fisher"]
    assert {name: list(each.measurements) for name, each in run.instruments.items()} == monitor.measurements
    facts = run.facts
    assert (facts.module, facts.num_parameters, facts.num_training_samples) == ("Classifier", 6 * 8 + 8 + 8 * 3 + 3, 48)
    assert (facts.epochs, facts.steps, facts.end) == (2, 6, "ended")
    assert facts.loggers == (("CSVLogger", f"{folder}/metrics.csv"),)
    assert facts.folder == folder
    assert set(facts.metrics) >= {"train_loss", "train_accuracy"}
    assert not any(name.startswith("sloppy_") for name in facts.metrics)
    spent = sum(event.cost.seconds for each in run.instruments.values() for event in each.measurements)
    assert 0 < spent <= facts.measuring_seconds
    assert facts.overhead == pytest.approx(facts.measuring_seconds / facts.training_seconds)
    assert (facts.grace_seconds, facts.max_overhead) == (60.0, 0.1)


def test_facts_are_there_while_the_training_runs_and_after_it_failed(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Fails(Classifier):
        def on_train_epoch_end(self) -> None:
            if self.current_epoch == 1:
                seen.append((monitor.record().facts.end, monitor.record().facts.num_training_samples))
                raise ZeroDivisionError

    monitor = SloppyMonitor(hessian=None, bound=None, fisher=None)
    fit = trainer(tmp_path, callbacks=[monitor], max_epochs=3)
    with pytest.raises(ZeroDivisionError):
        fit.fit(Fails(), loader(), loader(shuffle=False))
    assert seen == [("", 48)]
    assert monitor.record().facts.end == "failed"
    assert (monitor.record().facts.loggers, monitor.record().facts.folder) == ((), "")


def test_an_instrument_is_found_by_what_it_measures_not_by_its_name(tmp_path: Path) -> None:
    monitor = SloppyMonitor(
        jacobian=JacobianSpectrum(name="outputs"), input=None, hessian=None, fisher=None, bound=None
    )
    fitted(tmp_path, monitor)
    found = monitor.record().of_kind("jacobian")
    assert found is not None
    assert found.declaration.name == "outputs"
    assert found.latest is monitor.measurements["jacobian"][-1]
    assert monitor.record().of_kind("fisher") is None


def test_a_logger_without_log_dir_has_the_folder_of_its_version(tmp_path: Path) -> None:
    class Elsewhere:
        save_dir, name, version = str(tmp_path), "project", "abc"

    class Nowhere:
        save_dir, name, version = None, "project", 3

    assert logger_folder(Elsewhere()) == str(tmp_path / "project" / "abc")
    assert logger_folder(Nowhere()) == ""
    assert logger_folder(TensorBoardLogger(tmp_path, name="x", version=3)) == str(tmp_path / "x" / "version_3")
