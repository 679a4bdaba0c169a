"""Schedule, x-values, monitors, namespaces, resume and the odd ways in which a Trainer is run."""

from __future__ import annotations

import logging

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from support.tiny import SAFELY, Classifier, Regressor, blobs, loader, trainer
from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sloppy import (
    ConfigurationError,
    EffectiveDimensionEarlyStopping,
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    JacobianSpectrum,
    PACBayesBound,
    Schedule,
    SloppyMonitor,
    Status,
    UnsupportedError,
)

NO_VALIDATION = "ignore:You defined a `validation_step`.*"
pytestmark = pytest.mark.filterwarnings(NO_VALIDATION)


def monitor(**options):
    return SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24), fisher=FisherSpectrum(num_samples=24), **options)


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance=STORE_EVERYTHING_SIZE_GUIDANCE)
    accumulator.Reload()
    return accumulator


@pytest.mark.slow
def test_the_whole_monitor_writes_every_group_at_lightnings_own_steps(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    watcher = monitor(strict=True)
    host = trainer(tmp_path, callbacks=watcher, logger=logger, max_epochs=3)
    host.fit(Classifier(), loader(), loader(blobs(seed=1), shuffle=False))
    read = events(logger.log_dir)
    tags = read.Tags()["scalars"]
    for group in ("jacobian", "hessian", "fisher", "bound", "cost"):
        assert any(tag.startswith(f"sloppy_{group}/") for tag in tags), group
    epoch_ends = [event.step for event in read.Scalars("val_loss")]
    for tag in ("sloppy_hessian/effective_dimension", "sloppy_fisher/effective_dimension", "sloppy_bound/pac_bayes"):
        assert [event.step for event in read.Scalars(tag)] == [0, *epoch_ends], tag
        assert tag in host.callback_metrics
    assert set(read.Tags()["histograms"]) >= {
        "sloppy_input/log10_eigenvalues",
        "sloppy_hessian/log10_eigenvalues",
        "sloppy_hessian/gauss_newton_log10_eigenvalues",
        "sloppy_fisher/log10_eigenvalues",
    }
    assert "custom_scalars__config__" in read.Tags()["tensors"]
    assert [m.step for m in watcher.measurements["fisher"]] == [0, *epoch_ends]
    assert watcher.latest["bound"].certificate.valid
    logged = {tag: read.Scalars(tag)[-1].value for tag in tags if tag.startswith("sloppy_fisher")}
    for tag, value in logged.items():
        assert float(host.callback_metrics[tag]) == pytest.approx(value)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("single", [True, False], ids=["alone", "in a list"])
def test_both_trainers_take_it(tmp_path, namespace, single):
    class Own(namespace.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.net(inputs)

        def training_step(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    watcher = monitor(strict=True)
    host = namespace.Trainer(
        max_epochs=1,
        callbacks=watcher if single else [watcher],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        log_every_n_steps=1,
    )
    host.fit(Own(), loader())
    assert all(found[-1].status.ok for found in watcher.measurements.values())


@pytest.mark.parametrize("reverse", [False, True])
def test_lightnings_own_callbacks_can_monitor_in_any_order(tmp_path, reverse):
    tag = "sloppy_fisher/effective_dimension"
    listed = [
        EarlyStopping(tag, patience=50, mode="min", check_on_train_epoch_end=False),
        ModelCheckpoint(tmp_path / "kept", monitor=tag, filename="best", save_top_k=1),
        FisherSpectrum(num_samples=16, strict=True),
    ]
    host = trainer(tmp_path, callbacks=listed[::-1] if reverse else listed, enable_checkpointing=True, max_epochs=2)
    host.fit(Classifier(), loader(), loader(blobs(seed=1), shuffle=False))
    assert (tmp_path / "kept" / "best.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_subscribers_hear_once_whatever_the_order(tmp_path, reverse):
    bound = PACBayesBound(strict=True)
    stopping = EffectiveDimensionEarlyStopping(patience=50)
    hessian = HessianSpectrum(k=2, num_samples=16, strict=True)
    listed = [bound, stopping, hessian, JacobianSpectrum(num_samples=16, strict=True)]
    host = trainer(tmp_path, callbacks=listed[::-1] if reverse else listed, max_epochs=2)
    host.fit(Classifier(), loader())
    assert [m.certificate.evaluation for m in bound.measurements] == [1, 2, 3]
    assert [point[0] for point in stopping.curves.dimension] == [0, 1, 2]
    assert all(m.spectrum is None or m.spectrum.eigenvectors is None for m in hessian.measurements)


def test_interval_and_last_measurement(tmp_path):
    fisher = FisherSpectrum(schedule=Schedule(every_n_epochs=2), num_samples=16)
    trainer(tmp_path, callbacks=[fisher], max_epochs=3).fit(Classifier(), loader())
    assert [m.step for m in fisher.measurements] == [0, 5, 8]
    stopped = FisherSpectrum(num_samples=16)
    trainer(tmp_path, callbacks=[stopped], max_epochs=3, max_steps=4).fit(Classifier(), loader())
    assert [m.step for m in stopped.measurements] == [0, 2, 3]


def test_accumulated_batches_keep_lightnings_axis(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    fisher = FisherSpectrum(num_samples=16)
    host = trainer(tmp_path, callbacks=[fisher], logger=logger, accumulate_grad_batches=2, max_epochs=3)
    host.fit(Classifier(), loader(), loader(blobs(seed=1), shuffle=False))
    expected = [event.step for event in events(logger.log_dir).Scalars("val_loss")]
    assert [m.step for m in fisher.measurements] == [0, *expected]


@pytest.mark.slow
def test_the_summary_is_said_once_and_names_everything(tmp_path, caplog):
    logger = TensorBoardLogger(tmp_path, name="run")
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=[monitor()], logger=logger).fit(Classifier(), loader())
    summaries = [record.getMessage() for record in caplog.records if "=======" in record.getMessage()]
    assert len(summaries) == 1
    for word in ("Inputs", "Hessian", "Fisher", "Bound", "Stop", "tensorboard --logdir", "do not depend on the"):
        assert word in summaries[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"logger": False},
        {"fast_dev_run": True},
        {"barebones": True},
        {"limit_train_batches": 0},
        {"limit_train_batches": 1},
        {"num_sanity_val_steps": 0},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore:.*barebones.*")
def test_odd_runs_quietly_work(tmp_path, options):
    watcher = monitor(strict=True, early_stopping=None)
    if "barebones" in options:
        host = lightning.pytorch.Trainer(max_epochs=1, barebones=True, callbacks=[watcher], accelerator="cpu")
    else:
        host = trainer(tmp_path, callbacks=[watcher], **options)
    host.fit(Classifier(), loader(), loader(blobs(seed=1), shuffle=False))
    if options.get("limit_train_batches") != 0:
        assert watcher.latest["hessian"] is not None


@pytest.mark.slow
def test_an_interrupted_run_leaves_readable_files_and_a_summary(tmp_path, caplog):
    class Interrupting(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 4:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    logger = TensorBoardLogger(tmp_path, name="run")
    host = trainer(tmp_path, callbacks=[monitor()], logger=logger)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        host.fit(Interrupting(), loader())
    assert any("was interrupted" in record.getMessage() for record in caplog.records)
    assert len(events(logger.log_dir).Scalars("sloppy_fisher/trace")) == 2


@pytest.mark.slow
def test_a_resumed_run_keeps_scale_prior_and_counters(tmp_path):
    watcher = monitor(strict=True, early_stopping=None)
    first = trainer(tmp_path, callbacks=[watcher], max_epochs=2)
    model = Classifier()
    first.fit(model, loader())
    first.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert any("SloppyMonitor" in key for key in content["callbacks"])
    again = monitor(strict=True)
    trainer(tmp_path, callbacks=[again], max_epochs=3).fit(
        Classifier(), loader(), ckpt_path=tmp_path / "run.ckpt", **SAFELY
    )
    scale = watcher.measurements["fisher"][0].estimates["epsilon"].value
    assert {m.estimates["epsilon"].value for m in again.measurements["fisher"]} == {scale}
    assert [m.certificate.evaluation for m in again.measurements["bound"]] == [4]
    assert all(m.certificate.valid for m in again.measurements["bound"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HessianSpectrum(k=0), "k >= 1"),
        (lambda: HessianSpectrum(k=2.5), "whole number"),
        (lambda: HessianSpectrum(loss_fn="cross_entropy"), "torch.nn.functional.cross_entropy"),
        (lambda: SloppyMonitor(hessian={"k": 3}), r"hessian=lightning_sloppy.HessianSpectrum\(...\)"),
        (lambda: SloppyMonitor(early_stopping=3), "EffectiveDimensionEarlyStopping"),
        (lambda: FisherSpectrum(schedule=3), "pass lightning_sloppy.Schedule"),
        (lambda: HessianSpectrum(num_samples=0.5), "num_samples=0.5"),
        (lambda: HessianSpectrum(probes=1), "at least 2"),
        (lambda: HessianSpectrum(tol=2.0), "tol between 0 and 1"),
        (lambda: HessianSpectrum(epsilon=-1.0), "positive"),
        (lambda: FisherSpectrum(kind="approximate"), "empirical, sampled, exact"),
        (lambda: FisherSpectrum(num_samples=1), "at least 2"),
        (lambda: InputSpectrum(kind="corelation"), "correlation, covariance, second_moment"),
        (lambda: InputSpectrum(max_samples=1), "at least 2"),
        (lambda: PACBayesBound(delta=0.0), "between 0 and 1"),
        (lambda: PACBayesBound(delta=1.5), "between 0 and 1"),
        (lambda: PACBayesBound(prior="trained"), "pass one of initialization, pretrained"),
        (lambda: PACBayesBound(duplicates="none"), "pass 'natural'"),
        (lambda: EffectiveDimensionEarlyStopping("val_loss"), "sloppy_jacobian/effective_dimension"),
        (lambda: EffectiveDimensionEarlyStopping(patience=0), "patience >= 1"),
        (lambda: FisherSpectrum(schedule=Schedule(every_n_epochs=0)), "at least 1"),
        (lambda: SloppyMonitor(bound=PACBayesBound(delta=2.0)), "between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([PACBayesBound()], r"add HessianSpectrum\(\)"),
        ([EffectiveDimensionEarlyStopping()], r"add JacobianSpectrum\(\)"),
        (
            [FisherSpectrum(), SloppyMonitor()],
            "FisherSpectrum and FisherSpectrum would write the same",
        ),
    ],
)
def test_missing_company_is_said_at_setup(tmp_path, listed, words):
    with pytest.raises(ConfigurationError, match=words):
        trainer(tmp_path, callbacks=listed).fit(Classifier(), loader())


def test_sharded_strategies_are_refused_at_setup(tmp_path, monkeypatch):
    from lightning_sloppy.probing import trainer_internals

    class ShardedStrategy:
        pass

    host = trainer(tmp_path)
    monkeypatch.setattr(type(host), "strategy", ShardedStrategy(), raising=False)
    assert not trainer_internals.strategy_is_supported(host)
    with pytest.raises(UnsupportedError, match="strategy='auto' or 'ddp'"):
        FisherSpectrum().setup(host, Classifier(), "fit")


def test_the_inputs_are_measured_under_sharded_strategies(tmp_path, monkeypatch):
    """It reads no parameters: where nobody holds all of them they are not touched."""
    from lightning_sloppy.curvature.parameters import ParameterLayout
    from lightning_sloppy.probing import trainer_internals

    plain = InputSpectrum(strict=True)
    trainer(tmp_path, callbacks=[plain], max_epochs=1).fit(Classifier(), loader(shuffle=False))

    def untouchable(*_):
        raise AssertionError("parameters were read")

    monkeypatch.setattr(trainer_internals, "strategy_is_supported", lambda host: False)
    monkeypatch.setattr(ParameterLayout, "vector", untouchable)
    sharded = InputSpectrum(strict=True)
    trainer(tmp_path, callbacks=[sharded], max_epochs=1).fit(Classifier(), loader(shuffle=False))
    assert torch.equal(sharded.latest.spectrum.eigenvalues, plain.latest.spectrum.eigenvalues)


class Endless(IterableDataset):
    def __iter__(self):
        yield from blobs(32)


def with_inputs(inputs, targets=None):
    return TensorDataset(inputs, blobs(len(inputs)).tensors[1] if targets is None else targets)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Endless(), "map-style data set"),
        (with_inputs(torch.full((32, 6), float("nan"))), "NaN"),
        (with_inputs(torch.ones(32, 6)), "constant"),
        (with_inputs(torch.randn(1, 6)), "at least two"),
    ],
    ids=["iterable", "nan", "constant", "one sample"],
)
def test_bad_data_make_a_sentence_and_a_gap_but_no_crash(tmp_path, dataset, words):
    spectrum = InputSpectrum()
    host = trainer(tmp_path, callbacks=[spectrum], max_epochs=1, limit_train_batches=1)
    with pytest.warns(UserWarning, match=words):
        host.fit(Classifier(), DataLoader(dataset, 16))
    assert [m.status for m in spectrum.measurements] == [Status.FAILED]
    assert not any(tag.startswith("sloppy_input/") for tag in host.callback_metrics)


def test_batches_that_are_no_pairs_are_measured_through_training_step(tmp_path):
    class Single(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 6)

        def training_step(self, batch):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    inputs = torch.randn(32, 6)
    hessian = HessianSpectrum(k=2)
    host = trainer(tmp_path, callbacks=[hessian, FisherSpectrum()], max_epochs=1)
    with pytest.warns(UserWarning, match="pass loss_fn="):
        host.fit(Single(), DataLoader(TensorDataset(inputs), 16))
    # A linear map of mean square: 2/N X^T X, with a row of ones for the bias, over 6 outputs.
    rows = torch.cat([inputs, torch.ones(32, 1)], dim=1)
    assert hessian.latest.spectrum.largest == pytest.approx(2 / 32 / 6 * float(torch.linalg.matrix_norm(rows, 2)) ** 2)


def test_a_model_without_trainable_parameters_is_named(tmp_path):
    model = Classifier()
    model.requires_grad_(False)
    model.automatic_optimization = False
    host = trainer(tmp_path, callbacks=[FisherSpectrum()], max_epochs=1)
    with pytest.warns(UserWarning, match="no trainable parameters"):
        host.fit(model, loader())


def test_a_loss_that_is_not_finite_stops_the_measurement_not_the_training(tmp_path):
    class Broken(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    host = trainer(tmp_path, callbacks=[HessianSpectrum(k=2)], max_epochs=1)
    with pytest.warns(UserWarning, match="not finite"):
        host.fit(Broken(), loader())
    assert not any(tag.startswith("sloppy_hessian/") for tag in host.callback_metrics)


def test_regression_needs_no_configuration(tmp_path):
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(40, 6, generator=rng), torch.randn(40, 2, generator=rng))
    watcher = monitor(strict=True, bound=None)
    trainer(tmp_path, callbacks=[watcher]).fit(Regressor(), DataLoader(data, 8))
    assert watcher.latest["hessian"].status is Status.EXACT
    assert watcher.latest["fisher"].estimates["effective_dimension"].value > 0


@pytest.mark.slow
def test_the_overhead_is_logged_once_a_round(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer(tmp_path, callbacks=[monitor()], logger=logger, max_epochs=3).fit(Classifier(), loader())
    ratios = events(logger.log_dir).Scalars("sloppy_cost/overhead")
    assert [event.step for event in ratios] == [2, 5, 8]
    assert all(0 < event.value < 1000 for event in ratios)


def test_a_monitor_without_spectra_of_the_model_has_no_bound(tmp_path):
    watcher = SloppyMonitor(jacobian=None, hessian=None, fisher=None, strict=True)
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(Classifier(), loader())
    assert set(watcher.measurements) == {"input"}
    watcher = SloppyMonitor(jacobian=None, hessian=None, fisher=FisherSpectrum(num_samples=16), strict=True)
    trainer(tmp_path, callbacks=[watcher], max_epochs=1).fit(Classifier(), loader())
    assert set(watcher.measurements) == {"input", "fisher", "bound"}
    assert watcher.latest["bound"].certificate.valid
