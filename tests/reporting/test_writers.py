from __future__ import annotations

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from support.instruments import DECLARED
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator

from lightning_sloppy.probing.run_facts import run_facts
from lightning_sloppy.probing.trainer_internals import logger_prefix
from lightning_sloppy.records import Cost, Estimate, Measurement, Spectrum, Status
from lightning_sloppy.reporting.histograms import histograms
from lightning_sloppy.reporting.tags import curve_tags, curves, expected_tags, scalars
from lightning_sloppy.reporting.writers import publish

HESSIAN = DECLARED["hessian"]
N_EFF = "sloppy_hessian/effective_dimension"


class SimpleTrainer(SimpleNamespace):
    __hash__ = object.__hash__


def trainer(*loggers: object, is_global_zero: bool = True) -> SimpleTrainer:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleTrainer(loggers=list(loggers), is_global_zero=is_global_zero, strategy=strategy, callback_metrics={})


def event(step: int, value: float = 12.5, *, status: Status = Status.CONVERGED) -> Measurement:
    values = torch.tensor([5.0, 0.5, 1e-3, -0.2], dtype=torch.float64)
    spectrum = Spectrum(values, 4, 8, "hessian", 1e-9, Status.EXACT, torch.zeros(4), 5.0, -0.2)
    estimates = {"effective_dimension": Estimate(value, 0.5, 0.25), "largest": Estimate(5.0)}
    return Measurement(step, 0, "hessian", spectrum, estimates, Cost(products=28, seconds=0.5), status)


def drawn(measurement: Measurement) -> dict[str, float]:
    return curves(scalars(measurement, HESSIAN), HESSIAN)


class Measuring(Callback):
    """Publishes one measurement at train start and one after every batch, at Lightning's own step."""

    def __init__(self, values=()):
        self.values, self.published = list(values), []

    def _publish(self, trainer):
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        value = self.values.pop(0) if self.values else 12.5
        self.published.append(event(step, value))
        publish(trainer, self.published[-1], HESSIAN)

    def on_train_start(self, trainer, pl_module):
        self._publish(trainer)

    def on_train_batch_end(self, trainer, *args):
        self._publish(trainer)


def fit(tmp_path, *callbacks: Callback, **options) -> Trainer:
    options = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1, "logger": False, **options}
    run = Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        log_every_n_steps=1,
        **options,
    )
    run.fit(BoringModel())
    return run


quiet = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*deprecated")


@quiet
def test_event_files_hold_every_tag_at_the_step_of_the_measurement(tmp_path):
    logger, measuring = TensorBoardLogger(tmp_path), Measuring()
    fit(tmp_path, measuring, logger=logger)
    read = EventAccumulator(logger.log_dir, size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    steps = [m.step for m in measuring.published]
    assert steps == [0, 0, 1, 2, 3, 4, 5]
    for name, value in drawn(measuring.published[0]).items():
        written = read.Scalars(name)
        assert [e.step for e in written] == steps, name
        assert [e.value for e in written] == pytest.approx([value] * len(steps)), name
    for name, shape in histograms(measuring.published[0], HESSIAN).items():
        written = read.Histograms(name)
        assert [e.step for e in written] == steps, name
        stored = written[0].histogram_value
        assert sum(stored.bucket) == pytest.approx(shape.num)
        assert (stored.min, stored.max) == pytest.approx((shape.minimum, shape.maximum))
    ours = {t for kind in ("scalars", "histograms") for t in read.Tags()[kind] if t.startswith("sloppy_")}
    assert ours == {*drawn(measuring.published[0]), *histograms(measuring.published[0], HESSIAN)}
    assert {p.parent for p in tmp_path.rglob("events.out*")} == {tmp_path / "lightning_logs" / "version_0"}


@quiet
def test_csv_has_one_constant_header_and_gaps_for_what_is_missing(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    rewrites = []
    logger.experiment._rewrite_with_new_header = rewrites.append
    run = trainer(logger)
    publish(run, event(0, 3.0), HESSIAN)
    publish(run, event(1, math.nan), HESSIAN)
    publish(run, event(2, 4.0), HESSIAN)
    logger.finalize("success")
    with open(logger.experiment.metrics_file_path) as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {*curve_tags(HESSIAN), *drawn(event(0, 3.0)), "step"}
    assert [r["step"] for r in rows] == ["0", "1", "2"]
    assert [r[N_EFF] for r in rows] == ["3.0", "nan", "4.0"]
    assert not rewrites


ALL_OF_IT = replace(HESSIAN, detail="all")


@pytest.mark.parametrize(
    ("declaration", "columns"), [(HESSIAN, curve_tags(HESSIAN)), (ALL_OF_IT, expected_tags(HESSIAN))]
)
def test_loggers_get_the_curves_and_monitors_everything(declaration, columns, tmp_path):
    whole, rows = Recording(), CSVLogger(tmp_path)
    run = trainer(whole, rows)
    measured = replace(event(0), estimates={"largest": Estimate(5.0), "n90": Estimate(3.0), "z": Estimate(0.1)})
    publish(run, measured, declaration)
    everything = {"sloppy_hessian/largest": 5.0, "sloppy_hessian/n90": 3.0, "sloppy_hessian/z": 0.1,
                  "sloppy_cost/seconds_hessian": 0.5, "sloppy_cost/products_hessian": 28.0}  # fmt: skip
    assert {name: float(value) for name, value in run.callback_metrics.items()} == pytest.approx(everything)
    expected = {name: value for name, value in everything.items() if name in columns}
    assert whole.calls == [(expected, 0)]
    rows.save()
    assert {*rows.experiment.metrics_keys} == {*columns, "step"}


def test_an_error_of_zero_is_no_curve_and_one_of_a_drawn_value_is():
    exact = replace(event(0), estimates={"trace": Estimate(9.0, 0.5, 0.0), "n90": Estimate(9.0, 0.5, 0.5)})
    errors = [name for name in drawn(exact) if name.endswith(("_sem", "_truncation"))]
    assert errors == ["sloppy_hessian/trace_sem"]
    assert len(curves(scalars(exact, ALL_OF_IT), ALL_OF_IT)) == len(scalars(exact, ALL_OF_IT))


def test_what_is_measured_once_is_no_curve():
    whole, once = Recording(), DECLARED["input"]
    run = trainer(whole)
    publish(run, Measurement(0, 0, "input", None, {"n90": Estimate(3.0)}, Cost(seconds=1.0), Status.EXACT), once)
    assert whole.calls == []
    assert float(run.callback_metrics["sloppy_input/n90"]) == 3.0


def test_a_prefix_is_put_before_histograms_too(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="a")
    publish(trainer(logger), event(0), HESSIAN, prefix_of=logger_prefix)
    logger.finalize("success")
    tags = EventAccumulator(logger.log_dir, size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE).Reload().Tags()
    assert tags["histograms"]
    assert all(name.startswith("a-sloppy_") for name in [*tags["scalars"], *tags["histograms"]])


def test_a_gap_keeps_the_last_finite_value_for_monitors():
    run = trainer()
    for value in (7.0, math.nan, math.inf):
        publish(run, event(0, value), HESSIAN)
    publish(run, event(1, 99.0, status=Status.FAILED), HESSIAN)
    kept = run.callback_metrics[N_EFF]
    assert float(kept) == 7.0
    assert (kept.shape, kept.dtype, kept.requires_grad) == (torch.Size([]), torch.float32, False)
    assert all(bool(torch.isfinite(v)) for v in run.callback_metrics.values())


@quiet
def test_monitors_work_without_any_logger(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor=N_EFF, mode="min", filename="best", save_top_k=1)
    stopping = EarlyStopping(monitor=N_EFF, mode="min", patience=1, check_on_train_epoch_end=True)
    falling_then_rising = [float(v) for v in (9, 8, 7, 3, 5, 5, 5, 5, 5, 9, 9, 9, 9)]
    run = fit(tmp_path, Measuring(falling_then_rising), checkpoint, stopping, max_epochs=9)
    assert run.current_epoch < 9
    assert float(stopping.best_score) == float(checkpoint.best_model_score) == 3.0


@quiet
def test_fast_dev_run_writes_nothing_and_breaks_nothing(tmp_path):
    measuring = Measuring()
    run = fit(tmp_path, measuring, logger=TensorBoardLogger(tmp_path), fast_dev_run=True)
    assert isinstance(run.loggers[0], DummyLogger)
    assert len(measuring.published) == 2
    assert float(run.callback_metrics[N_EFF]) == 12.5
    assert not list(tmp_path.rglob("events.out*"))
    assert run_facts(run, None).loggers == ()


class Recording(Logger):
    """A logger without any experiment, as third parties write them."""

    name, version = "recording", 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((metrics, step))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Broken(Recording):
    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no route to host")


def test_a_broken_logger_is_named_once_and_the_others_go_on():
    healthy = Recording()
    run = trainer(Broken(), healthy)
    with pytest.warns(UserWarning, match=r"Broken could not log a measurement: ConnectionError: no route"):
        publish(run, event(0), HESSIAN)
    publish(run, event(1), HESSIAN)  # a second warning would be an error here
    publish(run, event(2), HESSIAN)
    assert [step for _, step in healthy.calls] == [0, 1, 2]
    assert healthy.calls[0][0] == drawn(event(0))
    with pytest.warns(UserWarning, match="Broken could not"):
        publish(trainer(Broken()), event(0), HESSIAN)


def test_other_ranks_update_their_monitors_only():
    logger = Recording()
    run = trainer(logger, is_global_zero=False)
    publish(run, event(0), HESSIAN)
    assert not logger.calls
    assert float(run.callback_metrics[N_EFF]) == 12.5
