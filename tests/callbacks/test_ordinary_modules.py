"""Modules, precisions and loaders that people really use: measured, or refused with a sentence that is true."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.tiny import CLASSES, FEATURES, Classifier, blobs, loader, trainer
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from lightning_sloppy import (
    FisherSpectrum,
    HessianSpectrum,
    InputSpectrum,
    SloppyMonitor,
    Status,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*")


def monitor(**options):
    return SloppyMonitor(hessian=HessianSpectrum(k=2, num_samples=24), fisher=FisherSpectrum(num_samples=24), **options)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_every_precision_is_measured(tmp_path, precision):
    watcher = monitor(strict=True)
    host = trainer(tmp_path, callbacks=[watcher], precision=precision, max_epochs=1)
    host.fit(Classifier(), loader())
    assert watcher.latest["hessian"].precision == ("float64" if precision == "64-true" else "float32")
    assert watcher.latest["fisher"].estimates["effective_dimension"].value > 0
    certificate = watcher.measurements["bound"][-1].certificate
    assert certificate.valid == (precision != "bf16-true")


class Headless(LightningModule):
    """No forward of its own, as in Lightning's first tutorial."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(FEATURES, 2), nn.Linear(2, FEATURES)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TwoOutputs(Classifier):
    def forward(self, inputs):
        return super().forward(inputs), inputs

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0])[0], batch[1])

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("make", [Headless, TwoOutputs])
def test_without_usable_outputs_the_step_is_measured(tmp_path, make):
    hessian = HessianSpectrum(k=2, num_samples=24, strict=True)
    with pytest.warns(UserWarning, match="the Hessian is that of training_step"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(make(), loader())
    assert hessian.latest.status is Status.EXACT


class PenaltyInTraining(Classifier):
    def training_step(self, batch, batch_idx):
        extra = sum(p.square().sum() for p in self.parameters()) if self.training else 0.0
        return super().training_step(batch, batch_idx) + extra


def test_the_comparison_sees_train_mode(tmp_path):
    hessian = HessianSpectrum(k=2, num_samples=24)
    with pytest.warns(UserWarning, match="but training_step"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(PenaltyInTraining(), loader())


# Lightning warns when frozen parameters are in the optimiser already, as they are here.
class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.net[0])

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.net[0], optimizer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The provided params to be frozen.*")
@pytest.mark.parametrize("width", [8, 60], ids=["dense", "lanczos"])
@pytest.mark.filterwarnings("ignore:No PAC-Bayes bound.*")
def test_layers_that_thaw_end_the_bound_and_nothing_else(tmp_path, width):
    model = Classifier()
    model.net = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))
    watcher = monitor(strict=True)
    trainer(tmp_path, callbacks=[Unfreeze(), watcher], max_epochs=2).fit(model, loader())
    dims = [int(m.estimates["num_parameters"].value) for m in watcher.measurements["hessian"]]
    assert dims[0] == width * CLASSES + CLASSES
    assert dims[-1] == dims[0] + FEATURES * width + width
    certificates = [m.certificate for m in watcher.measurements["bound"]]
    assert certificates[0].valid
    assert any("set of trainable parameters changed" in reason for reason in certificates[-1].reasons)


def test_a_subset_sampler_is_honoured(tmp_path):
    data = blobs(60)
    chosen = SubsetRandomSampler(range(40), generator=torch.Generator().manual_seed(0))
    spectrum = InputSpectrum(strict=True)
    host = trainer(tmp_path, callbacks=[spectrum], max_epochs=1)
    host.fit(Classifier(), DataLoader(data, 8, sampler=chosen))
    assert spectrum.latest.num_samples == 40


def test_uncollated_data_are_measured_on_their_first_batches(tmp_path):
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in torch.randn(4, 8, FEATURES)]
    fisher = FisherSpectrum(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[fisher], max_epochs=1).fit(Classifier(), DataLoader(batches, batch_size=None))
    assert [(m.step, m.num_samples) for m in fisher.measurements] == [(1, 16), (3, 16)]


def test_lazy_layers_name_the_remedy(tmp_path):
    class Lazy(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))

        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    host = trainer(tmp_path, callbacks=[FisherSpectrum()], max_epochs=1)
    with pytest.warns(UserWarning, match="run one batch through it"):
        host.fit(Lazy(), loader())


def test_large_parameters_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    from lightning_sloppy.curvature import assembly
    from lightning_sloppy.linalg import eigensolver

    monkeypatch.setattr(assembly, "free_bytes", lambda device: 10_000)
    monkeypatch.setattr(eigensolver, "DENSE_LIMIT", 10)
    hessian = HessianSpectrum(k=2, num_samples=24)
    with pytest.warns(UserWarning, match="Out of memory: the basis would not fit"):
        trainer(tmp_path, callbacks=[hessian], max_epochs=1).fit(Classifier(), loader())
    assert hessian.measurements[0].status is Status.OUT_OF_MEMORY
    assert hessian.measurements[0].estimates == {}


def test_every_logger_is_named_with_the_place_of_its_values(tmp_path, caplog):
    caplog.set_level("INFO")
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    trainer(tmp_path, callbacks=[FisherSpectrum(num_samples=16)], logger=loggers, max_epochs=1).fit(
        Classifier(), loader()
    )
    summary = next(r.getMessage() for r in caplog.records if "=======" in r.getMessage())
    assert f"TensorBoardLogger: event files in {tmp_path}/tb/version_0" in summary
    assert f"CSVLogger: {tmp_path}/csv/version_0/metrics.csv" in summary


def test_regression_by_a_plain_dataset_of_float64_numbers(tmp_path):
    rng = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(40, FEATURES, generator=rng, dtype=torch.float64), torch.randint(0, CLASSES, (40,), generator=rng)
    )
    fisher = FisherSpectrum(num_samples=16, strict=True)
    trainer(tmp_path, callbacks=[fisher], precision="64-true", max_epochs=1).fit(Classifier(), DataLoader(data, 8))
    assert fisher.latest.precision == "float64"
