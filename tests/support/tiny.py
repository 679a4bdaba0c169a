"""Small modules and data for tests that need a Trainer."""

from __future__ import annotations

import inspect

import lightning.pytorch as lightning
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

SAFELY = {"weights_only": True} if "weights_only" in inspect.signature(lightning.Trainer.fit).parameters else {}
"""Resume as newer Lightning does when asked for: from plain numbers and tensors alone."""

CLASSES = 3
FEATURES = 6


def blobs(count: int = 48, seed: int = 0) -> TensorDataset:
    """Three noisy clusters: learnable, never perfectly."""
    rng = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (count,), generator=rng)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99)) * 1.5
    return TensorDataset(centres[targets] + torch.randn(count, FEATURES, generator=rng), targets)


class Classifier(LightningModule):
    """Dropout, BatchNorm when asked, an in-place ReLU, a logged torchmetric, momentum."""

    def __init__(self, *, batch_norm: bool = False, dropout: float = 0.0, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 8),
            nn.BatchNorm1d(8) if batch_norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(8, CLASSES),
        )
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.loss_fn = nn.CrossEntropyLoss()
        self.seen: list[float] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        loss = self.loss_fn(outputs, batch[1])
        self.accuracy(outputs, batch[1])
        self.seen.append(float(loss.detach()))
        self.log("train_loss", loss)
        self.log("train_accuracy", self.accuracy, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss_fn(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Manual(Classifier):
    """Steps the optimiser itself and returns no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class Regressor(LightningModule):
    """Float targets, no loss attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(dataset: TensorDataset | None = None, *, batch_size: int = 16, shuffle: bool = True) -> DataLoader:
    return DataLoader(blobs() if dataset is None else dataset, batch_size, shuffle=shuffle)


def trainer(
    tmp_path, *, kind=lightning.Trainer, callbacks=(), max_epochs: int = 2, logger=False, **options
) -> lightning.Trainer:
    options = {"enable_checkpointing": False, "enable_progress_bar": False, **options}
    return kind(
        max_epochs=max_epochs,
        callbacks=callbacks if not isinstance(callbacks, tuple) else list(callbacks),
        default_root_dir=tmp_path,
        logger=logger,
        accelerator="cpu",
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
