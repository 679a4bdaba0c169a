"""A run as a pandas frame: the values of the curves, with their errors and what they rest on."""

from __future__ import annotations

import math
import sys

import pandas
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from support.tiny import Classifier, blobs, loader, trainer

from lightning_sloppy import (
    Cost,
    Estimate,
    HessianSpectrum,
    Measurement,
    MissingExtraError,
    SloppyMonitor,
    Status,
    load_run,
)
from lightning_sloppy.quantities import Declaration, Quantity
from lightning_sloppy.reporting.tags import scalars, tag
from lightning_sloppy.runs.run import InstrumentRun, Run

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("frame")
    watcher = SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24, probes=3), strict=True, every_n_steps=1)
    logger = CSVLogger(folder, name="", version="run")
    trainer(folder, callbacks=[watcher], max_epochs=2, logger=logger).fit(Classifier(), loader(blobs(64)))
    return watcher, logger.log_dir


@pytest.mark.slow
def test_the_values_are_those_of_the_curves(fitted):
    watcher, _ = fitted
    frame, run = watcher.to_frame(), watcher.record()
    assert not frame.duplicated(["instrument", "measurement", "quantity"]).any()
    for each in run.instruments.values():
        for number, measurement in enumerate(each.measurements):
            logged = scalars(measurement, each.declaration)
            rows = frame[(frame.instrument == each.declaration.name) & (frame.measurement == number)]
            assert len(rows) == len(measurement.estimates) > 5
            for row in rows.itertuples():
                estimate = measurement.estimates[row.quantity]
                name = tag(each.declaration.name, row.quantity)
                assert row.value == logged[name] if name in logged else math.isnan(row.value)
                assert (row.standard_error, row.truncation_error) == (
                    estimate.standard_error,
                    estimate.truncation_error,
                )
                assert (row.step, row.epoch, row.num_samples) == (
                    measurement.step, measurement.epoch, measurement.num_samples,
                )  # fmt: skip
                assert row.seconds == measurement.cost.seconds
                assert row.status == estimate.status.name


@pytest.mark.slow
def test_a_file_gives_the_same_frame_and_a_part_its_own(fitted):
    watcher, folder = fitted
    frame = watcher.to_frame()
    pandas.testing.assert_frame_equal(load_run(folder).to_frame(), frame)
    hessian = next(part for part in watcher.parts if isinstance(part, HessianSpectrum))
    pandas.testing.assert_frame_equal(
        hessian.to_frame(), frame[frame.instrument == "hessian"].reset_index(drop=True), check_dtype=False
    )
    wide = frame.pivot(index=["instrument", "measurement", "step"], columns="quantity", values="value")
    assert wide.loc["hessian"]["largest"].notna().all()


def test_what_has_no_curve_is_nan_and_says_why():
    quantities = (Quantity("trace", "Sum.", unit="nats", whole_spectrum=True), Quantity("size", "Length."))
    declaration = Declaration("norm", "Norm", quantities)

    def event(step, status, **estimates):
        return Measurement(step, 0, "norm", None, estimates, Cost(seconds=2.0), status, num_samples=5)

    events = (
        event(0, Status.EXACT, trace=Estimate(3.0), size=Estimate(1.5, 0.5, 0.25), undeclared=Estimate(1.0)),
        event(1, Status.CONVERGED, trace=Estimate(3.0, lower_bound=True), size=Estimate(2.0, lower_bound=True)),
        event(2, Status.CONVERGED, trace=Estimate(3.0, status=Status.UNRESOLVED), size=Estimate(math.inf)),
        event(3, Status.NON_FINITE, size=Estimate(1.0)),
        event(4, Status.FAILED),
    )
    frame = Run({"norm": InstrumentRun("norm", declaration, events)}).to_frame()
    assert frame[["step", "quantity", "status", "lower_bound", "unit"]].values.tolist() == [
        [0, "trace", "EXACT", False, "nats"],
        [0, "size", "EXACT", False, ""],
        [1, "trace", "EXACT", True, "nats"],
        [1, "size", "EXACT", True, ""],
        [2, "trace", "UNRESOLVED", False, "nats"],
        [2, "size", "EXACT", False, ""],
        [3, "size", "NON_FINITE", False, ""],
    ]
    assert frame.value.fillna(-1).tolist() == [3.0, 1.5, -1, 2.0, -1, -1, -1]
    for each in events:
        logged = scalars(each, declaration)
        for row in frame[frame.step == each.step].itertuples():
            assert (tag("norm", row.quantity) in logged) == (not math.isnan(row.value))


def test_an_empty_run_has_the_columns():
    frame = SloppyMonitor().to_frame()
    assert len(frame) == 0
    assert list(frame.columns)[:5] == ["instrument", "measurement", "step", "epoch", "quantity"]
    assert frame.dtypes["value"] == "float64"


def test_without_pandas_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_frame needs pandas.*pip install 'lightning-sloppy\[data\]'"):
        Run({}).to_frame()
