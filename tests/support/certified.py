"""Small fits that end with a certificate."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sloppy import FinalCertificate, LearningPlan
from lightning_sloppy.callbacks import CertifyingTrainer
from support.tiny import SAFELY, Classifier, blobs, loader, trainer

QUICK = LearningPlan(seconds=60, epochs=4, batch_size=50)


class TwoClasses(LightningModule):
    """One hidden layer, cross-entropy, Adam."""

    def __init__(self, features: int, width: int, lr: float = 1e-2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 2))
        self.lr = lr

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(LightningDataModule):
    def __init__(self, samples: TensorDataset) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> DataLoader:
        return loader(self.samples)


def fit(tmp_path, *, data=None, model=None, before=(), epochs=3, ckpt_path=None, **options) -> FinalCertificate:
    final = FinalCertificate(**{"learning": QUICK, "strict": True, **options})
    host = trainer(tmp_path, callbacks=[*before, final], max_epochs=epochs)
    given = {} if ckpt_path is None else {"ckpt_path": ckpt_path, **SAFELY}
    data = blobs(600) if data is None else data
    if isinstance(data, LightningDataModule):
        host.fit(model or Classifier(), datamodule=data, **given)
    else:
        host.fit(model or Classifier(), loader(data), **given)
    return final


def true_error(path, model=None) -> float:
    inputs, targets = blobs(4000, seed=5).tensors
    model = Classifier.load_from_checkpoint(path, **SAFELY) if model is None else model
    return float((model.eval()(inputs).argmax(1) != targets).double().mean())


def flags(final: FinalCertificate) -> tuple[str, ...]:
    return final.measurements[-1].certificate.flags


def certifying_trainer(tmp_path) -> CertifyingTrainer:
    """What ``lightning-sloppy certify`` runs, without its output."""
    return trainer(tmp_path, kind=CertifyingTrainer, max_epochs=1)
